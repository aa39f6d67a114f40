"""Squares in a picture, turned by any angle: cut out with gradient to the picture, and points brought back.

A square is (x, y, side, angle): its centre and side in pixels, and by how many radians it is turned, clockwise as one
sees the picture. Places are continuous: pixel i reaches from i to i + 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def around(height: int, width: int) -> Tensor:
    """The upright square (1, 4) around a whole picture, as MediaPipe's letterbox has it."""
    return torch.tensor([[width / 2, height / 2, max(height, width), 0.0]])


def upright(start: Tensor, end: Tensor) -> Tensor:
    """The angles (K,) at which the ways from `start` to `end`, (K, 2) each, lead straight up."""
    way = end - start
    return torch.atan2(way[:, 0], -way[:, 1])


def moved(squares: Tensor, down: float, scale: float) -> Tensor:
    """The squares (K, 4), each moved down in its own frame by `down` sides and then `scale` times as large.

    Source: MediaPipe, RectTransformationCalculator.
    """
    x, y, side, angle = squares.unbind(1)
    x, y = x - side * down * angle.sin(), y + side * down * angle.cos()
    return torch.stack([x, y, side * scale, angle], dim=1)


def to_picture(squares: Tensor, points: Tensor) -> Tensor:
    """Points (K, P, 2) of squares, (0, 0) top left and (1, 1) bottom right, as pixels of the picture."""
    x, y, side, angle = squares.to(points).unbind(1)
    across, down = (points - 0.5).unbind(2)
    cosine, sine = (side * angle.cos())[:, None], (side * angle.sin())[:, None]
    return torch.stack([x[:, None] + across * cosine - down * sine, y[:, None] + across * sine + down * cosine], dim=2)


def cut_out(image: Tensor, squares: Tensor, size: int, outside: str = "border") -> Tensor:
    """Each square as a picture of its own.

    A square much larger than `size` is first averaged over blocks of pixels, so that every pixel counts and has a
    gradient; bilinear sampling of what is then less than twice too large does the rest.

    Args:
        image: (C, H, W), any range, gradients flow. On a GPU that of grid sampling is not the same to the bit each run.
        squares: (K, 4) on the CPU, may reach out of the picture.
        size: side in pixels of what is cut out.
        outside: "border" repeats the picture's edge, "zeros" is 0.

    Returns:
        (K, C, size, size).
    """
    unit = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    grid = torch.stack(torch.meshgrid(unit, unit, indexing="xy"), dim=2).view(1, -1, 2)
    cuts = [image[None, :, :1, :1].expand(1, -1, size, size)[:0]]
    for square in squares.detach().cpu().double():
        places = to_picture(square[None], grid)
        block = max(1, int(square[2] / size))
        pooled, corner = _pooled(image, places, block)
        extent = torch.tensor([pooled.shape[2], pooled.shape[1]]) * block
        normal = ((places - corner) / extent * 2 - 1).view(1, size, size, 2).to(image, non_blocking=True)
        cuts.append(F.grid_sample(pooled[None], normal, mode="bilinear", padding_mode=outside, align_corners=False))
    return torch.cat(cuts)


def _pooled(image: Tensor, places: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The part of `image` in which `places` lie, averaged over blocks of pixels, and its corner (2,) in the picture."""
    if block == 1:
        return image, torch.zeros(2, dtype=places.dtype)
    height, width = image.shape[1:]
    (x0, y0), (x1, y1) = places[0].amin(0).tolist(), places[0].amax(0).tolist()
    left, top = (max(0, min(side - 1, math.floor(at) - block)) for at, side in ((x0, width), (y0, height)))
    right, bottom = (
        max(at + 1, min(side, math.ceil(end) + block)) for at, end, side in ((left, x1, width), (top, y1, height))
    )
    part = image[None, :, top:bottom, left:right]
    pooled = F.avg_pool2d(part, block, ceil_mode=True)[0]
    return pooled, torch.tensor([left, top], dtype=places.dtype)
