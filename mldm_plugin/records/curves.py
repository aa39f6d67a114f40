"""The losses of training images by range of timesteps: curves that do not jump with what t a batch happens to draw."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mldm_plugin.engine.mix import PlainLoss
from mldm_plugin.engine.ranges import RANGES, in_ranges, range_of
from mldm_plugin.engine.report import LossReport
from mldm_plugin.engine.step import DiffusionStep, on_device

if TYPE_CHECKING:
    from accelerate import Accelerator


class Curves:
    """Means of the plain loss and of each term over the images of many steps, range by range.

    Args:
        terms: names, the same and in the same order on every process.
        plain: the plain loss of each image, and its schedule.
    """

    def __init__(self, terms: Iterable[str], plain: PlainLoss) -> None:
        self._names, self._plain = ("ldm", *terms), plain
        self._sums: Tensor | None = None

    @torch.no_grad()
    def add(self, step: DiffusionStep, report: LossReport) -> None:
        """One micro-batch. Waits for nothing."""
        place = range_of(step, self._plain.schedule)
        rows = [_sums(self._plain.of_each(step), place)]
        for name in self._names[1:]:
            term = report.terms.get(name)
            seen = [] if term is None else term.rows
            values = place.new_zeros(0, dtype=torch.float32) if term is None else term.values
            rows.append(_sums(values, place[on_device(seen, place.device)]))
        sums = torch.stack(rows)
        self._sums = sums if self._sums is None else self._sums.to(sums.device) + sums

    def mean(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """`NAME/RANGE` → mean, where any image was seen. Empties the meter; every process calls it at the same step."""
        sums = torch.zeros(len(self._names), 2, len(RANGES)) if self._sums is None else self._sums
        self._sums = None
        if accelerator is not None and accelerator.num_processes > 1:
            sums = accelerator.reduce(sums.to(accelerator.device), reduction="sum")
        return {
            f"{name}/{range_}": total / count
            for name, (totals, counts) in zip(self._names, sums.tolist(), strict=True)
            for range_, total, count in zip(RANGES, totals, counts, strict=True)
            if count
        }

    def state(self) -> list[Any]:
        """What was seen since the last mean, to go on from to the bit; empty without any. Waits for the device."""
        return [] if self._sums is None else self._sums.tolist()

    def resume(self, state: list[Any]) -> None:
        """Go on from a state that was saved."""
        self._sums = torch.tensor(state) if state else None


def _sums(values: Tensor, place: Tensor) -> Tensor:
    """Sums and numbers of the finite `values` (n,) in each range, (2, R)."""
    finite = torch.isfinite(values)
    return in_ranges(torch.stack([torch.where(finite, values.float(), 0.0), finite.float()]), place)
