"""Masks, boxes and keypoints for the pictures of a batch, put where the script's transforms put the pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from mldm_plugin.attach import ledger
from mldm_plugin.attach.frame import Frame, check_frame
from mldm_plugin.attach.ledger import frame_of
from mldm_plugin.attach.on_record import Fault, Offers, OnRecord, Stored
from mldm_plugin.attach.placement import Placement, check_placement
from mldm_plugin.data.annotations import check_boxes_inside, check_keypoints_inside, check_mask_size
from mldm_plugin.data.batch import FaceBoxes, Keypoints
from mldm_plugin.errors import DataError

KEY = "mldm"  # of the annotation in the script's batch
# What a loss may need that lies in a picture, in words.
PLACED = {"person_mask": "a mask", "face_boxes": "face boxes", "keypoints": "keypoints"}
# Under what name the scripts keep an example's training picture; the class pictures of prior preservation come after.
PICTURES = ("pixel_values", "edited_pixel_values", "instance_images", "instance_image", "image", "images")
IN_BATCH = ("pixel_values", "edited_pixel_values", "images", "image")
_UPRIGHT = (0, 1)
CHECKED_BATCHES = 8  # in each process that loads data; reading pictures twice costs as much again. Chosen.


_K = TypeVar("_K", FaceBoxes, Keypoints)


@dataclass(frozen=True)
class Annotation:
    """The annotation of a batch, of its first len(self) pictures.

    Args:
        names: the files of the pictures; empty where one was read from memory.
        person_mask: (N, 1, H, W) uint8 labels in the frame of the pictures; None if there are no masks at all.
        face_boxes: of each picture (K, 4); None if there are no boxes at all.
        on_record: of what there is, by the name of what a loss needs, whether each picture has it; empty where that is
            not known.
        placements: how well pictures agree with their sources, where that was looked at.
        pictures: (N, 3, H, W) uint8, where the batch itself holds their latents alone.
        keypoints: of each picture (K, 17, 3); None if there are no keypoints at all.
    """

    names: tuple[str, ...]
    person_mask: Tensor | None
    face_boxes: FaceBoxes | Fault | None
    on_record: Mapping[str, tuple[bool, ...]]
    placements: tuple[Placement, ...] = ()
    pictures: Tensor | None = None
    keypoints: Keypoints | Fault | None = None

    def __len__(self) -> int:
        return len(self.names)

    def to(self, *_: Any, **__: Any) -> Annotation:
        """Itself: loops that move everything in their batch to the device leave it on the CPU."""
        return self


def annotate(
    examples: Sequence[Any],
    batch: Any,
    stored_of: OnRecord,
    *,
    check: bool = False,
) -> Annotation:
    """The annotation of a batch that the script's collate function made from `examples`.

    With `check`, annotated pictures are compared with their sources.

    Raises:
        DataError: what is stored cannot be read, or cannot be put where the pictures are.
    """
    key, pictures = _pictures_in(batch)
    own = _name_of_pictures(examples)
    found = [
        _place(example, example[own], pictures[row], stored_of, (key, row), check=check)
        for row, example in enumerate(examples)
    ]
    return _together(found, stored_of.offers(examples[0]))


def annotate_frames(
    frames: Sequence[Frame],
    stored_of: OnRecord,
    pictures: Tensor | None = None,
) -> Annotation:
    """The annotation of pictures whose frames are known, for trainers that say themselves where they cut.

    Args:
        frames: of each picture; its `source` names it.
        stored_of: what is on record of them.
        pictures: (N, 3, h, w) in [-1, 1]; where they are given, annotated ones are compared with their sources.

    Raises:
        DataError: what is stored cannot be read, or a frame is not one of this picture.
    """
    found = []
    for row, frame in enumerate(frames):
        placed = _warp(stored_of({}, frame, frame.source), frame, frame.size, frame.source)
        if pictures is not None and placed.shows_anyone:
            placed = replace(placed, placement=check_placement(pictures[row], frame, {}, frame.source))
        found.append(replace(placed, name=frame.source))
    return _together(found, stored_of.offers({}))


@dataclass(frozen=True)
class _Placed:
    """One picture's annotation in its own frame: mask (1, h, w), boxes (K, 4), keypoints (K, 17, 3)."""

    mask: Tensor
    boxes: Tensor | Fault
    keypoints: Tensor | Fault
    stored: Stored
    name: str = ""
    placement: Placement | None = None

    @property
    def shows_anyone(self) -> bool:
        boxes, keypoints = (isinstance(x, Tensor) and bool(x.any()) for x in (self.boxes, self.keypoints))
        return bool(self.mask.any()) or boxes or keypoints


def _together(found: Sequence[_Placed], offers: Offers) -> Annotation:
    has = {
        "person_mask": [p.stored.mask is not None for p in found] if offers.mask else None,
        "face_boxes": [p.stored.boxes is not None for p in found] if offers.boxes else None,
        "keypoints": [p.stored.keypoints is not None for p in found] if offers.keypoints else None,
    }
    return Annotation(
        names=tuple(p.name for p in found),
        person_mask=torch.stack([p.mask for p in found]) if offers.mask else None,
        face_boxes=_of_all(FaceBoxes, [p.boxes for p in found]) if offers.boxes else None,
        on_record={kind: tuple(rows) for kind, rows in has.items() if rows is not None},
        placements=tuple(p.placement for p in found if p.placement is not None),
        keypoints=_of_all(Keypoints, [p.keypoints for p in found]) if offers.keypoints else None,
    )


def _of_all(kind: type[_K], parts: Sequence[Tensor | Fault]) -> _K | Fault:
    """Those of all pictures; the first fault if there is one."""
    return next((p for p in parts if isinstance(p, Fault)), None) or kind([p for p in parts if isinstance(p, Tensor)])


def _name_of_pictures(examples: Sequence[Any]) -> str:
    if not examples or not all(isinstance(e, Mapping) for e in examples):
        raise DataError("the examples of the data set are not dictionaries; use the library form (docs/attach.md).")
    for name in PICTURES:
        if name in examples[0]:
            return name
    raise DataError(
        f"no picture was found in the examples of the data set, which have {', '.join(map(str, examples[0]))}: "
        "expected pixel_values or instance_images. The script may have replaced its pictures by latents; use the "
        "library form (docs/attach.md)."
    )


def _place(
    example: Mapping[str, Any],
    picture: Any,
    row: Tensor,
    stored_of: OnRecord,
    place: tuple[str, int],
    *,
    check: bool,
) -> _Placed:
    """The annotation of `picture`, which the batch has as `row` at `place`."""
    frame = frame_of(picture)
    source = frame.source if frame is not None else ""
    name = source or _nameless(place[1], example)
    _check_is_row(picture, row, place[0], name)
    stored = stored_of(example, frame, name)
    placed = replace(_warp(stored, frame, (row.shape[-1], row.shape[-2]), name), name=source)
    if not check or frame is None or not placed.shows_anyone:
        return placed
    return replace(placed, placement=check_placement(picture, frame, example, name))


def _nameless(row: int, example: Mapping[str, Any]) -> str:
    """A picture whose file is not known, by what is known around it."""
    beside = [f.source for f in map(frame_of, example.values()) if f is not None and f.source]
    known = f"beside {beside[0]}" if beside else f"files opened last: {', '.join(ledger.last_read)}"
    return f"picture {row} of a batch" + (f" ({known})" if beside or ledger.last_read else "")


def _warp(stored: Stored, frame: Frame | None, size: tuple[int, int], name: str) -> _Placed:
    """What is on record, in the frame of the picture."""
    nobody = torch.zeros(1, size[1], size[0], dtype=torch.uint8)
    boxes = stored.boxes if isinstance(stored.boxes, Fault) else torch.zeros(0, 4)
    keypoints = stored.keypoints if isinstance(stored.keypoints, Fault) else torch.zeros(0, 17, 3)
    empty = _Placed(nobody, boxes, keypoints, stored)
    if stored.is_empty:
        return empty
    known = check_frame(frame, size, name)
    if known.orientation not in _UPRIGHT:
        raise DataError(
            f"{name} has a mask, boxes or keypoints and is stored turned (EXIF orientation {known.orientation}), so "
            "their frame is ambiguous: store it upright (PIL.ImageOps.exif_transpose) and annotate that."
        )
    if stored.mask is not None:
        check_mask_size((stored.mask.shape[2], stored.mask.shape[1]), known.source_size, f"of {name}", name)
    return replace(
        empty,
        mask=empty.mask if stored.mask is None else known.warp_labels(stored.mask),
        boxes=_moved(stored.boxes, empty.boxes, check_boxes_inside, known.warp_boxes, known, name),
        keypoints=_moved(stored.keypoints, empty.keypoints, check_keypoints_inside, known.warp_keypoints, known, name),
    )


def _moved(
    stored: Tensor | Fault | None,
    none: Tensor | Fault,
    check: Callable[[Tensor, tuple[int, int], str], None],
    warp: Callable[[Tensor], Tensor],
    frame: Frame,
    name: str,
) -> Tensor | Fault:
    """Boxes or keypoints in the frame of the picture; a fault where they cannot be there."""
    if not isinstance(stored, Tensor):
        return none if stored is None else stored
    try:
        check(stored, frame.source_size, name)
    except DataError as error:
        return Fault(str(error))
    return warp(stored)


def one_frame(value: Any) -> Any:
    """(N, C, h, w) of films of one picture, whose frames come after the channels or before them; else what it was."""
    if isinstance(value, Tensor) and value.ndim == 5 and 1 in (value.shape[1], value.shape[2]):
        return value.squeeze(2 if value.shape[2] == 1 else 1)
    return value


def pictures_in(batch: Any) -> tuple[str, Tensor] | None:
    """The training pictures of a batch, (N, 3, H, W), and under what name it has them."""
    if isinstance(batch, Mapping):
        for key in IN_BATCH:
            value = one_frame(batch.get(key))
            if isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] == 3:
                return key, value
    return None


def _pictures_in(batch: Any) -> tuple[str, Tensor]:
    found = pictures_in(batch)
    if found is not None:
        return found
    if not isinstance(batch, Mapping):
        raise DataError(
            f"the script's batch is a {type(batch).__name__}, expected a dictionary with pixel_values; use the library "
            "form (docs/attach.md)."
        )
    for key in IN_BATCH:
        value = batch.get(key)
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] > 3 and value.shape[1] % 3 == 0:
            raise DataError(
                f"{key} in the script's batch has {value.shape[1]} channels: {value.shape[1] // 3} pictures in each "
                "example, as the pairs of Diffusion-DPO, whose loss compares two answers. The plugin's losses are of "
                "one picture and its mask; use the library form (docs/attach.md), with the pictures they belong to."
            )
    raise DataError(
        f"no pictures were found in the script's batch, which has {', '.join(map(str, batch))}: expected pixel_values "
        "(N, 3, H, W). The script may have replaced its pictures by latents; use the library form (docs/attach.md)."
    )


def _check_is_row(picture: Any, row: Tensor, key: str, name: str) -> None:
    """The collate function must put example i in row i, as it is."""
    thin = (slice(None), slice(None, None, 16), slice(None, None, 16))
    if (
        not isinstance(picture, Tensor)
        or picture.shape != row.shape
        or not torch.equal(picture[thin].to(row), row[thin])
    ):
        raise DataError(
            f"{name} is not in its place in the batch's {key!r}: the script's collate function changes its pictures, "
            "so masks would not fit. Use the library form (docs/attach.md)."
        )


class Collate:
    """The script's collate function, and the annotation of its batch under `KEY`.

    A fault is kept in the batch instead of being raised, for it may have come up in a worker process.
    """

    def __init__(self, collate: Callable[[Any], Any], stored_of: OnRecord, *, strict: bool = True) -> None:
        self._collate = collate
        self._strict = strict
        self._stored_of = stored_of
        self._checks_left = CHECKED_BATCHES

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        ledger.install()  # in a worker process that was not forked

    def __call__(self, examples: Any) -> Any:
        batch = self._collate(examples)
        try:
            placed: Annotation | Fault = annotate(examples, batch, self._stored_of, check=self._checks_left > 0)
            self._checks_left -= 1
        except DataError as error:
            placed = Fault(str(error))
        if not isinstance(batch, Mapping):
            if self._strict:
                raise DataError(str(placed.message if isinstance(placed, Fault) else placed))
            return batch
        batch[KEY] = placed  # type: ignore[index]
        return batch
