"""Hands with five fingers.

Local unit: from the wrist to the tip of the stretched middle finger. The origin is the wrist, the fingers point to
y = -1, the thumb lies at x < 0 (the frame mirrors it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mldm_plugin.prepare.synthetic.canvas import Layer, Rgb
from mldm_plugin.prepare.synthetic.curve import Curve, Frame, closed, opened, tube
from mldm_plugin.prepare.synthetic.palette import deeper, mix, scaled
from mldm_plugin.prepare.synthetic.part import Part

# Index, middle, ring and little finger: where the knuckle is, and how long the finger. Measured on a drawn hand.
KNUCKLES = ((-0.185, -0.49), (-0.062, -0.52), (0.062, -0.505), (0.178, -0.46))
LENGTHS = (0.42, 0.48, 0.44, 0.35)
THICK = (0.064, 0.068, 0.064, 0.055)
CURLED = ((1.0, -0.02), (0.95, 0.12), (0.9, 0.24))  # joints: times the knuckle's x, and below its y
ACROSS = ((-0.2, -0.14), (-0.17, -0.3), (-0.02, -0.31), (0.06, -0.29))  # joints of a thumb over curled fingers
SHORTEST = 7.0  # pixels; below, single fingers are not drawn since nobody could tell them apart


@dataclass(frozen=True)
class Gesture:
    """What a hand does.

    Args:
        fingers: for index to little finger 1 straight, 0 curled into the palm.
        spread: angle between neighbouring fingers, in degrees.
        thumb: its angle from the fingers' direction, in degrees; None lies across the curled fingers.
    """

    fingers: tuple[float, float, float, float]
    spread: float
    thumb: float | None


GESTURES = {
    "open": Gesture((1, 1, 1, 1), 13, 52),
    "fist": Gesture((0, 0, 0, 0), 0, None),
    "pointing": Gesture((1, 0, 0, 0), 0, None),
    "peace sign": Gesture((1, 1, 0, 0), 24, None),
    "thumb up": Gesture((0, 0, 0, 0), 0, 88),
    "relaxed": Gesture((0.84, 0.86, 0.82, 0.78), 5, 24),
    "holding": Gesture((0, 0, 0, 0), 0, None),
}


def paint_hand(layer: Layer, frame: Frame, gesture: str, skin: Rgb, part: Part) -> None:
    """Paint a hand over what is there."""
    spec, unit = GESTURES[gesture], frame.scale
    back = {"part": part, "form": 0.7, "edge": 0.75}
    palm_top = -0.5 if max(spec.fingers) > 0.5 else -0.46
    palm = [(-0.13, 0.06), (-0.2, -0.12), (-0.255, -0.36), (-0.2, palm_top), (0, palm_top - 0.04)]
    palm += [(0.2, palm_top + 0.04), (0.235, -0.3), (0.17, -0.08), (0.13, 0.06)]
    if spec.thumb is not None:
        _thumb(layer, frame, spec.thumb, skin, part)
    for i in range(4):
        if spec.fingers[i] > 0.5:
            _straight(layer, frame, i, spec, skin, part)
    layer.paint(frame(closed(palm, 5)), skin, part=part, form=0.7, edge=0.35, depth=unit * 0.13)
    if max(spec.fingers) > 0.5 and unit > SHORTEST:
        _palm_lines(layer, frame, skin)
    for i in range(4):
        if spec.fingers[i] <= 0.5:
            finger = frame(tube(_curled(i), [THICK[i] * 1.12] * 2))
            layer.paint(finger, skin, drop=0.35, **back)  # type: ignore[arg-type]
    if spec.thumb is None:
        across = frame(tube(opened(ACROSS, 5), [0.085, 0.075, 0.066]))
        layer.paint(across, skin, drop=0.4, **back)  # type: ignore[arg-type]


def hand_points(frame: Frame, gesture: str) -> Curve:
    """Where a painted hand's 21 points are, (21, 2): the wrist, then four of each finger from the palm outwards, the
    thumb first, as MediaPipe's hand network and COCO-WholeBody have them."""
    spec = GESTURES[gesture]
    points: list[Any] = [(0.0, 0.0)]
    if spec.thumb is None:
        points += ACROSS
    else:
        base, knee, tip = _thumb_line(spec.thumb)
        points += [base, knee, (knee + tip) / 2, tip]
    for i in range(4):
        if spec.fingers[i] > 0.5:
            knee, tip = (np.array(p) for p in _joints(i, spec))
            points += [KNUCKLES[i], knee, (knee + tip) / 2, tip]
        else:
            points += [KNUCKLES[i], *_curled(i)]
    return frame(points)


def _joints(i: int, spec: Gesture) -> tuple[tuple[float, float], tuple[float, float]]:
    """The middle and the tip of a straight finger."""
    x, y = KNUCKLES[i]
    middle = 1.35 if min(spec.fingers) > 0.5 else 0.5
    angle = math.radians((i - middle) * spec.spread)
    length = LENGTHS[i] * spec.fingers[i]
    tip = (x + math.sin(angle) * length, y - math.cos(angle) * length)
    bow = (1 - spec.fingers[i]) * 0.35
    return ((x + tip[0]) / 2 + bow * 0.12, (y + tip[1]) / 2), tip


def _curled(i: int) -> list[tuple[float, float]]:
    """Three joints of a finger that is curled into the palm, its knuckle behind the first."""
    x, y = KNUCKLES[i]
    return [(x * across, y + down) for across, down in CURLED]


def _straight(layer: Layer, frame: Frame, i: int, spec: Gesture, skin: Rgb, part: Part) -> None:
    (x, y), (knee, tip) = KNUCKLES[i], _joints(i, spec)
    line = opened([(x * 0.96, y + 0.1), (x, y), knee, tip], 5)
    layer.paint(
        frame(tube(line, np.array([1.1, 1.08, 1.0, 0.86]) * THICK[i])), skin, part=part, form=0.7, edge=0.75, drop=0.3
    )
    if frame.scale > 4 * SHORTEST:
        nail_at = np.array(tip) + (np.array(knee) - tip) * 0.05
        gleam = frame(tube([nail_at, np.array(tip) + (np.array(knee) - tip) * -0.02], [THICK[i] * 0.5] * 2))
        layer.paint(gleam, mix(skin, (1, 0.86, 0.84), 0.55), soft=frame.scale * 0.01, opacity=0.6, inside=True)


def _thumb_line(angle: float) -> list[np.ndarray]:
    """Base, middle joint and tip."""
    a = math.radians(angle)
    base = np.array((-0.13, -0.12))
    knee = base + np.array((-math.sin(a * 0.85), -math.cos(a * 0.85))) * 0.24
    return [base, knee, knee + np.array((-math.sin(a * 0.8), -math.cos(a * 0.8))) * 0.21]


def _thumb(layer: Layer, frame: Frame, angle: float, skin: Rgb, part: Part) -> None:
    line = opened(_thumb_line(angle), 6)
    layer.paint(frame(tube(line, [0.12, 0.082, 0.062])), skin, part=part, form=0.7, edge=0.6, drop=0.3)


def _palm_lines(layer: Layer, frame: Frame, skin: Rgb) -> None:
    ink = scaled(deeper(skin), 0.95)
    for points in (
        [(-0.2, -0.3), (-0.05, -0.28), (0.08, -0.16), (0.1, -0.05)],
        [(0.2, -0.34), (0.08, -0.37), (-0.08, -0.42)],
    ):
        outline = tube(frame(opened(points, 5)), np.array([0.3, 1, 0.3]) * max(0.014 * frame.scale, 0.5))
        layer.paint(outline, ink, opacity=0.55, inside=True)
