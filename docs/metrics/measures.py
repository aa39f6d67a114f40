"""What sensitivity.py and its kin share: metrics, their values and differences, and the file of figures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from photographs import PEOPLE, face_square

from mldm_plugin.evaluation import statistics
from mldm_plugin.evaluation.cases import Case
from mldm_plugin.evaluation.measuring import Metrics, make_metrics
from mldm_plugin.evaluation.notes import Values
from mldm_plugin.evaluation.picture import Picture
from mldm_plugin.evaluation.statistics import Array, Estimate
from mldm_plugin.plugins import load_plugins

FIGURES = Path(__file__).parent / "sensitivity.json"
RUNS = Path(__file__).parent.parent.parent / "runs" / "sensitivity"


def write(part: str, found: Any) -> None:
    """Put a part into the file of figures, a line for each."""
    figures = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}
    figures[part] = found
    parts = [f"{json.dumps(name)}: {json.dumps(of)}" for name, of in sorted(figures.items())]
    FIGURES.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


class OfItsPerson:
    """A metric of one person, asked of each picture about its own, whom the case's text names."""

    def __init__(self, metrics: dict[str, Any]) -> None:
        first = next(iter(metrics.values()))
        self.title, self.better, self.asks, self.networks = first.title, first.better, first.asks, first.networks
        self.metrics = metrics

    def __call__(self, picture: Picture) -> float | None:
        return self.metrics[picture.case.text](picture)


def metrics_of(
    names: Sequence[str], photographs: Sequence[Picture], train_data: Sequence[Picture], person: str | None = None
) -> Metrics:
    """The metrics that can be had; those of identity for the person, or for whom each case names."""
    plugins = load_plugins()
    given: dict[str, Sequence[Picture] | None] = {"photographs": photographs, "train_data": train_data, "person": None}
    metrics = make_metrics(plugins, names, given)
    for name in [n for n in names if n.startswith("identity")]:
        metrics.missing.pop(name)
        known = {p: Picture(face_square(p, "", "studio_portrait"), Case(p, p, 1)) for p in PEOPLE}
        made = {p: plugins.metrics[name](person=[known[p]]) for p in ((person,) if person else PEOPLE)}
        metrics.ready[name] = made[person] if person else OfItsPerson(made)
    metrics.ready = {name: metrics.ready[name] for name in names if name in metrics.ready}
    for name, why in metrics.missing.items():
        click.echo(f"{name}: {why}")
    return metrics


# Comparing


def named(notes: Values) -> Values:
    """Notes by the names of metrics, without the digests of what measured."""
    return {key: {label.partition("@")[0]: value for label, value in of.items()} for key, of in notes.items()}


def rows_of(notes: Values, name: str, cases: Sequence[str]) -> torch.Tensor:
    """The features (n, d) of some cases."""
    rows = [notes[case, 0][name] for case in cases if (case, 0) in notes and len(notes[case, 0][name])]
    return torch.from_numpy(np.concatenate(rows)) if rows else torch.zeros(0, 1)


def values_of(notes: Values, name: str, cases: Sequence[str]) -> Array:
    """The values (1, C) of a metric of pictures."""
    values = [notes.get((case, 0), {}).get(name) for case in cases]
    return np.array([[math.nan if value is None else value for value in values]], dtype=np.float64)


def statistic(metric: Any, name: str, notes: Values, real: Values, cases: Sequence[str]) -> Any:
    known = rows_of(real, name, [case for case, _ in real])
    return lambda run, some: float(metric.distance(rows_of(notes, name, [cases[i] for i in some]), known))


def difference(metrics: Metrics, name: str, one: Values, other: Values, real: Values, cases: Sequence[str]) -> Estimate:
    """As `mldm evaluate` compares two models on the same cases."""
    if name not in metrics.of_sets:
        return statistics.paired_difference(values_of(one, name, cases), values_of(other, name, cases))
    metric = metrics.ready[name]
    try:
        pair = [statistic(metric, name, notes, real, cases) for notes in (one, other)]
        return statistics.set_difference(pair[0], pair[1], (1, 1), len(cases))
    except Exception as error:  # no face is found in any picture
        click.echo(f"{name}: {error}")
        return Estimate(math.nan, math.nan, math.nan)


def own(metrics: Metrics, name: str, notes: Values, real: Values, cases: Sequence[str]) -> dict[str, float]:
    """A metric's value and its standard error over the cases."""
    if name in metrics.of_sets:
        value = statistic(metrics.ready[name], name, notes, real, cases)
        found = statistics.set_difference(value, None, (1, 0), len(cases))
    else:
        found = statistics.mean(values_of(notes, name, cases))
    return {"value": float(f"{found.value:.3g}"), "error": float(f"{found.error:.3g}")}


def compared(metrics: Metrics, one: Values, other: Values, real: Values, cases: Sequence[str]) -> dict[str, Any]:
    """Each metric's difference with its verdict, corrected for the number of metrics."""
    gaps = {name: difference(metrics, name, one, other, real, cases) for name in metrics.ready}
    corrected = dict(zip(gaps, statistics.holm([gap.p for gap in gaps.values()]), strict=True))
    found = {}
    for name, gap in gaps.items():
        seen = not (math.isnan(gap.low) or gap.holds_zero) and corrected[name] < 1 - statistics.LEVEL
        worse = (gap.value > 0) == (metrics.ready[name].better == "smaller")
        numbers = [None if math.isnan(x) else float(f"{x:.3g}") for x in (gap.value, gap.low, gap.high)]
        found[name] = [*numbers, ("worse" if worse else "better") if seen else "not shown"]
    return found
