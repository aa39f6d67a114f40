"""What `--evaluate_steps` found on photographs that are not trained on, at the same t and noise at every step."""

from __future__ import annotations

import json
import math
import warnings
from bisect import bisect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mldm_plugin.engine.ranges import BEGINNINGS, RANGES
from mldm_plugin.evaluation.quantities import QUANTITIES, Quantity
from mldm_plugin.run_page.album import Album
from mldm_plugin.run_page.curves import Numbers

FILE = "evaluation.json"
RANKS = 3  # photographs that are shown in each direction of each quantity; chosen: one row of small pictures


@dataclass(frozen=True)
class Evaluations:
    """All evaluations of a run, in the order of their steps.

    Args:
        data, split, resolution: where the photographs are, and the side they were framed to.
        rows: the photographs, by their rows.
        ranges: the range of t of each timestep.
        steps: when they were looked at.
        values: quantity → (S, P), of each step and photograph over all t; NaN where there is nothing.
        at_t: quantity → (S, T), of each step and timestep over all photographs.
    """

    data: str
    split: str
    resolution: int
    rows: list[int]
    ranges: list[str]
    steps: list[int]
    values: dict[str, Numbers]
    at_t: dict[str, Numbers]


def validation_of(records: Path | None, album: Album) -> dict[str, Any] | None:
    """What the page shows of it; None where nothing was evaluated."""
    found = None if records is None else _read(records / FILE)
    if found is None:
        return None
    from mldm_plugin.evaluation.best import best_of  # with SciPy, which only such a run needs

    by_step = {step: {name: of[k].tolist() for name, of in found.values.items()} for k, step in enumerate(found.steps)}
    best = best_of(by_step)
    told = [_told(quantity, found) for quantity in QUANTITIES if np.isfinite(found.values[quantity.name]).any()]
    shown = sorted({row for one in told for row, *_ in (*one["better"], *one["worse"])})
    return {
        "photographs": len(found.rows),
        "where": f"{found.split} of {found.data}",
        "best": None if best is None else best.in_words(),
        "steps": found.steps,
        "quantities": told,
        "pictures": album.pictures(found.data, found.split, found.resolution, shown),
    }


def _read(file: Path) -> Evaluations | None:
    """None where it is not there, or not as a trainer writes it: a page is made of what there is."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        rows = [int(row) for row in stored["photographs"]]
        ranges = [RANGES[bisect(BEGINNINGS, int(t)) - 1] for t in stored["timesteps"]]
        steps = sorted((int(step), found) for step, found in stored["steps"].items())
        names = [quantity.name for quantity in QUANTITIES]
        values = {name: _table([found["values"][name] for _, found in steps], len(rows)) for name in names}
        at_t = {name: _table([found["by_timestep"][name] for _, found in steps], len(ranges)) for name in names}
        where = str(stored["data"]), str(stored["split"]), int(stored["resolution"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return Evaluations(*where, rows, ranges, [step for step, _ in steps], values, at_t) if steps else None


def _table(rows: list[list[float | None]], width: int) -> Numbers:
    table = np.array(rows, dtype=np.float64)
    if table.shape != (len(rows), width):
        raise ValueError(f"expected {width} numbers at each step, got {table.shape}")
    return np.where(np.isfinite(table), table, np.nan)


def _told(quantity: Quantity, found: Evaluations) -> dict[str, Any]:
    """A quantity's means over the steps, and the photographs in which it changed most."""
    values, at_t = found.values[quantity.name], found.at_t[quantity.name]
    asked = np.isfinite(values).any(axis=0)  # what is never there was not asked for: nobody, no face
    ranges = {range_: _mean(at_t[:, [r == range_ for r in found.ranges]]) for range_ in dict.fromkeys(found.ranges)}
    lines = {range_: _line(found.steps, means) for range_, means in ranges.items() if np.isfinite(means).any()}
    change = values[-1] - values[0]
    order = [k for k in np.argsort(change, kind="stable") if math.isfinite(change[k])]
    extremes = {
        "better": [k for k in order if change[k] < 0][:RANKS],
        "worse": [k for k in order[::-1] if change[k] > 0][:RANKS],
    }
    return {
        "name": quantity.name,
        "title": quantity.title,
        "what": quantity.what,
        "photographs": int(asked.sum()),
        "all": _line(found.steps, values[:, asked].mean(axis=1)),
        "ranges": lines,
        "gap": _gap(values),
        **{which: [(found.rows[k], values[0, k], values[-1, k]) for k in of] for which, of in extremes.items()},
    }


def _mean(values: Numbers) -> Numbers:
    """Of each row over what is there; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of an empty mean, which NaN says
        return np.asarray(np.nanmean(values, axis=1))


def _line(steps: list[int], means: Numbers) -> dict[str, list[Any]]:
    """What it was, and the change since it was first looked at; None where it was not finite."""
    first = means[np.isfinite(means)][:1]
    change = means - first if len(first) else means
    value, changed = ([None if math.isnan(x) else float(x) for x in numbers] for numbers in (means, change))
    return {"step": steps, "value": value, "mean": changed, "smooth": changed}


def _gap(values: Numbers) -> dict[str, Any] | None:
    """The last minus the first, paired by photograph, with its interval and whether it is shown; None of one step."""
    from mldm_plugin.evaluation.statistics import LEVEL, paired_difference

    if len(values) < 2 or not np.isfinite(values[[0, -1]]).all(axis=0).any():
        return None
    gap = paired_difference(values[-1:], values[:1])
    shown = not gap.holds_zero and gap.p < 1 - LEVEL
    verdict = ("better" if gap.value < 0 else "worse") if shown else "not shown"
    ends = {"low": gap.low, "high": gap.high}
    return {
        "value": gap.value,
        **{name: None if math.isnan(end) else end for name, end in ends.items()},
        "verdict": verdict,
    }
