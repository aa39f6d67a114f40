"""Resize, crop and mirror, the same for a picture and for all that is drawn on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import PIL.Image
import torch
from PIL.ExifTags import Base as Exif
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


@dataclass(frozen=True)
class Cut:
    """Where the square lies in the resized picture, and whether it is mirrored."""

    top: int
    left: int
    mirrored: bool = False


class Framing:
    """Short side to `resolution`, then a square of that side: what diffusers' scripts do.

    Args:
        resolution: side of the square.
        interpolation: of the picture, by torchvision's name in any case; masks take the nearest neighbour.
        random_crop: whether `draw` places the square at random; else it is the middle.
        random_flip: whether `draw` mirrors every other picture.
    """

    def __init__(
        self,
        resolution: int,
        *,
        interpolation: str = "bilinear",
        random_crop: bool = False,
        random_flip: bool = False,
    ) -> None:
        self._resolution = resolution
        self._interpolation = getattr(v2.InterpolationMode, interpolation.upper())
        self.random_crop = random_crop
        self.random_flip = random_flip

    def middle(self, size: tuple[int, int]) -> Cut:
        """The middle of a picture of `size` (width, height), as torchvision's CenterCrop finds it."""
        left, top = (round((side - self._resolution) / 2) for side in self._resized(size))
        return Cut(top, left)

    def draw(self, size: tuple[int, int]) -> Cut:
        """The cut of a picture of `size` (width, height) in this pass.

        Draws from torch's global generator what torchvision's RandomCrop and then RandomHorizontalFlip draw:
        two integers if there is room to choose from, and one number if pictures are mirrored.
        """
        cut = self.middle(size)
        width, height = self._resized(size)
        if self.random_crop and (width, height) != (self._resolution, self._resolution):
            top, left = (int(torch.randint(side - self._resolution + 1, (1,))) for side in (height, width))
            cut = Cut(top, left)
        return replace(cut, mirrored=True) if self.random_flip and bool(torch.rand(1) < 0.5) else cut

    def picture(self, picture: PIL.Image.Image) -> Tensor:
        """A picture alone, its middle, float (3, S, S) in [0, 1]."""
        return _to_tensor(self._apply(picture, self.middle(picture.size)))

    def __call__(self, picture: PIL.Image.Image, mask: Tensor | None, boxes: Tensor, cut: Cut | None = None) -> Framed:
        """A picture with its mask (1, H, W) and its boxes (K, 4), in pixels of that picture; by default its middle."""
        cut = cut or self.middle(picture.size)
        cropped_boxes, kept = self.boxes(boxes, picture.size, cut)
        return Framed(
            picture=_to_tensor(self._apply(picture, cut)),
            mask=None if mask is None else self._apply(LabelMap(mask), cut).as_subclass(Tensor),
            boxes=cropped_boxes[kept],
        )

    def boxes(self, boxes: Tensor, size: tuple[int, int], cut: Cut | None = None) -> tuple[Tensor, Tensor]:
        """All boxes (K, 4) of a picture of `size` (width, height) as the crop clips them, and which (K,) are kept."""
        width, height = size
        drawn = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
        clipped = v2.functional.clamp_bounding_boxes(drawn)
        cropped = v2.functional.clamp_bounding_boxes(self._apply(clipped, cut or self.middle(size)))
        scale = self._resolution / min(width, height)
        visible = _areas(cropped) / (_areas(clipped) * scale**2).clamp_min(torch.finfo(torch.float32).tiny)
        return cropped.as_subclass(Tensor), visible >= LEAST_VISIBLE

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height after the resize."""
        width, height = size
        long_side = int(self._resolution * max(size) / min(size))
        return (self._resolution, long_side) if width <= height else (long_side, self._resolution)

    def _apply(self, drawing: Any, cut: Cut) -> Any:
        """A picture, label map or boxes, resized, cropped and mirrored."""
        resized = v2.functional.resize(drawing, [self._resolution], interpolation=self._interpolation, antialias=True)
        square = v2.functional.crop(resized, cut.top, cut.left, self._resolution, self._resolution)
        return v2.functional.horizontal_flip(square) if cut.mirrored else square


def upright_size(stored: PIL.Image.Image) -> tuple[int, int]:
    """Width and height of a stored picture once it is turned upright; only its header is read."""
    width, height = stored.size
    turned = stored.getexif().get(Exif.Orientation, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def _to_tensor(picture: PIL.Image.Image) -> Tensor:
    """Divides by 255, as diffusers' script does; v2.ToDtype multiplies by 1/255, which rounds differently."""
    return v2.functional.pil_to_tensor(picture).contiguous().float() / 255


def _areas(boxes: Tensor) -> Tensor:
    boxes = boxes.as_subclass(Tensor)
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
