"""One picture of the data set, with what is known about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image

SIDE = 128  # pixels of a picture's side


@dataclass(frozen=True)
class Record:
    """A picture's row.

    Args:
        name: unique in an archive, such as "drawn/0000012" or "photo/P003/emotions_sheet_happy".
        index: number of the drawing; -1 of a photograph.
        person: of openpeople; empty for a drawing.
        attributes: what it shows, by name; empty for a photograph.
        texts: captions that say it; a drawing's further captions are made from its attributes, a photograph's from
            its view.
        face: x0, y0, x1, y1 in the stored picture; empty where there is none.
    """

    name: str
    index: int = -1
    person: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    face: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    """A picture and its row."""

    record: Record
    picture: Image.Image
