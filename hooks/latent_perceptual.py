"""Latent perceptual loss: the difference of people in the features of the VAE's own decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mldm_plugin import DiffusionStep, hookimpl
from mldm_plugin.perceptual.masked_distance import masked_sum

# A place whose features have less than this share of their stage's mean energy is measured by that instead, so that
# where the decoder is nearly silent no small error outweighs the picture. Chosen.
LEAST_SHARE = 0.01


def relative_error(pred: Tensor, target: Tensor) -> Tensor:
    """‖φ̂_p − φ_p‖² / ‖φ_p‖² at each place p of one stage.

    Args:
        pred: φ̂, (n, C, h, w); gradients flow.
        target: φ, the same of the clean latents; no gradient flows to it.

    Returns:
        (n, 1, h, w), ≥ 0: 0 for equal features, 1 where φ̂ says nothing.

    >>> phi = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    >>> relative_error(phi + torch.tensor([0.0, 1.0]).view(1, 2, 1, 1), phi).item()  # 1² / 5²
    0.03999999910593033
    """
    with torch.no_grad():
        energy = target.square().sum(dim=1, keepdim=True)
        floor = LEAST_SHARE * energy.mean(dim=(2, 3), keepdim=True)
        energy = energy.maximum(floor).clamp_min(torch.finfo(energy.dtype).tiny)
    return (pred - target).square().sum(dim=1, keepdim=True) / energy


def latent_perceptual(pred: Sequence[Tensor], target: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Σ_l ω_l Σ_p M_p (U_l e_l)_p / (Σ_l ω_l Σ_p M_p), e_l the relative error of stage l and ω_l = h_1/h_l.

    The upsampling U_l is never done: its adjoint brings the mask to each stage, which is exact.

    Args:
        pred, target: as in `relative_error`, one a stage, the coarsest first.
        mask: M, (n, 1, H, W) in {0, 1}, H×W at least as large as any stage.

    Returns:
        (n,) ≥ 0; 0, with gradient 0, for an empty mask.
    """
    weights = [pred[0].shape[-2] / p.shape[-2] for p in pred]
    stages = zip(weights, pred, target, strict=True)
    sums = [w * masked_sum(relative_error(p, t), mask) for w, p, t in stages]
    area = mask.sum(dim=(-2, -1)).clamp_min(1)
    return (torch.stack(sums).sum(dim=0) / (sum(weights) * area))[:, 0]


class LatentPerceptual:
    """Relative error of the decoder's features, between the estimate and the clean latents, on the people alone.

    No other network looks: the features are those that the decoder makes on its way to the picture, so there are no
    weights to fetch and no licence to mind. The clean latents are decoded once more, without gradient.

    Args:
        where: `people`, or the whole `picture` as published, which needs no masks.

    Source: Berrada et al., "Boosting Latent Diffusion with Perceptual Objectives" (ICLR 2025, arXiv 2411.04873); stages
    and ω as in the authors' code, diffusers' research_projects/lpl, with `norm_type: shared`: both features divided by
    the length of the true one at each place. Differs from it: masked to people; the sum over channels instead of their
    mean, and the weighted mean over stages, so that the value is a share; features that are far from the others are
    not cut out, they count by their relative error as all do.

    Example:
        >>> z, mask = torch.zeros(1, 4, 2, 2), torch.tensor([[1, 1], [0, 0]]).view(1, 1, 2, 2)
        >>> phi = torch.ones(1, 8, 2, 2)
        >>> step = DiffusionStep(
        ...     latents=z, noise=z, noisy_latents=z, timesteps=torch.tensor([10]), model_pred=z, target=z,
        ...     person_mask=mask, pred_features=(0.5 * phi,), target_features=(phi,), pred_images=z[:, :3],
        ... )
        >>> LatentPerceptual()(step)
        tensor([0.2500])
    """

    needs = frozenset({"pred_features", "person_mask"})

    def __init__(self, *, where: Literal["people", "picture"] = "people") -> None:
        self.where = where
        if where == "picture":
            self.needs = frozenset({"pred_features"})

    def __call__(self, step: DiffusionStep) -> Tensor:
        """(n,) one value per image, ≥ 0, 0 without people; gradient to `step.pred_features`."""
        if self.where == "picture":
            mask = torch.ones_like(step.pred_images[:, :1])
        else:
            mask = (step.person_mask.to(step.pred_images.device, non_blocking=True) > 0).to(step.pred_images.dtype)
        return latent_perceptual(step.pred_features, step.target_features, mask)


@hookimpl
def register_losses(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("latent_perceptual", LatentPerceptual)
