"""Things that stand among the people: a potted plant, a bush, a table, seats, and a crowd far away."""

from __future__ import annotations

import math

import numpy as np

from mldm_plugin.prepare.synthetic.canvas import Layer
from mldm_plugin.prepare.synthetic.curve import Frame, box, closed, ellipse, opened, tube
from mldm_plugin.prepare.synthetic.palette import CLOTH, HAIR, SKIN, mix, rgb, scaled
from mldm_plugin.prepare.synthetic.scene import fade

THING, PERSON = 1, 2  # labels of a prop's layer: a crowd is people


def plant(layer: Layer, frame: Frame, rng: np.random.Generator) -> None:
    """A potted plant; local unit: the height of the pot, origin the middle of its foot."""
    for angle in rng.permutation(np.linspace(-1.25, 1.25, 13)):
        length = rng.uniform(1.5, 2.5) * (1 - 0.25 * abs(angle))
        tip = (math.sin(angle) * length, -1 - math.cos(angle * 0.9) * length)
        knee = (tip[0] * 0.35, -1 + (tip[1] + 1) * 0.7)
        line = frame(opened([(tip[0] * 0.05, -0.95), knee, tip], 8))
        green = mix(rgb("2f6b38"), rgb("7fb04a"), rng.random())
        leaf = tube(line, np.array([0.03, 0.16, 0.2, 0.13, 0.01]) * frame.scale)
        layer.paint(leaf, green, part=THING, form=0.8, edge=0.3, drop=0.35, depth=frame.scale * 0.1)
        layer.paint(tube(line, [0.015 * frame.scale] * 2), scaled(green, 0.75), opacity=0.7, inside=True)
    clay = rgb(str(rng.choice(["b8633f", "d9d2c4", "4d6d7d"])))
    pot = closed(
        [(-0.5, -0.98), (0.5, -0.98), (0.47, -0.7), (0.38, -0.05), (0, 0.02), (-0.38, -0.05), (-0.47, -0.7)], 5
    )
    layer.paint(frame(pot), clay, part=THING, form=0.9, edge=0.3, depth=frame.scale * 0.25)
    rim = closed([(-0.56, -1.08), (0, -1.04), (0.56, -1.08), (0.54, -0.86), (0, -0.81), (-0.54, -0.86)], 5)
    layer.paint(frame(rim), scaled(clay, 1.08), part=THING, form=0.8, edge=0.3, drop=0.4)


def bush(layer: Layer, frame: Frame, rng: np.random.Generator) -> None:
    """A round bush; local unit: half its width, origin the middle of its foot."""
    green = mix(rgb("376f36"), rgb("6d9a3c"), rng.random())
    for shade, spread in ((0.75, 1.0), (1.0, 0.85), (1.18, 0.65)):
        curves = []
        for _ in range(26):
            a, d = rng.uniform(0, math.pi), spread * math.sqrt(rng.random())
            x, y = frame.point(d * math.cos(a), -0.08 - 0.75 * d * math.sin(a))
            curves.append(ellipse(x, y, frame.scale * 0.17, frame.scale * 0.14, n=12))
        y0 = frame.y - frame.scale
        ink = fade(scaled(green, shade * 1.1), scaled(green, shade * 0.8), y0, frame.y, 0.3, 0.4)
        layer.paint(curves, ink, part=THING, form=0.8, edge=0.25, depth=frame.scale * 0.12, drop=0.3)


def table(layer: Layer, top: float, rng: np.random.Generator) -> None:
    """A table across the picture whose far edge is at y = `top`, with a cup and a plate of fruit."""
    width, height = layer.size
    wood = rgb(str(rng.choice(["9a6a43", "c79b6d", "6f4a35", "e6ddd0"])))
    edge = top + height * 0.1
    layer.paint(
        box(-9, top, width + 9, edge), fade(scaled(wood, 1.1), wood, top, edge, 0.12, 0.8), part=THING, edge=0.2
    )
    layer.paint(
        box(-9, edge, width + 9, height + 9),
        fade(scaled(wood, 0.8), scaled(wood, 0.62), edge, height, 0.1, 0.8),
        part=THING,
        form=0.3,
    )
    u = height * 0.05
    x, y = width * rng.uniform(0.1, 0.35), top + u * 0.9
    cup = closed([(x - u, y - 2.0 * u), (x + u, y - 2.0 * u), (x + 0.85 * u, y), (x - 0.85 * u, y)], 4)
    layer.darken(ellipse(x - layer.light.x * u, y, 1.5 * u, 0.3 * u), 0.7, soft=u * 0.2)
    layer.paint(cup, CLOTH[str(rng.choice(["red", "white", "teal", "navy"]))], part=THING, form=0.9, edge=0.3)
    x = width * rng.uniform(0.62, 0.9)
    layer.darken(ellipse(x - layer.light.x * u, y, 2.6 * u, 0.5 * u), 0.7, soft=u * 0.2)
    layer.paint(ellipse(x, y, 2.3 * u, 0.5 * u), (0.95, 0.94, 0.92), part=THING, form=0.6, edge=0.3)
    for dx, code in ((-0.9, "c94a3a"), (0.1, "e0a43a"), (1.0, "8fae45")):
        fruit = ellipse(x + dx * u, y - 0.7 * u, 0.75 * u, 0.72 * u)
        layer.paint(fruit, rgb(code), part=THING, form=1.0, edge=0.3, drop=0.3)


def stool(layer: Layer, frame: Frame, foot: float, outdoors: bool) -> None:
    """What a sitting person sits on, in the person's frame; `foot` is the y of the floor in heads."""
    unit = frame.scale
    wood = rgb("8d6545") if not outdoors else rgb("6f7d6a")
    wide = 2.2 if outdoors else 0.75
    for x in (-wide * 0.82, wide * 0.82):
        leg = tube(frame([(x, 0.3), (x * 1.05, foot - 0.1)]), [0.09 * unit] * 2)
        layer.paint(leg, scaled(wood, 0.8), part=THING, form=0.8, edge=0.3)
    if outdoors:
        for y in (-1.25, -0.75):
            layer.paint(frame(box(-wide, y, wide, y + 0.32)), wood, part=THING, form=0.5, edge=0.3, depth=0.05 * unit)
    seat = closed([(-wide, 0.15), (wide, 0.15), (wide * 1.04, 0.42), (-wide * 1.04, 0.42)], 5)
    layer.paint(frame(seat), wood, part=THING, form=0.6, edge=0.3, depth=0.08 * unit)


def crowd(layer: Layer, y: float, unit: float, rng: np.random.Generator) -> None:
    """Many people far away, whose feet are near `y`; `unit` is the height of a head in pixels."""
    width, _ = layer.size
    start = rng.uniform(0.02, 0.5)
    for x in np.sort(rng.uniform(start, start + 0.45, 16)):
        at = Frame(x * width, y + rng.uniform(-0.6, 0.6) * unit, unit * rng.uniform(0.85, 1.1))
        cloth = CLOTH[str(rng.choice(list(CLOTH)))]
        trousers = CLOTH[str(rng.choice(["denim", "black", "grey", "brown"]))]
        for side in (-0.22, 0.22):
            layer.paint(
                tube(at([(side, -2.6), (side * 1.3, 0)]), [0.25 * at.scale, 0.16 * at.scale]), trousers, part=PERSON
            )
        trunk = closed([(-0.6, -4.6), (0.6, -4.6), (0.68, -3.4), (0.45, -2.3), (-0.45, -2.3), (-0.68, -3.4)], 4)
        layer.paint(at(trunk), cloth, part=PERSON, form=0.7)
        layer.paint(at(ellipse(0, -5.25, 0.42, 0.52)), SKIN[str(rng.choice(list(SKIN)))], part=PERSON, form=0.6)
        layer.paint(at(ellipse(0, -5.5, 0.46, 0.36)), HAIR[str(rng.choice(["black", "brown", "blonde"]))], part=PERSON)
