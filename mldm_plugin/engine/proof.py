"""Proof, before any training is spent, that the losses reach the network.

The code released with Masked LDM decoded under `no_grad`, so its pixel losses never had a gradient, and nothing
said so. Here each active term must show a gradient at `model_pred`, or the run stops.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mldm_plugin.engine.pictures import Pictures
from mldm_plugin.engine.schedule import NoiseSchedule, stable_diffusion_snr
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.engine.term import Term
from mldm_plugin.errors import CheckError

log = logging.getLogger(__name__)

# A gradient further off than this (25°) from the VAE's own is warned about. Chosen.
_LEAST_COSINE = 0.9
# Of a value, by which an image may differ beside another one from what it is alone: rounding is far less. Chosen.
_MIXED = 0.1
# The probe's output differs from the target by this share of unit noise, so that every loss has a slope. Chosen.
_PROBE_ERROR = 0.1


@dataclass(frozen=True)
class ProofRow:
    """What the proof saw of one term.

    Args:
        value: of the loss on the probe.
        gradient: its norm at the network's output.
        cosine: between this gradient and that with the VAE itself in float32; None where nothing stands in for it.
    """

    term: Term
    value: float
    gradient: float
    cosine: float | None


@torch.enable_grad()
def prove_term(term: Term, image: DiffusionStep, schedule: NoiseSchedule, pictures: Pictures) -> ProofRow:
    """Show that a term has a finite, non-zero gradient at the network's output, and looks at each image by itself.

    A probe takes the place of the network: the target plus a little noise, at a timestep inside the term's gate.
    Random numbers come from a generator of its own.

    Args:
        image: a step of one image that has what the term needs.

    Raises:
        CheckError: the term is dead, not finite, or mixes images; it says why.
        LossError: a loss that does not return one value per image.
    """
    probe = _probe(schedule, image, (_middle(term),))
    sees, features = "pred_images" in term.needs, "pred_features" in term.needs
    with pictures.in_its_precision(image):
        seen = pictures.of(probe, features) if sees else probe
        value, gradient = _value_and_gradient(term, seen, probe.model_pred)
        cosine = None
        if sees and gradient is not None and not term.detach and pictures.differs_by(image):
            cosine = _cosine(term, probe, gradient, schedule, pictures)
    if not torch.isfinite(value).all():
        raise CheckError(
            f"loss {term.name!r} is {value.tolist()} on a real picture at start-up, expected a finite value."
        )
    row = ProofRow(term, value.mean().item(), 0.0 if gradient is None else gradient.norm().item(), cosine)
    if not term.detach:
        _refuse_dead(row, value)
        _refuse_mixing(term, image, schedule, pictures)
    return row


def _value_and_gradient(term: Term, step: DiffusionStep, output: Tensor) -> tuple[Tensor, Tensor | None]:
    """The loss of a step, and its gradient at the network's output."""
    value, _ = term.evaluate(step)
    if not value.requires_grad:
        return value, None
    return value, torch.autograd.grad(value.sum(), output, allow_unused=True)[0]


def _cosine(
    term: Term, probe: DiffusionStep, gradient: Tensor, schedule: NoiseSchedule, pictures: Pictures
) -> float | None:
    """Between the gradient with what stands in for the VAE, and with the VAE itself in float32."""
    if not pictures.fitting(probe).exact.can_decode:
        return None
    probe = replace(probe, pred_latents=schedule.pred_latents(probe))
    seen = pictures.exactly(probe, "pred_features" in term.needs)
    _, exact = _value_and_gradient(term, seen, probe.model_pred)
    return None if exact is None else torch.cosine_similarity(gradient.flatten(), exact.flatten(), dim=0).item()


@torch.no_grad()
def _refuse_mixing(term: Term, image: DiffusionStep, schedule: NoiseSchedule, pictures: Pictures) -> None:
    """An image at the term's T and one at half of it: each must be worth what it is alone, in either order.

    WithAnyone's released code (arXiv 2510.14975) asks of the first image alone whether a loss applies, and so takes
    others with it, or leaves them out.
    """
    top = 999 if term.max_timestep is None else term.max_timestep
    probe = _probe(schedule, image.select([0, 0]), (top, _middle(term)))
    with pictures.in_its_precision(image):
        probe = _seen_alone(term, probe, pictures)
        alone = torch.cat([term.evaluate(probe.select([row]))[0] for row in (0, 1)])
        both, swapped = term.evaluate(probe)[0], term.evaluate(probe.select([1, 0]))[0].flip(0)
        if _alike(both, alone) and _alike(swapped, alone):
            return
        if not _alike(term.evaluate(probe)[0], both):
            log.warning("loss %r draws random numbers: whether it mixes images was not checked.", term.name)
            return
    raise CheckError(
        f"loss {term.name!r} mixes images: two at different noise levels are worth {alone.tolist()} each alone, "
        f"{both.tolist()} in one batch and {swapped.tolist()} in the other order. Compute each image from itself; look "
        "for timesteps[0], and for a mean or a sum over the batch."
    )


def _seen_alone(term: Term, probe: DiffusionStep, pictures: Pictures) -> DiffusionStep:
    """`probe` with its pictures, decoded one at a time, since a run may have memory for no more."""
    if "pred_images" not in term.needs:
        return probe
    features = "pred_features" in term.needs
    rows = [pictures.of(probe.select([row]), features) for row in range(len(probe))]
    names = ("pred_images", "target_images")
    seen: dict[str, Any] = {name: torch.cat([getattr(row, name) for row in rows]) for name in names}
    for name in ("pred_features", "target_features") if features else ():
        seen[name] = tuple(map(torch.cat, zip(*(getattr(row, name) for row in rows), strict=True)))
    return replace(probe, **seen)


def _alike(some: Tensor, others: Tensor) -> bool:
    return bool(((some - others).abs() <= _MIXED * torch.maximum(some.abs(), others.abs())).all())


def _middle(term: Term) -> int:
    return 500 if term.max_timestep is None else term.max_timestep // 2


def _probe(schedule: NoiseSchedule, image: DiffusionStep, levels: Sequence[int]) -> DiffusionStep:
    """`image`, one each of `levels` of Stable Diffusion's schedule, with outputs that are wrong by a little noise."""
    snr = stable_diffusion_snr()
    places = zip(levels, image.timesteps.split(1), strict=True)
    timesteps = torch.cat([schedule.timesteps_at(snr[level].item(), like) for level, like in places])
    alpha, sigma = (c[:, None, None, None] for c in schedule.coefficients(timesteps))
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
        sigmas=None,
        model_pred=(target + _PROBE_ERROR * error).requires_grad_(),
        target=target,
        predict=None,
    )
    return replace(step, pred_latents=schedule.pred_latents(step))


def _refuse_dead(row: ProofRow, value: Tensor) -> None:
    if 0 < row.gradient < float("inf"):
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
        f"loss {row.term.name!r} would train nothing: its gradient at model_pred is {row.gradient:g}, because "
        f"{reason}. Mend the loss, or set detach: true in the preset to log it only."
    )


def describe_cosines(stand_in: str, rows: Sequence[ProofRow]) -> str:
    """How far the gradients with `stand_in` are from those with the VAE in float32, for the start-up table."""
    cosines = {r.term.name: r.cosine for r in rows if r.cosine is not None}
    if not cosines:
        return f"decoding by {stand_in}: not compared with the VAE in float32, which is gone, or looks at no picture"
    poor = "warning: " if min(cosines.values()) < _LEAST_COSINE else ""
    text = ", ".join(f"{name} {cosine:.3f}" for name, cosine in cosines.items())
    return f"{poor}decoding by {stand_in}: cosine of the gradient with that of the VAE in float32: {text}"


def proof_table(rows: Sequence[ProofRow], combine: str, notes: Sequence[str]) -> str:
    """The start-up table."""
    lines = [
        f"Start-up proof ({combine} mix): gradient of each loss at the network output",
        f"  {'loss':<20} {'weight':>7} {'T':>5} {'value':>10} {'|gradient|':>11}  verdict",
    ]
    for row in rows:
        term = row.term
        verdict = "detached by the preset: logged, trains nothing" if term.detach else "reaches the network"
        verdict += f"; {term.remark}" if term.remark else ""
        limit = "all" if term.max_timestep is None else str(term.max_timestep)
        lines.append(
            f"  {term.name:<20} {term.weight:>7g} {limit:>5} {row.value:>10.4g} {row.gradient:>11.3g}  {verdict}"
        )
    return "\n".join(lines + [f"  {note}" for note in notes if note])
