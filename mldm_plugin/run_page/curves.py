"""The numbers of a run as curves that a page can hold, however many steps there were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldm_plugin.engine.ranges import RANGES

Numbers = NDArray[np.float64]
Steps = Sequence[Mapping[str, Any]]
POINTS = 400  # of a curve; chosen: about a point each two pixels
WINDOW = 10  # smoothed over a tenth of the steps; chosen: single steps jump with t, a trend must not lag behind


def names_of(steps: Steps) -> list[str]:
    """The losses that were logged, in the order of their first line."""
    found: dict[str, None] = {}
    for step in steps:
        for key in step:
            if key.endswith("/gated") and key.count("/") == 1:
                found.setdefault(key.removesuffix("/gated"))
    return list(found)


def curve(steps: Steps, key: str, weights: str | None = None) -> dict[str, Any] | None:
    """One number over the steps: means, extremes and a smoothed line; None where it never was finite.

    Args:
        weights: the number of pictures that each value is the mean of; each counts the same without it.
    """
    values = _column(steps, key)
    if not np.isfinite(values).any():
        return None
    weight = np.isfinite(values).astype(float)
    if weights is not None:
        weight *= np.nan_to_num(_column(steps, weights), nan=1.0)
    at = _column(steps, "step")
    at = np.where(np.isfinite(at), at, np.arange(1, len(steps) + 1))  # a line that does not say it is at its place
    groups = [g for g in np.array_split(np.arange(len(steps)), min(POINTS, len(steps))) if len(g)]
    smooth = _smoothed(values, weight)
    found: dict[str, list[float | None]] = {name: [] for name in ("step", "mean", "low", "high", "smooth")}
    for group in groups:
        some = group[np.isfinite(values[group]) & (weight[group] > 0)]
        found["step"].append(float(at[group[len(group) // 2]]))
        found["mean"].append(_number(_mean(values[some], weight[some])))
        found["low"].append(_number(values[some].min() if len(some) else np.nan))
        found["high"].append(_number(values[some].max() if len(some) else np.nan))
        found["smooth"].append(_number(smooth[group[len(group) // 2]]))
    last = np.isfinite(values).nonzero()[0]
    return {**found, "last": _number(smooth[last[-1]]), "thinned": len(groups) < len(steps)}


def by_range(steps: Steps, name: str, quantity: str = "", weights: str = "") -> dict[str, dict[str, Any]]:
    """Range of t → a number of one loss over the steps, where it was logged by range."""
    found = {}
    for range_ in RANGES:
        key = "/".join(filter(None, (name, quantity, range_)))
        some = [step for step in steps if step.get(key) is not None]
        counted = f"{name}/{weights}/{range_}" if weights else None
        if some and (line := curve(some, key, counted)):
            found[range_] = line
    return found


def _column(steps: Steps, key: str) -> Numbers:
    return np.array([value if (value := step.get(key)) is not None else np.nan for step in steps], dtype=float)


def _smoothed(values: Numbers, weight: Numbers) -> Numbers:
    """Weighted means over a window around each step; NaN where it holds nothing."""
    half = len(values) // WINDOW // 2
    whole = np.concatenate([[0.0], np.cumsum(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0) * weight)])
    counts = np.concatenate([[0.0], np.cumsum(weight)])
    place = np.arange(len(values))
    low, high = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    number: Numbers = counts[high] - counts[low]
    mean: Numbers = np.where(number > 0, (whole[high] - whole[low]) / np.maximum(number, 1e-12), np.nan)
    return mean


def _mean(values: Numbers, weight: Numbers) -> float:
    return float((values * weight).sum() / weight.sum()) if len(values) else float("nan")


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
