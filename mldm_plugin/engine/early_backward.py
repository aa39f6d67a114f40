"""The losses on the gated images of a step, a few images at a time, each with its gradient taken at once.

Decoding with gradient keeps several gigabytes of activations a picture. So the images that some loss applies to go
through decoder and losses in small groups, and as soon as a group has its values, their gradient at the network's
output is computed and the activations are freed. The host's backward pass then finds that gradient ready. Nothing is
computed twice for it, and the memory is that of one group, however many images are gated.

Losses on several answers of the network (ddim.py) meet the host's graph in a second place, too: at the clean estimate,
whose graph goes on through all answers and is left to the host's backward pass as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mldm_plugin.engine.audit import Audit, Sample
from mldm_plugin.engine.ddim import require_predict
from mldm_plugin.engine.pictures import Pictures
from mldm_plugin.engine.report import TermReport
from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.engine.step import DiffusionStep, on_device
from mldm_plugin.engine.term import Term
from mldm_plugin.perceptual.known_gradient import Known


def evaluate(
    terms: Sequence[Term],
    step: DiffusionStep,
    rows: dict[str, list[int]],
    schedule: NoiseSchedule,
    pictures: Pictures,
    audit: Audit,
) -> tuple[dict[str, TermReport], list[Known]]:
    """Every term on its gated images.

    A value or a gradient that is not finite is left out, image by image: the gradient is then computed again without
    those, which is rare. The device is waited for once, at the end, and only if an image is gated.

    Args:
        terms: those of the preset.
        step: N images.
        rows: by term, those it applies to.
        schedule: for ẑ₀, or x̂₀ of several answers, for which the network is asked again here, of these images alone.
        pictures: gives a step its pictures, and says how many to decode together.
        audit: measures each term's own gradient now and then, of which nothing else here depends.

    Returns:
        what each term gave, by name in the order of the preset, and where the host's graph goes on: `model_pred`, and
        x̂₀ of several answers, each with ∂(Σ_ij w_ij s_j L_ij / N)/∂ of it, float32 (N, C, h, w). Nothing where no
        gradient was asked for.

    Raises:
        LossError: a loss that fails or returns something else than one value per image.
    """
    groups = _Groups(terms, step, rows, schedule, pictures)
    if not any(rows.values()):
        return groups.reports(), []
    sample = groups.sample = audit.begin(step, rows) if groups.trains else None
    groups.run()
    if sample is not None:
        audit.end(step, sample)
    reports = groups.reports()
    # A value may be NaN because one of the network's further answers is, which then may not stay in the host's graph.
    if all(r.gradients_finite and (r.finite or schedule.answers == 1) for r in reports.values()):
        return reports, groups.known
    finite = {name: [report.rows[i] for i in report.used] for name, report in reports.items()}
    if not any(finite.values()):
        return reports, []
    again = _Groups(terms, step, finite, schedule, pictures)
    again.run()
    return reports, again.known


@dataclass
class _Part:
    """One term on the images of one group."""

    rows: list[int]
    values: Tensor
    gradient_finite: list[Tensor] = field(default_factory=list)  # of each image, (n,) bool each
    logs: dict[str, Tensor] = field(default_factory=dict)

    def flags(self) -> Tensor:
        """(2, n) bool: whether each image's value is finite, and its gradient."""
        finite = torch.isfinite(self.values)
        return torch.stack([finite, torch.stack([torch.ones_like(finite), *self.gradient_finite]).all(dim=0)])


_Counted = tuple[Term, _Part, list[int], Tensor]  # a term, on which places of a group, and its sum with gradient


class _Groups:
    """One pass over the gated images. `sample` is what an audit is to be told."""

    def __init__(
        self,
        terms: Sequence[Term],
        step: DiffusionStep,
        rows: dict[str, list[int]],
        schedule: NoiseSchedule,
        pictures: Pictures,
    ) -> None:
        self.terms, self.step, self.rows = terms, step, rows
        self.schedule, self.pictures = schedule, pictures
        self.parts: dict[str, list[_Part]] = {t.name: [] for t in terms}
        trains = any(rows[t.name] and not t.detach for t in terms)
        self.trains = trains and torch.is_grad_enabled() and step.model_pred.requires_grad
        self.gradients: dict[str, Tensor] = {}  # by field of the step, where it is cut off from the host's graph
        self.sample: Sample | None = None

    @property
    def known(self) -> list[Known]:
        """As `evaluate` returns it."""
        return [(getattr(self.step, name), gradient) for name, gradient in self.gradients.items()] * self.trains

    def run(self) -> None:
        """Every group, those that need pictures first."""
        with torch.set_grad_enabled(self.trains):
            cut = ["model_pred"]
            if self.schedule.answers > 1:  # in the host's own precision
                self.step = self._with_answers()
                cut.append("pred_latents")
            self.gradients = {n: torch.zeros_like(getattr(self.step, n), dtype=torch.float32) for n in cut}
            with self.pictures.in_its_precision(self.step):
                self._run_groups()

    def _with_answers(self) -> DiffusionStep:
        """The step with x̂₀ of several answers, in the host's graph; 0 for images that no loss looks at."""
        require_predict(self.step)
        rows = self._any_of(self.terms)
        estimate = self.schedule.pred_latents(self.step.select(rows))
        whole = torch.zeros_like(self.step.latents, dtype=estimate.dtype)
        return replace(self.step, pred_latents=whole.index_copy(0, on_device(rows, whole.device), estimate))

    def _run_groups(self) -> None:
        seeing = [t for t in self.terms if "pred_images" in t.needs]
        asking = set(self._any_of([t for t in seeing if "pred_features" in t.needs]))
        for group in self.pictures.groups(self._any_of(seeing), self.step):
            self._run(group, seeing, partial(self.pictures.of, features=not asking.isdisjoint(group)))
        blind = [t for t in self.terms if "pred_images" not in t.needs]
        if group := self._any_of(blind):
            self._run(group, blind, lambda step: step)

    def _any_of(self, terms: Sequence[Term]) -> list[int]:
        return sorted({row for t in terms for row in self.rows[t.name]})

    def _run(self, group: list[int], terms: Sequence[Term], prepare: Callable[[DiffusionStep], DiffusionStep]) -> None:
        """`terms` on the images `group`, and the gradient of what they weigh together."""
        leaves, estimated = self._estimate(group)
        prepared = prepare(estimated)
        total, parts = torch.zeros((), device=self.step.model_pred.device), []
        for term in terms:
            places = [i for i, row in enumerate(group) if row in self.rows[term.name]]
            if not places:
                continue
            part, counted = _evaluated(term, prepared.select(places), [group[i] for i in places])
            total = total + counted * (term.strength * term.scale / len(self.step))
            self.parts[term.name].append(part)
            parts.append((term, part, places, counted))
        del prepared, estimated
        if not self.trains or not total.requires_grad:
            return
        if self.sample is not None:
            self._measure(self.sample, leaves, group, parts)
        found = _gradients(total, leaves)
        if found:
            # the decoder's own backward pass may overflow too
            finite = torch.stack([_finite_rows(own) for own in found.values()]).all(dim=0)
            for name, own in found.items():
                own = torch.where(_over_rows(finite, own), own, 0)
                self.gradients[name].index_add_(0, on_device(group, own.device), own)
            for _, part, places, _ in parts:
                part.gradient_finite.append(finite[on_device(places, finite.device)])

    def _measure(self, sample: Sample, leaves: dict[str, Tensor], group: list[int], parts: Sequence[_Counted]) -> None:
        """Each term's own gradient at the output, by a backward pass of its own; what trains follows as if it had not
        been."""
        for term, part, places, counted in parts:
            if counted.requires_grad and (found := _gradients(counted, leaves, keep=True)):
                own = self._at_the_output(found, group)
                gradient = own.index_select(0, on_device(places, own.device))
                sample.add(term.name, [group[i] for i in places], gradient, part.flags().all(dim=0))
            part.gradient_finite.clear()

    def _at_the_output(self, found: dict[str, Tensor], group: list[int]) -> Tensor:
        """The gradient of the images `group` at the host's own output, (n, …), from those where they are cut off: what
        is found at x̂₀ goes back through the further answers, scaled for a network in half precision."""
        parts = [found["model_pred"]] if "model_pred" in found else []
        if "pred_latents" in found:
            index = on_device(group, found["pred_latents"].device)
            size = found["pred_latents"].abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
            whole = torch.zeros_like(self.step.pred_latents).index_copy(0, index, found["pred_latents"] / size)
            output = self.step.model_pred
            (own,) = torch.autograd.grad(self.step.pred_latents, output, whole, retain_graph=True)
            parts.append(own.float().index_select(0, index) * size)
        return torch.stack(parts).sum(dim=0)

    def _estimate(self, group: list[int]) -> tuple[dict[str, Tensor], DiffusionStep]:
        """The images `group` with their clean estimate, cut off from the host's graph at the leaves, by field."""
        step = self.step.select(group)
        leaves = {n: getattr(step, n).detach().float().requires_grad_(self.trains) for n in self.gradients}
        step = replace(step, **leaves, base_loss=None, other_loss=None)
        if "pred_latents" in leaves:
            return leaves, step
        return leaves, replace(step, pred_latents=self.schedule.pred_latents(step))

    def reports(self) -> dict[str, TermReport]:
        """What each term gave. Waits for the device once, if there is anything to wait for."""
        parts = [part for of_term in self.parts.values() for part in of_term]
        finite, gradient_finite = torch.cat([part.flags() for part in parts], dim=1).tolist() if parts else ([], [])
        reports, start = {}, 0
        for term in self.terms:
            end = start + sum(len(part.rows) for part in self.parts[term.name])
            reports[term.name] = self._report(term, finite[start:end], gradient_finite[start:end])
            start = end
        return reports

    def _report(self, term: Term, finite: list[bool], gradient_finite: list[bool]) -> TermReport:
        parts = self.parts[term.name]
        rows = [row for part in parts for row in part.rows]
        values = torch.cat([part.values for part in parts]) if parts else self.step.latents.new_zeros(0).float()
        gradient_finite = [good or not value for good, value in zip(gradient_finite, finite, strict=True)]
        logs = {name: torch.cat([part.logs[name] for part in parts] or [values]) for name in term.logs}
        return TermReport(len(self.step), term.strength, rows, values, finite, gradient_finite, logs, term.scale)


def _gradients(value: Tensor, leaves: dict[str, Tensor], *, keep: bool = False) -> dict[str, Tensor]:
    """Of `value` at the leaves that it depends on, by their names."""
    found = torch.autograd.grad(value, list(leaves.values()), retain_graph=keep, allow_unused=True)
    return {name: own for name, own in zip(leaves, found, strict=True) if own is not None}


def _evaluated(term: Term, step: DiffusionStep, rows: list[int]) -> tuple[_Part, Tensor]:
    """A term on a group, and the sum of its finite values, with gradient.

    A finite value can have a NaN gradient (a root at 0). It is stopped in float32, before it reaches the other terms,
    and remembered in the part; what overflows in the network in half precision is left to the host's loss scaling.
    """
    part = _Part(rows, torch.empty(0))

    def stop(gradient: Tensor) -> Tensor:
        finite = _finite_rows(gradient)
        part.gradient_finite.append(finite)
        return torch.where(_over_rows(finite, gradient), gradient, 0)

    def watch(tensor: Tensor) -> Tensor:
        if tensor is None or not tensor.requires_grad or term.detach:
            return tensor
        watched = tensor.view_as(tensor)
        watched.register_hook(stop)
        return watched

    watched: dict[str, Any] = {n: watch(getattr(step, n)) for n in ("model_pred", "pred_latents", "pred_images")}
    if step.pred_features is not None:
        watched["pred_features"] = tuple(map(watch, step.pred_features))
    values, part.logs = term.evaluate(replace(step, **watched))
    part.values = values.detach()
    return part, torch.where(torch.isfinite(values), values, 0).sum()


def _finite_rows(tensor: Tensor) -> Tensor:
    """(n,) bool of (n, …)."""
    return torch.isfinite(tensor).flatten(1).all(dim=1)


def _over_rows(flags: Tensor, like: Tensor) -> Tensor:
    """(n,) in a shape that spreads over `like`, (n, …)."""
    return flags.view(-1, *[1] * (like.ndim - 1))
