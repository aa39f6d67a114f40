"""Looking at one row of a training set as a trainer would: what it would refuse, and what deserves a look."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mldm_plugin.data.annotations import (
    check_boxes_inside,
    check_keypoints_inside,
    check_mask_mode,
    check_mask_size,
    check_upright,
    parse_boxes,
    parse_keypoints,
)
from mldm_plugin.data.drawing import draw_annotation
from mldm_plugin.errors import DataError
from mldm_plugin.prepare.paths import readable
from mldm_plugin.prepare.picture import decode
from mldm_plugin.prepare.source import RejectedError
from mldm_plugin.prepare.stored import Part, Row

THUMBNAIL = 256  # pixels of the longer side of the photo; the thumbnail holds two of them
GAP = 4  # pixels between the two
WRISTS = [9, 10]  # of COCO's 17 keypoints


@dataclass
class Findings:
    """What was found in one row.

    Args:
        name: of the row.
        faults: column and reason of what a trainer would refuse, or what contradicts itself.
        notes: what is allowed and deserves a look.
        size: (width, height) of the picture.
        person_area: part of the picture that is people, in [0, 1]; None without a mask.
        people: labels that have pixels and are no crowd; None without a mask.
        people_areas: the part of the picture of each of them, in [0, 1].
        on_border, in_middle: the part of the picture's border and of its middle that is people; None without a mask.
        hidden: people whom the row counts and the mask does not show.
        crowds: labels with pixels that are crowds.
        face_sizes: square roots of the areas of the face boxes, pixels; None where the row has no such column.
        hands: wrists that are labelled in the keypoints; None where the row has no such column.
        captions: how many.
        files: the names of the files that the row has, as they are written.
        digest: of the picture's pixels.
        thumbnail: JPEG of the photo beside itself with the annotation drawn on it, where it was asked for.
    """

    name: str
    faults: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    size: tuple[int, int] | None = None
    person_area: float | None = None
    people: int | None = None
    people_areas: list[float] = field(default_factory=list)
    on_border: float | None = None
    in_middle: float | None = None
    hidden: int = 0
    crowds: int = 0
    face_sizes: list[float] | None = None
    hands: int | None = None
    captions: int = 0
    files: tuple[str, ...] = ()
    digest: bytes = b""
    caption: str = ""
    thumbnail: bytes | None = None


@dataclass(frozen=True)
class Look:
    """A part to be looked at in another process; a thumbnail of every `step`-th row and of those with faults."""

    part: Part
    step: int


def inspect(look: Look) -> list[Findings]:
    """All rows of a part."""
    torch.set_num_threads(1)
    return [
        inspect_row(row, shown=number % look.step == 0)
        for number, row in enumerate(look.part.rows(), start=look.part.first)
    ]


def inspect_row(row: Row, shown: bool) -> Findings:
    """One row: each column by itself, then together."""
    found = Findings(readable(row.name), faults=list(row.faults), files=row.files)
    _caption(row.columns.get("text"), found)
    picture = _picture(row, found)
    mask = _mask(row, picture, found)
    boxes = _boxes(row, picture, found)
    keypoints = _keypoints(row, picture, found)
    _hint(row, found)
    if mask is not None:
        _together(row, mask, boxes, found)
    if picture is not None and (shown or found.faults):
        found.thumbnail = _thumbnail(picture, mask, boxes, keypoints)
    return found


def _caption(text: Any, found: Findings) -> None:
    captions = [text] if isinstance(text, str) else text
    if (
        not isinstance(captions, list)
        or not captions
        or not all(isinstance(c, str) and readable(c) == c for c in captions)
    ):
        found.faults.append(("text", f"is {text!a}, expected a caption or a list of captions"))
        return
    found.captions, found.caption = len(captions), captions[0]
    if not all(c.strip() for c in captions):
        found.notes.append("a caption is empty")


def _picture(row: Row, found: Findings) -> Image.Image | None:
    content = row.pictures.get("image")
    if content is None:
        if not any(column == "image" for column, _ in found.faults):
            found.faults.append(("image", "there is none"))
        return None
    try:
        opened = decode(content)
        if row.pictures.get("mask") or row.columns.get("face_boxes"):
            check_upright(opened, "the picture")
    except (RejectedError, DataError) as error:
        found.faults.append(("image", str(error)))
        return None
    found.size = opened.size
    picture = opened.convert("RGB")
    found.digest = hashlib.sha256(picture.tobytes()).digest()
    return picture


def _mask(row: Row, picture: Image.Image | None, found: Findings) -> Tensor | None:
    content = row.pictures.get("mask")
    if content is None:
        return None
    try:
        opened = decode(content)
        check_mask_mode(opened.mode, "of the row")
        if picture is not None:
            check_mask_size(opened.size, picture.size, "of the row", "")
    except (RejectedError, DataError) as error:
        found.faults.append(("mask", str(error)))
        return None
    labels = torch.from_numpy(np.array(opened, dtype=np.uint8))[None]
    found.person_area = float((labels > 0).float().mean())
    found.on_border, found.in_middle = placed(labels[0] > 0)
    crowds = crowds_of(row.columns)
    pixels = dict(zip(*(values.tolist() for values in labels.unique(return_counts=True)), strict=True))
    found.people_areas = [n / labels.numel() for k, n in pixels.items() if k > 0 and k not in crowds]
    found.people = len(found.people_areas)
    found.crowds = sum(k in crowds for k in pixels)
    return labels


def placed(people: Tensor) -> tuple[float, float]:
    """The share of people on the border, a sixteenth of each side wide, and in the middle, half of each side.

    Args:
        people: (H, W) bool.
    """
    height, width = people.shape
    y, x = max(height // 16, 1), max(width // 16, 1)
    border = torch.ones_like(people)
    border[y : height - y, x : width - x] = False
    middle = people[height // 4 : height - height // 4, width // 4 : width - width // 4]
    return float(people[border].float().mean()), float(middle.float().mean())


def _hint(row: Row, found: Findings) -> None:
    content = row.pictures.get("conditioning_image")
    if content is None:
        return
    try:
        decode(content)
    except RejectedError as error:
        found.faults.append(("conditioning_image", str(error)))


def _boxes(row: Row, picture: Image.Image | None, found: Findings) -> Tensor | None:
    if "face_boxes" not in row.columns:
        return None
    try:
        boxes = parse_boxes(row.columns["face_boxes"], "the row")
        if picture is not None:
            check_boxes_inside(boxes, picture.size, "the row")
    except DataError as error:
        found.faults.append(("face_boxes", str(error)))
        return None
    found.face_sizes = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt().tolist()
    for column in ("face_scores", "face_points", "face_sizes"):
        values = row.columns.get(column)
        if values is not None and (not isinstance(values, list) or len(values) != len(boxes)):
            came = f"has {len(values)} values" if isinstance(values, list) else f"is {values!r}, expected a list"
            found.faults.append((column, f"{came} for {len(boxes)} boxes"))
    return boxes


def crowds_of(columns: Mapping[str, Any]) -> set[int]:
    """The labels of a row that are crowds; empty where the column is missing or no list."""
    named = columns.get("crowds")
    return {k for k in named if type(k) is int} if isinstance(named, list) else set()


def label_count(columns: Mapping[str, Any]) -> int:
    """How many labels a row speaks of: its people and its crowds."""
    people = columns.get("person_count")
    return (people if type(people) is int else 0) + len(crowds_of(columns))


def _keypoints(row: Row, picture: Image.Image | None, found: Findings) -> Tensor | None:
    try:
        keypoints = parse_keypoints(row.columns.get("keypoints"), "the row")
        if picture is not None:
            check_keypoints_inside(keypoints, picture.size, "the row")
    except DataError as error:
        found.faults.append(("keypoints", str(error)))
        return None
    if "keypoints" in row.columns:
        found.hands = int((keypoints[:, WRISTS, 2] > 0).sum())
    people = row.columns.get("person_count")
    if people is not None and (isinstance(people, bool) or not isinstance(people, int) or people < 0):
        found.faults.append(("person_count", f"is {people!r}, expected a whole number"))
        del row.columns["person_count"]
    elif "keypoints" in row.columns and people is not None and len(keypoints) not in (people, label_count(row.columns)):
        found.faults.append(("keypoints", f"are of {len(keypoints)} people, person_count is {people}"))
    return keypoints


def _together(row: Row, mask: Tensor, boxes: Tensor | None, found: Findings) -> None:
    people = row.columns.get("person_count")
    if people is not None and int(mask.max()) > label_count(row.columns):
        found.faults.append(("mask", f"has label {int(mask.max())}, person_count is {people}"))
    elif people is not None and found.people is not None and found.people < people:
        found.hidden = people - found.people
    if boxes is not None and any(not _on_a_person(box, mask) for box in boxes.tolist()):
        found.notes.append("a face box has no person's pixel in it")


def _on_a_person(box: list[float], mask: Tensor) -> bool:
    x0, y0, x1, y1 = (max(int(v), 0) for v in box)
    return bool(mask[0, y0 : y1 + 1, x0 : x1 + 1].any())


def _thumbnail(picture: Image.Image, mask: Tensor | None, boxes: Tensor | None, keypoints: Tensor | None) -> bytes:
    """The photo as it is, and beside it with its annotation."""
    scale = THUMBNAIL / max(picture.size)
    small = picture.resize([max(round(side * scale), 1) for side in picture.size], Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)
    if mask is not None:
        labels = Image.fromarray(mask[0].numpy()).resize(small.size, Image.Resampling.NEAREST)
        mask = torch.from_numpy(np.array(labels))[None]
    if keypoints is not None:
        keypoints = keypoints * torch.tensor([scale, scale, 1.0])
    drawn = draw_annotation(pixels, mask, None if boxes is None else boxes * scale, keypoints)
    both = Image.new("RGB", (2 * small.width + GAP, small.height), "white")
    both.paste(small)
    both.paste(Image.fromarray(drawn.permute(1, 2, 0).numpy()), (small.width + GAP, 0))
    stream = io.BytesIO()
    both.save(stream, "JPEG", quality=88)
    return stream.getvalue()
