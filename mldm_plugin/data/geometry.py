"""Resize, crop and mirror, the same for a picture and for all that is drawn on it.

Coordinates are continuous, in pixels: the middle of the first pixel is 0.5, and mirrored in a square of side S, x
becomes S - x. This holds for boxes and for keypoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import PIL.Image
import torch
import torchvision
from PIL.ExifTags import Base as Exif
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from mldm_plugin.errors import DataError

# Of a box's area inside the stored picture. Chosen: a box that is mostly cut off would crop mostly padding.
LEAST_VISIBLE = 0.5

# Of each of COCO's 17 keypoints, which one it is in the mirror: nose, then left and right eye, ear, shoulder, elbow,
# wrist, hip, knee, ankle.
MIRRORED_KEYPOINTS = [0, *(k for pair in range(1, 17, 2) for k in (pair + 1, pair))]


class LabelMap(tv_tensors.Mask):
    """A mask of labels. torchvision resizes a `Mask` with nearest neighbours counted from the corner of a pixel;
    this one is resized by Pillow, which counts from the centre, as it does for the picture: both stay in register."""


@v2.functional.register_kernel(functional="resize", tv_tensor_cls=LabelMap)
def _resize_label_map(inpt: LabelMap, size: list[int] | None, max_size: int | None = None, **_: Any) -> LabelMap:
    labels = v2.functional.to_pil_image(inpt.as_subclass(Tensor))
    resized = v2.functional.resize(labels, size, interpolation=v2.InterpolationMode.NEAREST, max_size=max_size)
    return tv_tensors.wrap(v2.functional.pil_to_tensor(resized), like=inpt)


@dataclass(frozen=True)
class Cut:
    """Where the square lies in the resized picture, whether it is mirrored, and how its colours change."""

    top: int
    left: int
    mirrored: bool = False
    colour: Mapping[str, Any] | None = None


class Framing:
    """Short side to `resolution`, then a square of that side: what diffusers' scripts do.

    Args:
        resolution: side of the square.
        interpolation: of the picture, by torchvision's name in any case; masks take the nearest neighbour.
        random_crop: whether `draw` places the square at random; else it is the middle.
        random_flip: whether `draw` mirrors every other picture.
        color_jitter: brightness, contrast, saturation and hue, as for torchvision's ColorJitter: how far `draw`
            changes them at most; None draws nothing for it.
    """

    def __init__(
        self,
        resolution: int,
        *,
        interpolation: str = "bilinear",
        random_crop: bool = False,
        random_flip: bool = False,
        color_jitter: Sequence[float] | None = None,
    ) -> None:
        self.resolution = resolution
        self.interpolation = interpolation.lower()
        self._interpolation = getattr(v2.InterpolationMode, interpolation.upper())
        self.random_crop = random_crop
        self.random_flip = random_flip
        self._colour = None if color_jitter is None else v2.ColorJitter(*color_jitter)

    @property
    def draws(self) -> bool:
        """Whether `draw` draws anything."""
        return self.random_crop or self.random_flip or self._colour is not None

    def middle(self, size: tuple[int, int]) -> Cut:
        """The middle of a picture of `size` (width, height), as torchvision's CenterCrop finds it."""
        left, top = (round((side - self.resolution) / 2) for side in self.resized(size))
        return Cut(top, left)

    def draw(self, size: tuple[int, int]) -> Cut:
        """The cut of a picture of `size` (width, height) in this pass.

        Draws from torch's global generator what torchvision's RandomCrop, RandomHorizontalFlip and then ColorJitter
        draw: two integers if there is room to choose from, one number if pictures are mirrored, and what colours
        take if they are changed.
        """
        cut = self.middle(size)
        width, height = self.resized(size)
        if self.random_crop and (width, height) != (self.resolution, self.resolution):
            top, left = (int(torch.randint(side - self.resolution + 1, (1,))) for side in (height, width))
            cut = Cut(top, left)
        if self.random_flip and bool(torch.rand(1) < 0.5):
            cut = replace(cut, mirrored=True)
        return cut if self._colour is None else replace(cut, colour=self._colour.make_params([]))

    def picture(self, picture: PIL.Image.Image, cut: Cut | None = None) -> Tensor:
        """A picture, float (3, S, S) in [0, 1]; by default its middle, as for all that follows."""
        cut = cut or self.middle(picture.size)
        square = self._apply(picture, cut)
        if cut.colour is not None and self._colour is not None:
            square = self._colour.transform(square, dict(cut.colour))
        return _to_tensor(square)

    def mask(self, mask: Tensor, cut: Cut | None = None) -> Tensor:
        """A label map, uint8 (1, H, W) of a picture's size, as (1, S, S)."""
        return self._apply(LabelMap(mask), cut or self.middle((mask.shape[2], mask.shape[1]))).as_subclass(Tensor)

    def kept_boxes(self, boxes: Tensor, size: tuple[int, int], cut: Cut | None = None) -> Tensor:
        """Those boxes, clipped, that are at least half visible."""
        clipped, kept = self.boxes(boxes, size, cut)
        return clipped[kept]

    def boxes(self, boxes: Tensor, size: tuple[int, int], cut: Cut | None = None) -> tuple[Tensor, Tensor]:
        """All boxes (K, 4) of a picture of `size` (width, height) as the crop clips them, and which (K,) are kept."""
        width, height = size
        drawn = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
        clipped = v2.functional.clamp_bounding_boxes(drawn)
        cropped = v2.functional.clamp_bounding_boxes(self._apply(clipped, cut or self.middle(size)))
        scale = self.resolution / min(width, height)
        visible = _areas(cropped) / (_areas(clipped) * scale**2).clamp_min(torch.finfo(torch.float32).tiny)
        return cropped.as_subclass(Tensor), visible >= LEAST_VISIBLE

    def keypoints(self, keypoints: Tensor, size: tuple[int, int], cut: Cut | None = None) -> Tensor:
        """COCO's keypoints (K, 17, 3) of the people of a picture of `size` (width, height), x, y, v each.

        One that is not labelled or lies outside of the square is 0, 0, 0, as in COCO; every person keeps its place.
        In the mirror left and right have changed their names. torchvision's own flip is not used: it counts pixels
        (S - 1 - x).

        Raises:
            DataError: torchvision is too old to know keypoints.
        """
        if not hasattr(tv_tensors, "KeyPoints"):
            raise DataError(
                f"keypoints need torchvision 0.23 or later, this is {torchvision.__version__}: upgrade it, or train "
                "without the column (--keypoints_column none)."
            )
        cut = cut or self.middle(size)
        drawn = tv_tensors.KeyPoints(keypoints[..., :2], canvas_size=(size[1], size[0]))
        points = self._apply(drawn, replace(cut, mirrored=False)).as_subclass(Tensor)
        inside = ((points >= 0) & (points <= self.resolution)).all(dim=-1)
        if cut.mirrored:
            points = torch.stack([self.resolution - points[..., 0], points[..., 1]], dim=-1)
        moved = torch.cat([points, keypoints[..., 2:]], dim=-1)
        moved = torch.where((inside & (keypoints[..., 2] > 0))[..., None], moved, 0.0)
        return moved[:, MIRRORED_KEYPOINTS] if cut.mirrored else moved

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height after the resize."""
        width, height = size
        long_side = int(self.resolution * max(size) / min(size))
        return (self.resolution, long_side) if width <= height else (long_side, self.resolution)

    def _apply(self, drawing: Any, cut: Cut) -> Any:
        """A picture, label map, boxes or keypoints, resized, cropped and mirrored."""
        resized = v2.functional.resize(drawing, [self.resolution], interpolation=self._interpolation, antialias=True)
        square = v2.functional.crop(resized, cut.top, cut.left, self.resolution, self.resolution)
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
