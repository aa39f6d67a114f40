"""The losses of training images by range of timesteps: curves that do not jump with what t a batch happens to draw."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mldm_plugin.engine.mix import PlainLoss
from mldm_plugin.engine.report import LossReport
from mldm_plugin.engine.step import DiffusionStep, on_device

if TYPE_CHECKING:
    from accelerate import Accelerator

# Where ranges of Stable Diffusion's timesteps begin, by SNR on any other schedule. Chosen: the gates of the paper, T =
# 100 and 400, are among them, and each holds a sixth of the images or less than twice that.
BEGINNINGS = (0, 100, 200, 400, 700)
RANGES = tuple(f"t{a}-{b - 1}" for a, b in zip(BEGINNINGS, (*BEGINNINGS[1:], 1000), strict=True))


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
        place = self._ranges(step)
        rows = [_sums(self._plain.of_each(step), place)]
        for name in self._names[1:]:
            term = report.terms.get(name)
            seen = [] if term is None else term.rows
            values = place.new_zeros(0, dtype=torch.float32) if term is None else term.values
            rows.append(_sums(values, place[on_device(seen, place.device)]))
        sums = torch.stack(rows)
        self._sums = sums if self._sums is None else self._sums + sums

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

    def _ranges(self, step: DiffusionStep) -> Tensor:
        """The range of each image, (N,) int64."""
        schedule = self._plain.schedule
        snr = schedule.snr(step.timesteps, step.sigmas)
        return sum((~schedule.gate(snr, start - 1)).long() for start in BEGINNINGS[1:]) + torch.zeros_like(snr).long()


def _sums(values: Tensor, place: Tensor) -> Tensor:
    """Sums and numbers of the finite `values` (n,) in each range, (2, R): a product, so in one order on a GPU too."""
    finite = torch.isfinite(values)
    inside = (place[:, None] == torch.arange(len(RANGES), device=place.device)).float()
    return torch.stack([torch.where(finite, values.float(), 0.0), finite.float()]) @ inside
