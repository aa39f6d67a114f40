"""One micro-batch of somebody's training loop, in the loop's own words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mldm_plugin.errors import DataError

# The fields that start as None but are there when a loss that needs them is called are typed as the loss sees them.
_ABSENT: Any = None
_OF_THE_BATCH = ("base_loss", "other_loss")
_OF_EACH_IMAGE = (
    "timesteps",
    "pixel_values",
    "person_mask",
    "face_boxes",
    "keypoints",
    "sigmas",
    "base_weights",
)
_OF_EACH_STAGE = ("pred_features", "target_features")

# Noisy latents (n, C, h, w), timesteps (n,) and which images of the step they are of → the network's answer.
Predict = Callable[[Tensor, Tensor, Sequence[int]], Tensor]


@dataclass(frozen=True, eq=False)
class DiffusionStep:
    """What a loop has at hand when it has just computed its loss, plus the one-step clean estimate.

    Shapes: N images of H×W pixels, C×h×w latents. The first block is given by the host loop under the
    names of diffusers' example scripts; the last block is filled in by `LossStack`, and is what losses read.

    Args:
        latents: clean latents z₀, (N, C, h, w), scaled as the denoiser sees them.
        noise: ε, (N, C, h, w).
        noisy_latents: z_t, (N, C, h, w).
        timesteps: (N,), in the units of the noise scheduler.
        model_pred: network output, (N, C, h, w), with gradient.
        target: what the loop compares `model_pred` with, (N, C, h, w).
        base_loss: the loop's own loss, a scalar; None lets the stack compute the mean squared error.
        other_loss: the part of `base_loss` that is not the squared error of these images (prior preservation), a
            scalar. It stays in the loss as it is.
        base_weights: (N,) the loop's own factor on each image's squared error (its SNR weighting); None is 1.
        sigmas: (N,) noise levels; needed for flow matching only where `timesteps` do not tell them.
        pixel_values: the pictures, float (N, 3, H, W) in [-1, 1]; None when latents were cached.
        person_mask: (N, 1, H, W) label map: 0 background, k for the k-th person.
        face_boxes: N tensors (K_i, 4) of pixel x0, y0, x1, y1; they are clipped to the picture and boxes
            that are left without area (the [0, 0, 0, 0] of padding) are dropped. Leave them on the CPU, where they
            are looked at: each that lies on a GPU is waited for.
        keypoints: N tensors (K_i, 17, 3) of COCO's keypoints, x, y in pixels and v (0 not there, 1 hidden, 2
            visible); the k-th person is label k of the mask. On the CPU, too. None where the data set has none.
        predict: asks the network again, at other noise, about some images of the step: (n, C, h, w) noisy latents in
            the dtype of `noisy_latents`, (n,) timesteps and the n numbers of the images → (n, C, h, w), with gradient
            to its weights and to what it is asked about. Only `estimate: ddim-K` asks.
        pred_latents: ẑ₀, (N, C, h, w), with gradient to `model_pred`, or x̂₀ of several answers (ddim.py).
        pred_images: decode(ẑ₀), float32 (N, 3, H, W), not clamped, with gradient.
        target_images: what `pred_images` is compared with, float32 (N, 3, H, W), without gradient.
        pred_features: what the decoder's stages make of ẑ₀ on the way to `pred_images`, float32 (N, C_l, h_l, w_l)
            each, with gradient; only for losses that need them.
        target_features: the same of the clean latents, without gradient.

    Raises:
        DataError: shapes that do not belong together, boxes that are reversed or not finite.
    """

    latents: Tensor
    noise: Tensor
    noisy_latents: Tensor
    timesteps: Tensor
    model_pred: Tensor
    target: Tensor
    base_loss: Tensor | None = None
    other_loss: Tensor | None = None
    base_weights: Tensor | None = None
    sigmas: Tensor | None = None
    pixel_values: Tensor | None = None
    person_mask: Tensor = _ABSENT
    face_boxes: Sequence[Tensor] = _ABSENT
    keypoints: Sequence[Tensor] | None = None
    predict: Predict | None = None

    pred_latents: Tensor = _ABSENT
    pred_images: Tensor = _ABSENT
    target_images: Tensor = _ABSENT
    pred_features: tuple[Tensor, ...] = _ABSENT
    target_features: tuple[Tensor, ...] = _ABSENT

    def __post_init__(self) -> None:
        n = len(self)
        for name in ("noise", "noisy_latents", "model_pred", "target"):
            if (shape := getattr(self, name).shape) != self.latents.shape:
                raise DataError(
                    f"{name} has shape {tuple(shape)}, expected that of latents, {tuple(self.latents.shape)}: "
                    "pass tensors of the same images, unpacked to (N, C, h, w)."
                )
        for name in _OF_EACH_IMAGE:
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise DataError(f"{name} is for {len(value)} images, expected {n}, as many as latents.")
        if self.pixel_values is not None:
            _check_pictures(self.pixel_values)
        if self.person_mask is not None:
            _check_mask(self.person_mask, self.pixel_values)
        for people in self.keypoints or ():
            if people.shape[1:] != (17, 3):
                raise DataError(f"keypoints have shape {tuple(people.shape)}, expected (K, 17, 3): x, y, v each.")

    def __len__(self) -> int:
        return self.latents.shape[0]

    def select(self, rows: Sequence[int]) -> DiffusionStep:
        """The same step for the images `rows` alone. The losses of the whole batch are left out."""
        if list(rows) == list(range(len(self))):
            return self

        def pick(value: Tensor | Sequence[Tensor] | None) -> Tensor | list[Tensor] | None:
            if value is None:
                return None
            if isinstance(value, Tensor):
                return value.index_select(0, on_device(rows, value.device))
            return [value[i] for i in rows]

        predict = self.predict
        apart = (*_OF_THE_BATCH, *_OF_EACH_STAGE, "predict")
        names = [f.name for f in fields(self) if f.name not in apart]
        picked: dict[str, Any] = {name: pick(getattr(self, name)) for name in names}
        for name in _OF_EACH_STAGE:
            stages = getattr(self, name)
            picked[name] = None if stages is None else tuple(pick(stage) for stage in stages)
        if predict is not None:
            picked["predict"] = lambda noisy, timesteps, of: predict(noisy, timesteps, [rows[i] for i in of])
        return replace(self, **picked, base_loss=None, other_loss=None)


def _check_pictures(pixel_values: Tensor) -> None:
    if pixel_values.ndim != 4 or pixel_values.shape[1] != 3 or not pixel_values.is_floating_point():
        raise DataError(
            f"pixel_values is {pixel_values.dtype} {tuple(pixel_values.shape)}, expected float (N, 3, H, W) in [-1, 1]."
        )


def _check_mask(mask: Tensor, pixel_values: Tensor | None) -> None:
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise DataError(f"person_mask has shape {tuple(mask.shape)}, expected (N, 1, H, W), a label map.")
    if pixel_values is not None and mask.shape[-2:] != pixel_values.shape[-2:]:
        raise DataError(
            f"person_mask is {tuple(mask.shape[-2:])}, the pictures are {tuple(pixel_values.shape[-2:])}: "
            "resize and crop the mask with its picture."
        )


def on_device(rows: Sequence[int], device: torch.device) -> Tensor:
    """`rows` as a tensor to index by, (n,) int64. The copy is queued, so nothing waits for the device."""
    return torch.as_tensor(rows, dtype=torch.long).to(device, non_blocking=True)


def clip_boxes(boxes: Tensor | Sequence[Sequence[float]], height: int, width: int) -> Tensor:
    """Face boxes clipped to a picture; those without area inside it are dropped.

    Args:
        boxes: (K, 4) pixel x0, y0, x1, y1, finite, not reversed, as a tensor or lists. No rows is fine.
        height, width: size of the picture in pixels.

    Returns:
        (K', 4) float32 on the CPU, K' ≤ K, 0 ≤ x0 < x1 ≤ width and 0 ≤ y0 < y1 ≤ height.

    Raises:
        DataError: a box that is not finite, or reversed.
    """
    # In NumPy, for the numbers lie on the host: asking a tensor for a truth value is what waits for a device elsewhere.
    given = torch.as_tensor(boxes).detach().to("cpu", torch.float32).numpy()
    if given.size and given.shape[1:] != (4,):
        raise DataError(f"face boxes have shape {given.shape}, expected (K, 4): x0, y0, x1, y1 of each face.")
    given = given.reshape(-1, 4)
    if not np.isfinite(given).all():
        raise DataError(f"a face box is not finite: {given.tolist()}. Give x0, y0, x1, y1 in pixels.")
    if (given[:, 2:] < given[:, :2]).any():
        raise DataError(
            f"a face box is reversed: {given.tolist()}. Give x0, y0, x1, y1 with x0 <= x1, y0 <= y1, "
            "not x, y, width, height."
        )
    clipped = np.minimum(given.clip(min=0), np.array([width, height, width, height], dtype=np.float32))
    return torch.from_numpy(clipped[(clipped[:, 2:] > clipped[:, :2]).all(axis=1)])
