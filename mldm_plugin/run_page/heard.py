"""What a run measured of its losses' gradients, put together again from the lines that it logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mldm_plugin.engine.heard import QUANTITIES, REACHED, Tally, complaints
from mldm_plugin.engine.ranges import RANGES
from mldm_plugin.run_page.curves import Steps, by_range


def tally_of(name: str, steps: Steps) -> Tally:
    """One loss over the whole run."""
    tally = Tally(name)
    for step in steps:
        if f"{name}/pictures" not in step:
            continue
        sums = dict.fromkeys(QUANTITIES, [0.0] * len(RANGES))
        sums = {quantity: list(row) for quantity, row in sums.items()}
        for place, range_ in enumerate(RANGES):
            measured = step.get(f"{name}/measured/{range_}")
            if not measured:
                continue
            value = {q: step.get(f"{name}/{q}/{range_}") or 0.0 for q in ("gradient", "plain", "cosine", "share")}
            sums["measured"][place] = measured
            for quantity in ("gradient", "plain", "cosine"):
                sums[quantity][place] = value[quantity] * measured
            if value["share"]:
                sums["whole"][place] = value["gradient"] * measured / value["share"]
        reached = [int(step.get(f"{name}/{what}") or 0) for what in REACHED]
        tally.add(Tally(name, [sums[quantity] for quantity in QUANTITIES], reached))
    return tally


def heard(names: list[str], steps: Steps, preset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each loss that was measured: by range of t its numbers, over the steps its share, and what there is to say.

    Args:
        preset: as its file says, which may be empty.
    """
    settings: Mapping[str, Any] = preset.get("losses") or {}
    weights = {name: _weight(settings.get(name)) for name in names}
    total, additive = sum(weights.values()), preset.get("combine") == "additive"
    found = []
    for name in names:
        tally = tally_of(name, steps)
        if not any(tally.reached) and not tally.by_range():
            continue
        room = float("inf") if additive else 1 - (total - weights[name])
        factors = [step[key] for step in steps if (key := f"{name}/balance") in step]
        said = complaints(tally, weights[name], room, factors[-1] if factors else None) if weights[name] else {}
        found.append(
            {
                "name": name,
                "ranges": tally.by_range(),
                "reached": dict(zip(REACHED, tally.reached, strict=True)),
                "share": by_range(steps, name, "share", "measured"),
                "cosine": by_range(steps, name, "cosine", "measured"),
                "said": list(said.values()),
            }
        )
    return found


def _weight(settings: Any) -> float:
    weight = settings.get("weight") if isinstance(settings, Mapping) else None
    return float(weight) if isinstance(weight, (int, float)) else 0.0
