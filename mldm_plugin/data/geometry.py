"""Resize and centre crop, the same for a picture and for all that is drawn on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

# Of a box's area inside the stored picture. Chosen: a box that is mostly cut off would crop mostly padding.
LEAST_VISIBLE = 0.5


class LabelMap(tv_tensors.Mask):
    """A mask of labels. torchvision resizes a `Mask` with nearest neighbours counted from the corner of a pixel;
    this one is resized by Pillow, which counts from the centre, as it does for the picture: both stay in register."""


@v2.functional.register_kernel(functional="resize", tv_tensor_cls=LabelMap)
def _resize_label_map(inpt: LabelMap, size: list[int] | None, max_size: int | None = None, **_: Any) -> LabelMap:
    labels = v2.functional.to_pil_image(inpt.as_subclass(Tensor))
    resized = v2.functional.resize(labels, size, interpolation=v2.InterpolationMode.NEAREST, max_size=max_size)
    return tv_tensors.wrap(v2.functional.pil_to_tensor(resized), like=inpt)


@dataclass(frozen=True)
class Framed:
    """A picture and its annotation after the crop.

    Args:
        picture: float (3, S, S) in [0, 1].
        mask: uint8 (1, S, S) labels, or None.
        boxes: float32 (K, 4) clipped to the crop; those less than half visible are gone.
    """

    picture: Tensor
    mask: Tensor | None
    boxes: Tensor


class Framing:
    """Short side to `resolution` (bilinear), then the middle square: what diffusers' script does."""

    def __init__(self, resolution: int) -> None:
        self._resolution = resolution
        self._transform = v2.Compose(
            [
                v2.ClampBoundingBoxes(),
                v2.Resize(resolution, interpolation=v2.InterpolationMode.BILINEAR, antialias=True),
                v2.CenterCrop(resolution),
                v2.ClampBoundingBoxes(),
            ]
        )

    def picture(self, picture: PIL.Image.Image) -> Tensor:
        """A picture alone, float (3, S, S) in [0, 1]."""
        return _to_tensor(self._transform(picture))

    def __call__(self, picture: PIL.Image.Image, mask: Tensor | None, boxes: Tensor) -> Framed:
        """A picture with its mask (1, H, W) and its boxes (K, 4), in pixels of that picture."""
        cropped, labels = self._transform(picture, None if mask is None else LabelMap(mask))
        cropped_boxes, kept = self.boxes(boxes, picture.size)
        return Framed(
            picture=_to_tensor(cropped),
            mask=None if labels is None else labels.as_subclass(Tensor),
            boxes=cropped_boxes[kept],
        )

    def boxes(self, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """All boxes (K, 4) of a picture of `size` (width, height) as the crop clips them, and which (K,) are kept."""
        width, height = size
        drawn = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
        clipped = v2.functional.clamp_bounding_boxes(drawn)
        cropped = self._transform(drawn)
        scale = self._resolution / min(width, height)
        visible = _areas(cropped) / (_areas(clipped) * scale**2).clamp_min(torch.finfo(torch.float32).tiny)
        return cropped.as_subclass(Tensor), visible >= LEAST_VISIBLE


def _to_tensor(picture: PIL.Image.Image) -> Tensor:
    """Divides by 255, as diffusers' script does; v2.ToDtype multiplies by 1/255, which rounds differently."""
    return v2.functional.pil_to_tensor(picture).contiguous().float() / 255


def _areas(boxes: Tensor) -> Tensor:
    boxes = boxes.as_subclass(Tensor)
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
