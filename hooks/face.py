"""Face loss: the difference of faces in the eyes of a face recognition network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import DataError, PresetError
from mldm_plugin.hookspecs import hookimpl
from mldm_plugin.perceptual.face_crops import crop_faces, largest
from mldm_plugin.perceptual.face_networks import FaceFeatures

LayerWeight = Annotated[float, Field(ge=0)]


def face_distance(
    pred: Sequence[Tensor],
    target: Sequence[Tensor],
    layer_weights: Sequence[float],
    image_index: Tensor,
    images: int,
    form: Literal["spatial", "features"] = "spatial",
) -> Tensor:
    """Weighted mean absolute difference of the features of each image's faces.

    `features`: L_i = Σ_k Σ_l α_l · mean|FE^l(ĉ_k) − FE^l(c_k)|, k over the faces of image i, the mean over
    channels and pixels of stage l. `spatial`: the same divided by the number of faces, so that a crowd
    weighs no more than a portrait.

    Args:
        pred: L stages (K, C_l, H_l, W_l) of all predicted faces; gradients flow.
        target: the same of the true faces.
        layer_weights: L factors α_l.
        image_index: (K,) which image each face is from.
        images: their number n.
        form: `spatial` or `features`.

    Returns:
        (n,) ≥ 0, in units of the features; 0 for an image without faces.

    Source: "Improving Latent Diffusion with Perceptual Mask-Aware Loss", eq. 1; its norm is read as in the
    released code, mean absolute difference. That code sums over all faces; `spatial` averages an image's.

    Example:
        >>> faces = [torch.tensor([1.0, 3.0, 5.0]).view(3, 1, 1, 1)]
        >>> face_distance(faces, [torch.zeros(3, 1, 1, 1)], [0.5], torch.tensor([0, 0, 2]), images=3)
        tensor([1.0000, 0.0000, 2.5000])
    """
    pairs = zip(layer_weights, pred, target, strict=True)
    per_face = sum(alpha * (p - t).abs().flatten(1).mean(dim=1) for alpha, p, t in pairs)
    total = pred[0].new_zeros(images).index_add(0, image_index, per_face)
    if form == "features":
        return total
    return total / torch.bincount(image_index, minlength=images).clamp(min=1)


class Face:
    """Face loss of Masked LDM on the face boxes of each image.

    Both pictures are cropped by the same boxes. Time and memory grow with the number of faces; `max_faces`
    bounds them, and never parts a predicted face from its true one.

    Args:
        form: `spatial`, the mean over the faces of an image, or `features`, their sum (eq. 1).
        network: `vggface2_resnet50`, as published, or `vggface2_inception` (FaceNet).
        weights: `pretrained`, or `random` (seeded, for tests and demos).
        layer_weights: α_l of the five stages; null takes the network's own.
        max_faces: at most so many faces of an image, the largest ones; null takes all.

    Raises:
        PresetError: layer weights or a number of faces that make no sense.
        WeightsError: pretrained weights that cannot be had.

    Source: "Improving Latent Diffusion with Perceptual Mask-Aware Loss", eq. 1; its released code for stages
    and α. Differs from that code: the network's own input (it was fed RGB in [-1, 1] at 254 px), whole faces
    (foreheads and chins were cut), pairs capped as pairs, the mean over faces, no gradient of the target.

    Example:
        >>> pred = torch.zeros(1, 3, 32, 32, requires_grad=True)
        >>> z = torch.zeros(1, 4, 4, 4)
        >>> step = DiffusionStep(
        ...     latents=z, noise=z, noisy_latents=z, timesteps=torch.tensor([10]), model_pred=z, target=z,
        ...     face_boxes=[torch.tensor([[8.0, 8.0, 24.0, 28.0]])],
        ...     pred_images=pred, target_images=torch.full((1, 3, 32, 32), 0.1),
        ... )
        >>> loss = Face(weights="random")(step)
        >>> loss.shape, bool(loss > 0)
        (torch.Size([1]), True)
    """

    needs = frozenset({"pred_images", "face_boxes"})

    def __init__(
        self,
        *,
        form: Literal["spatial", "features"] = "spatial",
        network: Literal["vggface2_resnet50", "vggface2_inception"] = "vggface2_resnet50",
        weights: Literal["pretrained", "random"] = "pretrained",
        layer_weights: tuple[LayerWeight, LayerWeight, LayerWeight, LayerWeight, LayerWeight] | None = None,
        max_faces: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        if layer_weights is not None and not _sensible(layer_weights):
            raise PresetError(f"layer_weights is {layer_weights}, expected five finite numbers ≥ 0, not all 0.")
        if max_faces is not None and max_faces < 1:
            raise PresetError(f"max_faces is {max_faces}, expected at least 1; leave it out to take all faces.")
        self.form, self.max_faces = form, max_faces
        self.features = FaceFeatures(network, weights)
        self.layer_weights = layer_weights or self.features.layer_weights

    def __call__(self, step: DiffusionStep) -> Tensor:
        """(n,) values for the images of `step`, with gradient to `pred_images`."""
        pred, target, boxes = step.pred_images, step.target_images, step.face_boxes
        if pred is None or target is None or boxes is None:
            raise DataError("The face loss needs pred_images, target_images and face_boxes: LossStack fills them in.")
        boxes = [largest(b, self.max_faces) for b in boxes]
        crops, image_index = crop_faces(pred, boxes, self.features.size)
        if not len(crops):
            return pred[:, :0].sum(dim=(1, 2, 3))  # zeros, with a gradient of zeros
        with torch.no_grad():
            target_features = self.features(crop_faces(target, boxes, self.features.size)[0])
        pred_features = self.features(crops)
        return face_distance(pred_features, target_features, self.layer_weights, image_index, len(pred), self.form)


def _sensible(layer_weights: Sequence[float]) -> bool:
    finite = all(map(math.isfinite, layer_weights))
    return len(layer_weights) == 5 and finite and min(layer_weights) >= 0 and sum(layer_weights) > 0


@hookimpl
def register_losses(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("face", Face)
