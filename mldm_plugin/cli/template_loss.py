"""template_loss: how far the pixels of the people are off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mldm_plugin import DiffusionStep, hookimpl


def masked_difference(predicted: Tensor, target: Tensor, mask: Tensor, power: float) -> Tensor:
    """Σ_p M_p mean_c |x̂_cp − x_cp|^power / Σ_p M_p for each image.

    Args:
        predicted: x̂, (n, 3, H, W) in about [-1, 1]; gradients flow.
        target: x, the same.
        mask: M, (n, 1, H, W), 1 on the people and 0 elsewhere.
        power: 1 for the absolute, 2 for the squared difference.

    Returns:
        (n,) ≥ 0; 0, with gradient 0, for an empty mask.
    """
    difference = (predicted - target).abs().pow(power).mean(dim=1, keepdim=True)
    return (difference * mask).flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1).clamp_min(1)


class TemplateLoss:
    """Mean difference of the pixels on the people.

    Args:
        power: 1 for the absolute, 2 for the squared difference.
    """

    # What the step must hold: pred_images (and target_images), person_mask, face_boxes; an empty set for a loss
    # on latents alone. Images without it are left out before the loss is called.
    needs = frozenset({"pred_images", "person_mask"})

    # The keyword arguments are the options of a preset: losses: {template_loss: {weight: 0.1, power: 2}}
    def __init__(self, *, power: float = 1.0) -> None:
        self.power = power

    def __call__(self, step: DiffusionStep) -> Tensor:
        """(n,) one value for each image of `step`, with gradient to `step.pred_images`."""
        mask = (step.person_mask > 0).to(step.pred_images)
        return masked_difference(step.pred_images, step.target_images, mask, self.power)


@hookimpl
def register_losses(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("template_loss", TemplateLoss)
