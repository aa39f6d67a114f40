"""How many digits of a measurement are worth telling."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

DIGITS = 6  # at most, after the point or significant; chosen: more than the report's pixels tell apart


def decimals(metric: dict[str, Any]) -> int:
    """How many are worth telling: two digits of the intervals' half width, or three of the values."""
    estimates = [e for kind in ("models", "differences") for e in metric[kind].values() if e is not None]
    widths = [(e["high"] - e["low"]) / 2 for e in estimates if e["low"] is not None and e["high"] is not None]
    sizes, digits = [width for width in widths if width > 0], 1
    if not sizes:
        sizes, digits = [abs(e["value"]) for e in estimates if e["value"]], 2
    if not sizes:
        return 0
    return min(max(digits - math.floor(math.log10(median(sizes))), 0), DIGITS)
