"""Milliseconds that each metric takes for a picture of 128 pixels on one core, detectors by themselves."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measures import metrics_of, write
from photographs import PEOPLE, face_square

from mldm_plugin.conditions.judges import AttributeJudge, PartsJudge, write_judge
from mldm_plugin.data.batch import Example
from mldm_plugin.evaluation.cases import Case
from mldm_plugin.evaluation.measuring import SetMetric
from mldm_plugin.evaluation.picture import Picture
from mldm_plugin.plugins import load_plugins
from mldm_plugin.prepare.synthetic.portrait import draw_portrait

SIDE = 128
REPETITIONS = 10  # of each case, for diversity among them, as in the paper


def cost() -> None:
    """Median over pictures of CPU time; what a picture keeps for other metrics is forgotten in between."""

    def fresh(person: str) -> Picture:
        return Picture(face_square(person, "happy", side=SIDE), Case(person, person, 1, 2))

    pictures = [fresh(person) for person in PEOPLE]
    metrics = metrics_of(tuple(load_plugins().metrics.entries), pictures, pictures)
    found: dict[str, float] = {}
    detectors: dict[str, float] = {}
    for name in ("faces", "poses", "hands"):
        again = [fresh(person) for person in PEOPLE]
        if name == "hands":
            assert [picture.poses for picture in again]
        detectors[name] = _taken(again, lambda picture, name=name: getattr(picture, name))  # type: ignore[misc]
    for picture in pictures:
        assert picture.faces
        assert picture.people
        assert picture.hands is not None
    for name, metric in metrics.ready.items():
        for picture in pictures:
            picture.features.clear()
        found[name] = _taken(pictures, metric.features if isinstance(metric, SetMetric) else metric)
    with tempfile.TemporaryDirectory() as folder:
        of_conditions = conditional_metrics(Path(folder))
    portraits = [asked_for(number) for number in range(len(PEOPLE))]
    for name, metric in of_conditions.items():
        for picture in portraits:
            picture.features.clear()
        found[name] = _taken(portraits, metric.features if isinstance(metric, SetMetric) else metric)
    found["condition_diversity"] /= REPETITIONS  # it is asked of the first picture of a case, for all of them
    metrics.ready |= of_conditions
    networks = {
        name: ", ".join(dict.fromkeys(words.split()[0] for words in getattr(metric, "networks", ())))
        for name, metric in metrics.ready.items()
    }
    rounded = [{name: float(f"{ms:.2g}") for name, ms in of.items()} for of in (found, detectors)]
    write("cost", {"ms": rounded[0], "detectors": rounded[1], "networks": networks})


def conditional_metrics(folder: Path) -> dict[str, Any]:
    """Those that look at what was asked for; judges of random weights take as long as trained ones."""
    for kind in (AttributeJudge, PartsJudge):
        write_judge(kind(), folder, SIDE)
    made = load_plugins().metrics
    names = ("attribute_accuracy", "mask_accuracy", "mask_miou")
    return {name: made[name](judges=folder) for name in names} | {"condition_diversity": made["condition_diversity"]()}


def asked_for(number: int) -> Picture:
    """A portrait, with the attributes and the mask that it was drawn from, as the first of several pictures."""
    drawn = draw_portrait(np.random.default_rng(np.random.SeedSequence([21, number])), SIDE)
    pixels = torch.from_numpy(drawn.pixels).permute(2, 0, 1) / 127.5 - 1
    wanted = {"attributes": torch.tensor([float(so) for so in drawn.attributes.values()])}
    known = Example(pixels, conditions={**wanted, "semantic_mask": torch.from_numpy(drawn.parts)[None]})
    case = Case(str(number), "a portrait", 1, 2)
    return Picture(pixels, case, known=known, repetitions=[lambda: Picture(pixels, case)] * REPETITIONS)


def _taken(pictures: list[Picture], look: Callable[[Picture], Any]) -> float:
    seconds = []
    for picture in pictures:
        start = time.process_time()
        look(picture)
        seconds.append(time.process_time() - start)
    return 1000 * median(seconds)
