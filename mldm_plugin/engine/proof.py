"""Start-up checks: proof that the losses reach the network, before any training is spent.

The code released with Masked LDM decoded under `no_grad`, so its pixel losses never had a gradient, and nothing
said so. Here each active term must show a gradient at `model_pred`, the clean estimate must come back from the
target, and decoded clean latents must look like the picture. A failure stops the run.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mldm_plugin.engine.schedule import NoiseSchedule, stable_diffusion_snr
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import CheckError
from mldm_plugin.planning.tensor_memory import TensorMemory

if TYPE_CHECKING:
    from mldm_plugin.engine.stack import LossStack
    from mldm_plugin.engine.term import Term

# Encoding again in float32 differs from the host's sampled, maybe bfloat16 latents by 0.4 to 1.5 % (measured on the
# demo's VAE, black and white pictures included); a scaling_factor that is wrong by a tenth differs by 10 %. Chosen.
_LATENT_TOLERANCE = 0.05
# On the demo's pictures its VAE's reconstructions correlate by 0.96 to 1.00, random weights' by −0.06 to 0.30. Chosen.
_LEAST_LIKENESS, _FLAT = 0.5, 0.05
_PICTURES = 4  # looked at, at most
# A gradient further off than this (25°) from the VAE's own is warned about. Chosen.
_LEAST_COSINE = 0.9
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
    cosine: float | None


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
    notes = []
    with torch.autocast(step.latents.device.type, enabled=False), torch.enable_grad():
        if any("pred_images" in t.needs for t in stack.terms):
            notes.append(_check_picture(stack, step))
            stack.pixel_path.foresee_memory(step)
        terms = [t for t in stack.terms if t.name in names]
        rows = [_prove(stack, t, step.select(stack.rows_with(t, step)[:1])) for t in terms]
        if stack.pixel_path.save_memory(step):  # what was seen no longer holds
            rows = [_prove(stack, t, step.select(stack.rows_with(t, step)[:1])) for t in terms]
        if stack.pixel_path.stand_in(step) and rows:
            notes.append(_describe_cosines(stack.pixel_path.stand_in(step), rows))
        if stack.pixel_path.memory.losses:
            notes.append(stack.pixel_path.describe_memory(step))
    return _table(rows, stack.combine, [n for n in notes if n])


def _prove(stack: LossStack, term: Term, image: DiffusionStep) -> ProofRow:
    probe = _probe(stack.schedule, term, image)
    stands_in = "pred_images" in term.needs and stack.pixel_path.stand_in(image)
    if "pred_images" in term.needs:
        with stack.pixel_path.in_its_precision(image):
            value, gradient = _measure(stack, term, probe)
    else:
        value, gradient = _value_and_gradient(term, probe)
    if not torch.isfinite(value).all():
        raise CheckError(
            f"loss {term.name!r} is {value.tolist()} on a real picture at start-up, expected a finite value."
        )
    row = ProofRow(
        term.name,
        term.weight,
        term.max_timestep,
        value.mean().item(),
        0.0 if gradient is None else gradient.norm().item(),
        term.detach,
        term.remark,
        _cosine(stack, term, probe, gradient) if stands_in and not term.detach and gradient is not None else None,
    )
    if not term.detach:
        _refuse_dead(row, value)
    return row


def _value_and_gradient(term: Term, probe: DiffusionStep) -> tuple[Tensor, Tensor | None]:
    """The loss of a probe, and its gradient at the network's output."""
    value = term.evaluate(probe)
    return value, _gradient(value, probe)


def _gradient(value: Tensor, probe: DiffusionStep) -> Tensor | None:
    if not value.requires_grad:
        return None
    return torch.autograd.grad(value.sum(), probe.model_pred, allow_unused=True)[0]


def _measure(stack: LossStack, term: Term, probe: DiffusionStep) -> tuple[Tensor, Tensor | None]:
    """The same for a loss on pictures, noting the memory it took."""
    with TensorMemory() as memory:
        seen = stack.pixel_path.decode(probe)
        decoder, pixels = memory.live, math.prod(seen.pred_images.shape[-2:])
        value = term.evaluate(seen)
        del seen
        kept = memory.live
        gradient = _gradient(value, probe)
        stayed = memory.live  # weights of the loss's networks, if they have just come to the device
    faces = len(probe.face_boxes[0]) if "face_boxes" in term.needs else None
    stack.pixel_path.memory.learn(
        term.name,
        decoder=decoder,
        kept=kept - stayed,
        peak=memory.peak - stayed,
        faces=faces,
        pixels=pixels,
        share=stack.pixel_path.shares(probe)[0],
    )
    return value, gradient


def _cosine(stack: LossStack, term: Term, probe: DiffusionStep, gradient: Tensor) -> float | None:
    """Between the gradient with what stands in for the VAE, and with the VAE itself in float32."""
    if stack.decoder is None or not stack.decoder.has_exact:
        return None
    probe = replace(probe, pred_latents=stack.schedule.pred_latents(probe))
    _, exact = _value_and_gradient(term, stack.pixel_path.decode(probe, exact=True))
    return None if exact is None else torch.cosine_similarity(gradient.flatten(), exact.flatten(), dim=0).item()


def _describe_cosines(stand_in: str, rows: Sequence[ProofRow]) -> str:
    cosines = {r.term: r.cosine for r in rows if r.cosine is not None}
    text = ", ".join(f"{name} {cosine:.3f}" for name, cosine in cosines.items())
    if not cosines:
        return f"decoding by {stand_in}: not compared with the VAE in float32, which is gone, or looks at no picture"
    poor = min(cosines.values()) < _LEAST_COSINE
    return (
        f"{'warning: ' if poor else ''}decoding by {stand_in}: cosine of the gradient with that of the "
        f"VAE in float32: {text}"
    )


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
    n = min(_PICTURES, len(step))
    step = step.select(range(n))
    latents = step.latents.float()
    pictures: Any = step.pixel_values
    pictures = pictures.to(latents)
    with torch.no_grad():
        clean = [replace(one, pred_latents=one.latents.float()) for one in map(step.select, [[i] for i in range(n)])]
        decoded = torch.cat([stack.pixel_path.decode(one, exact=True).pred_images for one in clean])
        encoded = torch.cat([stack.decoder.encode(one) for one in pictures.split(1)])
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


def _table(rows: Sequence[ProofRow], combine: str, notes: Sequence[str]) -> str:
    lines = [
        f"Start-up proof ({combine} mix): gradient of each loss at the network output",
        f"  {'loss':<20} {'weight':>7} {'T':>5} {'value':>10} {'|gradient|':>11}  verdict",
    ]
    for r in rows:
        verdict = "detached by the preset: logged, trains nothing" if r.detached else "reaches the network"
        verdict += f"; {r.remark}" if r.remark else ""
        limit = "all" if r.max_timestep is None else str(r.max_timestep)
        lines.append(f"  {r.term:<20} {r.weight:>7g} {limit:>5} {r.value:>10.4g} {r.gradient:>11.3g}  {verdict}")
    lines += [f"  {note}" for note in notes]
    return "\n".join(lines)
