"""Captions: what a picture shows, said in several ways, from the annotation's attributes alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from mldm_plugin.prepare.synthetic.scene import PHRASES

Attributes = dict[str, Any]

FEELING = {  # adjective, participle
    "smile": ("smiling", "smiling"),
    "laugh": ("laughing", "laughing"),
    "neutral": ("calm", "with a calm face"),
    "surprise": ("surprised", "looking surprised"),
    "sad": ("sad", "looking sad"),
}
GAZES = {
    "camera": "looking at the camera",
    "picture left": "looking to the left",
    "picture right": "looking to the right",
    "up": "looking up",
    "down": "looking down",
}
GESTURES = {  # arm → what one does with it: present tense, participle
    "waving": ("waves", "waving"),
    "pointing aside": ("points to the side", "pointing to the side"),
    "pointing up": ("points upwards", "pointing upwards"),
    "peace sign": ("makes a peace sign", "making a peace sign"),
    "thumb up": ("gives a thumbs up", "giving a thumbs up"),
    "raised fist": ("raises a fist", "raising a fist"),
    "at the chin": ("holds a hand to the chin", "holding a hand to the chin"),
}
BOTH = {
    "raised": ("raises both arms", "raising both arms"),
    "on the hip": ("stands with hands on hips", "standing with hands on hips"),
    "crossed": ("has crossed arms", "with crossed arms"),
    "spread": ("spreads the arms", "spreading the arms"),
    "waving": ("waves with both hands", "waving with both hands"),
    "peace sign": ("makes peace signs", "making peace signs"),
}
LEGS = {
    "walking": ("walks", "walking"),
    "sitting": ("sits", "sitting"),
    "sitting cross-legged": ("sits cross-legged", "sitting cross-legged"),
    "jumping": ("jumps", "jumping"),
}
EVEN = ("striped", "checked")
PATTERNS = {"plain": "", "striped": "striped ", "dotted": "dotted ", "checked": "checked ", "flowered": "flowered "}


def article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def hair_words(a: Attributes) -> str:
    """As in "long red hair"; empty where a hat hides it or there is none."""
    style, colour = a["hair"], a["hair_colour"]
    if style in ("bald", "buzz cut") or (a["hat"] in ("beanie", "sun hat") and not style.startswith("long")):
        return ""
    if style == "afro":
        return article(f"{colour} afro")
    if style in ("ponytail", "bun", "bob"):
        return article(f"{colour} {style}")
    if style == "pigtails":
        return f"{colour} pigtails"
    words = {"long straight": "long", "long wavy": "long wavy", "spiky": "spiky", "curly": "curly"}.get(style, "short")
    return f"{words} {colour} hair"


def features(a: Attributes) -> list[str]:
    """What one would name about a face, the most striking first."""
    words = [hair_words(a)]
    if a["glasses"] not in ("none", "unseen"):
        words.append("sunglasses" if a["glasses"] == "sunglasses" else "glasses")
    if a["beard"] not in ("none", "unseen", "stubble"):
        words.append("a beard" if a["beard"] == "full beard" else article(a["beard"]))
    if a["hat"] != "none":
        words.append(article(a["hat"]))
    return [w for w in words if w]


def clothing(a: Attributes) -> str:
    """Both colours where a pattern shows as much of either: stripes and checks."""
    c = a["clothing"]
    colours = f"{c['colour']} and {c['second_colour']}" if c["pattern"] in EVEN else c["colour"]
    return article(f"{PATTERNS[c['pattern']]}{colours} {c['top']}".replace("t-shirt", "T-shirt"))


def action(a: Attributes, participle: bool) -> str:
    """What someone does with arms and legs, as far as the hands are seen."""
    i = int(participle)
    left, right = a["arms"]["left"], a["arms"]["right"]
    seen = [arm for arm, side in ((left, "left"), (right, "right")) if a["hands"][side] != "unseen"]
    legs = LEGS.get(a["pose"])
    held = "holding" in seen and a["holding"] != "nothing"
    done = ("holds", "holding")[i] + " " + a["holding"] if held else ""
    if left == right and left in BOTH and len(seen) == 2:
        done = BOTH[left][i]
        if left == "on the hip" and legs:
            done = ("has hands on hips", "with hands on hips")[i]
    else:
        done = done or next((GESTURES[arm][i] for arm in seen if arm in GESTURES), "")
    if legs:
        join = " and " if not done.startswith("with") else " "
        return legs[i] + (join + done if done else "")
    return done or ("stands" if not participle else "standing" if a["pose"].startswith("stand") else "posing")


def person_words(a: Attributes, rng: np.random.Generator, adjective: bool) -> str:
    """A noun phrase such as "a smiling woman with long red hair and glasses in a striped dress"."""
    feeling = FEELING[a["expression"]][0] + " " if adjective and a["expression"] in FEELING else ""
    bald = "bald " if a["hair"] == "bald" and a["hat"] == "none" else ""
    text = article(f"{feeling}{bald}{a['kind']}")
    known = features(a)
    if known and rng.random() < 0.85:
        text += " with " + " and ".join(known[: int(rng.integers(1, 3))])
    if rng.random() < 0.75 or not known:
        text += f" in {clothing(a)}"
    if a["view"] == "back":
        text += " seen from behind"
    return text


def _one(a: Attributes, place: str, shot: str, rng: np.random.Generator, form: int) -> str:
    feeling = FEELING[a["expression"]][1] if a["expression"] in FEELING else ""
    gaze = GAZES.get(a["gaze"], "")
    if form == 0:
        return f"{person_words(a, rng, False)} {action(a, False)} {place}" + (f", {feeling}" if feeling else "")
    if form == 1:
        return f"{place}, {person_words(a, rng, True)} is {_being(a)}"
    if form == 2:
        kind = {"close": "a close portrait of ", "half": "a half-body picture of "}.get(shot, "a picture of ")
        return kind + person_words(a, rng, True) + (f", {gaze}" if gaze else "") + f", {place}"
    if form == 3:
        return f"{person_words(a, rng, True)}, {action(a, True)}, {place}"
    who = f"{article(a['kind'])} wearing {clothing(a)}"
    return f"{who} {place}" + (f", {feeling}" if feeling else "") + (f" and {gaze}" if gaze and feeling else "")


def _being(a: Attributes) -> str:
    words = action(a, True)
    return "standing " + words if words.startswith("with") else words


def _several(people: list[Attributes], place: str, rng: np.random.Generator, form: int) -> str:
    first, *others = sorted(people, key=lambda a: a["place"] != "front")
    if form == 0:
        feeling = FEELING[first["expression"]][1] if first["expression"] in FEELING else ""
        text = f"{person_words(first, rng, False)} {action(first, False)} {place}" + (f", {feeling}" if feeling else "")
        for a in others:
            where = "behind" if a["place"] == "behind" else "beside"
            whom = "her" if first["kind"] in ("woman", "girl") else "him"
            text += f"; {person_words(a, rng, True)} is {where} {whom}"
        return text
    if form == 1:
        return f"{place}, " + _listed([person_words(a, rng, True) for a in people])
    if form == 2:
        return _listed([f"{person_words(a, rng, False)} {action(a, True)}" for a in people]) + f" {place}"
    count = {2: "two", 3: "three", 4: "four"}[len(people)]
    word = "children" if all(a["kind"] in ("girl", "boy") for a in people) else "people"
    text = f"{count} {word} {place}"
    return text if form == 3 else f"{text}: " + _listed([article(a["kind"]) + f" in {clothing(a)}" for a in people])


def _listed(words: list[str]) -> str:
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]


def captions(people: list[Attributes], scene: str, shot: str, rng: np.random.Generator) -> list[str]:
    """Two to five sentences, no two alike."""
    forms = rng.permutation(5)[: int(rng.integers(2, 6))].tolist()
    texts: dict[str, None] = {}
    for form in forms:
        place = str(rng.choice(PHRASES[scene]))
        one = len(people) == 1
        text = _one(people[0], place, shot, rng, form) if one else _several(people, place, rng, form)
        texts[text[0].upper() + text[1:] + "."] = None
    return list(texts)
