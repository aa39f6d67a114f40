"""Face boxes estimated from COCO's nose, eyes and ears."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mldm_plugin.prepare.faces.boxes import Placement, tidied
from mldm_plugin.prepare.source import Face, People, Shown, Source

# Where COCO's first five keypoints lie on an adult head, in breadths of the face: to the image's right (the person's
# left), down, and towards the camera, from the middle of the face's oval. From mean sizes of adults, rounded: 140 mm
# from cheek to cheek, 63 mm between pupils, 145 mm between ears; the ears lie 90 mm behind the eyes, 20 mm lower, and
# the nose's tip 25 mm before the eyes, 45 mm lower.
HEAD = np.array(
    [
        (0.0, 0.19, 0.18),  # nose
        (0.225, -0.13, 0.0),  # left eye
        (-0.225, -0.13, 0.0),  # right eye
        (0.52, 0.01, -0.64),  # left ear
        (-0.52, 0.01, -0.64),  # right ear
    ]
)
NOSE, LEFT_EYE, RIGHT_EYE, LEFT_EAR, RIGHT_EAR = range(5)
HEIGHT = 1.35  # of the oval from chin to hairline, in breadths: 190 mm to 140 mm
# Of MTCNN's boxes to these, from eyes and nose: the medians of openpeople's 200 faces (tests/benchmarks/face_boxes.py).
PLACEMENT = Placement(extent=0.974, down=0.014)
LEAST_BREADTH = 2.0  # pixels; chosen: the points of a smaller face are not told apart


@dataclass(frozen=True)
class Keypoints:
    """A box for each person of whom two or more of nose, eyes and ears are known. It has no score.

    It knows no expression, no beard and no child's proportions: a box to crop by, not to measure with.
    """

    name = "keypoints"
    scored = False
    pointed = False

    def __call__(self, source: Source, picture: Shown, people: People | None) -> list[Face]:
        """The faces, the largest first; none where the annotation has no keypoints."""
        keypoints = (people.keypoints if people is not None else None) or []
        boxes = [face_box(person) for person in keypoints]
        return tidied([Face(PLACEMENT(box)) for box in boxes if box is not None], picture.size)


def face_box(keypoints: Sequence[float]) -> tuple[float, float, float, float] | None:
    """The box around the face oval of one person, which also holds every known point.

    A turn of the head brings points closer together in the picture, never further apart. So of all pairs, the one
    that is longest for its length on the head tells the breadth of the face.

    Args:
        keypoints: at least COCO's first five keypoints x, y, v in pixels; v = 0 is not known.

    Returns:
        x0, y0, x1, y1 in pixels; None where fewer than two points are known, or they lie on one spot.
    """
    triples = np.asarray(keypoints[:15], dtype=float).reshape(5, 3)
    known = [k for k in range(5) if triples[k, 2] > 0]
    points = triples[:, :2]
    breadth = max((_breadth(points, a, b) for a, b in combinations(known, 2)), default=0.0)
    if breadth < LEAST_BREADTH:
        return None
    tilt = _tilt(points, known)
    x, y = _middle(points, known, breadth, tilt)
    # Half the sides of the box around an ellipse with half axes a, b that is turned by the tilt.
    a, b = breadth / 2, breadth * HEIGHT / 2
    half_width = math.hypot(a * math.cos(tilt), b * math.sin(tilt))
    half_height = math.hypot(a * math.sin(tilt), b * math.cos(tilt))
    (left, top), (right, bottom) = points[known].min(axis=0), points[known].max(axis=0)
    return (
        float(min(x - half_width, left)),
        float(min(y - half_height, top)),
        float(max(x + half_width, right)),
        float(max(y + half_height, bottom)),
    )


def _breadth(points: np.ndarray, a: int, b: int) -> float:
    """The breadth of the face in pixels if the line from point a to point b lay across the view."""
    return float(np.linalg.norm(points[a] - points[b]) / np.linalg.norm(HEAD[a] - HEAD[b]))


def _tilt(points: np.ndarray, known: Sequence[int]) -> float:
    """How far the head leans, in radians, by the line of the eyes or of the ears; 0 where neither is known.

    A person's left is at the image's right. Where it is not, that person is upside down, and so is the head; or is
    seen from behind, where ears alone are known, which lie at half the head's height.
    """
    for left, right in ((LEFT_EYE, RIGHT_EYE), (LEFT_EAR, RIGHT_EAR)):
        if left in known and right in known:
            x, y = points[left] - points[right]
            return math.atan2(y, x)
    return 0.0


def _middle(points: np.ndarray, known: Sequence[int], breadth: float, tilt: float) -> tuple[float, float]:
    """The middle of the face oval.

    Along the head each point says by itself how far above or below the middle lies. Across the head a turn moves the
    points; the face then reaches from the nose or the far eye to the near ear, and its middle is that of the points.
    """
    across = np.array([math.cos(tilt), math.sin(tilt)])
    down = np.array([-math.sin(tilt), math.cos(tilt)])
    along = float(np.mean([points[k] @ down - HEAD[k, 1] * breadth for k in known]))
    sideways = points[known] @ across
    x, y = along * down + (sideways.min() + sideways.max()) / 2 * across
    return float(x), float(y)
