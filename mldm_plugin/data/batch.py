"""From single examples to the batch that a training step reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from mldm_plugin.errors import DataError


@dataclass(frozen=True)
class Example:
    """One picture, framed, with all that belongs to it.

    Args:
        pixel_values: float (3, S, S) in [-1, 1].
        conditioning_pixel_values: the hint, float (3, S, S) in [0, 1]; None for a ControlNet without one.
        person_mask: uint8 (1, S, S) labels; None where masks are not read.
        face_boxes: float32 (K, 4) pixels of the framed picture; None where boxes are not read.
        input_ids: (L,) tokens of the caption drawn for this pass; None outside training.
    """

    pixel_values: Tensor
    conditioning_pixel_values: Tensor | None = None
    person_mask: Tensor | None = None
    face_boxes: Tensor | None = None
    input_ids: Tensor | None = None


class FaceBoxes(Sequence[Tensor]):
    """The boxes of each image of a batch: tensors (K_i, 4) that stay on the CPU.

    Cropping needs their numbers, not their memory. accelerate moves every tensor that it finds in lists, tuples
    and mappings to the device; it leaves this sequence alone.
    """

    def __init__(self, boxes: Sequence[Tensor]) -> None:
        self._boxes = tuple(boxes)

    def __len__(self) -> int:
        return len(self._boxes)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        return self._boxes[index]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._boxes)


@dataclass(frozen=True)
class Failed:
    """Stands in for the examples of a batch that could not be loaded, until that batch has its turn."""

    message: str


def collate(examples: Sequence[Example] | Failed) -> dict[str, Any]:
    """A batch: tensors stacked, boxes in `FaceBoxes`; empty if a resumed run skips it."""
    if isinstance(examples, Failed):
        return {"failed": examples.message}
    if not examples:
        return {}
    batch: dict[str, Any] = {}
    for name in ("pixel_values", "conditioning_pixel_values", "input_ids", "person_mask"):
        values = [getattr(example, name) for example in examples]
        if values[0] is not None:
            batch[name] = torch.stack(values)
    if examples[0].face_boxes is not None:
        batch["face_boxes"] = FaceBoxes([e.face_boxes for e in examples if e.face_boxes is not None])
    return batch


def checked(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch itself; raises DataError if it could not be loaded."""
    if "failed" in batch:
        raise DataError(batch["failed"])
    return batch
