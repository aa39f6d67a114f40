"""A row whose mask was painted or whose face boxes were moved: the columns that go with them follow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mldm_plugin.data.annotations import KEYPOINTS, check_boxes_inside, parse_boxes
from mldm_plugin.errors import DataError
from mldm_plugin.prepare.inspection import crowds_of, label_count

MOST_FACES = 1000  # chosen: more than anybody draws
LEAST_SIDE = 1.0  # pixels of a face box


def with_people(columns: Mapping[str, Any], labels: np.ndarray) -> dict[str, Any]:
    """The row with another mask: `person_area` is measured anew, new people are counted, nobody is renumbered.

    Args:
        labels: uint8 (H, W).
    """
    row = dict(columns)
    count = max(label_count(row), int(labels.max(initial=0)))
    row["person_area"] = round(float(np.count_nonzero(labels)) / labels.size, 6)
    row["person_count"] = count - len(crowds_of(row))
    for column, of_new in (("keypoints", [0.0] * (3 * KEYPOINTS)), ("person_scores", 1.0)):
        if isinstance(values := row.get(column), list):
            row[column] = [*values, *[of_new] * (count - len(values))]
    return row


def with_faces(
    columns: Mapping[str, Any], original: Mapping[str, Any], faces: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> dict[str, Any]:
    """The row with other face boxes.

    Args:
        columns: the row.
        original: the row before the review.
        faces: each has a `box` x0, y0, x1, y1 in pixels, and `was`, its place in the original row, None for a new one.
            Scores stay with their faces, points with those whose box holds them still. A new face has the score 1 and
            no points.
        size: (width, height) of the picture, to which boxes are clipped.

    Raises:
        DataError: a box is none, is outside, or `was` is no place.
    """
    if not isinstance(faces, list) or len(faces) > MOST_FACES or not all(isinstance(face, dict) for face in faces):
        raise DataError(f"expected a list of at most {MOST_FACES} faces.")
    row = dict(columns)
    known = len(original.get("face_boxes") or [])
    was = [face.get("was") for face in faces]
    if any(not (place is None or (type(place) is int and 0 <= place < known)) for place in was):
        raise DataError(f"faces were at {was}, expected places among {known}, or null.")
    boxes = _clipped([face.get("box") for face in faces], size)
    for column in ("face_scores", "face_points"):
        told = original.get(column, [])
        if column in original and not (isinstance(told, list) and len(told) == known):
            raise DataError(f"{column} does not fit the {known} boxes that are there: mend the row first.")
    if "face_scores" in original:
        row["face_scores"] = [1.0 if place is None else original["face_scores"][place] for place in was]
    if "face_points" in original:
        points = [[] if place is None else original["face_points"][place] for place in was]
        row["face_points"] = [p if _holds(box, p) else [] for box, p in zip(boxes, points, strict=True)]
    row["face_boxes"] = boxes
    row["face_sizes"] = [round(math.sqrt((x1 - x0) * (y1 - y0)), 1) for x0, y0, x1, y1 in boxes]
    return row


def _clipped(boxes: Sequence[Any], size: tuple[int, int]) -> list[list[float]]:
    """To the picture, in tenths of pixels."""
    check_boxes_inside(parse_boxes(boxes, "the page"), size, "the page")
    limits = (*size, *size)
    clipped = [[round(min(max(float(v), 0), most), 1) for v, most in zip(box, limits, strict=True)] for box in boxes]
    if any(x1 - x0 < LEAST_SIDE or y1 - y0 < LEAST_SIDE for x0, y0, x1, y1 in clipped):
        raise DataError("a face box has a side of less than a pixel inside the picture.")
    return clipped


def _holds(box: Sequence[float], points: Sequence[float]) -> bool:
    x0, y0, x1, y1 = box
    return all(x0 <= x <= x1 and y0 <= y <= y1 for x, y in zip(points[::2], points[1::2], strict=True))
