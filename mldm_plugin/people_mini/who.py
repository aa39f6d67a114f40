"""The people of openpeople that people-mini knows: a made-up name for each, and what one would say of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Who:
    """A person.

    Args:
        name: one word that means nothing else.
        kind: woman or man.
        looks: said in the words of the drawings' captions.
        plain: what they wear in the studio.
        selfie, outside: what they wear there, and where that is.
        glad: whether they smile in the selfie and outside.
    """

    name: str
    kind: str
    looks: tuple[str, ...]
    plain: str
    selfie: tuple[str, str]
    outside: str
    glad: tuple[bool, bool] = (True, False)


PEOPLE = {
    "P001": Who(
        "alvora",
        "woman",
        ("tan skin", "short curly black hair"),
        "white t-shirt",
        ("denim jacket", "in a room"),
        "denim jacket",
    ),
    "P002": Who(
        "brinda",
        "woman",
        ("pale skin", "curly black hair"),
        "white t-shirt",
        ("denim jacket", "in a room"),
        "white t-shirt",
    ),
    "P003": Who(
        "cerwen",
        "woman",
        ("fair skin", "long straight brown hair"),
        "white t-shirt",
        ("denim jacket", "in a room"),
        "white t-shirt",
        (True, True),
    ),
    "P004": Who(
        "dalune",
        "woman",
        ("olive skin", "long curly black hair"),
        "white t-shirt",
        ("grey hoodie", "in a park"),
        "grey t-shirt",
    ),
    "P005": Who(
        "emrik",
        "man",
        ("fair skin", "black hair in a bun", "full beard"),
        "white shirt",
        ("grey hoodie", "in a park"),
        "grey t-shirt",
    ),
    "P006": Who(
        "farisa",
        "woman",
        ("brown skin", "black hair in a bun"),
        "white t-shirt",
        ("grey t-shirt", "in a park"),
        "grey t-shirt",
    ),
    "P007": Who(
        "goldan",
        "man",
        ("tan skin", "black afro", "stubble"),
        "white t-shirt",
        ("denim jacket", "on a street"),
        "black t-shirt",
        (True, True),
    ),
}
# The panels of the sheet of expressions whose names the drawings' captions say otherwise.
FEELINGS = {"neutral": "calm", "happy": "smiling"}
TURNED = {"left": "in profile", "right": "in profile", "back": "seen from behind"}


def says(person: str, picture: str, panel: str) -> tuple[str, list[str]]:
    """The adjective for an expression, or an empty string, and what is seen besides the looks."""
    who = PEOPLE[person]
    if picture == "emotions_sheet":
        return FEELINGS.get(panel, panel), [who.plain]
    if picture == "character_sheet":
        turned = TURNED.get(panel.split()[-1])
        return "" if turned else "calm", [who.plain, *([turned] if turned else [])]
    if picture.startswith("studio"):
        return "calm", [who.plain]
    selfie = picture == "amateur_selfie"
    glad = who.glad[0 if selfie else 1]
    return "smiling" if glad else "calm", ["selfie", who.selfie[0]] if selfie else [who.outside]


def place_of(person: str, picture: str) -> str:
    """Where the picture was taken, in the words of the drawings' captions."""
    if picture == "amateur_selfie":
        return PEOPLE[person].selfie[1]
    return "in a park" if picture == "amateur_posture" else "in a studio"
