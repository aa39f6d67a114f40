"""Cutting all faces of a batch of pictures out, with gradient to the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class FaceCrop:
    """The square around a face that a network was trained on.

    Args:
        size: side in pixels of the network's input.
        extent: the square's side, in longer sides of the detector's box.
        down: how far its centre lies below the box's, in sides of the square.
    """

    size: int
    extent: float
    down: float = 0.0


# VGGFace2, "Pre-processing": the detector's box "is then extended by a factor 0.3 to include the whole head".
VGGFACE2_CROP = FaceCrop(size=224, extent=1.3)


def square_boxes(boxes: Tensor, crop: FaceCrop) -> Tensor:
    """The squares that are cut out around `boxes`, (K, 4) x0, y0, x1, y1, on the CPU.

    A square holds the forehead and the chin of a tall box. It may reach out of the picture.
    """
    side = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True) * crop.extent
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + side * torch.tensor([0.0, crop.down], dtype=boxes.dtype)
    return torch.cat([centre - side / 2, centre + side / 2], dim=1)


def largest(boxes: Tensor, count: int | None) -> Tensor:
    """The `count` boxes of greatest area in `boxes`, (K, 4), greatest first; all of them for None."""
    if count is None or len(boxes) <= count:
        return boxes
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return boxes[area.argsort(descending=True, stable=True)[:count]]


def crop_faces(images: Tensor, boxes: Sequence[Tensor], crop: FaceCrop = VGGFACE2_CROP) -> Tensor:
    """Every face of every image as a square picture, in one batch.

    A crop is two matrix products, one along each axis: each row of a matrix averages what lies under one pixel of the
    crop. So when a face is shrunk no pixel of it is without gradient, and the gradient is the same in each run, which
    that of RoIAlign or of grid sampling is not on a GPU. Outside the picture its border pixels are repeated, so that no
    edge appears that no face has.

    Args:
        images: (N, 3, H, W), any range, gradients flow.
        boxes: N tensors (K_i, 4) on the CPU, pixel x0, y0, x1, y1 inside the picture (`clip_boxes`), K_i may be 0.
        crop: which square around a box, and its size S.

    Returns:
        (ΣK_i, 3, S, S), in the order of images and boxes.

    Source: He et al., "Mask R-CNN", section 3, for averaging bilinear samples under each bin.
    """
    height, width = images.shape[-2:]
    crops = [images[:0, :, :1, :1].expand(0, -1, crop.size, crop.size)]
    for image, of_image in zip(images, boxes, strict=True):
        if len(of_image):
            squares = square_boxes(of_image.detach().cpu().double(), crop).numpy()
            across = _resampling(squares[:, 0], squares[:, 2], crop.size, width, like=images)
            along = _resampling(squares[:, 1], squares[:, 3], crop.size, height, like=images)
            with torch.autocast(images.device.type, enabled=False):
                crops.append(along[:, None] @ image @ across[:, None].mT)
    return torch.cat(crops)


def _resampling(starts: NDArray[np.float64], ends: NDArray[np.float64], size: int, length: int, like: Tensor) -> Tensor:
    """Matrices (K, size, length) that bring `length` pixels to the `size` bins between each start and end."""
    matrices = np.stack([_matrix(start, end, size, length) for start, end in zip(starts, ends, strict=True)])
    return torch.from_numpy(matrices).to(like.dtype).to(like.device, non_blocking=True)


def _matrix(start: float, end: float, size: int, length: int) -> NDArray[np.float64]:
    """One such matrix. Under each bin lie as many samples as it has pixels, at least one, each bilinear."""
    samples = max(1, int(np.ceil((end - start) / size)))
    places = start + (np.arange(size * samples) + 0.5) * (end - start) / (size * samples) - 0.5
    before = np.floor(places).astype(int)
    share = places - before
    matrix = np.zeros((size, length))
    rows = np.repeat(np.arange(size), samples)
    np.add.at(matrix, (rows, before.clip(0, length - 1)), (1 - share) / samples)
    np.add.at(matrix, (rows, (before + 1).clip(0, length - 1)), share / samples)
    return matrix
