"""face_score: how sure the detector is of the faces that were asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mldm_plugin import hookimpl


class FaceScore:
    """The detector's score of the faces, the mean over the people asked for.

    Σ of the n best scores / n; a face that is not found counts 0.

    Source: MTCNN (Zhang et al., 2016), its last network's probability.
    """

    title = "score of faces"
    better = "larger"
    asks = "cases with a known number of people"

    def __call__(self, picture: Any) -> float | None:
        """The mean score in [0, 1]; None for a case that asks for nobody."""
        people = picture.case.people
        scores = sorted((face.score for face in picture.faces), reverse=True)
        return sum(scores[:people]) / people if people else None


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("face_score", FaceScore)
