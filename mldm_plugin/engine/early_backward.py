"""The losses on the gated images of a step, a few images at a time, each with its gradient taken at once.

Decoding with gradient keeps several gigabytes of activations a picture. So the images that some loss applies to go
through decoder and losses in small groups, and as soon as a group has its values, their gradient at the network's
output is computed and the activations are freed. The host's backward pass then finds that gradient ready. Nothing is
computed twice for it, and the memory is that of one group, however many images are gated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mldm_plugin.decode.pixel_path import PixelPath
from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.engine.term import Term


@dataclass
class TermValues:
    """What one term gave on its gated images.

    Attributes:
        rows: which images of the step.
        values: (n,) float32, detached.
        finite: whether each value is finite.
        gradient_finite: whether each image's gradient is finite; True where none was asked for.
    """

    rows: list[int]
    values: Tensor
    finite: list[bool]
    gradient_finite: list[bool]

    @property
    def gradients_finite(self) -> bool:
        """Whether every finite value has a finite gradient."""
        return all(g for f, g in zip(self.finite, self.gradient_finite, strict=True) if f)

    @property
    def used(self) -> list[bool]:
        """Which of the images enter the mix."""
        return [f and g for f, g in zip(self.finite, self.gradient_finite, strict=True)]


@dataclass
class Evaluation:
    """What all terms gave on one step.

    Attributes:
        terms: by name, those with a gated image.
        gradient: ∂(Σ_ij w_ij L_ij / N)/∂model_pred, float32 (N, C, h, w); None where no gradient was asked for.
    """

    terms: dict[str, TermValues]
    gradient: Tensor | None


def evaluate(
    terms: Sequence[Term],
    step: DiffusionStep,
    gates: dict[str, list[int]],
    schedule: NoiseSchedule,
    pixel_path: PixelPath,
) -> Evaluation:
    """Every term on its gated images.

    A value or a gradient that is not finite is left out, image by image: the gradient is then computed again without
    those, which is rare. Values are synchronised with the device once, at the end.

    Args:
        terms: those of the preset.
        step: N images.
        gates: by term, the rows it applies to.
        schedule: for ẑ₀.
        pixel_path: gives a step its pictures, and says how many to decode together.

    Raises:
        LossError: a loss that fails or returns something else than one value per image.
    """
    found = _evaluate(terms, step, gates, schedule, pixel_path)
    if all(given.gradients_finite for given in found.terms.values()):
        return found
    rest = gates | {name: [r for r, u in zip(g.rows, g.used, strict=True) if u] for name, g in found.terms.items()}
    return Evaluation(found.terms, _evaluate(terms, step, rest, schedule, pixel_path).gradient)


def _evaluate(
    terms: Sequence[Term],
    step: DiffusionStep,
    gates: dict[str, list[int]],
    schedule: NoiseSchedule,
    pixel_path: PixelPath,
) -> Evaluation:
    active = [t for t in terms if gates[t.name]]
    trains = torch.is_grad_enabled() and step.model_pred.requires_grad and not all(t.detach for t in active)
    gradient = torch.zeros_like(step.model_pred, dtype=torch.float32) if trains else None
    parts: dict[str, list[_Part]] = {t.name: [] for t in active}

    def run(group: list[int], of: list[Term], prepare: Callable[[DiffusionStep], DiffusionStep]) -> None:
        seen = _with_output_as_leaf(step.select(group), schedule, trains)
        prepared = prepare(seen)
        own_parts, total = [], torch.zeros((), device=step.latents.device)
        for term in of:
            if places := [i for i, r in enumerate(group) if r in gates[term.name]]:
                part = _Part.of(term, prepared.select(places), [group[i] for i in places])
                total = total + part.counted * term.weight / len(step)
                parts[term.name].append(part)
                own_parts.append((part, places))
        if gradient is not None and total.requires_grad:
            (own,) = torch.autograd.grad(total, seen.model_pred, allow_unused=True)
            if own is not None:
                finite = _finite_rows(own)  # the decoder's own backward pass may overflow too
                gradient[group] += torch.where(finite[:, None, None, None], own, 0)
                for part, places in own_parts:
                    part.guard.finite.append(finite[places])

    with torch.set_grad_enabled(trains):
        of_pictures = [t for t in active if "pred_images" in t.needs]
        for group in pixel_path.groups(step, sorted({r for t in of_pictures for r in gates[t.name]})):
            run(group, of_pictures, pixel_path.decode)
        of_latents = [t for t in active if "pred_images" not in t.needs]
        if rows := sorted({r for t in of_latents for r in gates[t.name]}):
            run(rows, of_latents, lambda seen: seen)
    return Evaluation(_join(parts), gradient)


def _finite_rows(tensor: Tensor) -> Tensor:
    """(n,) bool of (n, …)."""
    return torch.isfinite(tensor).flatten(1).all(dim=1)


def with_gradient(value: Tensor, model_pred: Tensor, gradient: Tensor | None) -> Tensor:
    """`value`, a scalar without graph, as a function of `model_pred` whose gradient is known already."""
    return value if gradient is None or not model_pred.requires_grad else _Known.apply(model_pred, value, gradient)


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, model_pred: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = model_pred.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (upstream * gradient).to(ctx.dtype), None, None


def _with_output_as_leaf(step: DiffusionStep, schedule: NoiseSchedule, trains: bool) -> DiffusionStep:
    """`step` cut off from the host's graph at the network's output."""
    leaf = step.model_pred.detach().float().requires_grad_(trains)
    step = replace(step, model_pred=leaf, base_loss=None, other_loss=None)
    return replace(step, pred_latents=schedule.pred_latents(step))


@dataclass
class _Part:
    """A term on the images of one group."""

    rows: list[int]
    values: Tensor
    counted: Tensor  # the sum of the finite values, with gradient
    guard: _Guard

    @classmethod
    def of(cls, term: Term, step: DiffusionStep, rows: list[int]) -> _Part:
        guard = _Guard()
        values = term.evaluate(step if term.detach else guard.watch(step))
        counted = torch.where(torch.isfinite(values), values, 0).sum()
        return cls(rows, values.detach(), counted, guard)

    def flags(self) -> Tensor:
        """(2, n) bool: whether each image's value is finite, and its gradient."""
        finite = torch.isfinite(self.values)
        return torch.stack([finite, torch.stack([torch.ones_like(finite), *self.guard.finite]).all(dim=0)])


@dataclass
class _Guard:
    """Stops a gradient of one loss that is not finite, image by image, and remembers where that was.

    A finite value can have a NaN gradient (a root at 0). It is stopped in float32, before the network: what overflows
    there in half precision is left to the host's loss scaling.
    """

    finite: list[Tensor] = field(default_factory=list)

    def watch(self, step: DiffusionStep) -> DiffusionStep:
        """`step`, through which a gradient that is not finite passes as 0."""
        watched = {}
        for name in ("model_pred", "pred_latents", "pred_images"):
            tensor = getattr(step, name)
            if tensor is not None and tensor.requires_grad:
                watched[name] = tensor.view_as(tensor)
                watched[name].register_hook(self._stop)
        return replace(step, **watched)

    def _stop(self, gradient: Tensor) -> Tensor:
        finite = _finite_rows(gradient)
        self.finite.append(finite)
        return torch.where(finite.view(-1, *[1] * (gradient.ndim - 1)), gradient, 0)


def _join(parts: dict[str, list[_Part]]) -> dict[str, TermValues]:
    """The parts of each term in one. One synchronisation with the device."""
    if not parts:
        return {}
    flags = torch.cat([part.flags() for of_term in parts.values() for part in of_term], dim=1)
    finite, gradient_finite = (iter(row) for row in flags.tolist())
    joined = {}
    for name, of_term in parts.items():
        rows = [r for part in of_term for r in part.rows]
        joined[name] = TermValues(
            rows,
            torch.cat([part.values for part in of_term]),
            [next(finite) for _ in rows],
            [next(gradient_finite) for _ in rows],
        )
    return joined
