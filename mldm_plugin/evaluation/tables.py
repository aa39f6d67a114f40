"""The numbers of an evaluation as text: for a spreadsheet, for a page of notes, for a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from mldm_plugin.evaluation.conclusion import cases_of, in_a_line
from mldm_plugin.evaluation.digits import decimals

ARROWS = {"smaller": "↓", "larger": "↑"}


def as_csv(results: dict[str, Any]) -> str:
    """A line for each metric and model; n is of the cases or, of a distance of sets, of what that model's set holds."""
    stream = io.StringIO()
    names = ("value", "low", "high")
    gaps = ("value", "low", "high", "p", "p_holm", "effect", "verdict")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["metric", "kind", "better", "model", "cases", "n", *names, *(f"difference_{g}" for g in gaps)])
    for metric in results["metrics"]:
        for model, estimate in metric["models"].items():
            gap = metric["differences"].get(model, {})
            row = [metric["name"], metric["kind"], metric["better"], model, metric["cases"]]
            row.append(metric["rows"].get(model, metric["cases"]))
            writer.writerow([*row, *(estimate[n] for n in names), *(gap.get(g) for g in gaps)])
    return stream.getvalue()


def as_markdown(results: dict[str, Any]) -> str:
    """The conclusion, then a table of values and of differences to the first model, all with their N and intervals."""
    models = [model["name"] for model in results["models"]]
    head = ["metric", "N", *models, *(f"{model} − {models[0]}" for model in models[1:])]
    lines = [line for sentence in in_a_line(results) for line in (sentence, "")]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for metric in results["metrics"]:
        values = [_estimated(metric["models"].get(model)) for model in models]
        gaps = [_interval(metric["differences"].get(model)) for model in models[1:]]
        lines.append("| " + " | ".join([_titled(metric), number_of(metric), *values, *gaps]) + " |")
    return "\n".join(lines) + "\n"


def as_text(results: dict[str, Any]) -> str:
    """For a terminal: a table for each model beside the first, without the metrics that have too few cases to say
    anything, which are named below it."""
    first, *others = [model["name"] for model in results["models"]]
    told = [metric for metric in results["metrics"] if not metric["too_few"]]
    tables = [_aligned(_rows(told, first, other)) for other in others or [""]] if told else []
    few: dict[str, list[str]] = {}
    for metric in results["metrics"]:
        if metric["too_few"]:
            few.setdefault(cases_of(metric), []).append(metric["title"])
    tables += [f"too few to show anything, {cases}: {'; '.join(titles)}" for cases, titles in few.items()]
    return "\n\n".join(tables) + "\n"


def _rows(metrics: Sequence[dict[str, Any]], first: str, other: str) -> list[list[str]]:
    """A head, and the cells of each metric; of a single model its values with their intervals."""
    if not other:
        values = [[_titled(metric), _value(metric, first), _between(metric, first)] for metric in metrics]
        return [["", first, "95 % interval"], *values]
    rows = [["", first, other, "difference", "95 % interval", ""]]
    for metric in metrics:
        gap, digits = metric["differences"].get(other), decimals(metric)
        cells = [_titled(metric), _value(metric, first), _value(metric, other)]
        if gap is None or gap["low"] is None:
            rows.append([*cells, "–", "–", "not shown"])
        else:
            interval = f"{gap['low']:+.{digits}f} to {gap['high']:+.{digits}f}"
            rows.append([*cells, f"{gap['value']:+.{digits}f}", interval, gap["verdict"]])
    return rows


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell: words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    lines = (
        "  ".join(
            cell.ljust(width) if number == 0 or (number == last and last > 1) else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def _titled(metric: dict[str, Any]) -> str:
    return f"{metric['title']} {ARROWS[metric['better']]}"


def _value(metric: dict[str, Any], model: str) -> str:
    value = (metric["models"].get(model) or {}).get("value")
    return "–" if value is None else f"{value:.{decimals(metric)}f}"


def _between(metric: dict[str, Any], model: str) -> str:
    digits, estimate = decimals(metric), metric["models"].get(model) or {}
    low, high = estimate.get("low"), estimate.get("high")
    return "–" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def number_of(metric: dict[str, Any]) -> str:
    """N: of what was found in pictures where sets of it are compared, from the model with fewest, else of cases."""
    rows = sorted({*metric["rows"].values()}) or [metric["cases"]]
    return f"{rows[0]}–{rows[-1]}" if len(rows) > 1 else str(rows[0])


def _estimated(estimate: dict[str, Any] | None) -> str:
    if estimate is None or estimate["value"] is None:
        return "–"
    interval = "" if estimate["low"] is None else f" ({estimate['low']:.3g} to {estimate['high']:.3g})"
    return f"{estimate['value']:.3g}{interval}"


def _interval(gap: dict[str, Any] | None) -> str:
    if gap is None or gap["low"] is None:
        return "–"
    text = f"{gap['value']:+.3g} ({gap['low']:+.3g} to {gap['high']:+.3g})"
    return f"**{text}** {gap['verdict']}" if gap["verdict"] != "not shown" else f"{text} not shown"
