"""Masked MSE: the plain diffusion loss on the people alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mldm_plugin import DiffusionStep, hookimpl


class MaskedMSE:
    """Squared error of the network's output on the latents that people cover.

    Σ_p M_p · mean_c (output − target)²_cp / Σ_p M_p, with M the part of each latent pixel that people cover. It is what
    other trainers offer as "masked loss": no picture is decoded and no network looks. In a convex mix of weight λ the
    people count by 1/(their share of the picture) · λ more than the rest.

    Source: the masked training of kohya's sd-scripts and OneTrainer; they multiply the error by the mask and divide by
    all pixels, here it is divided by the mask's area, so that a small person counts as much as a large one.

    Example:
        >>> import torch
        >>> z = torch.zeros(1, 4, 2, 2)
        >>> pred = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).expand(1, 4, 2, 2)
        >>> mask = torch.tensor([[1, 1], [0, 0]]).view(1, 1, 2, 2)  # covers an error of 1 and one of 0
        >>> step = DiffusionStep(
        ...     latents=z, noise=z, noisy_latents=z, timesteps=torch.tensor([10]), model_pred=pred, target=z,
        ...     person_mask=mask,
        ... )
        >>> MaskedMSE()(step)
        tensor([0.5000])
    """

    needs = frozenset({"person_mask"})

    def __call__(self, step: DiffusionStep) -> Tensor:
        """(n,) one value per image, ≥ 0; gradient to `step.model_pred`."""
        mask = (step.person_mask.to(step.model_pred.device, non_blocking=True) > 0).float()
        cover = F.interpolate(mask, step.model_pred.shape[-2:], mode="area")
        error = (step.model_pred.float() - step.target.float()).square().mean(1, keepdim=True)
        return (error * cover).sum((1, 2, 3)) / cover.sum((1, 2, 3))


@hookimpl
def register_losses(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("masked_mse", MaskedMSE)
