"""Inks that are not one flat colour: cloth with its pattern, strands of hair, noise."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from mldm_plugin.prepare.synthetic.canvas import Rgb, planes
from mldm_plugin.prepare.synthetic.curve import Frame
from mldm_plugin.prepare.synthetic.palette import Pixels, mix, scaled

TILE = 256  # the noise repeats after so many of its own pixels


@lru_cache(maxsize=1)
def _tile() -> np.ndarray:
    """Smooth noise (TILE, TILE) in [-1, 1] that wraps round; the same in each process."""
    rng = np.random.default_rng(20)
    total = np.zeros((TILE, TILE), np.float32)
    for cells, weight in ((16, 1.0), (32, 0.5), (64, 0.25)):
        coarse = np.tile(rng.uniform(-1, 1, (cells, cells)).astype(np.float32), (3, 3))
        fine = Image.fromarray(coarse).resize((3 * TILE, 3 * TILE), Image.Resampling.BICUBIC)
        total += weight * np.asarray(fine)[TILE : 2 * TILE, TILE : 2 * TILE]
    return total / np.abs(total).max()


def noise(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smooth noise in [-1, 1] whose grains are about 16 units wide."""
    return _tile()[y.astype(np.int32) % TILE, x.astype(np.int32) % TILE]


@lru_cache(maxsize=1)
def _strip() -> np.ndarray:
    """A row of noise in [-1, 1] for strands, 1024 long, smoothed over a few entries."""
    row = np.random.default_rng(21).uniform(-1, 1, 1024)
    smooth = row + np.roll(row, 1) + 0.7 * np.roll(row, 2)
    return (smooth / np.abs(smooth).max()).astype(np.float32)


def strand(position: np.ndarray) -> np.ndarray:
    """One value in [-1, 1] for each strand; neighbours are alike."""
    table = _strip()
    whole = np.floor(position)
    share = (position - whole).astype(np.float32)
    index = whole.astype(np.int32)
    return table[index % 1024] * (1 - share) + table[(index + 1) % 1024] * share


def local(frame: Frame, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in the coordinates of a frame."""
    c, s = np.float32(np.cos(frame.angle) / frame.scale), np.float32(np.sin(frame.angle) / frame.scale)
    dx, dy = x - np.float32(frame.x), y - np.float32(frame.y)
    return (c * dx + s * dy) * np.float32(frame.mirror), -s * dx + c * dy


def cloth(base: Rgb, second: Rgb, pattern: str, frame: Frame, weave: float = 0.04) -> Pixels:
    """Woven colour with soft folds and a pattern; `frame` is that of the garment, in heads."""
    a, b = planes(base), planes(second)

    def ink(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, v = local(frame, x, y)
        share = _pattern(pattern, u, v)
        colour = a if share is None else a + share * (b - a)
        folds = noise(u * 26 + v * 14, v * 22 - u * 10)
        grain = noise(u * 900, v * 900)
        return colour * (1 + np.float32(0.1) * folds + np.float32(weave) * grain)

    return ink


def _pattern(pattern: str, u: np.ndarray, v: np.ndarray) -> np.ndarray | None:
    """The share of the second colour at each point, or None where there is only one."""
    bend = 0.06 * np.square(u)  # stripes go round the body
    if pattern == "striped":
        return _step(np.sin((v - bend) * 2 * np.pi / 0.3), 0.15)
    if pattern == "checked":
        across, down = np.sin(u * 2 * np.pi / 0.36), np.sin((v - bend) * 2 * np.pi / 0.36)
        return 0.5 * _step(across, 0.2) + 0.5 * _step(down, 0.2)
    if pattern == "dotted":
        row = np.floor(v / 0.2)
        du, dv = (u / 0.2 + 0.5 * (row % 2)) % 1 - 0.5, (v / 0.2) % 1 - 0.5
        return _step(0.28 - np.hypot(du, dv), 0.06)
    if pattern == "flowered":
        row = np.floor(v / 0.34)
        du, dv = (u / 0.34 + 0.5 * (row % 2)) % 1 - 0.5, (v / 0.34) % 1 - 0.5
        petals = 0.24 + 0.12 * np.cos(5 * np.arctan2(dv, du) + row)
        return _step(petals - np.hypot(du, dv), 0.06)
    return None


def _step(value: np.ndarray, width: float) -> np.ndarray:
    return np.clip(value / np.float32(width) + np.float32(0.5), 0, 1)


def strands(base: Rgb, frame: Frame, origin: tuple[float, float], count: float, seed: int, wave: float = 0.0) -> Pixels:
    """Hair that runs away from `origin` (in head units), with a band of gloss.

    Args:
        base: its colour.
        frame: of the head.
        origin: where the strands come together: the parting, or a point far above for hair that hangs down.
        count: strands in a radian.
        seed: shifts the strands.
        wave: how much they wave, in radians.
    """
    dark, light = planes(scaled(base, 0.62)), planes(mix(scaled(base, 1.3), (1.0, 0.9, 0.75), 0.16))

    def ink(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, v = local(frame, x, y)
        du, dv = u - np.float32(origin[0]), v - np.float32(origin[1])
        reach = np.hypot(du, dv)
        turn = np.arctan2(du, dv + 1e-6) + np.float32(wave) * np.sin(reach * 14 + seed % 7)
        lock = (
            strand(turn * np.float32(count) + seed % 997) * 0.6
            + strand(turn * np.float32(count * 0.27) + seed % 641) * 0.5
        )
        # gloss: a band round the crown, broken up by the strands
        band = np.exp(-np.square((np.hypot(u * 0.9, v + 0.05) - 0.36 + 0.03 * lock) / 0.055)) * np.clip(
            (0.12 - v) / 0.3, 0, 1
        )
        bright = np.clip(0.42 + 0.34 * lock + 0.5 * band, 0, 1)
        return dark + bright * (light - dark)

    return ink


def curls(base: Rgb, frame: Frame, seed: int) -> Pixels:
    """Curly hair: noise with round grains."""
    dark, light = planes(scaled(base, 0.55)), planes(mix(scaled(base, 1.3), (1.0, 0.9, 0.75), 0.1))

    def ink(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, v = local(frame, x, y)
        bright = np.clip(0.5 + 0.75 * noise(u * 190 + seed % 97, v * 190), 0, 1)
        return dark + bright * (light - dark)

    return ink
