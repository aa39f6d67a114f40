"""What a step is in numbers, and their mean over an optimizer step and all processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class TermNumbers:
    """What one term saw of one micro-batch.

    Args:
        total: scalar, the sum of its finite values, on any device.
        counted: how many those are.
        gated: how many images it applied to.
        nonfinite, nonfinite_gradient: how many of those were left out for their value, or for their gradient.
    """

    total: Tensor
    counted: int
    gated: int
    nonfinite: int
    nonfinite_gradient: int

    @property
    def counts(self) -> tuple[int, int, int, int]:
        return self.counted, self.gated, self.nonfinite, self.nonfinite_gradient


@dataclass(frozen=True)
class Numbers:
    """One micro-batch in numbers, which still lie on the device: making them waits for nothing.

    Args:
        loss, ldm: scalars, the loss that was trained with and the plain one.
        terms: by name; terms that are missing saw nothing.
    """

    loss: Tensor
    ldm: Tensor
    terms: Mapping[str, TermNumbers] = field(default_factory=dict)

    @classmethod
    def plain(cls, loss: Tensor) -> Numbers:
        """Of the plain loss alone, a scalar."""
        return cls(loss.detach(), loss.detach())


class StepMeter:
    """Gathers the micro-batches of one optimizer step, then takes their mean over all processes.

    A term's value is the mean over all images it applied to and was finite on, its counts are sums, and loss and plain
    loss are means over micro-batches. What is reduced has the same length on every process, whatever happened there.

    Args:
        terms: names, the same and in the same order on every process.
    """

    def __init__(self, terms: Iterable[str] = ()) -> None:
        self._terms = tuple(terms)
        self._sums: list[Tensor] = []
        self._counts = [[0] * 4 for _ in self._terms]

    def add(self, numbers: Numbers) -> None:
        """One micro-batch. Waits for nothing."""
        nothing = numbers.loss.new_zeros((), dtype=torch.float32)
        seen = [numbers.terms.get(name) for name in self._terms]
        sums = [numbers.loss, numbers.ldm, *(nothing if term is None else term.total for term in seen)]
        self._sums.append(torch.stack([s.detach().float() for s in sums]))
        for counts, term in zip(self._counts, seen, strict=True):
            for i, count in enumerate(() if term is None else term.counts):
                counts[i] += count

    def mean(
        self, accelerator: Accelerator | None = None, flags: Sequence[bool] = ()
    ) -> tuple[dict[str, float | None], list[bool]]:
        """The record of the step, and for each flag whether any process raises it. Empties the meter.

        Every process calls this at the same step: one reduction. The device is waited for once.

        Returns:
            `loss`, `ldm`; for each term its mean under its name, None where it saw nothing, its number of images
            under `<name>/gated`, and, where there were any, `<name>/nonfinite` and `<name>/nonfinite_gradient`.
        """
        rows = torch.stack(self._sums).tolist() if self._sums else [[0.0] * (2 + len(self._terms))]
        sums = [sum(column) for column in zip(*rows, strict=True)]
        numbers = [float(len(self._sums)), *sums, *(float(c) for counts in self._counts for c in counts)]
        numbers += map(float, flags)
        self._sums, self._counts = [], [[0] * 4 for _ in self._terms]
        if accelerator is not None and accelerator.num_processes > 1:
            everyone = torch.tensor(numbers, dtype=torch.float64, device=accelerator.device)
            numbers = accelerator.reduce(everyone, reduction="sum").tolist()
        batches, loss, ldm, *rest = numbers
        totals, rest = rest[: len(self._terms)], rest[len(self._terms) :]
        record: dict[str, float | None] = {"loss": loss / max(batches, 1), "ldm": ldm / max(batches, 1)}
        for i, (name, total) in enumerate(zip(self._terms, totals, strict=True)):
            counted, gated, nonfinite, nonfinite_gradient = map(int, rest[4 * i : 4 * i + 4])
            record |= {name: total / counted if counted else None, f"{name}/gated": gated}
            if nonfinite:
                record[f"{name}/nonfinite"] = nonfinite
            if nonfinite_gradient:
                record[f"{name}/nonfinite_gradient"] = nonfinite_gradient
        return record, [flag > 0 for flag in rest[4 * len(self._terms) :]]
