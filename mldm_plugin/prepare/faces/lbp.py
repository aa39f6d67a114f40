"""scikit-image's cascade of local binary patterns: a face detector that needs no weights from anywhere."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mldm_plugin.errors import DataError
from mldm_plugin.prepare.faces.boxes import tidied
from mldm_plugin.prepare.source import Face, People, Shown, Source

# All chosen on the demo's four photographs (nine faces): of the sizes 384 to 800, factors 1.05 to 1.2, steps 1 to 1.3
# and 4 to 12 neighbours tried, the quickest with the most faces found (eight) and the fewest false ones (one).
LONGEST_SIDE = 512  # pixels that the picture is reduced to
SCALE_FACTOR = 1.1  # from one size of the search window to the next
STEP_RATIO = 1.3  # of the window over the picture
NEIGHBOURS = 4  # overlapping windows that a face needs
LEAST_WINDOW = 24  # pixels: that of the cascade
# The cascade's window is square, from the brows to the lips. By these parts of its side each edge moves outwards to
# become the face box that an annotator draws: left and right, up, down. Fitted to the same nine faces: IoU 0.77.
ASIDE, UP, DOWN = -0.05, 0.1, 0.15


@dataclass(frozen=True)
class Lbp:
    """Frontal faces, from a twentieth of the picture's longest side on. The cascade gives no score.

    It also sees faces in wallpaper, so where people are known, a face whose middle is on nobody is dropped.
    """

    name = "lbp"
    scored = False

    def __call__(self, source: Source, picture: Shown, people: People | None) -> list[Face]:
        """The faces, the largest first."""
        reduced = picture.rgb()
        scale = LONGEST_SIDE / max(reduced.size)
        if scale < 1:
            width, height = (max(round(side * scale), 1) for side in reduced.size)
            reduced = reduced.resize((width, height), Image.Resampling.BOX)
        if min(reduced.size) < LEAST_WINDOW:
            return []
        boxes = [_face_box(window, picture.size[0] / reduced.width) for window in _windows(reduced)]
        if people is not None:
            boxes = [box for box in boxes if _on_somebody(box, people.labels)]
        return tidied([Face(box) for box in boxes], picture.size)


def check_installed() -> None:
    """Raise DataError where scikit-image is missing."""
    if importlib.util.find_spec("skimage") is None:
        raise DataError("--faces lbp needs scikit-image: pip install scikit-image")


@functools.cache
def _cascade() -> Any:
    check_installed()
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    return Cascade(lbp_frontal_face_cascade_filename())


def _windows(picture: Image.Image) -> list[dict[str, int]]:
    return _cascade().detect_multi_scale(
        np.asarray(picture),
        scale_factor=SCALE_FACTOR,
        step_ratio=STEP_RATIO,
        min_size=(LEAST_WINDOW, LEAST_WINDOW),
        max_size=(min(picture.size), min(picture.size)),
        min_neighbor_number=NEIGHBOURS,
    )


def _face_box(window: dict[str, int], scale: float) -> tuple[float, float, float, float]:
    """A window {r, c, width, height} of the reduced picture as a face box x0, y0, x1, y1 of the picture."""
    x, y, width, height = (window[k] * scale for k in ("c", "r", "width", "height"))
    return x - ASIDE * width, y - UP * height, x + (1 + ASIDE) * width, y + (1 + DOWN) * height


def _on_somebody(box: tuple[float, float, float, float], labels: np.ndarray) -> bool:
    height, width = labels.shape
    x, y = int((box[0] + box[2]) / 2), int((box[1] + box[3]) / 2)
    return bool(labels[min(max(y, 0), height - 1), min(max(x, 0), width - 1)])
