"""Named colours, as sRGB in [0, 1]. All are chosen by eye; a caption uses the names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mldm_plugin.prepare.synthetic.canvas import Rgb

Pixels = Callable[[np.ndarray, np.ndarray], np.ndarray]


def rgb(code: str) -> Rgb:
    """`rrggbb` as three numbers."""
    red, green, blue = (int(code[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return red, green, blue


SKIN = {
    "pale": rgb("f8d9c4"),
    "fair": rgb("f2c6a5"),
    "tan": rgb("dfa67c"),
    "olive": rgb("cf9a6b"),
    "brown": rgb("a86f47"),
    "dark brown": rgb("8a5738"),
    "deep brown": rgb("6d4531"),
}
HAIR = {
    "black": rgb("2a2326"),
    "dark brown": rgb("46302a"),
    "brown": rgb("75492d"),
    "blonde": rgb("e0b462"),
    "red": rgb("b5502a"),
    "auburn": rgb("843a2b"),
    "grey": rgb("93939a"),
    "white": rgb("e3e1de"),
    "pink": rgb("e78aaa"),
    "blue": rgb("4c74c0"),
}
EYES = {
    "brown": rgb("5f3a1e"),
    "blue": rgb("3f78b5"),
    "green": rgb("4a8055"),
    "grey": rgb("6a7c8a"),
    "hazel": rgb("86652f"),
}
CLOTH = {
    "red": rgb("c9423f"),
    "orange": rgb("e5843c"),
    "yellow": rgb("ecc04a"),
    "green": rgb("4e9a5b"),
    "teal": rgb("2f8f8f"),
    "blue": rgb("3f74bf"),
    "navy": rgb("2d3f68"),
    "purple": rgb("7f5aa5"),
    "pink": rgb("e58fa6"),
    "white": rgb("f0eee9"),
    "grey": rgb("8f949b"),
    "black": rgb("35353b"),
    "brown": rgb("7f5a41"),
    "denim": rgb("50709c"),
}


def mix(a: Rgb, b: Rgb, share: float) -> Rgb:
    """a where `share` is 0, b where it is 1."""
    red, green, blue = (x + (y - x) * share for x, y in zip(a, b, strict=True))
    return red, green, blue


def scaled(a: Rgb, factor: float) -> Rgb:
    red, green, blue = (min(1.0, x * factor) for x in a)
    return red, green, blue


def deeper(skin: Rgb) -> Rgb:
    """Skin in its own shadow: darker, and redder, as blood shines through."""
    return skin[0] * 0.74, skin[1] * 0.6, skin[2] * 0.56
