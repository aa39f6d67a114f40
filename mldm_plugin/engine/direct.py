"""The clean estimate after one step of the sampler, by the noise that is known: Direct-Align.

In training the noise ε in z_t = α z₀ + σ ε is known. The network takes one step, from t to t' = t − s,

    z_t' = α' ẑ₀ + σ' ε̂,

and what that step has left of the noise is taken off by the ε that is known:

    x̂₀ = (z_t' − σ' ε) / α'.

As ẑ₀ − z₀ = (σ/α)(ε − ε̂), that is x̂₀ = z₀ + ρ (ẑ₀ − z₀) with ρ = 1 − (σ'/α') / (σ/α): the one-step estimate with the
part of its error that this step is answerable for. No further call of the network is needed, in any trainer.

Source: "Directly Aligning the Full Diffusion Trajectory with Fine-Grained Human Preference" (SRPO, arXiv 2509.06942),
Direct-Align, for flow matching: x₀ = (x_t − σ_t ε)/(1 − σ_t) after a step of the model.
"""

from __future__ import annotations

import torch
from torch import Tensor


def part_of_error(alpha: Tensor, sigma: Tensor, alpha_after: Tensor, sigma_after: Tensor) -> Tensor:
    """ρ of each image, (N,): 1 where the step ends without noise, and where there was none.

    Args:
        alpha, sigma: (N,) at t.
        alpha_after, sigma_after: (N,) at t', where there is less noise and α' > 0.

    >>> half = torch.tensor([0.5])  # of a flow, from σ = 0.5 to 0.25: 1 − (0.25/0.75) / (0.5/0.5)
    >>> part_of_error(half, half, torch.tensor([0.75]), torch.tensor([0.25]))
    tensor([0.6667])
    """
    left = sigma_after * alpha / (alpha_after * sigma.clamp_min(torch.finfo(sigma.dtype).tiny))
    return torch.where(sigma > 0, 1 - left, 1.0)


def direct(latents: Tensor, estimate: Tensor, part: Tensor) -> Tensor:
    """x̂₀ = z₀ + ρ (ẑ₀ − z₀), with the gradient of ẑ₀; ẑ₀ itself, to the bit, where ρ is 1.

    Args:
        latents: z₀, (N, C, h, w).
        estimate: ẑ₀, of the same shape.
        part: ρ, (N,).
    """
    return torch.lerp(latents.to(estimate), estimate, part.to(estimate).view(-1, *[1] * (estimate.ndim - 1)))
