"""What all detectors do with the boxes that they found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mldm_plugin.prepare.source import Face

Box = tuple[float, float, float, float]

DECIMALS = 2  # of a pixel; chosen: finer than any detector or annotator is


@dataclass(frozen=True)
class Placement:
    """How MTCNN's box of a face lies to another detector's: face networks' crops are measured in MTCNN's boxes.

    Args:
        extent: its longer side, in longer sides of the other one.
        down: how far its centre lies below, in longer sides of the other one.
    """

    extent: float
    down: float

    def __call__(self, box: Box) -> Box:
        """The other detector's box at MTCNN's size and place; its shape is kept."""
        x0, y0, x1, y1 = box
        x, y = (x0 + x1) / 2, (y0 + y1) / 2 + self.down * max(x1 - x0, y1 - y0)
        width, height = (x1 - x0) * self.extent / 2, (y1 - y0) * self.extent / 2
        return x - width, y - height, x + width, y + height


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
