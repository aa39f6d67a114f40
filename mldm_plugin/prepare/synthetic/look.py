"""What a person looks like: every choice that is made before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mldm_plugin.prepare.synthetic.palette import CLOTH, EYES, HAIR, SKIN

KINDS = {"woman": 0.4, "man": 0.4, "girl": 0.1, "boy": 0.1}
EXPRESSIONS = {"smile": 0.3, "laugh": 0.2, "neutral": 0.18, "surprise": 0.16, "sad": 0.16}
GAZES = {"camera": 0.44, "picture left": 0.18, "picture right": 0.18, "up": 0.1, "down": 0.1}
STYLES = {
    "woman": {"long straight": 5, "long wavy": 5, "bob": 4, "ponytail": 4, "bun": 3, "curly": 3, "short": 2, "afro": 2},
    "man": {
        "short": 6,
        "side part": 4,
        "spiky": 3,
        "curly": 3,
        "bald": 2,
        "buzz cut": 3,
        "afro": 1,
        "long straight": 1,
    },
    "girl": {"pigtails": 4, "long straight": 3, "bob": 3, "ponytail": 3, "long wavy": 2, "afro": 1},
    "boy": {"short": 4, "spiky": 3, "curly": 3, "side part": 2, "buzz cut": 1, "afro": 1},
}
HATS = {"none": 20, "cap": 2, "beanie": 2, "sun hat": 2}
GLASSES = {"none": 15, "round glasses": 3, "square glasses": 3, "sunglasses": 1}
BEARDS = {"none": 8, "full beard": 4, "stubble": 3, "moustache": 2, "goatee": 2}
TOPS = {
    "woman": {"t-shirt": 4, "shirt": 3, "sweater": 3, "dress": 5, "tank top": 2, "jacket": 2},
    "man": {"t-shirt": 4, "shirt": 4, "sweater": 3, "suit": 3, "jacket": 3, "hoodie": 3},
    "girl": {"t-shirt": 3, "dress": 4, "sweater": 3, "hoodie": 1},
    "boy": {"t-shirt": 5, "sweater": 3, "hoodie": 3, "shirt": 1},
}
BOTTOMS = {
    "woman": {"trousers": 3, "jeans": 3, "skirt": 4, "shorts": 1},
    "man": {"trousers": 4, "jeans": 4, "shorts": 2},
    "girl": {"jeans": 2, "skirt": 4, "shorts": 2},
    "boy": {"jeans": 4, "shorts": 4, "trousers": 2},
}
PATTERNS = {"plain": 9, "striped": 4, "dotted": 2, "checked": 3, "flowered": 1}
PATTERNED = {"t-shirt", "shirt", "dress", "sweater", "tank top"}


@dataclass(frozen=True)
class Look:
    """A person's appearance. Names are those of the annotation; numbers are factors about 1.

    Args:
        tall: body height in heads.
        broad: of shoulders; wide: of waist and limbs; hips: of hips.
        jaw, chin: of the face's lower half.
        seed: of textures, strands and freckles.
    """

    kind: str
    skin: str
    hair: str
    hair_colour: str
    eye_colour: str
    expression: str
    gaze: str
    glasses: str
    hat: str
    beard: str
    top: str
    top_colour: str
    second_colour: str
    pattern: str
    bottom: str
    bottom_colour: str
    shoe_colour: str
    tall: float
    broad: float
    wide: float
    hips: float
    jaw: float
    chin: float
    eye_size: float
    nose_size: float
    lips: float
    freckles: bool
    seed: int

    @property
    def feminine(self) -> bool:
        return self.kind in ("woman", "girl")

    @property
    def child(self) -> bool:
        return self.kind in ("girl", "boy")


def pick(rng: np.random.Generator, weights: dict[str, float] | dict[str, int]) -> str:
    """One of the names, as often as its weight says."""
    values = np.array(list(weights.values()), float)
    return list(weights)[int(rng.choice(len(values), p=values / values.sum()))]


def uniform(rng: np.random.Generator, *names: str) -> str:
    return names[int(rng.integers(len(names)))]


def draw_look(rng: np.random.Generator) -> Look:
    """A person at random."""
    kind = pick(rng, KINDS)
    woman, child = kind in ("woman", "girl"), kind in ("girl", "boy")
    skin = uniform(rng, *SKIN)
    dark = skin in ("brown", "dark brown", "deep brown")
    hair = pick(rng, STYLES[kind])
    bulky = hair in ("afro", "pigtails", "bun", "spiky", "curly")
    return Look(
        kind=kind,
        skin=skin,
        hair=hair,
        hair_colour=_hair_colour(rng, dark, child),
        eye_colour="brown" if dark else uniform(rng, *EYES),
        expression=pick(rng, EXPRESSIONS),
        gaze=pick(rng, GAZES),
        glasses="none" if child and rng.random() < 0.6 else pick(rng, GLASSES),
        hat="none" if bulky else pick(rng, HATS),
        beard=pick(rng, BEARDS) if kind == "man" else "none",
        **_clothes(rng, kind),
        shoe_colour=uniform(rng, "black", "white", "brown", "red", "navy"),
        tall=rng.uniform(4.7, 5.3) if child else rng.uniform(6.0, 6.6),
        broad=rng.uniform(0.82, 0.94) if woman or child else rng.uniform(0.98, 1.14),
        wide=rng.uniform(0.86, 1.0) if rng.random() < 0.65 else rng.uniform(1.0, 1.3),
        hips=rng.uniform(1.02, 1.16) if kind == "woman" else rng.uniform(0.9, 1.0),
        jaw=rng.uniform(0.9, 1.0) if woman or child else rng.uniform(0.98, 1.1),
        chin=rng.uniform(0.78, 0.98) if woman or child else rng.uniform(0.95, 1.25),
        eye_size=rng.uniform(1.0, 1.15) * (1.1 if child else 1.0) * (1.05 if woman else 1.0),
        nose_size=rng.uniform(0.85, 1.2) * (0.8 if child else 1.0),
        lips=rng.uniform(0.85, 1.25) * (1.05 if woman else 0.85),
        freckles=bool(rng.random() < 0.15 and not dark),
        seed=int(rng.integers(2**31)),
    )


def _hair_colour(rng: np.random.Generator, dark: bool, child: bool) -> str:
    if rng.random() < 0.12 and not child:
        return uniform(rng, "grey", "white") if rng.random() < 0.7 else uniform(rng, "pink", "blue")
    if dark:
        return uniform(rng, "black", "black", "dark brown", "brown")
    return uniform(rng, *(c for c in HAIR if c not in ("grey", "white", "pink", "blue")))


def _clothes(rng: np.random.Generator, kind: str) -> dict[str, Any]:
    top, colour = pick(rng, TOPS[kind]), uniform(rng, *(c for c in CLOTH if c != "denim"))
    others = [c for c in CLOTH if c not in (colour, "denim")]
    bottom = pick(rng, BOTTOMS[kind])
    return {
        "top": top,
        "top_colour": colour,
        "second_colour": uniform(rng, *others),
        "pattern": pick(rng, PATTERNS) if top in PATTERNED else "plain",
        "bottom": "none" if top == "dress" else "trousers" if top == "suit" else bottom,
        "bottom_colour": colour if top == "suit" else "denim" if bottom == "jeans" else uniform(rng, *others),
    }
