"""Masked MSE: the plain diffusion loss on people, faces or hands alone, or on everything but them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mldm_plugin import DiffusionStep, hookimpl
from mldm_plugin.errors import DataError
from mldm_plugin.perceptual.limb_squares import hand_squares

_NEEDS = {"people": "person_mask", "faces": "face_boxes", "hands": "keypoints"}


def masked_error(error: Tensor, cover: Tensor, normalise: str) -> Tensor:
    """Σ_p M_p e_p / D of each image, D = Σ_p M_p (`area`), its mean over the images (`batch`), or all pixels (`none`).

    Args:
        error: e, (n, 1, h, w); gradients flow.
        cover: M, (n, 1, h, w), in [0, 1].

    Returns:
        (n,) ≥ 0; 0, with gradient 0, for an empty mask.

    >>> error, cover = torch.tensor([[[[4.0, 8.0]]]]), torch.tensor([[[[0.5, 0.0]]]])
    >>> [masked_error(error, cover, mode).item() for mode in ("area", "batch", "none")]
    [4.0, 4.0, 1.0]
    """
    area = cover.sum((1, 2, 3))
    divisor = {"area": area, "batch": area.mean(), "none": torch.full_like(area, error[0].numel())}[normalise]
    return (error * cover).sum((1, 2, 3)) / torch.where(divisor > 0, divisor, 1)


def hand_boxes(keypoints: Tensor) -> Tensor:
    """(M, 4) pixel x0, y0, x1, y1 around the hands of people (K, 17, 3), upright; OpenPose's."""
    centre, half = hand_squares(keypoints)[:, :3].split([2, 1], dim=1)
    return torch.cat([centre - half / 2, centre + half / 2], dim=1)


def in_boxes(boxes: Tensor, grow: float, height: int, width: int) -> Tensor:
    """(1, H, W) bool: the pixels whose centre lies in one of `boxes` (K, 4), their sides times `grow`."""
    corner, end = boxes.detach().cpu().float().view(-1, 2, 2).unbind(1)
    middle, half = (corner + end) / 2, (end - corner) / 2 * grow
    (left, top), (right, bottom) = ((middle + side * half).T[..., None] for side in (-1, 1))
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    rows, columns = (top <= y) & (y < bottom), (left <= x) & (x < right)
    return (rows[:, :, None] & columns[:, None]).any(dim=0, keepdim=True)


class MaskedMSE:
    """Squared error of the network's output on the latents that people, faces or hands cover, or that they do not.

    Σ_p M_p · mean_c (output − target)²_cp / Σ_p M_p, with M the part of each latent pixel that is covered. It is what
    other trainers offer as "masked loss": no picture is decoded and no network looks. In a convex mix of weight λ the
    people count by 1/(their share of the picture) · λ more than the rest; with λ = 1 nothing else is learnt.

    Args:
        of: `people` by their masks, `faces` by their boxes, `hands` by squares around those of the keypoints' arms.
        part: `inside` of them, or `outside`: everything but them, as for a style that is to learn no face.
        normalise: `area` divides by the mask's, so that a small person counts as much as a large one; `none` by all
            pixels, as other trainers do, so that they count by their size; `batch` by the masks' mean area over the
            images of a step that have one, so that all their masked pixels count alike.
        grow: sides of the boxes of faces and hands are multiplied by it; 1.5 takes in the hair.

    Raises:
        DataError: faces or hands, and neither pictures nor masks to tell how large their picture is.

    Source: the masked training of kohya's sd-scripts and OneTrainer; they multiply the error by the mask and divide by
    all pixels, `normalise: none`.

    Example:
        >>> z = torch.zeros(1, 4, 2, 2)
        >>> pred = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).expand(1, 4, 2, 2)
        >>> mask = torch.tensor([[1, 1], [0, 0]]).view(1, 1, 2, 2)  # covers an error of 1 and one of 0
        >>> step = DiffusionStep(
        ...     latents=z, noise=z, noisy_latents=z, timesteps=torch.tensor([10]), model_pred=pred, target=z,
        ...     person_mask=mask,
        ... )
        >>> MaskedMSE()(step), MaskedMSE(part="outside")(step)
        (tensor([0.5000]), tensor([0.]))
    """

    needs = frozenset({"person_mask"})

    def __init__(
        self,
        *,
        of: Literal["people", "faces", "hands"] = "people",
        part: Literal["inside", "outside"] = "inside",
        normalise: Literal["area", "batch", "none"] = "area",
        grow: Annotated[float, Field(gt=0)] = 1.0,
    ) -> None:
        self.of, self.part, self.normalise, self.grow = of, part, normalise, grow
        self.needs = frozenset({_NEEDS[of]})

    def __call__(self, step: DiffusionStep) -> Tensor:
        """(n,) one value per image, ≥ 0; gradient to `step.model_pred`."""
        mask = self._mask(step).to(step.model_pred.device, non_blocking=True)
        cover = F.interpolate(mask.float(), step.model_pred.shape[-2:], mode="area")
        error = (step.model_pred.float() - step.target.float()).square().mean(1, keepdim=True)
        return masked_error(error, cover if self.part == "inside" else 1 - cover, self.normalise)

    def has(self, step: DiffusionStep) -> Sequence[bool]:
        """Whether each image has some of it: keypoints may show no arm, or one whose hand is cut off."""
        if self.of != "hands":
            return [True] * len(step)
        return self._mask(step).flatten(1).any(1).tolist()

    def _mask(self, step: DiffusionStep) -> Tensor:
        """(n, 1, H, W) bool, in pixels of the pictures."""
        if self.of == "people":
            return step.person_mask > 0
        boxes: Sequence[Tensor] = step.face_boxes
        if self.of == "hands":
            boxes = [hand_boxes(people) for people in step.keypoints or ()]
        known = [x for x in (step.pixel_values, step.person_mask) if x is not None]
        if not known:
            raise DataError(f"masked_mse of {self.of} needs pixel_values or person_mask: boxes are in their pixels.")
        return torch.stack([in_boxes(of_image, self.grow, *known[0].shape[-2:]) for of_image in boxes])


@hookimpl
def register_losses(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("masked_mse", MaskedMSE)
