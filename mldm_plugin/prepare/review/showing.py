"""What the review's page is told of the pictures."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from mldm_plugin.data.annotations import check_mask_mode
from mldm_plugin.errors import DataError
from mldm_plugin.prepare.inspection import crowds_of, label_count
from mldm_plugin.prepare.picture import decode
from mldm_plugin.prepare.remarks import said_of
from mldm_plugin.prepare.review.folder import Review

FORMATS = {"JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}  # browsers show them


def listed(review: Review) -> dict[str, Any]:
    """All rows by name, with what is decided of each."""
    return {
        "folder": review.folder.name,
        "rows": [{"name": entry.name, "decision": entry.note.decision} for entry in review.entries],
    }


def details(review: Review, number: int) -> dict[str, Any]:
    """One row: its caption, people and faces, what is wrong with it, and whether it can be put back."""
    entry, found, row = review.entries[number], review.findings(number), review.row(number)
    text = row.columns.get("text")
    remarks = said_of(found)
    boxes = row.columns.get("face_boxes") if found.face_sizes is not None else None
    return {
        "name": entry.name,
        "decision": entry.note.decision,
        "changed": entry.note.original is not None,
        "captions": [str(caption) for caption in (text if isinstance(text, list) else [text]) if caption],
        "size": found.size,
        "masked": found.people is not None,
        "people": max(label_count(row.columns), found.people or 0),
        "crowds": sorted(crowds_of(row.columns)),
        "keypoints": None if any(column == "keypoints" for column, _ in found.faults) else row.columns.get("keypoints"),
        "faces": boxes or [],
        "faces_were": entry.note.faces or list(range(len(boxes or []))),
        "faults": [f"{column}: {reason}" for column, reason in found.faults],
        "notes": [*found.notes, *(remark.text for remark in remarks if remark.grade == "worth a look")],
    }


def shown_picture(review: Review, number: int) -> tuple[str, bytes]:
    """Content type and content of a picture that browsers show; one of another format as PNG.

    Raises:
        DataError: it cannot be read.
    """
    content = review.row(number).pictures.get("image")
    if content is None:
        raise DataError("the picture is missing.")
    opened = decode(content)
    if opened.format in FORMATS:
        return FORMATS[opened.format], content
    stream = io.BytesIO()
    opened.convert("RGB").save(stream, "PNG")
    return "image/png", stream.getvalue()


def labels_of(review: Review, number: int) -> tuple[str, bytes]:
    """The mask's labels, a byte a pixel, row by row.

    Raises:
        DataError: there is no mask, or not one of labels.
    """
    content = review.row(number).pictures.get("mask")
    if content is None:
        raise DataError("there is no mask.")
    opened = decode(content)
    check_mask_mode(opened.mode, review.entries[number].name)
    return "application/octet-stream", np.array(opened, dtype=np.uint8).tobytes()
