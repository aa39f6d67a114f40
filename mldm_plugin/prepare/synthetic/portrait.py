"""Drawn portraits in the form of CelebAMask-HQ: one face a picture, masks of its parts, forty attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mldm_plugin.conditions.celeba import ATTRIBUTES, PARTS
from mldm_plugin.prepare.synthetic.curve import Frame
from mldm_plugin.prepare.synthetic.hair import has_fringe
from mldm_plugin.prepare.synthetic.look import Look, draw_look
from mldm_plugin.prepare.synthetic.part import Part
from mldm_plugin.prepare.synthetic.person import Person
from mldm_plugin.prepare.synthetic.picture import FINER, Picture, Plan, paint
from mldm_plugin.prepare.synthetic.pose import HEAD, draw_pose
from mldm_plugin.prepare.synthetic.scene import draw_scene

HEAD_SHARE = (0.6, 0.66)  # of the picture's height, from crown to chin: about CelebA-HQ's crop
# What the data set calls the parts that a drawing has. Its earrings and necklaces are never drawn; left and right are
# the person's own.
NAMES: Mapping[Part, str] = {
    Part.FACE: "skin",
    Part.NOSE: "nose",
    Part.GLASSES: "eye_g",
    Part.SPECTACLES: "eye_g",
    Part.LEFT_EYE: "l_eye",
    Part.RIGHT_EYE: "r_eye",
    Part.LEFT_BROW: "l_brow",
    Part.RIGHT_BROW: "r_brow",
    Part.LEFT_EAR: "l_ear",
    Part.RIGHT_EAR: "r_ear",
    Part.MOUTH: "mouth",
    Part.UPPER_LIP: "u_lip",
    Part.LOWER_LIP: "l_lip",
    Part.HAIR: "hair",
    Part.HAT: "hat",
    Part.NECK: "neck",
    Part.TORSO: "cloth",
    Part.LEFT_ARM: "cloth",
    Part.RIGHT_ARM: "cloth",
}
HAIR_COLOURS = {
    "black": "Black_Hair",
    "dark brown": "Brown_Hair",
    "brown": "Brown_Hair",
    "blonde": "Blond_Hair",
    "grey": "Gray_Hair",
    "white": "Gray_Hair",
}
HAIR_FORMS = {
    "long straight": "Straight_Hair",
    "bob": "Straight_Hair",
    "long wavy": "Wavy_Hair",
    "curly": "Wavy_Hair",
}
BEARDS = {
    "none": "No_Beard",
    "stubble": "5_o_Clock_Shadow",
    "goatee": "Goatee",
    "moustache": "Mustache",
    "full beard": "Sideburns",
}
MOODS = {"smile": {"Smiling"}, "laugh": {"Smiling", "Mouth_Slightly_Open"}, "surprise": {"Mouth_Slightly_Open"}}


@dataclass(frozen=True)
class Portrait:
    """What was drawn.

    Attributes:
        pixels: uint8 (H, W, 3), square.
        parts: uint8 (H, W), k where the k-th of CelebAMask-HQ's parts is seen, from 1; 0 elsewhere.
        attributes: CelebA's forty; those that no drawing shows are false.
    """

    pixels: np.ndarray
    parts: np.ndarray
    attributes: dict[str, bool]

    def masks(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name and mask, bool (H, W), of each part that is seen."""
        for number in np.unique(self.parts[self.parts > 0]):
            yield PARTS[number - 1], self.parts == number


def draw_portrait(rng: np.random.Generator, size: int) -> Portrait:
    """A face at random, head and shoulders, in a picture of size × size pixels."""
    look = draw_look(rng)
    while look.child:  # CelebA's people are grown up
        look = draw_look(rng)
    pose = draw_pose(rng, look, "portrait")
    scene = draw_scene(rng, "close")
    side = size * FINER
    unit = side * rng.uniform(*HEAD_SHARE) / HEAD
    x, y = pose.joints["head"]
    frame = Frame(side * rng.uniform(0.48, 0.52) - x * unit, side * rng.uniform(0.49, 0.53) - y * unit, unit)
    picture = paint(Plan((size, size), "close", scene, [Person(look, pose, frame)], []), rng)
    return Portrait(picture.pixels, _parts(picture), attributes_of(look))


def attributes_of(look: Look) -> dict[str, bool]:
    """CelebA's forty, in its order. What is a matter of degree or of taste in CelebA is not drawn, and false.

    >>> look = draw_look(np.random.default_rng(0))
    >>> [name for name, so in attributes_of(look).items() if so]
    ['Male', 'Mustache', 'Wearing_Hat', 'Young']
    """
    so = {BEARDS[look.beard], *MOODS.get(look.expression, ())}
    bald, hatted = look.hair == "bald", look.hat != "none"
    if not bald:
        so |= {HAIR_COLOURS.get(look.hair_colour, ""), HAIR_FORMS.get(look.hair, "")}
    so |= {
        name
        for name, holds in {
            "Bald": bald and not hatted,
            "Bangs": has_fringe(look) and not hatted,
            "Eyeglasses": look.glasses != "none",
            "Male": not look.feminine,
            "Pale_Skin": look.skin == "pale",
            "Wearing_Hat": hatted,
            "Young": look.hair_colour not in ("grey", "white"),
        }.items()
        if holds
    }
    return {name: name in so for name in ATTRIBUTES}


def _parts(picture: Picture) -> np.ndarray:
    """The picture's label map of the data set's parts, from the finer one of the painter's."""
    numbers = np.zeros(256, np.uint8)
    for part, name in NAMES.items():
        numbers[part] = PARTS.index(name) + 1
    return numbers[picture.parts[::FINER, ::FINER]]
