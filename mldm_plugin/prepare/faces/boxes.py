"""What all detectors do with the boxes that they found."""

from __future__ import annotations

from collections.abc import Iterable

from mldm_plugin.prepare.source import Face

DECIMALS = 2  # of a pixel; chosen: finer than any detector or annotator is


def tidied(faces: Iterable[Face], size: tuple[int, int]) -> list[Face]:
    """The faces clipped to a picture of `size` (width, height), those without area dropped, the largest first."""
    width, height = size
    kept = []
    for face in faces:
        x0, y0, x1, y1 = face.box
        box = (
            round(float(min(max(x0, 0), width)), DECIMALS),
            round(float(min(max(y0, 0), height)), DECIMALS),
            round(float(min(max(x1, 0), width)), DECIMALS),
            round(float(min(max(y1, 0), height)), DECIMALS),
        )
        if box[2] > box[0] and box[3] > box[1]:
            score = None if face.score is None else round(float(face.score), 4)
            points = face.points and tuple((round(x, DECIMALS), round(y, DECIMALS)) for x, y in face.points)
            kept.append(Face(box, score, points))
    return sorted(kept, key=lambda face: (-_area(face), face.box))


def _area(face: Face) -> float:
    x0, y0, x1, y1 = face.box
    return (x1 - x0) * (y1 - y0)
