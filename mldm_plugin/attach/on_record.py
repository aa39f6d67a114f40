"""What is on record of a picture, its mask and face boxes: in columns of the script's data set, or in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from mldm_plugin.attach.frame import IDENTITY, Frame, check_frame
from mldm_plugin.attach.ledger import frame_of
from mldm_plugin.data.annotations import check_mask_mode, parse_boxes
from mldm_plugin.errors import DataError
from mldm_plugin.prepare.stored import listed_rows

_WHITE = 127  # of 255; what is whiter than this is the person. Chosen.


@dataclass(frozen=True)
class Stored:
    """What is on record of one picture, in the frame of its source: mask uint8 (1, H, W) or None, boxes (K, 4)."""

    mask: Tensor | None
    boxes: Tensor | None


class ExampleColumns:
    """Annotation that the script's data set keeps in columns of its own."""

    def __init__(self, mask: str, boxes: str) -> None:
        self._mask, self._boxes = mask, boxes

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
        boxes = example.get(self._boxes)
        return Stored(labels, None if self._boxes not in example else parse_boxes(boxes, name))

    def offers(self, example: Mapping[str, Any]) -> tuple[bool, bool]:
        """Whether there are masks, and boxes, for pictures like this one."""
        return self._mask in example, self._boxes in example


class SideFolder:
    """Annotation by the pictures' file names, without their endings.

    Either a training set that `mldm data` made, whose metadata.jsonl names masks and boxes; or a folder with
    `<stem>.png`, a label picture, and `<stem>.json`, {"face_boxes": [[x0, y0, x1, y1], …]}.

    Raises:
        DataError: there is no such folder, nothing of the kind in it, or a metadata.jsonl that is broken.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"--mldm-mask-dir {folder} is not a folder.")
        self._masks: dict[str, Path]
        self._boxes: dict[str, Any]  # the file, or the boxes as they were read
        if listed_rows(folder):
            self._masks, self._boxes = _by_metadata(folder)
        else:
            self._masks = {p.stem: p for p in sorted(folder.glob("[!.]*.png"))}
            self._boxes = {p.stem: p for p in sorted(folder.glob("[!.]*.json"))}
        if not self._masks and not self._boxes:
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
        path = Path(frame.source)
        mask = boxes = None
        if path.stem in self._masks:
            mask = _read_labels(self._masks[path.stem])
        if path.stem in self._boxes:
            known = self._boxes[path.stem]
            boxes = _read_boxes(known) if isinstance(known, Path) else parse_boxes(known, name)
        return Stored(mask, boxes)

    def offers(self, example: Mapping[str, Any]) -> tuple[bool, bool]:
        """Whether there are masks, and boxes, for pictures like this one."""
        return bool(self._masks), bool(self._boxes)

    @property
    def stems(self) -> set[str]:
        """Names, without suffix, of the pictures that something is on record of."""
        return {*self._masks, *self._boxes}


def _by_metadata(folder: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """Masks and boxes by the stems of the pictures in a training set; raises DataError for one that is broken."""
    masks: dict[str, Path] = {}
    boxes: dict[str, Any] = {}
    seen = set()
    for top, row in listed_rows(folder):
        stem = Path(row["file_name"]).stem
        if stem in seen:
            raise DataError(f"{top}: a second picture is called {stem}, and masks are found by name.")
        seen.add(stem)
        if row.get("mask_file_name"):
            masks[stem] = top / row["mask_file_name"]
        if row.get("face_boxes") is not None:
            boxes[stem] = row["face_boxes"]
    return masks, boxes


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


def _read_boxes(path: Path) -> Tensor:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(record, dict) or "face_boxes" not in record:
        raise DataError(f'{path} has no "face_boxes"; expected {{"face_boxes": [[x0, y0, x1, y1], …]}}.')
    return parse_boxes(record["face_boxes"], str(path))
