"""face_found: the share of the people asked for whose face a detector finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mldm_plugin import hookimpl


class FaceFound:
    """Faces found for each person that the case asks for.

    min(k, n)/n for n people and k faces. 0 for a picture without a face: a failure, never a missing value.

    Source: MTCNN (Zhang et al., 2016) as the detector, score 0.9 and more.
    """

    title = "faces found"
    better = "larger"
    asks = "cases with a known number of people"

    def __call__(self, picture: Any) -> float | None:
        """The share in [0, 1]; None for a case that asks for nobody."""
        people = picture.case.people
        return min(len(picture.faces), people) / people if people else None


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("face_found", FaceFound)
