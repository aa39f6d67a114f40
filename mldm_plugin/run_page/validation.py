"""What `--evaluate_steps` found on photographs that are not trained on, at the same t and noise at every step."""

from __future__ import annotations

import json
import math
from bisect import bisect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldm_plugin.engine.ranges import BEGINNINGS, RANGES
from mldm_plugin.evaluation.quantities import QUANTITIES, Quantity
from mldm_plugin.run_page.album import Album
from mldm_plugin.run_page.curves import Numbers

FILE = "evaluation.json"
UNREAD = f"{FILE} is damaged, or another version wrote it: nothing of it is shown."
LARGEST = 1e100  # of what is measured, far beyond float32, so that no sum overflows
RANKS = 3  # photographs that are shown in each direction of each quantity; chosen: one row of small pictures


@dataclass(frozen=True)
class Evaluations:
    """All evaluations of a run, in the order of their steps.

    Args:
        data, split, resolution: where the photographs are, and the side they were framed to.
        rows: the photographs, by their rows.
        digests: of their files.
        ranges: the range of t of each timestep.
        steps: when they were looked at.
        values: quantity → (S, P), of each step and photograph over all t; NaN where there is nothing.
        at_t: quantity → (S, T), of each step and timestep over all photographs.
    """

    data: str
    split: str
    resolution: int
    rows: list[int]
    digests: list[str]
    ranges: list[str]
    steps: list[int]
    values: dict[str, Numbers]
    at_t: dict[str, Numbers]


def validation_of(records: Path | None, album: Album) -> dict[str, Any] | None:
    """What the page shows of it; None where nothing was evaluated, `unread` alone where that cannot be read."""
    if records is None or not (records / FILE).is_file():
        return None
    if (found := _read(records / FILE)) is None:
        return {"unread": UNREAD}
    if not found.steps:
        return None
    from mldm_plugin.evaluation.best import best_of  # with SciPy, which only such a run needs

    by_step = {step: {name: of[k].tolist() for name, of in found.values.items()} for k, step in enumerate(found.steps)}
    best = best_of(by_step)
    told = [_told(quantity, found) for quantity in QUANTITIES if np.isfinite(found.values[quantity.name]).any()]
    shown = sorted({row for one in told for row, *_ in (*one["better"], *one["worse"])})
    digests = dict(zip(found.rows, found.digests, strict=True))
    return {
        "photographs": len(found.rows),
        "where": found.data if found.split == "train" else f"{found.split} of {found.data}",
        "best": None if best is None else best.in_words(),
        "steps": found.steps,
        "quantities": told,
        "pictures": album.pictures(found.data, found.split, found.resolution, {k: digests[k] for k in shown}),
    }


def _read(file: Path) -> Evaluations | None:
    """None where it is not as a trainer writes it."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        rows, digests = [int(row) for row in stored["photographs"]], [str(digest) for digest in stored["digests"]]
        if len(digests) != len(set(rows)):
            raise ValueError(f"expected a digest of each of {len(rows)} photographs, got {len(digests)}")
        ranges = [RANGES[bisect(BEGINNINGS, int(t)) - 1] for t in stored["timesteps"]]
        steps = sorted((int(step), found) for step, found in stored["steps"].items())
        names = [quantity.name for quantity in QUANTITIES]
        values = {name: _table([found["values"][name] for _, found in steps], len(rows)) for name in names}
        at_t = {name: _table([found["by_timestep"][name] for _, found in steps], len(ranges)) for name in names}
        where = str(stored["data"]), str(stored["split"]), int(stored["resolution"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return Evaluations(*where, rows, digests, ranges, [step for step, _ in steps], values, at_t)


def _table(rows: list[list[float | None]], width: int) -> Numbers:
    table = np.array(rows, dtype=np.float64).reshape(len(rows), width)
    return np.where(np.abs(table) < LARGEST, table, np.nan)


def _told(quantity: Quantity, found: Evaluations) -> dict[str, Any]:
    """A quantity's means over the steps, and the photographs in which it changed most."""
    values, at_t = found.values[quantity.name], found.at_t[quantity.name]
    ranges = {range_: _means(at_t[:, [r == range_ for r in found.ranges]]) for range_ in dict.fromkeys(found.ranges)}
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
        "photographs": int(_asked(values).sum()),
        "all": _line(found.steps, _means(values)),
        "ranges": {name: _line(found.steps, means) for name, means in ranges.items() if np.isfinite(means).any()},
        "gap": _gap(values) if len(values) > 1 else None,
        **{which: [(found.rows[k], values[0, k], values[-1, k]) for k in of] for which, of in extremes.items()},
    }


def _asked(values: Numbers) -> NDArray[np.bool_]:
    """Which columns: what is never there was not asked for, as there is nobody, or no face."""
    return np.asarray(np.isfinite(values).any(axis=0))


def _means(values: Numbers) -> Numbers:
    """Of each row over what was asked for; NaN where any of it is not there: a mean of the rest would be of others."""
    asked = _asked(values)
    return np.asarray(values[:, asked].mean(axis=1)) if asked.any() else np.full(len(values), np.nan)


def _line(steps: list[int], means: Numbers) -> dict[str, list[Any]]:
    """What it was, and the change since the first step; None where it was not finite."""
    value, changed = ([None if math.isnan(x) else float(x) for x in numbers] for numbers in (means, means - means[0]))
    return {"step": steps, "value": value, "mean": changed, "smooth": changed}


def _gap(values: Numbers) -> dict[str, Any]:
    """The last minus the first, paired by photograph, with its interval and whether it is shown."""
    from mldm_plugin.evaluation.statistics import LEVEL, fewest, paired_difference

    asked = values[:, _asked(values)]
    if not np.isfinite(asked[[0, -1]]).all():  # whatever the others did, it is no better network
        return {"value": None, "low": None, "high": None, "verdict": "not finite"}
    gap = paired_difference(asked[-1:], asked[:1])
    shown = not gap.holds_zero and gap.p < 1 - LEVEL
    verdict = ("better" if gap.value < 0 else "worse") if shown else "not shown"
    verdict = "too few" if asked.shape[1] < fewest() else verdict
    ends = {"low": gap.low, "high": gap.high}
    return {
        "value": gap.value,
        **{name: None if math.isnan(end) else end for name, end in ends.items()},
        "verdict": verdict,
    }
