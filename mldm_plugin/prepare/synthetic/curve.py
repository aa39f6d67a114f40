"""Outlines: smooth curves through points, tubes along a line, and frames that put them into the picture.

A curve is a float64 array (n, 2) of x, y; y points down as in the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Curve = np.ndarray
Points = Sequence[Any] | np.ndarray  # of x, y


@dataclass(frozen=True)
class Frame:
    """Where local coordinates lie in the picture: p ↦ origin + scale · R(angle) · (mirror · x, y).

    Args:
        x, y: of the local origin, in pixels.
        scale: pixels per local unit.
        angle: radians, turning from x towards y (clockwise as seen).
        mirror: 1, or -1 to swap left and right.
    """

    x: float
    y: float
    scale: float
    angle: float = 0.0
    mirror: float = 1.0

    def __call__(self, points: Points) -> Curve:
        p = np.asarray(points, float) * (self.scale * self.mirror, self.scale)
        c, s = math.cos(self.angle), math.sin(self.angle)
        return p @ np.array([[c, s], [-s, c]]) + (self.x, self.y)

    def point(self, x: float, y: float) -> tuple[float, float]:
        [[px, py]] = self([[x, y]])
        return float(px), float(py)


@lru_cache(maxsize=64)
def _basis(n: int) -> np.ndarray:
    """Catmull-Rom weights (n, 4) of the points before, at, after and after that, for n steps of one span."""
    t = np.arange(n)[:, None] / n
    powers = np.concatenate([t**0, t, t**2, t**3], 1)
    return powers @ (0.5 * np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]))


def closed(points: Points, n: int = 8) -> Curve:
    """A closed Catmull-Rom spline through the points, n steps between two of them."""
    p = np.asarray(points, float)
    around = np.stack([np.roll(p, 1, 0), p, np.roll(p, -1, 0), np.roll(p, -2, 0)], 1)  # (k, 4, 2)
    return (_basis(n) @ around).reshape(-1, 2)


def opened(points: Points, n: int = 8) -> Curve:
    """An open Catmull-Rom spline from the first point to the last."""
    p = np.asarray(points, float)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    around = np.stack([p[:-3], p[1:-2], p[2:-1], p[3:]], 1)
    return np.concatenate([(_basis(n) @ around).reshape(-1, 2), p[-2:-1]])


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0, n: int = 40) -> Curve:
    t = np.linspace(0, 2 * math.pi, n, endpoint=False)
    return Frame(x, y, 1.0, angle)(np.stack([rx * np.cos(t), ry * np.sin(t)], 1))


def box(x0: float, y0: float, x1: float, y1: float) -> Curve:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)


def tube(line: Points, radii: Sequence[float] | np.ndarray, round_ends: bool = True) -> Curve:
    """The outline of a line whose half thickness runs through `radii` at equal steps, with round ends."""
    p = np.asarray(line, float)
    r = np.interp(np.linspace(0, 1, len(p)), np.linspace(0, 1, len(radii)), radii)[:, None]
    along = np.gradient(p, axis=0)
    along /= np.maximum(np.hypot(along[:, 0], along[:, 1])[:, None], 1e-9)
    across = np.stack([-along[:, 1], along[:, 0]], 1)
    left, right = p + across * r, p - across * r
    if not round_ends:
        return np.concatenate([left, right[::-1]])
    t = np.linspace(0, math.pi, 9)[1:-1, None]
    end = p[-1] + r[-1] * (across[-1] * np.cos(t) + along[-1] * np.sin(t))
    start = p[0] - r[0] * (across[0] * np.cos(t) + along[0] * np.sin(t))
    return np.concatenate([left, end, right[::-1], start])


def limb(line: Points, radii: Sequence[float], upto: float = 1.0) -> list[Curve]:
    """An arm or leg along three joints: two tubes that overlap at the middle one.

    Args:
        line: (3, 2).
        radii: at five equal steps, the third at the middle joint.
        upto: where it ends, as a share of both bones; a sleeve's end is cut straight.
    """
    a, b, c = np.asarray(line, float)
    t = np.linspace(0, 1, 7)[:, None]
    cut = upto < 1
    if upto <= 0.55:
        return [tube(a + (b - a) * t * upto * 2, radii[:3], not cut), disc(a, radii[0])]
    lower = tube(b + (c - b) * t * (2 * upto - 1), radii[2:], not cut)
    return [tube(a + (b - a) * t, radii[:3]), lower, disc(b, radii[2])]


def disc(at: Any, radius: float) -> Curve:
    """A circle about the point `at`, x and y."""
    return ellipse(float(at[0]), float(at[1]), radius, radius, n=24)


def mirrored(points: Points) -> Curve:
    """A right half from top to bottom, with its mirror image about x = 0: a closed outline's points."""
    p = np.asarray(points, float)
    other = p[::-1] * (-1, 1)
    return np.concatenate([p, other[np.abs(other[:, 0]) > 1e-9]])


def encloses(outline: Curve, points: Points) -> bool:
    """Whether all points lie inside a closed outline: a ray from each crosses it an odd number of times."""
    x, y = np.asarray(points, float).T[:, :, None]
    (ax, ay), (bx, by) = outline.T, np.roll(outline, -1, 0).T
    with np.errstate(divide="ignore", invalid="ignore"):
        crossed = ((ay > y) != (by > y)) & (x < ax + (y - ay) / (by - ay) * (bx - ax))
    return bool((crossed.sum(1) % 2 == 1).all())
