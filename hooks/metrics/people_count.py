"""people_count: whether a picture shows as many faces as people were asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mldm_plugin import hookimpl


class PeopleCount:
    """How far the number of faces is from the number of people asked for, |k − n|.

    Source: chosen. Faces too many (a head on a shoulder, a face on a shirt) count as faces too few do.
    """

    title = "faces too many or too few"
    better = "smaller"
    asks = "cases with a known number of people"

    def __call__(self, picture: Any) -> float | None:
        """The difference ≥ 0; None for a case that does not say a number."""
        people = picture.case.people
        return None if people is None else float(abs(len(picture.faces) - people))


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("people_count", PeopleCount)
