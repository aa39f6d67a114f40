"""What the host hands over, checked in its first steps: shapes alone do not show a wrong convention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.engine.ddim import require_predict
from mldm_plugin.engine.schedule import NoiseSchedule, pred_latents
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.engine.term import Term
from mldm_plugin.errors import CheckError

# Root mean square error of ẑ₀(target), relative to the noisy latents, with α and σ rounded as the host rounds them:
# float32 gives 1e-7, half precision up to 6e-3. A wrong prediction type gives 0.1 and more at most timesteps; a
# zero-terminal-SNR schedule in the place of Stable Diffusion's gives 0.014 at t = 100, 0.027 at 300 and 0.05 at 800. So
# a single step proves little, and the check is repeated. Chosen.
ESTIMATE_TOLERANCE = 0.02
_LARGEST_PIXEL = 10.0  # resampling overshoots [-1, 1] a little; 0 to 255 is far outside
# encode(picture) is compared with what sampling from the VAE's posterior and its half precision make of it, which are
# measured on the pictures themselves. Sums over thousands of numbers stray from their expectation by a few per cent:
# half as much again, or 2 % for a posterior without spread in float32, is no accident. Chosen.
_LATENT_MARGIN, _LEAST_LATENT_TOLERANCE = 1.5, 0.02
# The scale of latents is measured by regression, in which noise averages out, so it is held to this whatever the spread
# of the posterior is. Chosen; a VAE of another family differs by 20 % and more.
_SCALE_TOLERANCE = 0.05


def check_host(schedule: NoiseSchedule, terms: Sequence[Term], step: DiffusionStep) -> None:
    """The host must hand over an output with gradient, and all that the terms need.

    Raises:
        CheckError: `model_pred` is detached although gradients are on, masks, boxes or `predict` are not given at all
            where they are needed, or timesteps, or pictures or masks that a term needs, are in another range.
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
    needs = frozenset[str]().union(*(t.needs for t in terms))
    pictures = step.pixel_values if "pred_images" in needs else None
    if pictures is not None and (largest := pictures.abs().max().item()) > _LARGEST_PIXEL:
        raise CheckError(f"pixel_values reach {largest:g}, expected [-1, 1]: pass images / 127.5 - 1.")
    mask = step.person_mask if "person_mask" in needs else None
    if mask is not None and mask.is_floating_point() and not torch.equal(mask, mask.round()):
        raise CheckError(
            "person_mask has fractional labels, expected 0 for background and k for the k-th person: resize "
            "masks with nearest neighbours."
        )
    if terms and schedule.answers > 1:
        require_predict(step)
    if not schedule.knows(step.timesteps):
        raise CheckError(f"timesteps are {step.timesteps.tolist()}, which the noise schedule does not have.")


def estimate_errors(
    schedule: NoiseSchedule, step: DiffusionStep, prediction_type: str | None = None
) -> tuple[float, float]:
    """How far ẑ₀(target) is from the clean latents, and the noisy latents from α z₀ + σ ε.

    Both are root mean squares relative to the noisy latents: at high noise ẑ₀ divides rounding, and at pure noise
    everything, by a small α. Where the host computes in half precision, α and σ are also tried as it rounds them, and
    the better of the two counts, image by image. `prediction_type` asks about another one than the schedule's.
    """
    kind = prediction_type or schedule.prediction_type
    with torch.no_grad(), torch.autocast(step.latents.device.type, enabled=False):
        dtypes = {x.dtype for x in (step.latents, step.noisy_latents, step.target)} - {torch.float32, torch.float64}
        found = torch.stack([_errors(schedule, step, kind, dtype) for dtype in (None, *sorted(dtypes, key=str))])
        best = found[found.sum(dim=1).argmin(dim=0), :, torch.arange(len(step), device=found.device)]  # (N, 2)
        error, noise_error = best.amax(dim=0).tolist()
    return error, noise_error


def _errors(schedule: NoiseSchedule, step: DiffusionStep, kind: str, rounded: torch.dtype | None) -> Tensor:
    """(2, N) errors of ẑ₀(target) and of the noisy latents."""
    alpha, sigma = (c[:, None, None, None] for c in schedule.coefficients(step.timesteps, step.sigmas, rounded))
    latents, noisy = step.latents.float(), step.noisy_latents.float()
    estimate = pred_latents(kind, step.target.float(), noisy, alpha.clamp_min(1e-6), sigma)
    errors = torch.stack([alpha * (estimate - latents), noisy - alpha * latents - sigma * step.noise.float()])
    size = noisy.square().mean(dim=(1, 2, 3)).clamp_min(1e-12)
    return (errors.square().mean(dim=(2, 3, 4)) / size).sqrt()


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
            "trainer's own factor on each image (its SNR weighting) as base_weights (mldm_plugin.read_host_loss reads "
            "it off the loss), or leave base_loss out; combine: additive without a base weighting takes any base_loss."
        )


def encoding_fault(decoder: LatentDecoder, pictures: Tensor, latents: Tensor) -> str | None:
    """How `latents` are not those of `pictures`, in words; None if they may be.

    A host samples latents from the VAE's posterior, perhaps in half precision, and so do they differ from the mode in
    float32: by the posterior's spread, and by what rounding makes of these very pictures. Both are measured here.

    Args:
        decoder: whose encoder is still there.
        pictures: (N, 3, H, W) in [-1, 1].
        latents: (N, C, h, w) of the host, in its own precision.
    """
    half = latents.dtype in (torch.bfloat16, torch.float16)
    given, pictures = latents.detach().float(), pictures.detach().to(latents.device, torch.float32)
    with torch.no_grad(), torch.autocast(given.device.type, enabled=False):
        encoded, spread = (torch.cat(x) for x in zip(*map(decoder.encode, pictures.split(1)), strict=True))
        variance = spread.square().mean()
        if half:
            rounded = torch.cat([decoder.encode(p, torch.bfloat16)[0] for p in pictures.split(1)])
            variance = variance + (rounded - encoded).square().mean()
        size = given.square().mean().sqrt()
        error = ((encoded - given).square().mean().sqrt() / size).item()
        expected = (variance.sqrt() / size).item()
        factor = ((encoded * given).sum() / encoded.square().sum()).item()
        shift = ((given - encoded).mean(dim=(0, 2, 3)).abs().max() / size).item()
    tolerance = max(_LATENT_MARGIN * expected, _LEAST_LATENT_TOLERANCE)
    # What is left of the spread in the mean of a channel, at three standard deviations.
    drift = _SCALE_TOLERANCE + 3 * expected / (given[:, 0].numel() ** 0.5)
    if error <= tolerance and abs(factor - 1) <= drift and shift <= drift:
        return None
    return (
        f"the latents are not encode(picture) (relative error {error:.2g}, expected at most {tolerance:.2g} from this "
        f"VAE's posterior and precision; they are {factor:.3g} times as large)"
    )
