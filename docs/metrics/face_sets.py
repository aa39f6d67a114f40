"""Distances of sets of real faces, the tables of frechet.md and kernel.md."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measures import RUNS, metrics_of, named, rows_of, write
from photographs import face_square
from planted import blurred
from torch import Tensor

from mldm_plugin.evaluation.cases import Case
from mldm_plugin.evaluation.measuring import measure
from mldm_plugin.evaluation.notes import Notes
from mldm_plugin.evaluation.picture import Picture

METRICS = ("fd_vgg16_face", "kd_vgg16_face", "fd_face", "kd_face")
PEOPLE = tuple(f"P{number:03}" for number in range(1, 11))
ONE = ("neutral", "sad", "surprised", "scared", "smug", "thoughtful", "exhausted")
OTHER = ("happy", "angry", "disgusted", "confused", "flirty", "pensive", "shocked")
DRAWS, SIZES = 30, (10, 20, 50)


def sets() -> None:
    metrics = metrics_of(METRICS, [], [])
    rows: dict[str, dict[str, Tensor]] = {}
    kinds: dict[str, tuple[tuple[str, ...], Callable[[Tensor], Tensor]]] = {
        "one": (ONE, lambda image: image),
        "other": (OTHER, lambda image: image),
        "blurred by 1": (ONE, partial(blurred, sigma=1)),
        "blurred by 2": (ONE, partial(blurred, sigma=2)),
    }
    for kind, (panels, change) in kinds.items():
        notes = Notes(RUNS / "sets" / kind.replace(" ", "-"))
        makers = [((f"{p} {panel}", 0), partial(_picture, p, panel, change)) for p in PEOPLE for panel in panels]
        measure(makers, metrics, notes, title=kind)
        rows[kind] = {n: rows_of(named(notes.known), n, [key[0] for key, _ in makers]) for n in METRICS}
        assert all(len(rows[kind][n]) == len(makers) for n in METRICS), "a face was not found"
    first, last = slice(0, 35), slice(35, 70)
    every = slice(None)
    comparisons = {
        "the same ten people": ("one", every, every),
        "the same, blurred by σ = 1 px": ("blurred by 1", every, every),
        "the same, blurred by σ = 2 px": ("blurred by 2", every, every),
        "the same five people": ("one", first, first),
        "five people against the other five": ("one", first, last),
        "five of ten people": ("one", first, every),
        "one of ten people": ("one", slice(0, 7), every),
    }
    found: dict[str, Any] = {}
    for title, (kind, made, real) in comparisons.items():
        pairs = {n: (rows[kind][n][made], rows["other"][n][real]) for n in METRICS}
        sizes = [len(part) for part in pairs[METRICS[0]]]
        found[title] = [sizes, {n: metrics.ready[n].distance(*pair) for n, pair in pairs.items()}]
    write("sets", {"comparisons": found, "draws": DRAWS, "sizes": draws(metrics.ready, rows)})


def _picture(person: str, panel: str, change: Callable[[Tensor], Tensor]) -> Picture:
    return Picture(change(face_square(person, panel)), Case(f"{person} {panel}", person, 1))


def draws(metrics: dict[str, Any], rows: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    """Mean and deviation of the distances of N faces from N others of the same people."""
    found: dict[str, Any] = {}
    for size in SIZES:
        generator = torch.Generator().manual_seed(0)
        values: dict[str, list[float]] = {n: [] for n in METRICS}
        for _ in range(DRAWS):
            order = torch.randperm(140, generator=generator)
            for n in METRICS:
                both = torch.cat([rows["one"][n], rows["other"][n]])
                values[n].append(metrics[n].distance(both[order[:size]], both[order[size : 2 * size]]))
        stacked = {n: torch.tensor(v) for n, v in values.items()}
        found[str(size)] = {n: [float(v.mean()), float(v.std())] for n, v in stacked.items()}
    return found
