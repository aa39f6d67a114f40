"""Start-up checks: proof that the losses reach the network, before any training is spent.

The code released with Masked LDM decoded under `no_grad`, so its pixel losses never had a gradient, and nothing
said so. Here each active term must show a gradient at `model_pred`, the clean estimate must come back from the
target, and decoded clean latents must look like the picture. A failure stops the run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mldm_plugin.errors import CheckError
from mldm_plugin.schedule import NoiseSchedule, stable_diffusion_snr
from mldm_plugin.step import DiffusionStep

if TYPE_CHECKING:
    from mldm_plugin.stack import LossStack
    from mldm_plugin.term import Term

# Root mean square error of ẑ₀(target), relative to the noisy latents, that rounding explains. float32 gives
# 1e-7, bfloat16 latents 3e-3, float16 4e-4 (measured on Stable Diffusion's schedule, t uniform); a wrong schedule
# or prediction type gives 0.1 and more.
_ESTIMATE_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
# The probe's output differs from the target by this share of unit noise, so that every loss has a slope. Chosen.
_PROBE_ERROR = 0.1


def announce(text: str) -> None:
    """Write to standard error, on the first process of a run only."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


@dataclass(frozen=True)
class ProofRow:
    """What the gradient check saw of one term."""

    term: str
    weight: float
    max_timestep: int | None
    images: int
    value: float
    gradient: float
    detached: bool


def check_host(terms: Sequence[Term], step: DiffusionStep) -> None:
    """The host must hand over an output with gradient, and all that the terms need.

    Raises:
        CheckError: `model_pred` is detached although gradients are on, or masks or boxes are not given at all.
    """
    if terms and torch.is_grad_enabled() and not step.model_pred.requires_grad:
        raise CheckError(
            "model_pred has no gradient, so no loss could train the network: hand over the network's output itself, "
            "not a detached copy."
        )
    for need, nobody in (("person_mask", "zeros for a picture without people"), ("face_boxes", "(0, 4) without faces")):
        names = [t.name for t in terms if need in t.needs]
        if names and getattr(step, need) is None:
            raise CheckError(f"loss {names[0]!r} needs {need}, but the step has none: pass {need} ({nobody}).")


def check_estimate(schedule: NoiseSchedule, step: DiffusionStep) -> None:
    """The host's target must give back its clean latents, and its noisy latents must be α z₀ + σ ε.

    Raises:
        CheckError: wrong prediction type, wrong noise schedule, wrong packing, or a base loss that is not the
            mean squared error of `model_pred` and `target`.
    """
    with torch.no_grad(), torch.autocast(step.latents.device.type, enabled=False):
        alpha, sigma = (c[:, None, None, None] for c in schedule.coefficients(step.timesteps, step.sigmas))
        latents, noisy = step.latents.float(), step.noisy_latents.float()
        scale = noisy.square().mean().sqrt()
        # Measured in noisy latents: at high noise ẑ₀ divides rounding by a small α.
        estimate = schedule.pred_latents(replace(step, model_pred=step.target))
        error = ((alpha * (estimate - latents)).square().mean().sqrt() / scale).item()
        noise_error = ((noisy - alpha * latents - sigma * step.noise.float()).square().mean().sqrt() / scale).item()
    dtypes = {step.latents.dtype, step.noisy_latents.dtype, step.target.dtype}
    tolerance = max(_ESTIMATE_TOLERANCE.get(d, 3e-2) for d in dtypes)
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


def check_base_loss(base_loss: Tensor, squared_error: Tensor) -> None:
    """The host's scalar must be the mean of what the stack takes as the plain loss of each image.

    Raises:
        CheckError: they differ; the mix of eq. 3 would subtract something that was never there.
    """
    given, own = base_loss.detach().float().item(), squared_error.detach().mean().item()
    if not abs(given - own) <= 1e-2 * abs(own) + 1e-6:
        raise CheckError(
            f"base_loss is {given:.5g}, but the mean squared error of model_pred and target is {own:.5g}: pass the "
            "trainer's own factor on each image (its SNR weighting) as base_weights, or leave base_loss out."
        )


def prove_terms(stack: LossStack, step: DiffusionStep, names: Sequence[str]) -> str:
    """Show that each named term has a finite, non-zero gradient at the network's output.

    A probe takes the place of the network: the target plus a little noise, at a timestep inside the term's gate,
    for the first image that has what the term needs. Random numbers come from a generator of its own.

    Returns:
        The table to show.

    Raises:
        CheckError: a term that is dead or not finite, named with the reason.
        LossError: a loss that does not return one value per image.
    """
    rows = []
    with torch.autocast(step.latents.device.type, enabled=False), torch.enable_grad():
        for term in stack.terms:
            if term.name in names:
                rows.append(_prove(stack, term, step.select(stack.rows_with(term, step)[:1])))
        picture = _check_picture(stack, step) if any("pred_images" in t.needs for t in stack.terms) else None
    return _table(rows, stack.combine, picture)


def _prove(stack: LossStack, term: Term, image: DiffusionStep) -> ProofRow:
    probe = _probe(stack.schedule, term, image)
    if "pred_images" in term.needs:
        probe = stack.decode(probe)
    value = term.evaluate(probe)
    if not torch.isfinite(value).all():
        raise CheckError(
            f"loss {term.name!r} is {value.tolist()} on a real picture at start-up, expected a finite value."
        )
    gradient = _gradient(value, probe.model_pred)
    row = ProofRow(term.name, term.weight, term.max_timestep, len(image), value.mean().item(), gradient, term.detach)
    if not term.detach:
        _refuse_dead(row, value)
    return row


def _probe(schedule: NoiseSchedule, term: Term, image: DiffusionStep) -> DiffusionStep:
    """`image` at half the term's T, with an output that is wrong by a little noise."""
    middle = 500 if term.max_timestep is None else term.max_timestep // 2
    timestep = schedule.timestep_at(stable_diffusion_snr()[middle].item())
    timesteps = torch.full_like(image.timesteps, timestep)
    sigmas = None
    alpha, sigma = (c[:, None, None, None] for c in schedule.coefficients(timesteps, sigmas))
    latents = image.latents.detach().float()
    generator = torch.Generator().manual_seed(0)
    noise, error = (torch.randn(latents.shape, generator=generator).to(latents) for _ in range(2))
    target = schedule.target(latents, noise, alpha, sigma)
    step = replace(
        image,
        latents=latents,
        noise=noise,
        noisy_latents=alpha * latents + sigma * noise,
        timesteps=timesteps,
        sigmas=sigmas,
        model_pred=(target + _PROBE_ERROR * error).requires_grad_(),
        target=target,
    )
    return replace(step, pred_latents=schedule.pred_latents(step))


def _gradient(value: Tensor, model_pred: Tensor) -> float:
    if not value.requires_grad:
        return 0.0
    (gradient,) = torch.autograd.grad(value.sum(), model_pred, allow_unused=True)
    return 0.0 if gradient is None else gradient.norm().item()


def _refuse_dead(row: ProofRow, value: Tensor) -> None:
    if row.gradient > 0 and row.gradient < float("inf"):
        return
    if not value.requires_grad:
        reason = (
            "its value is cut off from the network output; look for no_grad, detach, item, numpy or an integer cast"
        )
    elif row.gradient == 0:
        reason = "its value does not change with the network output; look for clamp, round, or a mask that is empty"
    else:
        reason = "it is NaN or infinite; look for a root or a division at 0"
    raise CheckError(
        f"loss {row.term!r} would train nothing: its gradient at model_pred is {row.gradient:g}, because {reason}. "
        "Mend the loss, or set detach: true in the preset to log it only."
    )


def _check_picture(stack: LossStack, step: DiffusionStep) -> str | None:
    """decode(clean latents) must be nearer to the picture than with latents scaled wrongly."""
    if step.pixel_values is None or stack.decoder is None:
        return None
    image = step.select([0])
    pixels = step.pixel_values[:1].float().to(step.latents.device)
    errors = {}
    with torch.no_grad():
        for scale in (1.0, 0.7, 1.4, 0.0):
            decoded = stack.decoder(scale * image.latents.float())
            if decoded.shape != pixels.shape:
                raise CheckError(
                    f"the VAE decodes the latents to {tuple(decoded.shape)}, the pictures are {tuple(pixels.shape)}: "
                    "pass the trainer's own VAE."
                )
            errors[scale] = (decoded.clamp(-1, 1) - pixels).abs().mean().item()
    if errors[1.0] == min(errors.values()):
        return f"decode(clean latents) resembles the picture: mean absolute error {errors[1.0]:.3f} of 2"
    text = (
        f"decode(clean latents) does not resemble the picture: mean absolute error {errors[1.0]:.3f}, but "
        f"{min(errors.values()):.3f} with the latents times {min(errors, key=lambda s: errors[s]):g}: wrong VAE or "
        "wrong scaling_factor."
    )
    if stack.picture_check == "stop":
        raise CheckError(text + " For a VAE with random weights, set checks.picture: warn in the preset.")
    return "warning: " + text


def _table(rows: Sequence[ProofRow], combine: str, picture: str | None) -> str:
    lines = [
        f"Start-up proof ({combine} mix): gradient of each loss at the network output",
        f"  {'loss':<20} {'weight':>7} {'T':>5} {'value':>10} {'|gradient|':>11}  verdict",
    ]
    for r in rows:
        verdict = "detached by the preset: logged, trains nothing" if r.detached else "reaches the network"
        limit = "all" if r.max_timestep is None else str(r.max_timestep)
        lines.append(f"  {r.term:<20} {r.weight:>7g} {limit:>5} {r.value:>10.4g} {r.gradient:>11.3g}  {verdict}")
    if picture:
        lines.append(f"  {picture}")
    return "\n".join(lines)
