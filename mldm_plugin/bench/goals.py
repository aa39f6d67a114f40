"""The ratios that the plugin is built to reach, and whether a run reaches them.

They are meant for Stable Diffusion 1.5 at 512², batch 8, bfloat16, on a GPU; docs/performance_details.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mldm_plugin.bench.candidates import (
    CACHED,
    DISTANCE,
    EVERYTHING,
    FEATURES,
    LITERAL,
    LITERAL_DISTANCE,
    MEASURED,
    OURS,
    PACKAGE,
    PLAIN,
    SPATIAL,
)
from mldm_plugin.bench.measure import TIMESTEPS, Candidate, by_name, mean_cost


@dataclass(frozen=True)
class Goal:
    """One ratio of two candidates.

    Args:
        subject: whose candidates.
        what: `time`, `peak memory`, or `time, gate closed`, the plugin's own as a share of a plain step, or `time, now
            and then`, what is done once in so many steps as a share of those.
        above, below: the candidates.
        relation, limit: what it should be.
        max_timestep: T, where the mean step depends on it.
        figure: what was measured, or counted where nothing was; None without either.
        counted: of operations, where the figure is a ratio of times.
    """

    subject: str
    what: str
    above: str
    below: str
    relation: Literal["<=", ">="]
    limit: float
    max_timestep: int | None = None
    figure: float | None = None
    counted: float | None = None

    @property
    def name(self) -> str:
        at = "" if self.max_timestep is None else f", T = {self.max_timestep}"
        return f"{self.what} of {self.above} / {self.below}{at}"

    @property
    def holds(self) -> bool | None:
        """None where nothing was measured."""
        if self.figure is None:
            return None
        return self.figure <= self.limit if self.relation == "<=" else self.figure >= self.limit

    def as_json(self) -> dict[str, Any]:
        wanted = {"name": self.name, "relation": self.relation, "limit": self.limit}
        return wanted | {"figure": self.figure, "counted": self.counted, "holds": self.holds}


TIME, MEMORY, CLOSED, RARE = "time", "peak memory", "time, gate closed,", "time, now and then,"
GOALS = (
    Goal("step", TIME, OURS + CACHED, PLAIN, "<=", 0.95, 100),
    Goal("step", TIME, OURS, PLAIN, "<=", 1.22, 100),
    Goal("step", TIME, OURS, PLAIN, "<=", 1.75, 400),
    Goal("step", TIME, EVERYTHING, OURS, ">=", 2.0, 100),
    Goal("step", CLOSED, OURS, PLAIN, "<=", 0.01),
    Goal("step", RARE, MEASURED, OURS, "<=", 0.02, 100),
    Goal("step", RARE, MEASURED, OURS, "<=", 0.02, 400),
    Goal("pixels", MEMORY, OURS, EVERYTHING, "<=", 1 / 3),
    Goal("losses", TIME, SPATIAL, PACKAGE, "<=", 1.0),
    Goal("losses", MEMORY, SPATIAL, PACKAGE, "<=", 0.6),
    Goal("losses", TIME, LITERAL_DISTANCE, DISTANCE, ">=", 5.0),
    Goal("losses", MEMORY, DISTANCE, LITERAL_DISTANCE, "<=", 1 / 8),
    Goal("losses", TIME, FEATURES, LITERAL, "<=", 1.0),
    Goal("losses", MEMORY, FEATURES, LITERAL, "<=", 1.0),
)
MEMORY_BATCH = 8  # with fewer images, decoding all at once takes too little to be a third of


def judge(
    subject: str,
    candidates: Sequence[Candidate],
    n: int,
    *,
    timed: bool,
    closed: Sequence[Candidate] = (),
    every: int = 1,
) -> list[Goal]:
    """The goals of a subject with what was found.

    Args:
        subject: of `SUBJECTS`.
        candidates: measured, or if not `timed` counted.
        n: images in the batch.
        closed: what `closed_candidates` took.
        every: in how many steps the losses' gradients are measured once.
    """
    found = by_name(candidates)
    return [
        replace(g, figure=_rare(g, found, n, every) if timed else None)
        if g.what == RARE
        else _with_figure(g, found, n, timed, by_name(closed))
        for g in GOALS
        if g.subject == subject
    ]


def _rare(goal: Goal, found: dict[str, Candidate], n: int, every: int) -> float | None:
    """What the first step with a gated image takes longer, once in `every`, as a share of the mean step."""
    if goal.above not in found or goal.below not in found:
        return None
    limit = goal.max_timestep or 0
    above, below = found[goal.above].cost(), found[goal.below].cost()
    longer = {0: 0.0, **{k: above[k] - below[k] for k in above if k in below}}
    extra, step = mean_cost(longer, n, limit, "each image"), found[goal.below].mean(n, limit)
    is_open = 1 - (1 - (limit + 1) / TIMESTEPS) ** n
    return None if extra is None or not step else extra / is_open / (every * step)


def _with_figure(goal: Goal, found: dict[str, Candidate], n: int, timed: bool, closed: dict[str, Candidate]) -> Goal:
    def ratio(of: Callable[[Candidate], float | None]) -> float | None:
        if goal.above not in found or goal.below not in found:
            return None
        above, below = of(found[goal.above]), of(found[goal.below])
        return None if above is None or not below else above / below

    if goal.what == MEMORY:
        enough = goal.subject != "pixels" or n >= MEMORY_BATCH
        return replace(goal, figure=ratio(lambda c: c.most_bytes) if enough else None)
    if goal.what == CLOSED:
        own, without = (closed[name].cost().get(0) if name in closed else None for name in (OURS, PLAIN))
        step = found[PLAIN].mean(n, 0) if PLAIN in found else None
        return replace(goal, figure=None if own is None or without is None or not step else (own - without) / step)
    mean_timestep = goal.max_timestep or 0
    counted = None if goal.max_timestep is None else ratio(lambda c: c.mean(n, mean_timestep, timed=False))
    return replace(goal, figure=ratio(lambda c: c.mean(n, mean_timestep)) if timed else counted, counted=counted)
