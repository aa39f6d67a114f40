"""One picture of a collection becomes one row of a training set, or is rejected with the reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mldm_plugin.prepare.label_png import label_png
from mldm_plugin.prepare.picture import Picture
from mldm_plugin.prepare.source import Face, FindFaces, FindPeople, People, RejectedError, Source


@dataclass(frozen=True)
class Recipe:
    """How pictures are converted; picklable, since it goes to other processes.

    Args:
        people: finds the people; None writes no masks.
        faces: finds the faces; None writes no boxes.
        types: pyarrow's names of the types of further columns.
    """

    people: FindPeople | None
    faces: FindFaces | None
    types: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Converted:
    """A row and its pictures.

    Args:
        source: what it was made of.
        picture: content of the picture's file.
        suffix: of that file.
        drawings: PNG contents by column: `mask`, the label map; further ones that an annotation has.
        row: the other columns.
    """

    source: Source
    picture: bytes
    suffix: str
    drawings: dict[str, bytes]
    row: dict[str, Any]


def convert(source: Source, recipe: Recipe) -> Converted:
    """Open, annotate and describe one picture.

    Raises:
        RejectedError: the picture or its annotation cannot be used.
    """
    if source.fault:
        raise RejectedError(source.fault)
    picture = Picture(Path(source.path))
    content, suffix = picture.stored()
    people = recipe.people(source, picture) if recipe.people else None
    row: dict[str, Any] = {"text": _text(source)}
    drawings = {}
    if people is not None:
        drawings["mask"] = label_png(people.labels)
        row |= _about_people(people)
        pictures = {name: value for name, value in people.columns.items() if isinstance(value, Image.Image)}
        drawings |= {name: label_png(np.asarray(value)) for name, value in pictures.items()}
    if recipe.faces is not None:
        row |= _about_faces(recipe.faces(source, picture, people), recipe.faces)
    return Converted(source, content, suffix, drawings, dict(source.columns) | row)


def _text(source: Source) -> str | list[str]:
    return source.text if isinstance(source.text, str) else list(source.text)


def _about_people(people: People) -> dict[str, Any]:
    """`person_area` is the part of the picture that is people, in [0, 1]."""
    area = np.count_nonzero(people.labels) / people.labels.size
    row: dict[str, Any] = {"person_area": round(area, 6), "person_count": people.count}
    if people.keypoints is not None:
        row["keypoints"] = people.keypoints
    return row | {name: value for name, value in people.columns.items() if not isinstance(value, Image.Image)}


def _about_faces(faces: list[Face], detector: FindFaces) -> dict[str, Any]:
    """`face_sizes` are the square roots of the boxes' areas, in pixels.

    `face_points` are x and y of five points a face, one after the other. Without scores or points there is no such
    column: pyarrow 26 reads a JSON list of nulls wrongly.
    """
    boxes = [[float(v) for v in face.box] for face in faces]
    more: dict[str, Any] = {"face_scores": [face.score for face in faces]} if detector.scored else {}
    if detector.pointed:
        more["face_points"] = [[xy for point in face.points or () for xy in point] for face in faces]
    return {
        "face_boxes": boxes,
        **more,
        "face_sizes": [round(math.sqrt((x1 - x0) * (y1 - y0)), 1) for x0, y0, x1, y1 in boxes],
        "face_detector": detector.name,
    }
