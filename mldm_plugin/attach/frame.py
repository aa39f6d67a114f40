"""Where a training picture was cut from the picture it was read from, and its annotation moved along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mldm_plugin.data.geometry import LEAST_VISIBLE, MIRRORED_KEYPOINTS
from mldm_plugin.errors import DataError

# x' = a x + b y + c, y' = d x + e y + f
Affine = tuple[float, float, float, float, float, float]
Rectangle = tuple[float, float, float, float]
IDENTITY: Affine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Frame:
    """How a picture came from its source.

    Coordinates are continuous, with (0, 0) at the upper left corner of the first pixel, as in Pillow.

    Args:
        source: path of the file, or the empty string where it is not known.
        source_size: width and height of the source picture, upright as stored.
        size: width and height of the picture now.
        affine: from source to picture.
        visible: x0, y0, x1, y1 of the part of the picture that shows its source; the rest is padding. None is all.
        orientation: the source's EXIF orientation.
        lost: the operation that could not be followed, or the empty string.
        serial: counts the pictures that were read, so that those read from memory are told apart.
    """

    source: str
    source_size: tuple[int, int]
    size: tuple[int, int]
    affine: Affine = IDENTITY
    visible: Rectangle | None = None
    orientation: int = 1
    lost: str = ""
    serial: int = 0

    def then(self, affine: Affine, size: tuple[int, int]) -> Frame:
        """After one more step: `affine` from the present picture to one of `size`."""
        if (affine, size) == (IDENTITY, self.size):
            return self
        x0, y0, x1, y1 = _moved(affine, self.visible or (0, 0, *self.size))
        visible = (max(x0, 0.0), max(y0, 0.0), min(x1, size[0]), min(y1, size[1]))
        return replace(self, affine=compose(affine, self.affine), size=size, visible=visible)

    def lose(self, operation: str) -> Frame:
        """After a step that cannot be followed."""
        return replace(self, lost=self.lost or operation)

    def warp_labels(self, mask: Tensor) -> Tensor:
        """A label map (1, H, W) uint8 of the source in the picture's frame, (1, h, w); nobody in padding."""
        labels = Image.fromarray(mask[0].cpu().numpy())
        warped = torch.from_numpy(np.array(self._warp(labels, Image.Resampling.NEAREST)))
        if self.visible is not None:
            x0, y0, x1, y1 = (round(v) for v in self.visible)
            shown = torch.zeros_like(warped)
            shown[y0:y1, x0:x1] = warped[y0:y1, x0:x1]
            warped = shown
        return warped.unsqueeze(0)

    def warp_picture(self, picture: Image.Image) -> Tensor:
        """The source picture in this frame as float (3, h, w) in [-1, 1], to compare with what the script made."""
        warped = np.array(self._warp(picture.convert("RGB"), Image.Resampling.BILINEAR))
        return torch.from_numpy(warped).permute(2, 0, 1).float() / 127.5 - 1

    def warp_boxes(self, boxes: Tensor) -> Tensor:
        """Boxes (K, 4) of the source in the picture's frame, clipped; those less than half visible are dropped."""
        width, height = self.source_size
        inside = boxes.clamp_min(0).minimum(torch.tensor([width, height, width, height], dtype=torch.float32))
        moved = torch.tensor([_moved(self.affine, box) for box in inside.tolist()]).reshape(-1, 4)
        low, high = torch.tensor(self.visible or (0, 0, *self.size), dtype=torch.float32).reshape(2, 2)
        clipped = moved.maximum(low.repeat(2)).minimum(high.repeat(2))
        clipped[:, 2:] = clipped[:, 2:].maximum(clipped[:, :2])
        visible = _areas(clipped) / _areas(moved).clamp_min(torch.finfo(torch.float32).tiny)
        return clipped[visible >= LEAST_VISIBLE]

    def warp_keypoints(self, keypoints: Tensor) -> Tensor:
        """COCO's keypoints (K, 17, 3) of the source in the picture's frame, every person in its place.

        One that is not labelled or not visible is 0, 0, 0, as in COCO. In the mirror left and right have changed their
        names.
        """
        a, b, c, d, e, f = self.affine
        x, y, v = keypoints.unbind(dim=-1)
        x0, y0, x1, y1 = self.visible or (0, 0, *self.size)
        moved = torch.stack([a * x + b * y + c, d * x + e * y + f, v], dim=-1)
        shown = (v > 0) & (moved[..., 0] >= x0) & (moved[..., 0] <= x1) & (moved[..., 1] >= y0) & (moved[..., 1] <= y1)
        moved = torch.where(shown[..., None], moved, 0.0)
        return moved[:, MIRRORED_KEYPOINTS] if a * e < b * d else moved

    def _warp(self, source: Image.Image, resample: Image.Resampling) -> Image.Image:
        return source.transform(self.size, Image.Transform.AFFINE, invert(self.affine), resample=resample)


def compose(outer: Affine, inner: Affine) -> Affine:
    """The map that does `inner` first.

    >>> compose((2, 0, 0, 0, 2, 0), (1, 0, 3, 0, 1, 4))
    (2, 0, 6, 0, 2, 8)
    """
    a, b, c, d, e, f = outer
    g, h, i, j, k, m = inner
    return (a * g + b * j, a * h + b * k, a * i + b * m + c, d * g + e * j, d * h + e * k, d * i + e * m + f)


def invert(affine: Affine) -> Affine:
    """
    >>> invert((2, 0, 6, 0, 4, 8))
    (0.5, 0.0, -3.0, 0.0, 0.25, -2.0)
    """
    a, b, c, d, e, f = affine
    determinant = a * e - b * d
    g, h, j, k = e / determinant, -b / determinant + 0.0, -d / determinant + 0.0, a / determinant
    return (g, h, -(g * c + h * f), j, k, -(j * c + k * f))


def _moved(affine: Affine, rectangle: Sequence[float]) -> Rectangle:
    """The rectangle around a rectangle's four corners after `affine`."""
    a, b, c, d, e, f = affine
    x0, y0, x1, y1 = rectangle
    corners = [(a * x + b * y + c, d * x + e * y + f) for x in (x0, x1) for y in (y0, y1)]
    xs, ys = zip(*corners, strict=True)
    return (min(xs), min(ys), max(xs), max(ys))


def scaling(old: Sequence[float], new: tuple[int, int]) -> Affine:
    """From the box `old` (x0, y0, x1, y1) of a picture to a picture of size `new`."""
    x0, y0, x1, y1 = old
    sx, sy = new[0] / (x1 - x0), new[1] / (y1 - y0)
    return (sx, 0.0, -sx * x0, 0.0, sy, -sy * y0)


def transposition(method: int, size: tuple[int, int]) -> tuple[Affine, tuple[int, int]]:
    """Pillow's flip or quarter turn of a picture of `size` as a map, and the size afterwards."""
    w, h = size
    T = Image.Transpose
    table: dict[int, tuple[Affine, tuple[int, int]]] = {
        T.FLIP_LEFT_RIGHT: ((-1, 0, w, 0, 1, 0), (w, h)),
        T.FLIP_TOP_BOTTOM: ((1, 0, 0, 0, -1, h), (w, h)),
        T.ROTATE_180: ((-1, 0, w, 0, -1, h), (w, h)),
        T.ROTATE_90: ((0, 1, 0, -1, 0, w), (h, w)),
        T.ROTATE_270: ((0, -1, h, 1, 0, 0), (h, w)),
        T.TRANSPOSE: ((0, 1, 0, 1, 0, 0), (h, w)),
        T.TRANSVERSE: ((0, -1, h, -1, 0, w), (h, w)),
    }
    return table[method]


def check_frame(frame: Frame | None, size: tuple[int, int], name: str) -> Frame:
    """The frame of a picture of `size` (width, height), if it was followed all the way.

    Raises:
        DataError: it was not: the annotation could not be put where the picture is.
    """
    way_out = (
        "Masks, boxes and keypoints would not follow. Keep to Pillow, torchvision's transforms, slices and flips, or "
        "use the library form (docs/attach.md)."
    )
    if frame is None:
        raise DataError(
            f"{name}: how this picture was cropped is not known: it was pasted, or made by a package that is not "
            f"followed (OpenCV, albumentations), or is what a network or a whole batch was made into. {way_out}"
        )
    if frame.lost:
        raise DataError(f"{name}: {frame.lost} cannot be followed. {way_out}")
    if frame.size != size:
        raise DataError(
            f"{name}: the picture is {size[0]}x{size[1]}, the last step that was followed left it "
            f"{frame.size[0]}x{frame.size[1]}. {way_out}"
        )
    return frame


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
