"""Where the picture is taken: a place, its light, and how far away it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mldm_plugin.prepare.synthetic.canvas import Light, Rgb, planes
from mldm_plugin.prepare.synthetic.look import pick
from mldm_plugin.prepare.synthetic.palette import Pixels
from mldm_plugin.prepare.synthetic.texture import noise

SCENES = {"studio": 0.22, "room": 0.22, "park": 0.2, "street": 0.18, "beach": 0.18}
PHRASES = {
    "studio": ("in front of a plain backdrop", "in a studio"),
    "room": ("in a living room", "indoors", "in a room"),
    "park": ("in a park", "on the grass in a park", "among trees"),
    "street": ("on a street", "in front of some houses", "in the city"),
    "beach": ("on a beach", "by the sea", "at the seaside"),
}
DAY = Light(0, 0, (1.0, 0.97, 0.9), (0.62, 0.58, 0.7))
EVENING = Light(0, 0, (1.0, 0.86, 0.66), (0.6, 0.48, 0.56))
LAMP = Light(0, 0, (1.0, 0.95, 0.86), (0.62, 0.54, 0.56))


@dataclass(frozen=True)
class Scene:
    """A place.

    Args:
        name: of SCENES.
        light: its lamp.
        ground: where the floor begins, as a share of the picture's height from the top.
        zoom: how much nearer the backdrop is than in a picture of whole people.
        seed: of its details.
    """

    name: str
    light: Light
    ground: float
    zoom: float
    seed: int

    @property
    def outdoors(self) -> bool:
        return self.name in ("park", "street", "beach")


def draw_scene(rng: np.random.Generator, shot: str) -> Scene:
    """A place at random for a shot ("close", "half", "knee", "full")."""
    name = pick(rng, SCENES)
    zoom = {"close": 2.4, "half": 1.6, "knee": 1.25, "full": 1.0}[shot]
    evening = rng.random() < 0.3
    lamp = (EVENING if evening else DAY) if name in ("park", "street", "beach") else LAMP
    angle = rng.uniform(0.35, 1.1) * (1 if rng.random() < 0.5 else -1)
    light = Light(float(np.sin(angle)), -float(np.cos(angle)), lamp.key, lamp.shade)
    ground = {"close": 0.98, "half": 0.86, "knee": 0.74, "full": 0.62}[shot] if name in ("room", "studio") else 0.56
    return Scene(name, light, ground, zoom, int(rng.integers(2**31)))


def fade(top: Rgb, low: Rgb, y0: float, y1: float, grain: float = 0.0, size: float = 1.0) -> Pixels:
    """Colours from `top` at y0 to `low` at y1, with noise whose grains are about 16 · size pixels wide."""
    a, b = planes(top), planes(low)

    def ink(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        share = np.clip((y - y0) / max(y1 - y0, 1), 0, 1).astype(np.float32)
        colour = a + share * (b - a)
        if not grain:
            return colour
        return colour * (1 + np.float32(grain) * noise(x / size + 0 * y, y / size + 0 * x))

    return ink
