"""What is on record of a picture, its mask, face boxes and keypoints: in columns of the data set, or in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from mldm_plugin.attach.frame import IDENTITY, Frame, check_frame
from mldm_plugin.attach.ledger import frame_of
from mldm_plugin.data.annotations import check_mask_mode, parse_boxes, parse_keypoints
from mldm_plugin.errors import DataError
from mldm_plugin.prepare.stored import listed_rows

BOXES, KEYPOINTS = "face_boxes", "keypoints"  # in NAME.json and in metadata.jsonl
_WHITE = 127  # of 255; what is whiter than this is the person. Chosen.


class Offers(NamedTuple):
    """What there is at all, be it empty for some pictures."""

    mask: bool = False
    boxes: bool = False
    keypoints: bool = False


@dataclass(frozen=True)
class Fault:
    """Stands in for what could not be read or placed, until its step comes, and a loss that needs it."""

    message: str

    def to(self, *_: Any, **__: Any) -> Fault:
        return self


@dataclass(frozen=True)
class Stored:
    """What is on record of one picture, in the frame of its source; None for what is not.

    Args:
        mask: labels, uint8 (1, H, W).
        boxes: of faces, (K, 4).
        keypoints: COCO's, (K, 17, 3).
    """

    mask: Tensor | None = None
    boxes: Tensor | Fault | None = None
    keypoints: Tensor | Fault | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to put into a picture."""
        labels = (self.boxes, self.keypoints)
        return self.mask is None and not any(isinstance(x, Tensor) and len(x) for x in labels)


class OnRecord(Protocol):
    """Where annotation is kept."""

    def __call__(self, example: Mapping[str, Any], frame: Frame | None, name: str) -> Stored: ...
    def offers(self, example: Mapping[str, Any]) -> Offers: ...


class ExampleColumns:
    """Annotation that the script's data set keeps in columns of its own."""

    def __init__(self, mask: str, boxes: str, keypoints: str = KEYPOINTS) -> None:
        self._mask, self._boxes, self._keypoints = mask, boxes, keypoints

    def __call__(self, example: Mapping[str, Any], frame: Frame | None, name: str) -> Stored:
        mask = example.get(self._mask)
        if mask is not None and not isinstance(mask, PIL.Image.Image):
            raise DataError(f"{name}: column {self._mask!r} holds {type(mask).__name__}, expected a label picture.")
        labels = None
        if mask is not None:
            cut = frame_of(mask)
            if cut is not None and cut.affine != IDENTITY:
                raise DataError(
                    f"{name}: the script has cropped or turned the mask itself, and it would be moved twice; leave "
                    f"column {self._mask!r} as it is stored."
                )
            labels = _labels(mask, name)
        boxes = _told(parse_boxes, example.get(self._boxes), f"{name}, column {self._boxes!r}")
        return Stored(
            labels, boxes, _told(parse_keypoints, example.get(self._keypoints), f"{name}, column {self._keypoints!r}")
        )

    def offers(self, example: Mapping[str, Any]) -> Offers:
        """What there is for pictures like this one."""
        return Offers(self._mask in example, self._boxes in example, self._keypoints in example)


class SideFolder:
    """Annotation by the pictures' file names, without their endings.

    Either a training set that `mldm data` made, whose metadata.jsonl names masks, boxes and keypoints; or a folder with
    `<stem>.png`, a label picture, and `<stem>.json`, {"face_boxes": [[x0, y0, x1, y1], …],
    "keypoints": [[x, y, v, …], …]}, of which a file needs what a loss needs.

    Raises:
        DataError: there is no such folder, nothing of the kind in it, or a metadata.jsonl that is broken.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"--mldm-mask-dir {folder} is not a folder.")
        self._masks: dict[str, Path]
        self._labels: dict[str, Any]  # a file, or what stands in one
        if listed_rows(folder):
            self._masks, self._labels = _by_metadata(folder)
            kinds = {kind for labels in self._labels.values() for kind in labels}
        else:
            self._masks = {p.stem: p for p in sorted(folder.glob("[!.]*.png"))}
            self._labels = {p.stem: p for p in sorted(folder.glob("[!.]*.json"))}
            kinds = {BOXES, KEYPOINTS} if self._labels else set()
        self._offers = Offers(bool(self._masks), BOXES in kinds, KEYPOINTS in kinds)
        if not self._masks and not self._labels:
            raise DataError(
                f"--mldm-mask-dir {folder} holds neither NAME.png nor NAME.json nor a metadata.jsonl with masks: give "
                "the folder with the label masks, each named like its picture, or a training set that `mldm data` made."
            )

    def __call__(self, example: Mapping[str, Any], frame: Frame | None, name: str) -> Stored:
        if frame is None or not frame.source:
            check_frame(frame, (0, 0) if frame is None else frame.size, name)
            raise DataError(
                f"{name}: the picture's file name is not known (it was read from memory), so its mask cannot be found "
                "in --mldm-mask-dir; keep masks in a column of the data set."
            )
        stem = Path(frame.source).stem
        mask = _read_labels(self._masks[stem]) if stem in self._masks else None
        known = self._labels.get(stem, {})
        if isinstance(known, Path):
            return Stored(mask, *_read_labels_of_people(known))
        return Stored(
            mask, _told(parse_boxes, known.get(BOXES), name), _told(parse_keypoints, known.get(KEYPOINTS), name)
        )

    def offers(self, example: Mapping[str, Any]) -> Offers:
        """What there is for pictures like this one."""
        return self._offers

    @property
    def stems(self) -> set[str]:
        """Names, without suffix, of the pictures that something is on record of."""
        return {*self._masks, *self._labels}


def _by_metadata(folder: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """Masks, and boxes and keypoints, by the stems of the pictures in a training set; raises DataError for one that
    is broken."""
    masks: dict[str, Path] = {}
    labels: dict[str, Any] = {}
    seen = set()
    for top, row in listed_rows(folder):
        stem = Path(row["file_name"]).stem
        if stem in seen:
            raise DataError(f"{top}: a second picture is called {stem}, and masks are found by name.")
        seen.add(stem)
        if row.get("mask_file_name"):
            masks[stem] = top / row["mask_file_name"]
        if found := {kind: row[kind] for kind in (BOXES, KEYPOINTS) if row.get(kind) is not None}:
            labels[stem] = found
    return masks, labels


def _labels(mask: PIL.Image.Image, name: str) -> Tensor:
    check_mask_mode(mask.mode, name)
    return torch.from_numpy(np.array(mask, dtype=np.uint8)).unsqueeze(0)


def _read_labels(path: Path) -> Tensor:
    try:
        with PIL.Image.open(path) as mask:
            return _labels(mask, str(path))
    except OSError as error:
        raise DataError(f"mask {path} cannot be read ({error}); replace it.") from error


def read_white(path: Path) -> Tensor:
    """A trainer's own mask, which is white where something is: uint8 (1, H, W), 1 there.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with PIL.Image.open(path) as mask:
            white = np.asarray(mask.convert("L")) > _WHITE
    except OSError as error:
        raise DataError(f"mask {path} cannot be read ({error}); replace it.") from error
    return torch.from_numpy(white.astype(np.uint8))[None]


def _read_labels_of_people(path: Path) -> tuple[Tensor | Fault | None, Tensor | Fault | None]:
    """Boxes and keypoints of a NAME.json."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        fault = Fault(f"{path} cannot be read as JSON ({error}).")
        return fault, fault
    boxes, keypoints = (
        _told(parse, record[kind], str(path))
        if isinstance(record, dict) and record.get(kind) is not None
        else Fault(f'{path} has no "{kind}"; expected {{"{kind}": {example}}}, with [] where nobody is.')
        for kind, parse, example in (
            (BOXES, parse_boxes, "[[x0, y0, x1, y1], …]"),
            (KEYPOINTS, parse_keypoints, "[[x, y, v, …], …]"),
        )
    )
    return boxes, keypoints


def _told(parse: Callable[[Any, str], Tensor], value: Any, name: str) -> Tensor | Fault | None:
    """What is on record of a picture's people, None where nothing is."""
    if value is None:
        return None
    try:
        return parse(value, name)
    except DataError as error:
        return Fault(str(error))
