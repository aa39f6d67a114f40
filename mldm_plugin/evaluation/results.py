"""What an evaluation found, as metrics.json holds it and the report shows it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mldm_plugin.evaluation import statistics
from mldm_plugin.evaluation.cautions import notes_of, warnings_of
from mldm_plugin.evaluation.judges import networks_of_losses, proof_of
from mldm_plugin.evaluation.measuring import Metrics
from mldm_plugin.evaluation.models import Model, Run
from mldm_plugin.evaluation.notes import Values, read_notes
from mldm_plugin.evaluation.one_step import TIMESTEPS
from mldm_plugin.evaluation.quantities import QUANTITIES
from mldm_plugin.evaluation.statistics import Array, Estimate
from mldm_plugin.evaluation.tables import as_csv, as_markdown
from mldm_plugin.records.files import write_text

if TYPE_CHECKING:
    from mldm_plugin.evaluation.evaluate import Evaluation

VERSION = 1


@dataclass(frozen=True)
class Measured:
    """A metric with its values by model.

    Args:
        name, title, better, kind: of the metric; kind is "picture", "set" or "one_step".
        networks: the names of those that it looks with.
        values: model → (R, C), NaN where nothing was asked.
        estimates: model → its value with an interval.
        differences: model → its difference to the first model.
        rows: of a metric of sets, model → how many pictures, people or faces its set holds, in the run with fewest.
    """

    name: str
    title: str
    better: str
    kind: str
    networks: tuple[str, ...]
    values: dict[str, Array]
    estimates: dict[str, Estimate]
    differences: dict[str, Estimate]
    rows: dict[str, int] = field(default_factory=dict)


def write_results(evaluation: Evaluation, metrics: Metrics, command: str) -> dict[str, Any]:
    """Compare the models by all that was measured; write metrics.json, metrics.csv, table.md and the report."""
    from mldm_plugin.evaluation.by_part import as_csv as parts_as_csv
    from mldm_plugin.evaluation.by_part import by_part
    from mldm_plugin.evaluation.report import write_report
    from mldm_plugin.evaluation.showing import boxes_of, conditions_of, person_of, photographs_of
    from mldm_plugin.evaluation.thumbnails import shown_cases

    measured = [*_of_pictures(evaluation, metrics), *_of_sets(evaluation, metrics), *_of_one_step(evaluation, metrics)]
    results = {
        "version": VERSION,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "versions": _versions(),
        "sampling": asdict(evaluation.asked.sampling),
        "models": [_model(model) for model in evaluation.models],
        "failed": evaluation.failed,
        "cases": [asdict(case) for case in evaluation.cases],
        "photographs": None if evaluation.photographs is None else len(evaluation.photographs),
        "metrics": _rows(measured, evaluation.models),
        "parts": by_part(evaluation, metrics),
        "missing": metrics.missing,
        "warnings": warnings_of(evaluation, measured),
        "notes": notes_of(metrics, measured),
        "curves": _curves(evaluation),
        "pictures": _pictures(evaluation),
        "faces": boxes_of(evaluation, "faces"),
        "hands": boxes_of(evaluation, "hands"),
    }
    results = _plain(results)
    results["photographs_of_cases"] = photographs_of(evaluation, shown_cases(results))
    results["conditions_of_cases"] = conditions_of(evaluation, shown_cases(results))
    results["person"] = person_of(evaluation)
    out = evaluation.asked.out
    write_text(out / "metrics.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    write_text(out / "metrics.csv", as_csv(results))
    if results["parts"]:
        write_text(out / "parts.csv", parts_as_csv(results["parts"]))
    write_text(out / "table.md", as_markdown(results))
    write_report(results, out)
    return results


# Arrays of values


def _notes(evaluation: Evaluation, kind: str, model: Model) -> list[Values]:
    return [read_notes(evaluation.folder(kind, model, number)) for number in range(len(model.runs))]


def _array(notes: Sequence[Values], cases: Sequence[str], name: str) -> Array:
    """(R, C) of a metric, repetitions averaged; NaN where it says nothing."""
    rows = []
    for of_run in notes:
        by_case: dict[str, list[float]] = {}
        for (case, _), values in of_run.items():
            if values.get(name) is not None:  # what is not finite is no number, but is something
                by_case.setdefault(case, []).append(values[name] if math.isfinite(values[name]) else math.inf)
        rows.append([float(np.mean(by_case[case])) if case in by_case else math.nan for case in cases])
    return np.array(rows, dtype=np.float64)


def _of_pictures(evaluation: Evaluation, metrics: Metrics) -> Iterator[Measured]:
    notes = {model.name: _notes(evaluation, "measured", model) for model in evaluation.models}
    cases = [case.key for case in evaluation.cases]
    for name in metrics.of_pictures:
        metric = metrics.ready[name]
        label = metrics.label(name)
        values = {model: _array(of_model, cases, label) for model, of_model in notes.items()}
        if all(np.isnan(array).all() for array in values.values()):
            metrics.missing[name] = f"nothing to measure: it asks for {metric.asks}"
            continue
        yield _compared(evaluation, name, metric.title, metric.better, "picture", _names(metric), values)


def _of_one_step(evaluation: Evaluation, metrics: Metrics) -> Iterator[Measured]:
    notes, rows = _one_step_notes(evaluation), evaluation.rows
    for quantity in QUANTITIES:
        values = {model: _mean_over_t(of_model, rows, quantity.name) for model, of_model in notes.items()}
        for model in [m for m, array in values.items() if np.isinf(array).any()]:
            broken = int(np.isinf(values.pop(model)).any(0).sum())
            reason = f"no finite value on {broken} of {len(rows)} photographs: the model has diverged"
            metrics.missing[f"{quantity.name} of {model}"] = reason
        if values and not all(np.isnan(array).all() for array in values.values()):
            judges = {"lpips": evaluation.judges.trunk, "face": evaluation.judges.face}
            networks = tuple(network for kind, network in judges.items() if kind in quantity.name)
            yield _compared(evaluation, quantity.name, quantity.title, "smaller", "one_step", networks, values)


def _one_step_notes(evaluation: Evaluation) -> dict[str, list[Values]]:
    notes = {model.name: _notes(evaluation, "one_step", model) for model in evaluation.models}
    return {model: of_model for model, of_model in notes.items() if all(of_model)}


def _mean_over_t(notes: Sequence[Values], rows: Sequence[str], name: str) -> Array:
    return np.stack([_array(notes, rows, f"{name}@{t}") for t in TIMESTEPS]).mean(0)


def _compared(
    evaluation: Evaluation,
    name: str,
    title: str,
    better: str,
    kind: str,
    networks: tuple[str, ...],
    values: dict[str, Array],
) -> Measured:
    """Each model's mean, and its difference to the first model, if that was measured."""
    first = evaluation.models[0].name
    estimates = {model: statistics.mean(array) for model, array in values.items()}
    same = _same_seeds(evaluation)
    others = [model for model in values if model != first and first in values]
    differences = {model: _difference(values[model], values[first], same[model]) for model in others}
    return Measured(name, title, better, kind, networks, values, estimates, differences)


def _difference(one: Array, other: Array, same_seeds: bool) -> Estimate:
    """Case by case where they have cases in common, else of two sets of cases."""
    common = ~(np.isnan(one).any(0) | np.isnan(other).any(0))
    if common.sum() > 1:
        return statistics.paired_difference(one, other, same_seeds=same_seeds)
    return statistics.unpaired_difference(one, other)


def _same_seeds(evaluation: Evaluation) -> dict[str, bool]:
    """Whether a model's runs are paired with the first model's."""
    return {model.name: model.has_seeds_of(evaluation.models[0]) for model in evaluation.models}


# Sets


def _of_sets(evaluation: Evaluation, metrics: Metrics) -> Iterator[Measured]:
    real = read_notes(evaluation.asked.out / "measured" / "photographs")
    notes = {model.name: _notes(evaluation, "measured", model) for model in evaluation.models}
    cases = [case.key for case in evaluation.cases]
    for name in metrics.of_sets:
        metric = metrics.ready[name]
        label = metrics.label(name)
        known = _stacked([values[label] for values in real.values() if label in values])
        of_models = {model: [_FeaturesOfCases(run, cases, label) for run in runs] for model, runs in notes.items()}
        found = _compared_sets(name, metric, known, of_models, len(cases), _same_seeds(evaluation), metrics.missing)
        if found.estimates:
            yield found


class _FeaturesOfCases:
    """The rows of features of a run by case."""

    def __init__(self, notes: Values, cases: Sequence[str], name: str) -> None:
        places = {case: i for i, case in enumerate(cases)}
        self.rows: list[list[Array]] = [[] for _ in cases]
        for (case, _), values in notes.items():
            if case in places and values.get(name) is not None:
                self.rows[places[case]].append(values[name])

    def __len__(self) -> int:
        return sum(len(row) for of_case in self.rows for row in of_case)

    def of(self, cases: Sequence[int]) -> Any:
        return _stacked([row for case in cases for row in self.rows[case]])


def _stacked(rows: Sequence[Any]) -> Any:
    import torch

    filled = [row for row in rows if len(row)]
    return torch.from_numpy(np.concatenate(filled)) if filled else torch.zeros(0, 1)


def _compared_sets(
    name: str,
    metric: Any,
    known: Any,
    of_models: dict[str, list[_FeaturesOfCases]],
    cases: int,
    same: dict[str, bool],
    missing: dict[str, str],
) -> Measured:
    def statistic(runs: list[_FeaturesOfCases]) -> Any:
        return lambda run, some: float(metric.distance(runs[run].of(some), known))

    first = next(iter(of_models))
    estimates, differences = {}, {}
    for model, runs in of_models.items():
        try:
            estimates[model] = statistics.set_difference(statistic(runs), None, (len(runs), 0), cases)
        except Exception as error:  # too few faces in its pictures, or a metric of somebody else: the report says so
            missing[f"{name} of {model}"] = f"{type(error).__name__}: {error}"
            continue
        if model != first and first in estimates:
            theirs = of_models[first]
            sizes, both = (len(runs), len(theirs)), (statistic(runs), statistic(theirs))
            differences[model] = statistics.set_difference(*both, sizes, cases, same_seeds=same[model])
    rows = {model: min(map(len, of_models[model])) for model in estimates}
    return Measured(name, metric.title, metric.better, "set", _names(metric), {}, estimates, differences, rows)


# What the report shows


def _names(metric: Any) -> tuple[str, ...]:
    return tuple(words.split()[0] for words in getattr(metric, "networks", ()))


def _rows(measured: Sequence[Measured], models: Sequence[Model]) -> list[dict[str, Any]]:
    """Each metric with its differences, the p-values of each model corrected for the number of metrics."""
    corrected = {model.name: _corrected(measured, model.name) for model in models}
    trained_on = {model.name: networks_of_losses(model) for model in models}
    rows = []
    for one in measured:
        cases = max((int((~np.isnan(v).any(0)).sum()) for v in one.values.values()), default=0)
        cases = cases or max((estimate.cases for estimate in one.estimates.values()), default=0)
        differences = {
            model: {
                **asdict(gap),
                "p_holm": corrected[model][one.name],
                "words": statistics.in_words(gap.effect),
                "verdict": _verdict(one.better, gap, corrected[model][one.name]),
                "needed": _needed(gap, corrected[model][one.name], len(measured), models),
            }
            for model, gap in one.differences.items()
        }
        used = sorted({n for n in one.networks for networks in trained_on.values() if n in networks})
        rows.append(
            {
                "name": one.name,
                "title": one.title,
                "better": one.better,
                "kind": one.kind,
                "networks": one.networks,
                "too_few": _too_few(one, cases, models),
                "trained_on": {n: [m for m, networks in trained_on.items() if n in networks] for n in used},
                "cases": cases,
                "rows": one.rows,
                "values": {model: array.mean(0) for model, array in one.values.items()},
                "models": {model: asdict(estimate) for model, estimate in one.estimates.items()},
                "differences": differences,
            }
        )
    return rows


def _corrected(measured: Sequence[Measured], model: str) -> dict[str, float]:
    """Metric → the p of a model's difference, corrected by Holm's method for the metrics that could show one.

    One whose smallest p of so few cases is not below .05 can be called better or worse by no values whatever, so the
    others need no correction for it; its own is NaN. Who is left out depends on numbers of cases alone, never on what
    was measured, so false alarms stay below .05 of all evaluations (Tarone, "A Modified Bonferroni Method for Discrete
    Data", 1990, leaves out more: also what could pass only if others do).
    """
    gaps = {one.name: one.differences[model] for one in measured if model in one.differences}
    able = [name for name, gap in gaps.items() if gap.least_p < 1 - statistics.LEVEL]
    holm = statistics.holm([gaps[name].p for name in able])
    return {**dict.fromkeys(gaps, math.nan), **dict(zip(able, holm, strict=True))}


def _needed(gap: Estimate, p: float, tests: int, models: Sequence[Model]) -> int | None:
    """Cases that would show the difference, where it is not shown; with training seeds more cases may not help."""
    shown = not gap.holds_zero and p < 1 - statistics.LEVEL
    if shown or not gap.cases or any(len(model.runs) > 1 for model in models):
        return None
    wanted = statistics.needed(gap, gap.cases, tests)
    if wanted is None:
        return None
    wanted = max(wanted, statistics.fewest(tests) if gap.least_p else 0)
    return wanted if wanted > gap.cases else None  # there were enough, and luck was against it


def _too_few(one: Measured, cases: int, models: Sequence[Model]) -> bool:
    """Whether not even the clearest difference could be shown: of a metric of cases, with one run of each model."""
    by_cases = one.differences and one.values and all(len(model.runs) == 1 for model in models)
    return bool(by_cases) and cases < statistics.fewest()


def _verdict(better: str, gap: Estimate, p: float) -> str:
    """`better`, `worse` or `not shown`: only what its interval and Holm's correction both say."""
    if math.isnan(gap.low) or gap.holds_zero or not p < 1 - statistics.LEVEL:
        return "not shown"
    return "better" if (gap.value < 0) == (better == "smaller") else "worse"


def _curves(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Each one-step quantity over t, by model, with intervals over photographs."""
    curves = []
    notes, rows, first = _one_step_notes(evaluation), evaluation.rows, evaluation.models[0].name
    for quantity in QUANTITIES:
        lines, gaps = {}, {}
        for model, of_model in notes.items():
            arrays = [_array(of_model, rows, f"{quantity.name}@{t}") for t in TIMESTEPS]
            if all(np.isnan(array).all() for array in arrays):
                continue
            lines[model] = [asdict(statistics.mean(array)) for array in arrays]
            if model != first and first in notes:
                theirs = [_array(notes[first], rows, f"{quantity.name}@{t}") for t in TIMESTEPS]
                pairs, same = zip(arrays, theirs, strict=True), _same_seeds(evaluation)[model]
                gaps[model] = [asdict(statistics.paired_difference(a, b, same_seeds=same)) for a, b in pairs]
        if lines:
            words = {"name": quantity.name, "title": quantity.title, "what": quantity.what}
            curves.append({**words, "t": TIMESTEPS, "models": lines, "differences": gaps})
    return curves


def _pictures(evaluation: Evaluation) -> dict[str, dict[str, str]]:
    """model → case → the path of its first picture of the first run, as seen from the report."""
    found: dict[str, dict[str, str]] = {}
    out = evaluation.asked.out.resolve()
    for model in evaluation.models:
        files = evaluation.files(model, 0, model.runs[0])
        paths = {key[0]: path.resolve() for key, _, path in reversed(files) if path.is_file()}
        found[model.name] = {
            case: str(path.relative_to(out)) if path.is_relative_to(out) else str(path) for case, path in paths.items()
        }
    return found


def _model(model: Model) -> dict[str, Any]:
    def said(run: Run) -> dict[str, Any]:
        return {**asdict(run), "digest": run.digest, "proof": proof_of(Path(run.what))}

    return {"name": model.name, "runs": [said(run) for run in model.runs]}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("mldm-plugin", "torch", "diffusers", "transformers", "accelerate", "peft")
    return {name: version(name) for name in names}


def _plain(value: Any) -> Any:
    """What JSON can hold; NaN is null."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
