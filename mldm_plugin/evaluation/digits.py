"""How many digits of a measurement are worth telling."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

DIGITS = 6  # at most, after the point or significant; chosen: more than the report's pixels tell apart


def decimals(metric: dict[str, Any]) -> int:
    """How many are worth telling: two digits of the intervals' half width, or three of the values.

    Up to two more where an interval that leaves out zero would else seem to reach it.
    """
    estimates = [e for kind in ("models", "differences") for e in metric[kind].values() if e is not None]
    widths = [(e["high"] - e["low"]) / 2 for e in estimates if e["low"] is not None and e["high"] is not None]
    sizes, digits = [width for width in widths if width > 0], 1
    if not sizes:
        sizes, digits = [abs(e["value"]) for e in estimates if e["value"]], 2
    if not sizes:
        return 0
    found = digits - _place(median(sizes))
    gaps = [e for e in metric["differences"].values() if e is not None and e["low"] is not None]
    bounds = [min(abs(e["low"]), abs(e["high"])) for e in gaps if e["low"] * e["high"] > 0]
    seen = max((-_place(bound) for bound in bounds), default=0)
    return min(max(found, min(seen, found + 2), 0), DIGITS)


def _place(value: float) -> int:
    """Of the first digit: 0 for 1 to 9, −1 for tenths."""
    return math.floor(math.log10(value))
