"""All that the page of a run shows, gathered from the run's folder."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

from mldm_plugin.doctor.drawing import block_of
from mldm_plugin.doctor.layers import Changes
from mldm_plugin.doctor.losses import Log
from mldm_plugin.doctor.report import Answer
from mldm_plugin.doctor.run import Run
from mldm_plugin.prepare.check import Report
from mldm_plugin.records.crops import read_crops
from mldm_plugin.run_page.album import Album
from mldm_plugin.run_page.curves import POINTS, by_range, curve, names_of
from mldm_plugin.run_page.film import film
from mldm_plugin.run_page.heard import heard
from mldm_plugin.run_page.machine import machine_of, speed_of
from mldm_plugin.run_page.told import command_of, preset_of, proof_of, settings_of
from mldm_plugin.run_page.validation import validation_of

TILES = 12  # rows of the training set; chosen: three lines, seen at one glance


def content(
    run: Run, answer: Answer, name: str, again: int | None = None, album: Album | None = None
) -> dict[str, Any]:
    """What the page's script reads.

    Args:
        name: what the run is called.
        again: after how many seconds the page is to be read again; None for a page that stays as it is.
        album: the photographs that were read before; None for none.
    """
    preset = preset_of(run)
    steps = answer.log.steps if answer.log is not None else []
    names = names_of(steps)
    said = [{"grade": remark.grade, "text": remark.text, "names": remark.names[:8]} for remark in answer.said]
    return {
        "name": name,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "again": again,
        "verdict": answer.verdict,
        "wrong": answer.wrong,
        "said": said,
        "settings": [*settings_of(run, preset), *speed_of(run)],
        "steps": _steps(run, answer.log),
        "losses": names,
        "curves": _curves(steps, names),
        "ranges": _ranges(steps, names),
        "heard": heard(names, steps, preset),
        "validation": validation_of(run.records, Album(run.arguments) if album is None else album),
        "proof": proof_of(run),
        "film": film(run.records) if run.records is not None else {"frames": [], "panels": 0},
        "data": _data(answer.data, None if run.records is None else read_crops(run.records)),
        "layers": _layers(answer.changes),
        "command": command_of(run),
        "machine": machine_of(run),
        "folder": str(run.records or run.weights),
        "points": POINTS,
    }


def _steps(run: Run, log: Log | None) -> dict[str, Any]:
    if log is None or not log.steps:
        return {"done": 0, "asked": run.arguments.get("max_train_steps"), "images": None, "reached": {}}
    last = log.steps[-1].get("step")
    reached = {name: log.sum(f"{name}/gated") for name in names_of(log.steps)}
    asked = run.arguments.get("max_train_steps")
    return {"done": int(last or len(log.steps)), "asked": asked, "images": log.images, "reached": reached}


def _curves(steps: Any, names: list[str]) -> list[dict[str, Any]]:
    told: list[tuple[str, str, str | None]] = []
    told += [("loss", "what was trained with", None), ("ldm", "of all pictures", None)]
    told += [(name, "before its weight, of the pictures that it reached", f"{name}/gated") for name in names]
    told += [("lr", "as the schedule has it", None)]
    lines = [(key, what, curve(steps, key, weights)) for key, what, weights in told]
    return [{"name": key, "what": what, **line} for key, what, line in lines if line is not None]


def _ranges(steps: Any, names: list[str]) -> list[dict[str, Any]]:
    lines = [(name, by_range(steps, name)) for name in ("ldm", *names)]
    return [{"name": name, "ranges": found} for name, found in lines if found]


def _data(report: Report | None, crops: tuple[int, int] | None) -> dict[str, Any] | None:
    """The training set; beside its counts, in how many of the pictures trained on the crop has left out a face."""
    if report is None:
        return None
    step = -(-len(report.shown) // TILES) or 1
    tiles = [
        {
            "name": one.name,
            "caption": one.caption,
            "src": base64.b64encode(one.thumbnail).decode("ascii"),
            "faults": [reason for _, reason in one.faults],
        }
        for one in report.shown[::step]
        if one.thumbnail
    ]
    spreads = [{"title": spread.title, "bars": spread.bars()} for spread in report.spreads if any(spread.counts)]
    counts = {what: count for what, count in report.counts.items() if count}
    return {
        "counts": counts
        if crops is None
        else {**counts, f"of {crops[1]} trained on lose a face to the crop": crops[0]},
        "tiles": tiles,
        "spreads": spreads,
    }


def _layers(changes: Changes | None) -> dict[str, Any] | None:
    """How far each layer moved, block by block."""
    if changes is None or not (layers := changes.layers or changes.zero):
        return None
    shares = all(layer.share is not None for layer in layers)
    bars = [(layer.name, block_of(layer.name), layer.share if shares else layer.moved) for layer in layers]
    return {"what": changes.what, "shares": shares, "base": changes.base, "bars": list(_finite(bars))}


def _finite(bars: list[tuple[str, str, float | None]]) -> Iterator[tuple[str, str, float | None]]:
    """JSON has no word for what is not finite."""
    for name, block, value in bars:
        yield name, block, None if value is None or value != value or value in (float("inf"), -float("inf")) else value
