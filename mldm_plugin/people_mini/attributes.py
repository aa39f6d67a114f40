"""Captions that say a drawing's attributes, and the attributes that a caption says: one table read both ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from mldm_plugin.people_mini.drawn import VIEWS
from mldm_plugin.prepare.synthetic.caption import FEELING, GAZES, LEGS, article
from mldm_plugin.prepare.synthetic.look import BEARDS, BOTTOMS, GLASSES, HATS, KINDS, PATTERNS, STYLES, TOPS
from mldm_plugin.prepare.synthetic.palette import CLOTH, EYES, HAIR, SKIN

DRAWING = "drawing of "
HAIR_PHRASES = {
    "side part": "{} hair with a side part",
    "ponytail": "{} hair in a ponytail",
    "pigtails": "{} hair in pigtails",
    "bun": "{} hair in a bun",
    "bob": "{} bob",
    "afro": "{} afro",
    "buzz cut": "{} buzz cut",
}
PLACES = {
    "studio": "in a studio",
    "room": "in a room",
    "park": "in a park",
    "street": "on a street",
    "beach": "on a beach",
}
# The groups of words that a caption may leave out, in the order in which it says them.
LOOKS = ("expression", "skin", "hair", "glasses", "beard", "hat", "eyes")
GROUPS = (*LOOKS, "top", "bottom", "legs", "gaze", "view", "scene")
NOT_SAID = ("none", "unseen")


def hair_phrase(style: str, colour: str) -> str:
    """As in "long wavy red hair" or "red hair in a bun"."""
    if style == "bald":
        return "bald"
    return HAIR_PHRASES.get(style, f"{style} {{}} hair").format(colour)


def _top(colour: str, pattern: str, top: str) -> str:
    return f"{colour} {top}" if pattern == "plain" else f"{pattern} {colour} {top}"


def _said(a: dict[str, str]) -> dict[str, str]:
    """What is said of each group; groups of which nothing can be said are left out."""
    words = {
        "skin": f"{a['skin']} skin",
        "hair": hair_phrase(a["hair"], a["hair_colour"]),
        "glasses": a["glasses"],
        "beard": a["beard"],
        "hat": a["hat"],
        "eyes": "unseen" if a["eye_colour"] == "unseen" else f"{a['eye_colour']} eyes",
        "top": _top(a["top_colour"], a["pattern"], a["top"]),
        "bottom": "none" if a["bottom"] in NOT_SAID else f"{a['bottom_colour']} {a['bottom']}",
        "legs": LEGS.get(a["pose"], ("", "none"))[1],
        "gaze": GAZES.get(a["gaze"], "unseen"),
        "view": a["view"],
        "scene": PLACES[a["scene"]],
    }
    return {group: text for group, text in words.items() if text not in NOT_SAID}


def caption(attributes: dict[str, str], groups: Iterable[str] = GROUPS) -> str:
    """A drawing's caption that says these groups of words, as in "drawing of a smiling woman, red bob, cap"."""
    groups = set(groups)
    feeling = FEELING.get(attributes["expression"], ("",))[0] if "expression" in groups else ""
    said = [text for group, text in _said(attributes).items() if group in groups]
    return DRAWING + ", ".join([article(f"{feeling} {attributes['kind']}".strip()), *said])


def _table() -> dict[str, dict[str, str]]:
    """What each phrase of a caption says."""
    table: dict[str, dict[str, str]] = {f"{skin} skin": {"skin": skin} for skin in SKIN}
    styles = {style for choices in STYLES.values() for style in choices}
    for style in styles - {"bald"}:
        table |= {hair_phrase(style, c): {"hair": style, "hair_colour": c} for c in HAIR}
    table["bald"] = {"hair": "bald", "hair_colour": "none"}
    for name, choices in (("glasses", GLASSES), ("beard", BEARDS), ("hat", HATS)):
        table |= {word: {name: word} for word in choices if word != "none"}
    table |= {f"{colour} eyes": {"eye_colour": colour} for colour in EYES}
    for top in {top for choices in TOPS.values() for top in choices}:
        for pattern in PATTERNS:
            table |= {_top(c, pattern, top): {"top": top, "top_colour": c, "pattern": pattern} for c in CLOTH}
    for bottom in {bottom for choices in BOTTOMS.values() for bottom in choices}:
        table |= {f"{colour} {bottom}": {"bottom": bottom, "bottom_colour": colour} for colour in CLOTH}
    table |= {words[1]: {"pose": pose} for pose, words in LEGS.items()}
    table |= {words: {"gaze": gaze} for gaze, words in GAZES.items()}
    table |= {view: {"view": view} for view in ("bust", *VIEWS.values())}
    table |= {words: {"scene": scene} for scene, words in PLACES.items()}
    feelings = [("", {}), *((words[0] + " ", {"expression": name}) for name, words in FEELING.items())]
    for kind in KINDS:
        table |= {article(feeling + kind): {"kind": kind, **said} for feeling, said in feelings}
    return table


TABLE = _table()


def attributes_of(text: str) -> dict[str, str]:
    """The attributes that a caption of `caption` says; phrases that it does not know say nothing."""
    found: dict[str, str] = {}
    for phrase in text.removeprefix(DRAWING).split(", "):
        found |= TABLE.get(phrase, {})
    return found


def partial_captions(attributes: dict[str, str], chance: Callable[[], float], count: int) -> list[str]:
    """The full caption and `count` that leave out about a third of the groups."""
    return [caption(attributes), *(caption(attributes, [g for g in GROUPS if chance() < 0.67]) for _ in range(count))]


def mirrored(text: str) -> str:
    """The caption of the mirrored picture: left and right change places."""
    swap = {"left": "right", "right": "left"}
    return re.sub(r"\b(left|right)\b", lambda found: swap[found[0]], text)
