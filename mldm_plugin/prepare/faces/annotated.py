"""The face boxes that the annotation itself names."""

from __future__ import annotations

from dataclasses import dataclass

from mldm_plugin.prepare.faces.boxes import tidied
from mldm_plugin.prepare.source import Face, People, Shown, Source


@dataclass(frozen=True)
class Annotated:
    """The annotation's own boxes, clipped to the picture; none where it says nothing of faces."""

    name = "annotated"
    scored = False
    pointed = False

    def __call__(self, source: Source, picture: Shown, people: People | None) -> list[Face]:
        """The faces, the largest first."""
        return tidied((people.faces if people is not None else None) or [], picture.size)
