"""The ratios between candidates of one run that the plugin is built to reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mldm_plugin.bench import candidates as names
from mldm_plugin.bench.rows import Row


@dataclass(frozen=True)
class Goal:
    """A ratio.

    Args:
        text: of what.
        relation, limit: what it should be, on Stable Diffusion 1.5 at 512², batch 8, bfloat16, on a GPU.
        measured: of median times, or of peak memory.
        counted: of operations, where it is a ratio of times.
    """

    text: str
    relation: Literal["<=", ">="]
    limit: float
    measured: float | None
    counted: float | None = None

    @property
    def reached(self) -> bool | None:
        """By what was measured, or counted where nothing was; None without either."""
        value = self.counted if self.measured is None else self.measured
        if value is None:
            return None
        return value <= self.limit if self.relation == "<=" else value >= self.limit


def step_goals(rows: Sequence[Row], n: int, *, timed: bool) -> list[Goal]:
    """Of whole steps; `timed` says that their cost is time, not operations."""
    table = {row.candidate: row for row in rows}
    wanted: tuple[tuple[str, str, int, Literal["<=", ">="], float], ...] = (
        (names.OURS + names.CACHED, names.PLAIN, 100, "<=", 0.95),
        (names.OURS, names.PLAIN, 100, "<=", 1.22),
        (names.OURS, names.PLAIN, 400, "<=", 1.75),
        (names.EVERYTHING, names.OURS, 100, ">=", 2.0),
    )
    goals = []
    for one, other, limit, relation, value in wanted:
        time = _quotient(table, one, other, lambda r, T=limit: _median(r.expected(n, T))) if timed else None
        operations = _quotient(table, one, other, lambda r, T=limit: r.expected_tflop(n, T))
        goals.append(Goal(f"time of {one} / {other}, T = {limit}", relation, value, time, operations))
    if timed:
        closed = _quotient(table, names.OURS, names.PLAIN, lambda r: _median(r.cost.get(1 if r.gate == "none" else 0)))
        goals.append(Goal(f"time of {names.OURS}, gate closed / {names.PLAIN}", "<=", 1.01, closed))
    return goals


def pixel_goals(rows: Sequence[Row], n: int) -> list[Goal]:
    """Of what comes after the network's output."""
    table = {row.candidate: row for row in rows}
    memory = _quotient(table, names.OURS, names.EVERYTHING, lambda r: r.most_bytes)
    note = "" if n >= 8 else " (goal is for batch 8)"
    return [Goal(f"peak memory of {names.OURS} / {names.EVERYTHING}, any k{note}", "<=", 1 / 3, memory)]


def closed_gate_goal(pixel_rows: Sequence[Row], step_rows: Sequence[Row]) -> list[Goal]:
    """What the plugin itself takes of a plain step while its gate is closed: steadier than a difference of steps."""
    pixels = {row.candidate: row for row in pixel_rows}
    steps = {row.candidate: row for row in step_rows}
    if names.OURS not in pixels or names.PLAIN not in steps:
        return []
    own, plain = _median(pixels[names.OURS].cost.get(0)), _median(steps[names.PLAIN].cost.get(1))
    without = _median(pixels[names.PLAIN].cost.get(1))
    if own is None or plain is None or without is None:
        return []
    return [Goal(f"({names.OURS} - without, gate closed) / {names.PLAIN}", "<=", 0.01, (own - without) / plain)]


def loss_goals(rows: Sequence[Row]) -> list[Goal]:
    """Of each loss alone."""
    table = {row.candidate: row for row in rows}

    def time(row: Row) -> float | None:
        return _median(row.cost.get(1))

    def memory(row: Row) -> float | None:
        return row.most_bytes

    wanted: tuple[tuple[str, Callable[[Row], float | None], str, str, Literal["<=", ">="], float], ...] = (
        ("time", time, names.SPATIAL, names.PACKAGE, "<=", 1.0),
        ("peak memory", memory, names.SPATIAL, names.PACKAGE, "<=", 0.6),
        ("time", time, names.LITERAL_DISTANCE, names.DISTANCE, ">=", 5.0),
        ("peak memory", memory, names.DISTANCE, names.LITERAL_DISTANCE, "<=", 1 / 8),
        ("time", time, names.FEATURES, names.LITERAL, "<=", 1.0),
        ("peak memory", memory, names.FEATURES, names.LITERAL, "<=", 1.0),
    )
    return [
        Goal(f"{what} of {one} / {other}", relation, limit, _quotient(table, one, other, of))
        for what, of, one, other, relation, limit in wanted
    ]


def _quotient(table: dict[str, Row], one: str, other: str, of: Callable[..., float | None]) -> float | None:
    if one not in table or other not in table:
        return None
    above, below = of(table[one]), of(table[other])
    return None if above is None or not below else above / below


def _median(quartiles: Any) -> float | None:
    return None if quartiles is None else quartiles.median
