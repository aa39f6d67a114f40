"""Changes of a face's conditions: attributes turned over, and masks whose parts grow or come from another face."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mldm_plugin.conditions.encoder import ConditionEncoder
from mldm_plugin.errors import DataError, MldmError, nearest

# Of which a head has one at most: to turn one on turns the others off.
OF_HAIR = ("Bald", "Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")
# What is changed unasked: those that are drawn in portraits, too, and plain to see.
CHANGED = ("Smiling", "Eyeglasses", "Male", "Blond_Hair", "Bangs", "Wearing_Hat")
BESIDE_MASK = ("Black_Hair", "Gray_Hair", "Pale_Skin")  # the same where a mask is given, too: what masks do not tell
GROUPS = {  # parts that go together, and whether the face goes on below them
    "hair": (("hair",), False),
    "eyes": (("l_eye", "r_eye", "l_brow", "r_brow"), True),
    "mouth": (("mouth", "u_lip", "l_lip"), True),
    "glasses": (("eye_g",), True),
    "hat": (("hat",), False),
}
BEHIND_HAIR = ("neck", "neck_l", "cloth", "l_ear", "r_ear", "ear_r")  # what longer hair covers
GROWTH = 1 / 16  # of the picture's side; chosen: plain to see
LEAST = 1 / 1000  # of the pixels, that a part of another face must have to be taken
LOOKED_AT = 200  # faces, in which one with such a part is looked for


def turned(value: Tensor, names: Sequence[str], name: str) -> tuple[Tensor, str]:
    """Attributes (K,) with one of them turned over, and what was done in words.

    >>> turned(torch.tensor([1.0, 0.0, 1.0]), ["Black_Hair", "Blond_Hair", "Young"], "Blond_Hair")
    (tensor([0., 1., 1.]), '+ Blond Hair')

    Raises:
        MldmError: there is no such attribute.
    """
    if name not in names:
        raise MldmError(f"unknown attribute {name!r}: {nearest(name, names)}")
    changed, place = value.clone(), list(names).index(name)
    on = not bool(value[place])
    if on and name in OF_HAIR:
        changed[[list(names).index(other) for other in OF_HAIR if other in names]] = 0
    changed[place] = float(on)
    return changed, f"{'+' if on else '-'} {name.replace('_', ' ')}"


@dataclass(frozen=True)
class MaskEdits:
    """The edits of masks that can be made with what other faces have.

    Args:
        encoder: of the mask, for the names of its parts and what they are called in the mirror.
        donors: group of parts → a mask (1, S, S) that has it.
    """

    encoder: ConditionEncoder
    donors: Mapping[str, Tensor]

    def all(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Words → what makes of a mask (1, S, S) another, the mask itself first."""
        found: dict[str, Callable[[Tensor], Tensor]] = {
            "the mask": lambda labels: labels,
            "mirrored": lambda labels: self.encoder.mirrored(labels.flip(-1)),
        }
        if "hair" in self.parts:
            found["more hair"] = self.more_hair
        for group, donor in self.donors.items():
            found[f"another's {group}"] = functools.partial(self.taken, donor=donor, group=group)
        return found

    @property
    def parts(self) -> list[str]:
        """Names of the labels 1, 2, …"""
        return parts_of(self.encoder)

    def more_hair(self, labels: Tensor) -> Tensor:
        """The hair grows over what is behind it, and over no part of the face."""
        by = max(round(labels.shape[-1] * GROWTH), 1)
        hair = self._numbers(["hair"])
        grown = F.max_pool2d((labels == hair[0])[None].float(), 2 * by + 1, 1, by)[0] > 0
        free = torch.isin(labels, torch.cat([torch.zeros(1, dtype=hair.dtype), self._numbers(BEHIND_HAIR)]))
        return torch.where(grown & free, hair[0], labels)

    def taken(self, labels: Tensor, donor: Tensor, group: str) -> Tensor:
        """The mask with these parts as another has them; where its own were, is skin, or nothing."""
        names, on_face = GROUPS[group]
        own = self._numbers(names)
        below = self._numbers(["skin"])[0] if on_face and "skin" in self.parts else torch.tensor(0, dtype=labels.dtype)
        kept = torch.where(torch.isin(labels, own), below, labels)
        return torch.where(torch.isin(donor, own), donor, kept)

    def _numbers(self, names: Sequence[str]) -> Tensor:
        """The labels of the parts of these names, of those that there are."""
        return torch.tensor([self.parts.index(n) + 1 for n in names if n in self.parts], dtype=torch.uint8)


def edits_with(encoder: ConditionEncoder, masks: Sequence[Tensor], avoid: Tensor) -> MaskEdits:
    """The edits of a face's mask, with the parts of the other face that shows most of them; hair of one without a hat.

    Args:
        masks: (1, S, S) of other faces.
        avoid: the face's own, of which nothing is taken.
    """
    donors, parts = {}, parts_of(encoder)
    for group, (names, _) in GROUPS.items():
        own = torch.tensor([parts.index(n) + 1 for n in names if n in parts], dtype=torch.uint8)
        over = parts.index("hat") + 1 if group == "hair" and "hat" in parts else -1
        others = [not torch.equal(mask, avoid) and not bool((mask == over).any()) for mask in masks]
        areas = [int(torch.isin(mask, own).sum()) if fits else 0 for mask, fits in zip(masks, others, strict=True)]
        if max(areas, default=0) >= LEAST * avoid.numel():
            donors[group] = masks[areas.index(max(areas))]
    return MaskEdits(encoder, donors)


def parts_of(encoder: ConditionEncoder) -> list[str]:
    """What the labels 1, 2, … of a label map are called.

    Raises:
        DataError: the encoder does not say.
    """
    parts = getattr(encoder, "parts", None)
    if not encoder.is_label_map or parts is None:
        raise DataError(f"{type(encoder).__name__} names no parts, so no mask of it is edited.")
    return list(parts)
