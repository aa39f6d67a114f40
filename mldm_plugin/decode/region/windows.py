"""The windows of a picture that are decoded, in latent pixels, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mldm_plugin.decode.region.chain import Layer

# Sides of windows are whole multiples of so many latent pixels, so that faces share a batch. Chosen:
# tests/benchmarks/region_decode.py --part grid counts what rounding up costs and how many batches it saves.
GRID = 4


class Window(NamedTuple):
    """A rectangle of a picture, in latent pixels."""

    top: int
    left: int
    height: int
    width: int


class Cost:
    """Multiplications in the chain for a window of a picture with latents of `height` x `width`."""

    def __init__(self, layers: Sequence[Layer], work: Sequence[int], height: int, width: int) -> None:
        self._layers, self._work, self._size = layers, work, (height, width)

    def __call__(self, window: Window) -> int:
        window = on_grid(window, *self._size)
        extents = (extent(window, layer.before, layer.halo, *self._size) for layer in self._layers)
        return sum(work * e.height * e.width for work, e in zip(self._work, extents, strict=True))

    def partner(self, window: Window, others: Sequence[Window]) -> Window | None:
        """The first of `others` that costs no more together with `window` than both do by themselves."""
        mine = self(window)
        return next((o for o in others if self(union(window, o)) <= mine + self(o)), None)


def cover(region: Sequence[float], downscale: int, height: int, width: int) -> Window | None:
    """The smallest window that holds the part of a region inside the picture; None if there is none."""
    x0, y0 = (max(0.0, start) for start in region[:2])
    x1, y1 = min(region[2], width * downscale), min(region[3], height * downscale)
    if x1 <= x0 or y1 <= y0:
        return None
    top, left = math.floor(y0 / downscale), math.floor(x0 / downscale)
    return Window(top, left, math.ceil(y1 / downscale) - top, math.ceil(x1 / downscale) - left)


def union(a: Window, b: Window) -> Window:
    """The smallest window that holds both."""
    top, left = min(a.top, b.top), min(a.left, b.left)
    bottom, right = max(a.top + a.height, b.top + b.height), max(a.left + a.width, b.left + b.width)
    return Window(top, left, bottom - top, right - left)


def on_grid(window: Window, height: int, width: int) -> Window:
    """`window` with sides rounded up to multiples of GRID or to the picture's, in the middle or shifted inside."""

    def rounded(start: int, length: int, whole: int) -> tuple[int, int]:
        wanted = min(whole, -(-length // GRID) * GRID)
        return min(max(0, start - (wanted - length) // 2), whole - wanted), wanted

    (top, tall), (left, wide) = rounded(*window[::2], height), rounded(*window[1::2], width)
    return Window(top, left, tall, wide)


def extent(window: Window, scale: int, halo: int, height: int, width: int) -> Window:
    """`window` at a level `scale` times larger, with `halo` pixels around it, shifted into the picture.

    It is shifted, not clipped: windows of one size stay of one size, and where it touches the picture's edge, zero
    padding is what it is in the full decode.
    """

    def along(start: int, length: int, whole: int) -> tuple[int, int]:
        wanted = min(whole * scale, length * scale + 2 * halo)
        return min(max(0, start * scale - halo), whole * scale - wanted), wanted

    (top, tall), (left, wide) = along(*window[::2], height), along(*window[1::2], width)
    return Window(top, left, tall, wide)


def scaled(window: Window, scale: int) -> Window:
    return Window(*(scale * side for side in window))


def crop(pieces: Sequence[Tensor], held: Sequence[Window], wanted: Sequence[Window]) -> Tensor:
    """The parts `wanted` of `pieces`, each (1, C, h, w) and showing `held`, as one batch."""
    if list(held) == list(wanted):
        return torch.cat(list(pieces))
    return torch.cat(
        [
            piece[:, :, w.top - h.top :, w.left - h.left :][:, :, : w.height, : w.width]
            for piece, h, w in zip(pieces, held, wanted, strict=True)
        ]
    )


def pasted(picture: Tensor, pixels: Tensor, window: Window, downscale: int) -> Tensor:
    """A copy of `picture` (1, 3, H, W) with `pixels` in its `window`."""
    top, left, height, width = scaled(window, downscale)
    picture = picture.clone()
    picture[:, :, top : top + height, left : left + width] = pixels
    return picture
