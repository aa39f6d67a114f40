"""DINO loss: what patches of people mean to a network that learnt without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mldm_plugin import DiffusionStep, hookimpl
from mldm_plugin.perceptual.dinov2 import PATCH, DINOFeatures, weight_files


def patch_distance(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Σ_q A_q (1 − cos(f̂_q, f_q)) / Σ_q A_q over the patches q, A_q the part of q that is covered.

    Args:
        pred: f̂, (n, C, h, w); gradients flow.
        target: f, the same of the photograph.
        mask: (n, 1, H, W) in {0, 1}.

    Returns:
        (n,) in [0, 2]: 0 for features of the same direction; 0, with gradient 0, for an empty mask.

    >>> f = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)
    >>> patch_distance(f, f.flip(3), torch.tensor([1.0, 0.0]).view(1, 1, 1, 2))  # orthogonal, on the left patch alone
    tensor([1.])
    """
    cover = F.interpolate(mask, pred.shape[-2:], mode="area")[:, 0]
    distance = 1 - F.cosine_similarity(pred, target, dim=1)
    # An area that is not empty is at least a pixel's, so nothing but an empty one is held up here.
    least = 1 / (mask.shape[-2] * mask.shape[-1])
    return (cover * distance).sum(dim=(1, 2)) / cover.sum(dim=(1, 2)).clamp_min(least)


class Dino:
    """Cosine distance of DINOv2's features of patches, between estimate and photograph, on the people.

    A patch's feature says what is there and which part of it, more than how it looks: LPIPS sees texture, this sees
    limbs and their arrangement. Each feature has seen the whole picture, so what is outside people has a part in it.

    Args:
        where: `people`, or the whole `picture` as published, which needs no masks.
        weights: `pretrained` is DINOv2 ViT-S/14, `random` a small seeded network for tests.
        size: pixels that the shorter side of the picture is brought to, in whole patches of 14.

    Raises:
        WeightsError: pretrained weights that cannot be had.

    Source: "PixelGen" (arXiv 2602.02493), its P-DINO: the cosine of patches of DINOv2's last layer, at 0.01 beside
    LPIPS at 0.1. Differs: masked to people; ViT-S for ViT-B, which is four times as large; on decoded latents.

    Example:
        >>> z, mask = torch.zeros(1, 4, 4, 4), torch.ones(1, 1, 28, 28)
        >>> step = DiffusionStep(
        ...     latents=z, noise=z, noisy_latents=z, timesteps=torch.tensor([10]), model_pred=z, target=z,
        ...     person_mask=mask, pred_images=torch.ones(1, 3, 28, 28), target_images=torch.ones(1, 3, 28, 28),
        ... )
        >>> bool(Dino(weights="random", size=28)(step).abs() < 1e-6)
        True
    """

    needs = frozenset({"pred_images", "person_mask"})
    weight_files = staticmethod(weight_files)
    random_is_smaller = True  # so what it costs is not told by it

    def __init__(
        self,
        *,
        where: Literal["people", "picture"] = "people",
        weights: Literal["pretrained", "random"] = "pretrained",
        size: Annotated[int, Field(ge=PATCH)] = 224,
    ) -> None:
        self.where, self.features = where, DINOFeatures(weights, size)
        self.networks = self.features.networks
        if where == "picture":
            self.needs = frozenset({"pred_images"})

    def __call__(self, step: DiffusionStep) -> Tensor:
        """(n,) one value per image, 0 without people; gradient to `step.pred_images`."""
        images = step.pred_images
        if self.where == "picture":
            mask = torch.ones_like(images[:, :1])
        else:
            mask = (step.person_mask.to(images.device, non_blocking=True) > 0).to(images.dtype)
        with torch.no_grad():
            target = self.features(step.target_images)
        return patch_distance(self.features(images), target, mask)


@hookimpl
def register_losses(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("dino", Dino)
