"""The clean estimate after several answers of the network: DDIM's steps from t to 0, with the gradient of every answer.

K answers are asked for at timesteps that lie evenly between t and 0, t_k = t (K − k)/K for k = 0 … K − 1. The first is
the host's own output. Each gives a clean estimate ẑ₀ of the noisy latents z that it was asked about, and DDIM without
noise of its own (η = 0) goes on from there to the next timestep,

    z' = α' ẑ₀ + σ' ε̂,   ε̂ = (z − α ẑ₀)/σ.

x̂₀ is the estimate of the last answer; with K = 1 it is the one-step estimate.

What the network computes in the answers after the first is not kept but computed again in the backward pass, one answer
after the other, so that memory does not grow with K. Random numbers are drawn the same again there.

Source: Song et al., "Denoising Diffusion Implicit Models" (arXiv 2010.02502), eq. 12 with σ_t = 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mldm_plugin.engine.step import DiffusionStep, Predict
from mldm_plugin.errors import CheckError

# How far an answer may be from the host's output to the same question, relative to it. In float32 a batch of other
# images changes the last digits (TF32: 1e-3), in half precision one in a hundred. Another caption changes the answer of
# a trained network by several times that. Chosen.
_ALIKE, _ALIKE_IN_HALF = 5e-3, 3e-2


def ddim_step(
    estimate: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor, alpha_after: Tensor, sigma_after: Tensor
) -> Tensor:
    """z', from the noisy latents z and their clean estimate; α' ẑ₀ where there is no noise.

    Args:
        estimate, noisy: ẑ₀ and z, (N, C, h, w); gradients flow from the result to both.
        alpha, sigma, alpha_after, sigma_after: (N, 1, 1, 1).

    >>> one = torch.ones(1, 1, 1, 1)  # ε̂ = (2 − 0.8)/0.6 = 2, so 0.96 + 0.28 · 2
    >>> round(ddim_step(one, 2 * one, 0.8 * one, 0.6 * one, 0.96 * one, 0.28 * one).item(), 4)
    1.52
    """
    kept = torch.where(sigma > 0, sigma_after / sigma.clamp_min(torch.finfo(sigma.dtype).tiny), 0.0)
    return alpha_after * estimate + kept * (noisy - alpha * estimate)


def require_predict(step: DiffusionStep) -> Predict:
    """What asks the network again; raises CheckError where it cannot be asked."""
    if step.predict is None:
        raise CheckError(
            "estimate: ddim-K asks the network again, but the step has no predict: pass predict "
            "(docs/training_loop.md), or use estimate: one_step."
        )
    return step.predict


def check_answers(step: DiffusionStep, rows: Sequence[int]) -> str:
    """Whether the network that is asked again is the one that gave the output, with its gradient; in words.

    Asked again about noisy latents of these images as they are, it must say what the host's output says, with a
    gradient to its weights, and one to the latents it is asked about: that is how a loss on a later answer reaches the
    earlier ones. The generators of random numbers are left as they were.

    Raises:
        CheckError: it is not.
    """
    noisy, device = step.noisy_latents, step.noisy_latents.device
    seen = step.select(rows)
    with torch.enable_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        answer = _ask(step, seen.noisy_latents.detach(), seen.timesteps, rows)
        trains, answer = answer.requires_grad, answer.detach()
        asked = seen.noisy_latents.detach().requires_grad_()
        again = _ask(step, asked, seen.timesteps, rows)
        gradient = None
        if again.requires_grad:
            (gradient,) = torch.autograd.grad(again.float().square().sum(), asked, allow_unused=True)
    _refuse_lost(trains, gradient)
    half = noisy.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(device.type)
    limit = _ALIKE_IN_HALF if half else _ALIKE
    apart, random = (_distance(answer, other.detach()) for other in (seen.model_pred, again))
    if random > limit:
        return "warning: the network draws random numbers, so whether it is the same when asked again was not checked"
    if not apart <= limit:
        raise CheckError(
            f"asked again about the same noisy latents, the network's answer differs from its output by {apart:.2g} of "
            f"it, expected at most {limit:g}: `predict` must ask the network that is trained, with the captions and "
            "hints of the images it is given, as the loop does."
        )
    return (
        f"asked again about the same, the network answers the same (relative difference {apart:.2g}), with a gradient"
    )


def _ask(step: DiffusionStep, noisy: Tensor, timesteps: Tensor, rows: Sequence[int]) -> Tensor:
    answer = require_predict(step)(noisy, timesteps, rows)
    if answer.shape != noisy.shape:
        raise CheckError(
            f"`predict` gave {tuple(answer.shape)} for noisy latents {tuple(noisy.shape)}: expected those."
        )
    return answer


def _distance(one: Tensor, other: Tensor) -> float:
    """Of the image that is furthest from its other, relative to that."""
    gap, size = ((x.float()).flatten(1).norm(dim=1) for x in (one - other, other))
    return (gap / size.clamp_min(torch.finfo(torch.float32).tiny)).max().item()


def _refuse_lost(trains: bool, gradient: Tensor | None) -> None:
    found = gradient is not None and bool(gradient.isfinite().all() & gradient.any())
    for what, lost in (("its weights", not trains), ("the noisy latents it is asked about", not found)):
        if lost:
            raise CheckError(
                f"asked again, the network's answer has no finite gradient to {what}, so losses on it would not train "
                "what they measure: look for no_grad, detach or a frozen copy in `predict`, or use estimate: one_step."
            )
