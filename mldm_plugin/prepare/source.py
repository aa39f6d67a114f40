"""What passes between the parts: a picture to be converted, who is in it, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image

from mldm_plugin.errors import DataError

MOST_PEOPLE = 255  # a label map has eight bits a pixel


class RejectedError(DataError):
    """A picture that is left out; the message is the reason."""


@dataclass(frozen=True)
class Source:
    """One picture still to be converted. All of it can be written as JSON.

    Args:
        name: of the picture in the output, folders included, without a suffix; unique.
        path: its file.
        text: its caption, or all its captions.
        size: (width, height) that the annotation is for; None where there is none.
        annotations: of the people in it, in COCO's words, in the order of their file.
        mask: file of a given label map; None where there is none.
        columns: further columns of its row.
        split: folder of the output that it goes to, `train` for example; empty for the output itself.
        fault: why it cannot be used, where that is known before it is opened.
    """

    name: str
    path: str
    text: str | Sequence[str]
    size: Sequence[int] | None = None
    annotations: Sequence[Mapping[str, Any]] = ()
    mask: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    split: str = ""
    fault: str | None = None


@dataclass(frozen=True)
class Face:
    """A face in the upright picture.

    Args:
        box: x0, y0, x1, y1 in pixels.
        score: in [0, 1], where the detector has one.
        points: x, y of the eye at the picture's left and the one at its right, the nose, and the corners of the mouth
            at the left and at the right, where the detector finds them.
    """

    box: tuple[float, float, float, float]
    score: float | None = None
    points: tuple[tuple[float, float], ...] | None = None


@dataclass(frozen=True)
class People:
    """Who is in a picture.

    Args:
        labels: uint8 (H, W): 0 background, k the k-th person; a person hidden by others may have no pixel.
        count: the number of people, hidden ones included, crowds not.
        keypoints: of each label 51 numbers, COCO's 17 keypoints x, y, v; None where nothing is known of them.
        faces: the faces that the annotation itself names; None where it says nothing of faces.
        columns: further columns of the row.
    """

    labels: np.ndarray
    count: int
    keypoints: list[list[float]] | None = None
    faces: list[Face] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


class Shown(Protocol):
    """A picture that is decoded when its pixels are asked for."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), upright."""

    def rgb(self) -> Image.Image:
        """The upright picture, mode RGB."""


class FindPeople(Protocol):
    """Picklable; networks are loaded in the process that first calls it.

    Raises RejectedError where the annotation cannot be used.
    """

    def __call__(self, source: Source, picture: Shown) -> People | None:
        """Who is in the picture; None where nothing is known of people (no masks are written then)."""


class FindFaces(Protocol):
    """Picklable; networks are loaded on the first call.

    Rows carry the `name` as `face_detector`, `face_scores` where the detector is `scored`, and `face_points` where it
    is `pointed`: where its faces have points.
    """

    name: str
    scored: bool
    pointed: bool

    def __call__(self, source: Source, picture: Shown, people: People | None) -> list[Face]:
        """The faces, the largest first, clipped to the picture, none without area."""
