"""COCO's JSON, item by item: what each has to have, and what is wrong where it has not.

Format: https://cocodataset.org/#format-data; face boxes as in COCO-WholeBody's
https://github.com/jin-s13/COCO-WholeBody.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator

from mldm_plugin.errors import DataError
from mldm_plugin.prepare.json_stream import items
from mldm_plugin.prepare.paths import readable

MOST_TOLD = 20  # faults named in one error, chosen: a screenful
KEYPOINTS = 17
LONGEST_NUMBER = 6  # characters of a compressed run; more than any picture has pixels


def _whole(text: str) -> str:
    if readable(text) != text:
        raise ValueError("holds half a character (a lone surrogate)")
    return text


Id = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # what a database holds
Text = Annotated[str, AfterValidator(_whole)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Length = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Item(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)

    id: Id


class CocoImage(_Item):
    """An item of `images`."""

    file_name: Text
    width: Annotated[int, Field(ge=1, le=65535)]
    height: Annotated[int, Field(ge=1, le=65535)]


class CocoCategory(_Item):
    """An item of `categories`."""

    name: Text


class CocoCaption(_Item):
    """An item of a captions file's `annotations`."""

    image_id: Id
    caption: Text


class Rle(BaseModel):
    """A mask as the lengths of its runs, column by column, background first; as numbers, or compressed to a text."""

    model_config = ConfigDict(strict=True)

    size: Annotated[list[int], Field(min_length=2, max_length=2)]
    counts: Annotated[
        Annotated[list[Annotated[int, Field(ge=0)]], Tag("runs")] | Annotated[str, Tag("text")],
        Discriminator(lambda value: "text" if isinstance(value, str) else "runs"),
    ]

    @field_validator("counts")
    @classmethod
    def _full(cls, counts: list[int] | str, info: Any) -> list[int] | str:
        """pycocotools leaves pixels after the last run as they happen to lie in memory."""
        size = info.data.get("size")
        total = sum(counts) if isinstance(counts, list) else int(decompressed(counts).sum())
        if size and total != math.prod(size):
            raise ValueError(f"the runs have {total} pixels, the size {size} has {math.prod(size)}")
        return counts


Segmentation = Annotated[
    Annotated[list[list[Finite]], Tag("polygons")] | Annotated[Rle, Tag("rle")],
    Discriminator(lambda value: "rle" if isinstance(value, dict | Rle) else "polygons"),
]


class _OfAPerson(_Item):
    keypoints: list[Finite] | None = None
    face_box: Annotated[list[Finite], Field(min_length=4, max_length=4)] | None = None
    face_valid: bool = True

    @field_validator("keypoints")
    @classmethod
    def _seventeen(cls, points: list[float] | None) -> list[float] | None:
        if points is not None and len(points) != 3 * KEYPOINTS:
            raise ValueError(f"has {len(points)} numbers, expected 51: x, y, v of 17 keypoints")
        if points is not None and not set(points[2::3]) <= {0, 1, 2}:
            raise ValueError("has a visibility other than 0, 1 and 2")
        return points


class CocoKeypoints(_OfAPerson):
    """An item of a keypoints file's `annotations`, of the person who has the same id in the instances file."""


class CocoAnnotation(_Item):
    """What any item of an instances file's `annotations` has; a person's has more."""

    image_id: Id
    category_id: Id


class CocoPerson(_OfAPerson, CocoAnnotation):
    """An item of an instances file's `annotations` that is a person or a crowd of them."""

    iscrowd: Literal[0, 1] = 0
    area: Length | None = None
    bbox: Annotated[list[Finite], Field(min_length=4, max_length=4)] | None = None
    segmentation: Segmentation

    @field_validator("segmentation")
    @classmethod
    def _outlines(cls, value: list[list[float]] | Rle) -> list[list[float]] | Rle:
        if isinstance(value, list):
            if not value:
                raise ValueError("has no polygon")
            for polygon in value:
                if len(polygon) < 6 or len(polygon) % 2:
                    raise ValueError(f"has a polygon of {len(polygon)} numbers, expected x, y of three points or more")
        return value


def decompressed(text: str) -> np.ndarray:
    """The runs of a compressed text: six bits a character from `0` on, five of a number's bits, low ones first, and
    one that says whether more follow; from the fourth run on the difference to the run before the last.

    Source: rleFrString in common/maskApi.c of pycocotools. Raises ValueError where the text is none.
    """
    if not text:
        return np.zeros(0, np.int64)
    sixes = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - ord("0")
    last = sixes & 32 == 0
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    lengths = np.diff(np.append(starts, len(sixes)))
    if sixes.min() < 0 or sixes.max() > 63 or not last[-1] or lengths.max() > LONGEST_NUMBER:
        raise ValueError("is not a compressed run-length text")
    place = np.arange(len(sixes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((sixes & 31) << 5 * place, starts)
    runs -= np.where(sixes[last] & 16, 1 << 5 * lengths, 0)
    for first in (1, 2):
        runs[first::2] = runs[first::2].cumsum()
    if runs.min() < 0:
        raise ValueError("has a run of negative length")
    return runs


class Faults:
    """What is wrong in the files, collected so that it is told at once."""

    def __init__(self) -> None:
        self._told: list[str] = []
        self._count = 0

    def add(self, path: Path, what: str, identity: object, field: str, reason: str) -> None:
        self._count += 1
        if len(self._told) < MOST_TOLD:
            self._told.append(f"{path}: {what} id {identity!r}, field {field!r}: {reason}")

    def check(self) -> None:
        """Raise DataError if there were any."""
        if self._count:
            more = self._count - len(self._told)
            raise DataError(
                f"{self._count} fault(s) in the annotation; mend these items or remove them:\n  "
                + "\n  ".join(self._told)
                + (f"\n  and {more} more" if more else "")
            )


T = TypeVar("T", bound=_Item)


def read(path: Path, key: str, kind: type[T], faults: Faults) -> Iterator[T]:
    """The sound items of the array `key`; what is wrong goes to `faults`."""
    for number, (_, raw) in enumerate(items(path, key)):
        if (item := parsed(raw, kind, path, key, faults, number)) is not None:
            yield item


def parsed(raw: Any, kind: type[T], path: Path, key: str, faults: Faults, number: int | None = None) -> T | None:
    """One item, or None where it has a fault. `number` names an item that has no id."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        identity = raw.get("id") if isinstance(raw, dict) else None
        if identity is None:
            identity = "none" if number is None else f"none (item {number})"
        seen = set()
        for fault in error.errors(include_url=False, include_input=False, include_context=False):
            field = str(fault["loc"][0]) if fault["loc"] else "(the item itself)"
            if field not in seen:
                seen.add(field)
                faults.add(path, key, identity, field, _worded(fault))
    return None


def _worded(fault: Any) -> str:
    inside = [str(part) for part in fault["loc"][1:] if part not in ("polygons", "rle", "runs", "text")]
    place = f" (at {'.'.join(inside)})" if inside else ""
    return fault["msg"].removeprefix("Value error, ") + place
