"""What every model is asked to draw: prompts, and the photographs that belong to them."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from mldm_plugin.conditions.encoder import ConditionEncoder
from mldm_plugin.data.batch import Example
from mldm_plugin.data.load import HELD_OUT, open_held_out
from mldm_plugin.data.training_set import Columns, TrainingSet
from mldm_plugin.errors import DataError

log = logging.getLogger(__name__)

SHIPPED = ("people",)  # sets of prompts in this package, prompts/NAME.jsonl
COLUMNS = {"mask": "mask", "boxes": "face_boxes", "keypoints": "keypoints", "conditioning": "conditioning_image"}


OWN_NAME = re.compile(r"(?P<key>\d{5}(_[0-9a-f]{6})?)-\d+")  # of a picture that was drawn here, see `key_of`
WRISTS, SEEN = (9, 10), 2  # of COCO's keypoints


@dataclass(frozen=True)
class Case:
    """One thing to draw.

    Args:
        key: its name in files and tables, of its number and its text: another text under the same number is another
            case. The noise depends on it, so that what else is drawn changes nothing.
        text: the prompt.
        people: how many people the picture should show, None where nobody knows.
        hands: how many hands it should show at least, None where nobody knows.
        row: of the photograph that the caption belongs to, if there is one.
    """

    key: str
    text: str
    people: int | None = None
    hands: int | None = None
    row: int | None = None


def key_of(number: int, text: str, *asked: int | None) -> str:
    """The name of a case, of its number, its text and how many people and hands it asks for.

    >>> key_of(7, "a man")
    '00007_000f02'
    """
    words = f"{text} {asked}".encode("utf-8", "replace")
    return f"{number:05d}_{hashlib.sha256(words).hexdigest()[:6]}"


@dataclass(frozen=True)
class Photographs:
    """Photographs that no model was trained on, with their captions and annotation.

    Args:
        look: row → the picture with its annotation, framed to the models' resolution.
        captions: of each row.
        split: the name of the data set's split.
        may_show_face: row → whether it has a face box as it is stored, told without reading the picture.
        digest: row → the sha256 of its file.
    """

    look: Callable[[int], Example]
    captions: Sequence[str]
    split: str
    may_show_face: Callable[[int], bool] = lambda row: True
    digest: Callable[[int], str] = lambda row: ""

    def __len__(self) -> int:
        return len(self.captions)


def open_photographs(
    folder: Path,
    resolution: int,
    *,
    columns: Mapping[str, str] | None = None,
    cache: str | None = None,
    conditions: Mapping[str, ConditionEncoder] | None = None,
    held_out: bool = True,
) -> Photographs:
    """The validation or test split of an image folder, or all of it where it has none.

    Args:
        folder: with a metadata.jsonl, or parquet files.
        resolution: side of the framed pictures.
        columns: names of columns, by those of `Columns`; the others have the names that docs/data.md gives them.
        cache: folder of `datasets`.
        conditions: what else is read of each row, by name.
        held_out: whether they must be none that were trained on, so that a folder without such a split is warned of.

    Raises:
        DataError: a folder that cannot be read, or without captions or a condition's column.
    """
    rows, split = open_held_out(str(folder), cache)
    if held_out and split not in HELD_OUT:
        log.warning(f"{folder} has no split 'validation' or 'test': are its pictures held out from every training?")
    present = rows.column_names
    named: Any = {"picture": "image", "caption": "text", **COLUMNS, **(columns or {})}
    if (caption := named["caption"]) not in present:
        raise DataError(f"{folder} has no column {caption!r}, expected captions in metadata.jsonl (docs/data.md).")
    there: Any = {name: one if one in present or name not in COLUMNS else None for name, one in named.items()}
    photographs = TrainingSet(rows, Columns(**there), resolution=resolution, conditions=conditions)
    captions = [text[0] if isinstance(text, list) and text else text for text in rows[caption]]
    for number, text in enumerate(captions):
        if not isinstance(text, str):
            raise DataError(f"row {number} of {folder}: the caption is {text!r}, expected a text.")
    return Photographs(
        photographs.look,
        captions,
        split,
        may_show_face=lambda row: len(photographs.stored_boxes(row)) > 0,
        digest=photographs.digest,
    )


def cases_of_photographs(photographs: Photographs, number: int, seed: int) -> list[Case]:
    """At most `number` captions, drawn by `seed`, in the order of the rows."""
    order = torch.randperm(len(photographs), generator=torch.Generator().manual_seed(seed)).tolist()
    return [case_of(photographs, row) for row in sorted(order[:number])]


def case_of(photographs: Photographs, row: int) -> Case:
    """What a photograph shows by its caption and annotation."""
    example = photographs.look(row)
    text, asked = photographs.captions[row], (people_in(example), hands_in(example))
    return Case(key_of(row, text, *asked), text, *asked, row)


def people_in(example: Example) -> int | None:
    """How many people a photograph shows by its annotation: those of the mask, else its faces."""
    if example.person_mask is not None:
        return len(example.person_mask.unique().nonzero())
    return None if example.face_boxes is None else len(example.face_boxes)


def hands_in(example: Example) -> int | None:
    """How many wrists are seen by a photograph's keypoints; None without any keypoints."""
    if example.keypoints is None or not len(example.keypoints):
        return None
    return int((example.keypoints[:, WRISTS, 2] == SEEN).sum()) or None


def cases_of_file(path: Path, number: int) -> list[Case]:
    """The first `number` prompts of a file: a prompt a line, which shows one person, or JSON lines with `text`,
    `people` and `hands`, as prompts.jsonl of an earlier evaluation, whose keys and rows are kept.

    Raises:
        DataError: a file that cannot be read or has no prompts, or two of one key.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the prompts {path} cannot be read ({type(error).__name__}), expected text in UTF-8."
        ) from error
    cases = [_case(i, line.strip(), path) for i, line in enumerate(lines) if line.strip()]
    if not cases:
        raise DataError(f"{path} holds no prompts, expected one a line.")
    for key, count in Counter(case.key for case in cases).items():
        if count > 1:
            said = "their pictures would be one file and their noise the same"
            raise DataError(f"{path}: {count} prompts have the key {key!r}, {said}; give each its own, or none.")
    return cases[:number]


def with_photographs(cases: Sequence[Case], photographs: Photographs | None) -> list[Case]:
    """Cases of a file whose rows are those of `photographs`; a row with another caption is of another data set."""
    captions = [] if photographs is None else photographs.captions
    fits = [case.row is not None and case.row < len(captions) and captions[case.row] == case.text for case in cases]
    return [case if its else replace(case, row=None) for case, its in zip(cases, fits, strict=True)]


def cases_of_pictures(paths: Sequence[Path]) -> list[Case]:
    """A case for each name of a picture, one person in each; `00007_1a2b3c-0`, `00007_1a2b3c-1` … are repetitions of
    one case, as an evaluation names what it draws, while `photo-0` and `photo-1` are two."""
    keys = {own["key"] if (own := OWN_NAME.fullmatch(path.stem)) else path.stem for path in paths}
    return [Case(key, "", 1) for key in sorted(keys)]


def shipped_prompts(name: str) -> Path:
    """The file of a set of prompts that ships with the package."""
    return Path(str(files("mldm_plugin.evaluation") / "prompts" / f"{name}.jsonl"))


def _case(number: int, line: str, path: Path) -> Case:
    if not line.startswith("{"):
        return Case(key_of(number, line, 1, None), line, 1)
    try:
        given = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number + 1}: {error}; expected a prompt, or JSON with `text`.") from error
    text, numbers, row = given.get("text"), (given.get("people", 1), given.get("hands")), given.get("row")
    counts = all(n is None or (type(n) is int and n >= 0) for n in (*numbers, row))
    if not isinstance(text, str) or not text or not counts:
        said = "expected `text`, a prompt, `people`, `hands` and `row`, numbers"
        raise DataError(f"{path}, line {number + 1}: {said}; got {line[:80]}")
    key = given.get("key")  # of an earlier evaluation's prompts.jsonl, whose pictures have these names
    known = isinstance(key, str) and re.fullmatch(r"\w[\w.-]*", key)
    return Case(key if known else key_of(number, text, *numbers), text, *numbers, row)
