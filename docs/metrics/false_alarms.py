"""How often a metric tells two halves of one model's samples apart, in which there is nothing to tell."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from measures import RUNS, metrics_of, named, rows_of, values_of, write
from photographs import face_square
from scipy import stats

from mldm_plugin.evaluation import statistics
from mldm_plugin.evaluation.cases import Case
from mldm_plugin.evaluation.measuring import Metrics, measure
from mldm_plugin.evaluation.models import Run, load_pipeline, set_sampler
from mldm_plugin.evaluation.notes import Notes, Values
from mldm_plugin.evaluation.picture import Picture, read_image
from mldm_plugin.evaluation.sampling import Sampling, draw, picture_name
from mldm_plugin.people_mini import PIPELINE
from mldm_plugin.people_mini.photos import photo_rows
from mldm_plugin.people_mini.who import PEOPLE

TRIALS, AGAIN = 200, 4000  # the second number for metrics that the first finds above 5 %: is that chance?
FEELINGS = ("calm", "smiling", "sad", "angry", "surprised", "scared", "confused")
PLACES = ("in a studio", "in a park")
SIDE = 128
PANELS = ("neutral", "happy", "sad", "angry", "surprised", "scared", "thoughtful", "smug")  # of each, as references
OF_SAMPLES = (
    *("face_found", "face_score", "people_count", "face_sharpness", "identity", "identity_dlib", "copying"),
    *("hands_found", "hand_score", "hand_shape", "pose_found", "fd_vgg16", "kd_vgg16", "fd_vgg16_person"),
    *("kd_alexnet_person", "fd_vgg16_face", "kd_vgg16_face", "fd_face", "kd_face", "kd_faceres", "diversity"),
)


def asked() -> Iterator[Case]:
    """49 busts and 28 whole bodies of the seven people that people-mini knows."""
    for person, who in PEOPLE.items():
        for feeling in FEELINGS:
            text = f"photo of {who.name}, {feeling}, bust, in a studio"
            yield Case(f"{person}-{feeling}", text, 1)
        for place in PLACES:
            for n in range(2):
                yield Case(f"{person}-body-{place[-4:]}-{n}x", f"photo of {who.name}, full body, {place}", 1, 2)


def samples(cases: Sequence[Case], metrics: Metrics) -> Values:
    """What the metrics say of a sample of each case."""
    folder = RUNS / "alarms" / "pictures"
    pipeline: Any = None
    if not all((folder / picture_name(case, 0)).is_file() for case in cases):
        pipeline = load_pipeline(Run(str(PIPELINE), "pipeline"), torch.device("cpu"), torch.float32)
        set_sampler(pipeline, "dpm++")
        pipeline.set_progress_bar_config(disable=True)
        draw(pipeline, cases, Sampling(steps=20), folder, title="samples")
    notes = Notes(RUNS / "alarms" / "samples")
    own = [((case.key, 0), partial(_read, folder / picture_name(case, 0), case)) for case in cases]
    measure(own, metrics, notes, title="samples, measured")
    return named(notes.known)


def _read(path: Any, case: Case) -> Picture:
    return Picture(read_image(path), case)


def alarms() -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    cases = list(asked())
    known = {row[2] for row in photo_rows() if row[1] == "emotions_sheet"} & set(PANELS)
    photographs = [
        Picture(face_square(person, panel, side=SIDE), Case(f"{person} {panel}", person, 1))
        for person in PEOPLE
        for panel in sorted(known)
    ]
    metrics = metrics_of(OF_SAMPLES, photographs, photographs, person="P003")
    real = Notes(RUNS / "alarms" / "photographs")
    measure([((p.case.key, 0), partial(lambda p: p, p)) for p in photographs], metrics, real)
    found = samples(cases, metrics)
    keys = [case.key for case in cases]
    rates = {name: rate(metrics, name, found, named(real.known), keys) for name in metrics.ready}
    for name in [name for name, one in rates.items() if one["rate"] > 0.05]:
        rates[name]["again"] = rate(metrics, name, found, named(real.known), keys, AGAIN)
    write("alarms", {"cases": len(cases), "trials": TRIALS, "others": len(photographs), "metrics": rates})


def rate(
    metrics: Metrics, name: str, found: Values, real: Values, cases: Sequence[str], trials: int = TRIALS
) -> dict[str, Any]:
    """The share of random halves that differ, with its binomial interval, and the standard error of all together."""
    generator = np.random.default_rng(0)
    alarmed, asked_of = 0, list(cases)
    if name not in metrics.of_sets:
        asked_of = [case for case in cases if found[case, 0].get(name) is not None]
    for _ in range(trials):
        order = generator.permutation(len(asked_of))
        halves = [sorted(order[k::2].tolist()) for k in range(2)]
        alarmed += not gap_of(metrics, name, found, real, asked_of, halves).holds_zero
    low, high = stats.binomtest(alarmed, trials).proportion_ci(method="exact")
    if name in metrics.of_sets:
        whole = of_half(metrics, name, found, real, asked_of, range(len(asked_of)))
        error = statistics.set_difference(whole, None, (1, 0), len(asked_of)).error
    else:
        error = statistics.mean(values_of(found, name, asked_of)).error
    numbers = {"rate": alarmed / trials, "low": low, "high": high, "error": error}
    return {"cases": len(asked_of), **{key: float(f"{value:.3g}") for key, value in numbers.items()}}


def of_half(
    metrics: Metrics, name: str, found: Values, real: Values, cases: Sequence[str], half: Sequence[int]
) -> Callable[[int, Sequence[int]], float]:
    """The distance of those of a half that are among `some`."""
    known, own = rows_of(real, name, [case for case, _ in real]), set(half)
    rows = {i: rows_of(found, name, [cases[i]]) for i in own}

    def value(run: int, some: Sequence[int]) -> float:
        there = [rows[i] for i in some if i in own and len(rows[i])]
        return float(metrics.ready[name].distance(torch.cat(there), known))

    return value


def gap_of(
    metrics: Metrics, name: str, found: Values, real: Values, cases: Sequence[str], halves: Sequence[list[int]]
) -> statistics.Estimate:
    """The difference of the halves, as `mldm evaluate` has it of two folders whose pictures have different names."""
    if name not in metrics.of_sets:
        values = values_of(found, name, cases)
        return statistics.unpaired_difference(values[:, halves[0]], values[:, halves[1]])
    one, other = (of_half(metrics, name, found, real, cases, half) for half in halves)
    return statistics.set_difference(one, other, (1, 1), len(cases))
