"""What is logged of each optimizer step, and the file it is logged in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mldm_plugin.records.files import write_text

if TYPE_CHECKING:
    from accelerate import Accelerator

FILE_NAME = "metrics.jsonl"
_COUNTS = ("_gated", "_nonfinite")


class StepMeter:
    """Gathers the numbers of the micro-batches of one optimizer step, then takes their mean over all processes.

    A term's value counts as often as it had images (`<name>_gated`); `<name>_gated` and `<name>_nonfinite` are
    summed; all else is a plain mean over micro-batches.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, values: Mapping[str, float | None]) -> None:
        """The numbers of one micro-batch; None for a term that saw nothing."""
        unseen = {f"{n.removesuffix('_gated')}_nonfinite": 0.0 for n in values if n.endswith("_gated")}
        for name, value in (unseen | dict(values)).items():
            weight = float(value is not None)
            if not name.endswith(_COUNTS):
                weight *= values.get(f"{name}_gated", 1.0) or 0.0
            self._sums[name] = self._sums.get(name, 0.0) + weight * (value or 0.0)
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def mean(self, accelerator: Accelerator, flags: Sequence[bool]) -> tuple[dict[str, float | None], list[bool]]:
        """Means over micro-batches and processes, and for each flag whether any process raises it.

        Empties the meter. Every process calls this at the same step, with the same names: one reduction.
        """
        names = sorted(self._sums)
        sums, weights = ([values[n] for n in names] for values in (self._sums, self._weights))
        numbers = [*sums, *weights, *map(float, flags)]
        if accelerator.num_processes > 1:
            everyone = torch.tensor(numbers, dtype=torch.float64, device=accelerator.device)
            numbers = accelerator.reduce(everyone, reduction="sum").tolist()
        means: dict[str, float | None] = {}
        for name, total, weight in zip(names, numbers, numbers[len(names) :], strict=False):
            if name.endswith("_gated") or (name.endswith("_nonfinite") and total):
                means[name] = int(total)
            elif not name.endswith(_COUNTS):
                means[name] = total / weight if weight else None
        self._sums, self._weights = {}, {}
        return means, [number > 0 for number in numbers[2 * len(names) :]]


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line and optimizer step."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME

    def write(self, record: Mapping[str, float | None]) -> None:
        """Append one line. What is not finite is written as null, for JSON has no word for it."""
        line = json.dumps({k: v if v is None or math.isfinite(v) else None for k, v in record.items()})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def truncate(self, step: int) -> None:
        """Keep the lines up to `step`, for a run that goes on from there."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError, TypeError):
                continue  # the last line of a run that was killed while it wrote
        write_text(self.path, "".join(kept))
