"""From single examples to the batch that a training step reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor

from mldm_plugin.errors import DataError

NOT_LOADED: Any = None  # pictures are there wherever they are looked at, and are typed so


@dataclass(frozen=True)
class Example:
    """One picture, framed, with all that belongs to it.

    Args:
        pixel_values: float (3, S, S) in [-1, 1]; None where latents were cached and nothing looks at pictures.
        conditioning_pixel_values: the hint, float (3, S, S) in [0, 1]; None for a ControlNet without one.
        person_mask: uint8 (1, S, S) labels; None where masks are not read.
        face_boxes: float32 (K, 4) pixels of the framed picture; None where boxes are not read.
        keypoints: float32 (K, 17, 3), x, y, v of COCO's keypoints of each person, in pixels of the framed picture;
            None where they are not read.
        input_ids: (L,) tokens of the caption drawn for this pass; None outside training.
        posterior: (2C, h, w) parameters of the VAE's posterior; None where latents are not cached.
        conditions: what the picture is made from, name → value as its encoder takes it; empty without conditions.
        text: (L, D), what the text encoder makes of `input_ids`; None where it is not cached.
    """

    pixel_values: Tensor
    conditioning_pixel_values: Tensor | None = None
    person_mask: Tensor | None = None
    face_boxes: Tensor | None = None
    keypoints: Tensor | None = None
    input_ids: Tensor | None = None
    posterior: Tensor | None = None
    text: Tensor | None = None
    conditions: Mapping[str, Tensor] = field(default_factory=dict)


class OnCPU(Sequence[Tensor]):
    """A tensor for each image of a batch, which stays on the CPU: its numbers are needed, not its memory.

    accelerate moves every tensor that it finds in lists, tuples and mappings to the device; it leaves this sequence
    alone.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tuple(tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        return self._tensors[index]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._tensors)


class FaceBoxes(OnCPU):
    """The boxes of each image of a batch, (K_i, 4)."""


class Keypoints(OnCPU):
    """The keypoints of each image of a batch, (K_i, 17, 3)."""


@dataclass(frozen=True)
class Failed:
    """Stands in for the examples of a batch that could not be loaded, until that batch has its turn."""

    message: str


_STACKED = (
    "pixel_values",
    "conditioning_pixel_values",
    "person_mask",
    "input_ids",
    "posterior",
    "text",
)


def collate(examples: Sequence[Example] | Failed) -> dict[str, Any]:
    """A batch: tensors stacked, boxes in `FaceBoxes`, keypoints in `Keypoints`; empty if a resumed run skips it."""
    if isinstance(examples, Failed):
        return {"failed": examples.message}
    if not examples:
        return {}
    batch: dict[str, Any] = {}
    for name in _STACKED:
        values = [getattr(example, name) for example in examples]
        if values[0] is not None:
            batch[name] = torch.stack(values)
    if examples[0].face_boxes is not None:
        batch["face_boxes"] = FaceBoxes([e.face_boxes for e in examples if e.face_boxes is not None])
    if examples[0].keypoints is not None:
        batch["keypoints"] = Keypoints([e.keypoints for e in examples if e.keypoints is not None])
    if any(example.conditions for example in examples):
        batch["conditions"], batch["present"] = stacked([example.conditions for example in examples])
    return batch


def stacked(examples: Sequence[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Conditions of a batch: name → values (N, …), zero for a picture without, and name → bool (N,), which have one."""
    values, present = {}, {}
    for name in dict.fromkeys(name for example in examples for name in example):
        there = [example.get(name) for example in examples]
        one = next(value for value in there if value is not None)
        values[name] = torch.stack([torch.zeros_like(one) if value is None else value for value in there])
        present[name] = torch.tensor([value is not None for value in there])
    return values, present


def checked(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch itself; raises DataError if it could not be loaded."""
    if "failed" in batch:
        raise DataError(batch["failed"])
    return batch
