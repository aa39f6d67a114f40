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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mldm_plugin.errors import CheckError
from mldm_plugin.schedule import NoiseSchedule, stable_diffusion_snr
from mldm_plugin.step import DiffusionStep

if TYPE_CHECKING:
    from mldm_plugin.stack import LossStack
    from mldm_plugin.term import Term

# Encoding again in float32 differs from the host's sampled, maybe bfloat16 latents by 0.4 to 1.5 % (measured on the
# demo's VAE, black and white pictures included); a scaling_factor that is wrong by a tenth differs by 10 %. Chosen.
_LATENT_TOLERANCE = 0.05
# On the demo's pictures its VAE's reconstructions correlate by 0.96 to 1.00, random weights' by −0.06 to 0.30. Chosen.
_LEAST_LIKENESS, _FLAT = 0.5, 0.05
_PICTURES = 4  # looked at, at most
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
    value: float
    gradient: float
    detached: bool
    remark: str


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
    row = ProofRow(term.name, term.weight, term.max_timestep, value.mean().item(), gradient, term.detach, term.remark)
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
    """The clean latents must be those of the pictures, and decode to something that resembles them."""
    if step.pixel_values is None or stack.decoder is None or not stack.decoder.can_encode:
        return None
    step = step.select(range(min(_PICTURES, len(step))))
    latents = step.latents.float()
    pictures: Any = step.pixel_values
    pictures = pictures.to(latents)
    with torch.no_grad():
        decoded = stack.decode(replace(step, pred_latents=latents)).pred_images
        encoded = stack.decoder.encode(pictures)
    error = _distance(encoded, latents)
    likeness = min(_correlation(d.clamp(-1, 1), p) for d, p in zip(decoded, pictures, strict=True))
    if error <= _LATENT_TOLERANCE and likeness >= _LEAST_LIKENESS:
        distance = (decoded.clamp(-1, 1) - pictures).abs().mean().item()
        return f"decode(clean latents) resembles the picture: mean absolute error {distance:.3f} of 2"
    factor = ((encoded * latents).sum() / encoded.square().sum()).item()
    text = (
        f"decode(clean latents) does not resemble the picture (correlation {likeness:.2f}, expected at least "
        f"{_LEAST_LIKENESS:g}) or the latents are not encode(picture) (relative error {error:.2f}, expected at most "
        f"{_LATENT_TOLERANCE:g}; they are {factor:.3g} times as large): wrong VAE, wrong scaling_factor or shift, or "
        "pictures that are not RGB in [-1, 1]."
    )
    if stack.picture_check == "stop":
        raise CheckError(text + " For a VAE with random weights, set checks.picture: warn in the preset.")
    return "warning: " + text


def check_encoding(stack: LossStack, step: DiffusionStep) -> None:
    """The clean latents of a later step must be those of its pictures, too.

    A loop may turn pictures over on the way, or read cached latents in another order than its pictures.

    Raises:
        CheckError: they are not.
    """
    if step.pixel_values is None or stack.decoder is None or not stack.decoder.can_encode:
        return
    pictures, latents = step.pixel_values[:_PICTURES].float(), step.latents[:_PICTURES].float()
    with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
        error = _distance(stack.decoder.encode(pictures.to(latents.device)), latents)
    if error > _LATENT_TOLERANCE:
        raise CheckError(
            f"the clean latents are not those of the step's pictures (relative error {error:.2f}, expected at most "
            f"{_LATENT_TOLERANCE:g}), though those of the first step were: pictures or latents are changed, or mixed "
            "up, inside the loop, so masks would lie elsewhere."
        )


def _distance(encoded: Tensor, latents: Tensor) -> float:
    """Root mean square difference relative to the latents."""
    return ((encoded - latents).square().mean() / latents.square().mean()).sqrt().item()


def _correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's correlation of two pictures; 1 for a picture that is nearly flat, which has no likeness to lose."""
    if other.std() < _FLAT:
        return 1.0
    return torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].nan_to_num(0.0).item()


def _table(rows: Sequence[ProofRow], combine: str, picture: str | None) -> str:
    lines = [
        f"Start-up proof ({combine} mix): gradient of each loss at the network output",
        f"  {'loss':<20} {'weight':>7} {'T':>5} {'value':>10} {'|gradient|':>11}  verdict",
    ]
    for r in rows:
        verdict = "detached by the preset: logged, trains nothing" if r.detached else "reaches the network"
        verdict += f"; {r.remark}" if r.remark else ""
        limit = "all" if r.max_timestep is None else str(r.max_timestep)
        lines.append(f"  {r.term:<20} {r.weight:>7g} {limit:>5} {r.value:>10.4g} {r.gradient:>11.3g}  {verdict}")
    if picture:
        lines.append(f"  {picture}")
    return "\n".join(lines)
