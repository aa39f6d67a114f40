"""Who is in a picture of COCO: its annotations as a label map."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_masks

from mldm_plugin.prepare.source import MOST_PEOPLE, Face, People, RejectedError, Shown, Source

MOST_GIVEN = 64  # values in a given mask, chosen: more than people in a photo, fewer than greys of a smoothed outline
FAR = 2  # picture sides that a polygon may reach beyond the picture; drawing it costs as much as it is long. Chosen.


@dataclass(frozen=True)
class CocoPeople:
    """The people of a picture by its annotations: one label each, in the order of the file. A crowd has a label, too,
    and is not counted as a person.

    Where people overlap, the pixel is the smaller one's, who is more likely to be in front; a crowd, which is
    annotated as one region, lies behind all others. The labels together are the union of the annotations' masks.

    Args:
        keypoints: whether the data set has keypoints; a person without any has 51 zeros then.
    """

    keypoints: bool

    def __call__(self, source: Source, picture: Shown) -> People:
        check_size(source, picture)
        width, height = picture.size
        if len(source.annotations) > MOST_PEOPLE:
            raise RejectedError(f"has {len(source.annotations)} people, a label map holds {MOST_PEOPLE}")
        crowds = [k for k, a in enumerate(source.annotations, 1) if a.get("iscrowd")]
        return People(
            labels=label_map(source.annotations, height, width),
            count=len(source.annotations) - len(crowds),
            keypoints=_keypoints(source.annotations) if self.keypoints else None,
            faces=_faces(source.annotations),
            columns={"crowds": crowds},
        )


def check_size(source: Source, picture: Any) -> None:
    """Raise RejectedError where the annotation is not of the upright picture, or that is not known."""
    size = tuple(source.size or ())
    if size and size != picture.size:
        raise RejectedError(
            f"is {picture.size[0]}x{picture.size[1]}, its annotation is for {size[0]}x{size[1]}: "
            + ("it was annotated before its EXIF orientation was applied" if picture.turned else "not the same picture")
        )
    if size and picture.turned and picture.stored_size == picture.size:
        raise RejectedError("is stored turned (EXIF), and whether its annotation is upright cannot be told by its size")


def label_map(annotations: Sequence[Mapping[str, Any]], height: int, width: int) -> np.ndarray:
    """uint8 (height, width): 0 background, k the k-th annotation."""
    labels = np.zeros((height, width), np.uint8, order="F")  # as pycocotools decodes masks
    runs = [run_lengths(annotation["segmentation"], height, width) for annotation in annotations]
    areas = [int(coco_masks.area(run)) for run in runs]
    order = sorted(range(len(runs)), key=lambda k: (not annotations[k].get("iscrowd"), -areas[k], k))
    for k in order:
        np.copyto(labels, k + 1, where=_decoded(runs[k]).view(bool))
    return np.ascontiguousarray(labels)


def covered(annotations: Sequence[Mapping[str, Any]], height: int, width: int) -> float:
    """The part of the picture that is people, in [0, 1]; overlaps count once. Nothing is decoded."""
    runs = [run_lengths(annotation["segmentation"], height, width) for annotation in annotations]
    return float(coco_masks.area(coco_masks.merge(runs))) / (height * width) if runs else 0.0


def run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Polygons, run lengths or a compressed text as pycocotools' compressed run lengths.

    Raises:
        RejectedError: the run lengths are of another size, or a polygon lies far outside of the picture.
    """
    if isinstance(segmentation, list):
        far = (-FAR * max(height, width), (1 + FAR) * max(height, width))
        if any(min(polygon) < far[0] or max(polygon) > far[1] for polygon in segmentation):
            raise RejectedError(f"has a polygon that lies far outside of its {width}x{height} pixels")
        return coco_masks.merge(coco_masks.frPyObjects(segmentation, height, width))
    if list(segmentation["size"]) != [height, width]:
        raise RejectedError(
            f"has run lengths of size {segmentation['size']}, expected [height, width] = {[height, width]}"
        )
    if isinstance(segmentation["counts"], list):
        return coco_masks.frPyObjects(segmentation, height, width)
    return {"size": [height, width], "counts": segmentation["counts"].encode("ascii")}


def _decoded(runs: dict[str, Any]) -> np.ndarray:
    """uint8 (height, width) of 0 and 1. pycocotools 2.0 still asks numpy in the old way."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return coco_masks.decode(runs)


def _keypoints(annotations: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    return [[float(v) for v in annotation.get("keypoints") or [0] * 51] for annotation in annotations]


def _faces(annotations: Sequence[Mapping[str, Any]]) -> list[Face] | None:
    """The boxes of COCO-WholeBody, there x, y, width, height; None where no annotation says anything of faces."""
    if all(a.get("face_box") is None for a in annotations):
        return None
    boxes = [a["face_box"] for a in annotations if a.get("face_box") is not None and a.get("face_valid", True)]
    return [Face((x, y, x + w, y + h)) for x, y, w, h in boxes if w > 0 and h > 0]


@dataclass(frozen=True)
class GivenMask:
    """A label picture that somebody drew, of the size of the upright picture: 0 background, a number for each person.

    The numbers become 1, 2, … in their order, so that a mask of black and white is one person.
    """

    def __call__(self, source: Source, picture: Shown) -> People:
        if source.mask is None:
            raise RejectedError("has no mask among those given")
        from mldm_plugin.data.annotations import MASK_MODES  # not at the top: it brings torch to every process

        name = Path(source.mask).name
        try:
            with Image.open(source.mask) as opened:
                mode, labels = opened.mode, np.array(opened, dtype=np.uint8)
        except Exception as error:
            raise RejectedError(f"has a mask {name} that cannot be read: {error}") from error
        if mode not in MASK_MODES:
            raise RejectedError(f"has a mask {name} of mode {mode}, expected 8-bit labels (mode L)")
        if labels.shape != picture.size[::-1]:
            raise RejectedError(
                f"is {picture.size[0]}x{picture.size[1]}, its mask {name} is {labels.shape[1]}x{labels.shape[0]}"
            )
        numbers, places = np.unique(labels, return_inverse=True)
        if len(numbers) > MOST_GIVEN:
            raise RejectedError(
                f"has a mask {name} with {len(numbers)} different values, expected a number for each person, not the "
                "greys of a smoothed outline"
            )
        people = places.reshape(labels.shape) + (numbers[0] != 0)
        return People(people.astype(np.uint8), count=int(people.max()))
