"""The rows of a table: a candidate's costs by number of gated images, and on average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mldm_plugin.bench.expected import Gate, expected_cost
from mldm_plugin.bench.measure import Case, Quartiles

EXPECTED_AT = (100, 400)  # T of the presets mldm and mldm-t400


@dataclass(frozen=True)
class Row:
    """One candidate.

    Args:
        candidate: its name.
        gate: who opens its gate.
        cost: k → seconds, or TFLOP where operations are counted; k is 1 where nothing is gated.
        peak_bytes: by k.
        tflop: by k.
        fault: why something is missing.
    """

    candidate: str
    gate: Gate
    cost: dict[int, Quartiles]
    peak_bytes: dict[int, int] = field(default_factory=dict)
    tflop: dict[int, float] = field(default_factory=dict)
    fault: str | None = None

    @classmethod
    def counted(cls, candidate: str, gate: Gate, tflop: Mapping[int, float]) -> Row:
        """A row of operations alone."""
        return cls(candidate, gate, {k: Quartiles(v, v, v) for k, v in tflop.items()}, tflop=dict(tflop))

    def expected(self, n: int, max_timestep: int) -> Quartiles | None:
        """The mean cost under uniform timesteps, of the medians and of the quartiles."""
        parts = [
            expected_cost({k: getattr(q, name) for k, q in self.cost.items()}, n, max_timestep, self.gate)
            for name in ("low", "median", "high")
        ]
        return None if None in parts else Quartiles(*parts)  # type: ignore[arg-type]

    def expected_tflop(self, n: int, max_timestep: int) -> float | None:
        return expected_cost(self.tflop, n, max_timestep, self.gate)

    @property
    def most_bytes(self) -> int | None:
        """The peak of its worst case."""
        return max(self.peak_bytes.values(), default=None)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles over the median, of its least steady case."""
        return max(((q.high - q.low) / (2 * q.median) for q in self.cost.values() if q.median), default=0.0)


def rows_of(cases: Sequence[Case]) -> list[Row]:
    """Cases of one candidate as one row, in the order of the cases."""
    rows: dict[str, Row] = {}
    for case in cases:
        row = rows.get(case.candidate) or Row(case.candidate, case.gate, {})
        k = 1 if case.gated is None or case.gate == "none" else case.gated
        if (seconds := Quartiles.of(case.seconds)) is not None:
            row.cost[k] = seconds
        if case.peak_bytes is not None:
            row.peak_bytes[k] = case.peak_bytes
        if case.tflop is not None:
            row.tflop[k] = case.tflop
        fault = row.fault or case.fault
        rows[case.candidate] = Row(row.candidate, row.gate, row.cost, row.peak_bytes, row.tflop, fault)
    return list(rows.values())
