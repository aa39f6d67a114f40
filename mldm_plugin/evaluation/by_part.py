"""What a metric of sets says of each part of what it looks at, an attribute or a part of a face, beside photographs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mldm_plugin.evaluation.notes import Values, read_notes

if TYPE_CHECKING:
    from mldm_plugin.evaluation.evaluate import Evaluation
    from mldm_plugin.evaluation.measuring import Metrics

WHOLE, REAL = "all", "photographs"
Parts = dict[str, dict[str, dict[str, float]]]  # metric → part → photographs or model → value


def by_part(evaluation: Evaluation, metrics: Metrics) -> Parts:
    """Of each metric that has `parts`: the photographs' own values and those of all runs of each model together.

    The first part, `all`, is the metric itself: of the photographs, what can be reached by what judges.
    """
    out, found = evaluation.asked.out, {}
    real = read_notes(out / "measured" / REAL)
    for name in metrics.of_sets:
        metric, label = metrics.ready[name], metrics.label(name)
        if not hasattr(metric, "parts"):
            continue
        known = _rows([real], label)
        columns = {REAL: _values(metric, known, known)}
        for model in evaluation.models:
            notes = [read_notes(evaluation.folder("measured", model, number)) for number in range(len(model.runs))]
            columns[model.name] = _values(metric, _rows(notes, label), known)
        table = {part: {c: of[part] for c, of in columns.items() if part in of} for part in columns[REAL]}
        if table:
            found[name] = table
    return found


def _rows(notes: list[Values], label: str) -> Any:
    import numpy as np
    import torch

    filled = [values[label] for run in notes for values in run.values() if len(values.get(label, ()))]
    return torch.from_numpy(np.concatenate(filled)) if filled else torch.zeros(0, 1)


def _values(metric: Any, made: Any, known: Any) -> dict[str, float]:
    """Nothing where there is nothing to look at."""
    if not len(made) or not len(known):
        return {}
    try:
        return {WHOLE: float(metric.distance(made, known)), **metric.parts(made, known)}
    except Exception:  # of a metric that somebody else wrote; what it says of the whole is in the table, or why not
        return {}


def as_csv(parts: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A line for each metric, part and column."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["metric", "part", "of", "value"])
    for metric, table in parts.items():
        for part, values in table.items():
            writer.writerows([metric, part, of, f"{value:.6g}"] for of, value in values.items())
    return stream.getvalue()
