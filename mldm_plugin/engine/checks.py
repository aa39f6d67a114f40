"""What the host hands over, checked in its first steps: shapes alone do not show a wrong convention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mldm_plugin.engine.schedule import NoiseSchedule, pred_latents
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.engine.term import Term
from mldm_plugin.errors import CheckError

# Root mean square error of ẑ₀(target), relative to the noisy latents, that rounding explains. float32 gives 1e-7;
# bfloat16 up to 0.042, where 1 − ᾱ rounds to 0 at t = 0 and 1. A wrong schedule or prediction type stays below it
# at some timesteps, so a single step proves little, and the check is repeated.
ESTIMATE_TOLERANCE = 0.05
_LARGEST_PIXEL = 10.0  # resampling overshoots [-1, 1] a little; 0 to 255 is far outside


def check_host(schedule: NoiseSchedule, terms: Sequence[Term], step: DiffusionStep) -> None:
    """The host must hand over an output with gradient, and all that the terms need.

    Raises:
        CheckError: `model_pred` is detached although gradients are on, masks or boxes are not given at all, or
            pictures, masks or timesteps are in another range.
    """
    if terms and torch.is_grad_enabled() and not step.model_pred.requires_grad:
        raise CheckError(
            "model_pred has no gradient, so no loss could train the network: hand over the network's output itself, "
            "not a detached copy."
        )
    for need, nobody in (
        ("person_mask", "zeros for a picture without people"),
        ("face_boxes", "(0, 4) without faces"),
        ("keypoints", "(0, 17, 3) without people"),
    ):
        names = [t.name for t in terms if need in t.needs]
        if names and getattr(step, need) is None:
            raise CheckError(f"loss {names[0]!r} needs {need}, but the step has none: pass {need} ({nobody}).")
    if step.pixel_values is not None and (largest := step.pixel_values.abs().max().item()) > _LARGEST_PIXEL:
        raise CheckError(f"pixel_values reach {largest:g}, expected [-1, 1]: pass images / 127.5 - 1.")
    mask = step.person_mask
    if mask is not None and mask.is_floating_point() and not torch.equal(mask, mask.round()):
        raise CheckError(
            "person_mask has fractional labels, expected 0 for background and k for the k-th person: resize "
            "masks with nearest neighbours."
        )
    if not schedule.has(step.timesteps):
        raise CheckError(f"timesteps are {step.timesteps.tolist()}, which the noise schedule does not have.")


def estimate_errors(schedule: NoiseSchedule, step: DiffusionStep) -> tuple[float, float]:
    """How far ẑ₀(target) is from the clean latents, and the noisy latents from α z₀ + σ ε.

    Both are root mean squares relative to the noisy latents: at high noise ẑ₀ divides rounding, and at pure noise
    everything, by a small α.
    """
    with torch.no_grad(), torch.autocast(step.latents.device.type, enabled=False):
        alpha, sigma = (c[:, None, None, None] for c in schedule.coefficients(step.timesteps, step.sigmas))
        latents, noisy = step.latents.float(), step.noisy_latents.float()
        estimate = pred_latents(schedule.prediction_type, step.target.float(), noisy, alpha.clamp_min(1e-6), sigma)
        errors = torch.stack([alpha * (estimate - latents), noisy - alpha * latents - sigma * step.noise.float()])
        error, noise_error = (errors.square().mean(dim=(1, 2, 3, 4)) / noisy.square().mean()).sqrt().tolist()
    return error, noise_error


def check_estimate(schedule: NoiseSchedule, step: DiffusionStep, tolerance: float = ESTIMATE_TOLERANCE) -> None:
    """The host's target must give back its clean latents, and its noisy latents must be α z₀ + σ ε.

    Raises:
        CheckError: wrong prediction type, wrong noise schedule, wrong packing, or a base loss that is not the
            mean squared error of `model_pred` and `target`.
    """
    error, noise_error = estimate_errors(schedule, step)
    if not noise_error <= tolerance:
        raise CheckError(
            f"the noisy latents are not α·latents + σ·noise (relative error {noise_error:.2g}, expected at most "
            f"{tolerance:g}): the trainer's noise schedule is not the one given to the plugin, or the latents are "
            "packed or scaled differently."
        )
    if not error <= tolerance:
        raise CheckError(
            f"x̂0 computed from the target is not the clean latents (relative error {error:.2g}, expected at most "
            f"{tolerance:g}): the prediction type {schedule.prediction_type!r} is not what this trainer's network "
            "predicts; pass prediction_type."
        )


def check_base_loss(base_loss: Tensor, squared_error: Tensor, other_loss: Tensor | None = None) -> None:
    """The host's scalar must be the mean of what the stack takes as the plain loss of each image, and `other_loss`.

    Raises:
        CheckError: they differ; the mix of eq. 3 would subtract something that was never there.
    """
    own = squared_error.detach().mean().item()
    given = base_loss.detach().float().item() - (0.0 if other_loss is None else other_loss.detach().float().item())
    if not abs(given - own) <= 1e-2 * abs(own) + 1e-6:
        raise CheckError(
            f"base_loss is {given:.5g}, but the mean squared error of model_pred and target is {own:.5g}: pass the "
            "trainer's own factor on each image (its SNR weighting) as base_weights, or leave base_loss out."
        )
