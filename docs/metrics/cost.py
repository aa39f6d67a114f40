"""Milliseconds that each metric takes for a picture of 128 pixels on one core, detectors by themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from measures import metrics_of, write
from photographs import PEOPLE, face_square

from mldm_plugin.evaluation.cases import Case
from mldm_plugin.evaluation.measuring import SetMetric
from mldm_plugin.evaluation.picture import Picture
from mldm_plugin.plugins import load_plugins

SIDE = 128


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
    networks = {
        name: ", ".join(dict.fromkeys(words.split()[0] for words in getattr(metric, "networks", ())))
        for name, metric in metrics.ready.items()
    }
    rounded = [{name: float(f"{ms:.2g}") for name, ms in of.items()} for of in (found, detectors)]
    write("cost", {"ms": rounded[0], "detectors": rounded[1], "networks": networks})


def _taken(pictures: list[Picture], look: Callable[[Picture], Any]) -> float:
    seconds = []
    for picture in pictures:
        start = time.process_time()
        look(picture)
        seconds.append(time.process_time() - start)
    return 1000 * median(seconds)
