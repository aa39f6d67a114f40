"""A phrase made of CelebA's attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

HAIR_COLOURS = {"Black_Hair": "black", "Blond_Hair": "blond", "Brown_Hair": "brown", "Gray_Hair": "gray"}
HAIR_FORMS = {"Straight_Hair": "straight", "Wavy_Hair": "wavy"}
TRAITS = {
    "Bangs": "bangs",
    "Receding_Hairline": "a receding hairline",
    "Arched_Eyebrows": "arched eyebrows",
    "Bushy_Eyebrows": "bushy eyebrows",
    "High_Cheekbones": "high cheekbones",
    "Rosy_Cheeks": "rosy cheeks",
    "Pale_Skin": "pale skin",
}
FACIAL_HAIR = {
    "5_o_Clock_Shadow": "stubble",
    "Goatee": "a goatee",
    "Mustache": "a mustache",
    "Sideburns": "sideburns",
}
WORN = {
    "Eyeglasses": "glasses",
    "Wearing_Hat": "a hat",
    "Heavy_Makeup": "heavy makeup",
    "Wearing_Lipstick": "lipstick",
    "Wearing_Earrings": "earrings",
    "Wearing_Necklace": "a necklace",
    "Wearing_Necktie": "a necktie",
}


def caption(attributes: Mapping[str, bool]) -> str:
    """What a picture shows, in one phrase; the same for the same attributes.

    Left out, and still in the row's `attributes`: matters of taste and build (Attractive, Chubby, Double_Chin,
    Big_Lips, Big_Nose, Pointy_Nose, Narrow_Eyes, Oval_Face, Bags_Under_Eyes) and Blurry, which is said of the picture.
    Facial hair is told of men alone.

    Args:
        attributes: CelebA's names; one that is missing counts as not so.

    >>> caption({"Young": True, "Black_Hair": True, "Wavy_Hair": True, "Smiling": True, "Wearing_Earrings": True})
    'a young woman with black wavy hair, smiling, wearing earrings'
    """
    parts = [_who(attributes)]
    if traits := _hair(attributes) + _told(TRAITS, attributes) + _facial_hair(attributes):
        parts[0] += f" with {_listed(traits)}"
    if attributes.get("Smiling"):
        parts.append("smiling")
    elif attributes.get("Mouth_Slightly_Open"):
        parts.append("lips parted")
    if worn := _told(WORN, attributes):
        parts.append(f"wearing {_listed(worn)}")
    return ", ".join(parts)


def _who(attributes: Mapping[str, bool]) -> str:
    age = "a young" if attributes.get("Young") else "an older"
    bald = " bald" if attributes.get("Bald") else ""
    return f"{age}{bald} {'man' if attributes.get('Male') else 'woman'}"


def _hair(attributes: Mapping[str, bool]) -> list[str]:
    words = [_listed(words) for words in (_told(HAIR_COLOURS, attributes), _told(HAIR_FORMS, attributes)) if words]
    return [" ".join([*words, "hair"])] if words else []


def _facial_hair(attributes: Mapping[str, bool]) -> list[str]:
    if not attributes.get("Male"):
        return []
    bearded = attributes.get("No_Beard") is False
    return _told(FACIAL_HAIR, attributes) or (["a beard"] if bearded else [])


def _told(words: Mapping[str, str], attributes: Mapping[str, bool]) -> list[str]:
    return [word for name, word in words.items() if attributes.get(name)]


def _listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
