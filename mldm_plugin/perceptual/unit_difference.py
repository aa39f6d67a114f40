"""LPIPS's squared difference of two feature maps at each place, keeping nothing but the maps for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EPS = 1e-10  # lpips, normalize_tensor


def unit_normalise(features: Tensor) -> Tensor:
    """Each place's feature vector divided by its length plus `EPS`, as in lpips, (n, C, h, w).

    A place whose features are all 0 gets gradient 0, where lpips itself gives NaN (the root's slope at 0).
    """
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + EPS)


def weighted_square(features: Tensor, target: Tensor, channel_weights: Tensor) -> Tensor:
    """Σ_c w_c (f_c/(‖f‖ + ε) − t_c)² at each place.

    Autograd's own graph of this formula keeps the differences too, and its backward pass takes several maps of the
    size of `features`; here differences are made again from `features`, and the gradient is computed in place.

    Args:
        features: f, (n, C, h, w), not normalised; gradients flow.
        target: t, (n, C, h, w), unit-normalised; no gradient flows to it.
        channel_weights: w, (1, C, 1, 1), ≥ 0; no gradient flows to them.

    Returns:
        (n, 1, h, w), ≥ 0.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", eq. 1.

    >>> f, t = torch.tensor([3.0, 4.0]), torch.tensor([0.6, 1.8])
    >>> weighted_square(f.view(1, 2, 1, 1), t.view(1, 2, 1, 1), torch.full((1, 2, 1, 1), 0.5)).flatten()
    tensor([0.5000])
    """
    squared: Tensor = _WeightedSquare.apply(features, target, channel_weights)
    return squared


class _WeightedSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, target: Tensor, channel_weights: Tensor) -> Tensor:
        ctx.save_for_backward(features, target, channel_weights)
        difference = unit_normalise(features).sub_(target)
        return torch.nn.functional.conv2d(difference.square_(), channel_weights)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        """With u = ∂L/∂(f/(‖f‖ + ε)) and ℓ = ‖f‖ + ε: ∂L/∂f = u/ℓ − f Σ_c u_c f_c / (‖f‖ ℓ²)."""
        features, target, channel_weights = ctx.saved_tensors
        norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        length = norm + EPS
        gradient = (features / length).sub_(target).mul_(2 * channel_weights).mul_(upstream)
        parts = zip(gradient.chunk(4, dim=1), features.chunk(4, dim=1), strict=True)  # no product of all of it at once
        along = torch.stack([(u * f).sum(dim=1, keepdim=True) for u, f in parts]).sum(dim=0)
        along = torch.where(norm > 0, along / (norm * length**2), 0)
        return gradient.div_(length).addcmul_(features, along, value=-1), None, None
