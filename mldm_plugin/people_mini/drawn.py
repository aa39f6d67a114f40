"""Drawn people as people-mini sees them: one person in a square of 128 pixels, as bust, half or whole body."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mldm_plugin.people_mini.record import SIDE, Record, Sample
from mldm_plugin.people_mini.split import SEED
from mldm_plugin.prepare.synthetic.dataset import Drawn, draw
from mldm_plugin.prepare.synthetic.picture import Plan, draw_plan

DRAWN_SIZE = 192  # `mldm data synthetic --size`: a bust cut out of it still has its 128 pixels
# Which pictures become busts; the others are shown as wide as a square allows. Chosen: faces should be large
# enough for glasses, beard and expression to be learned, and bodies not forgotten.
BUSTS = {"close": 0.55, "half": 0.45, "knee": 0.0, "full": 0.0}
BUST = 2.2  # side of a bust, in heights of the face's box: from above the hat to the collar
VIEWS = {"close": "close portrait", "half": "half body", "knee": "full body", "full": "full body"}


def is_wanted(plan: Plan) -> bool:
    """Whether a picture shows one person who fits into a square."""
    width, height = plan.size
    return len(plan.people) == 1 and (plan.shot in ("close", "half") or height <= 1.1 * width)


def plan_of(index: int) -> Plan:
    """The plan of drawing `index` of `mldm data synthetic --seed SEED --size DRAWN_SIZE`."""
    return draw_plan(np.random.default_rng(np.random.SeedSequence([SEED, index])), DRAWN_SIZE)


@dataclass(frozen=True)
class Square:
    """A square that is cut out of a drawing of one person.

    Args:
        drawn: the drawing.
        person: its annotation of the person.
        box: x0, y0, x1, y1 of the square in the drawing.
        attributes: the person's, as one table of words.
    """

    drawn: Drawn
    person: dict[str, Any]
    box: tuple[float, float, float, float]
    attributes: dict[str, str]

    def picture(self) -> Image.Image:
        """128 × 128, RGB."""
        whole = Image.open(io.BytesIO(self.drawn.jpeg)).convert("RGB")
        return whole.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=self.box)


def draw_square(index: int) -> Square | None:
    """The square of drawing number `index`; None where it is not wanted. It depends on nothing but the index."""
    plan = plan_of(index)
    if not is_wanted(plan):
        return None
    drawn = draw(SEED, index, DRAWN_SIZE)
    people = [a for a in drawn.annotations if "attributes" in a]
    if len(people) != 1:  # the plan was drawn anew, because nobody could be seen in it
        return None
    rng = np.random.default_rng(np.random.SeedSequence([SEED, index, 1]))
    shot = {"portrait": "close", "half body": "half"}.get(people[0]["attributes"]["pose"], "full")
    bust = bool(people[0]["face_valid"]) and rng.random() < BUSTS[shot]
    box = _bust(people[0], drawn, rng) if bust else _wide(people[0], drawn, rng)
    attributes = flat(people[0]["attributes"], plan.scene.name, "bust" if bust else VIEWS[shot])
    return Square(drawn, people[0], box, attributes)


def draw_sample(index: int) -> Sample | None:
    """Drawing number `index`, cut to a square; None where it is not wanted."""
    square = draw_square(index)
    if square is None:
        return None
    record = Record(f"drawn/{index:07d}", index, attributes=square.attributes, texts=square.drawn.captions)
    return Sample(record, square.picture())


def _bust(person: dict[str, Any], drawn: Drawn, rng: np.random.Generator) -> tuple[float, float, float, float]:
    x, y, width, height = person["face_box"]
    side = BUST * height * rng.uniform(0.94, 1.08)
    centre = x + width / 2 + height * rng.uniform(-0.06, 0.06), y + height * (0.6 + rng.uniform(-0.05, 0.05))
    return _square(side, *centre, drawn)


def _wide(person: dict[str, Any], drawn: Drawn, rng: np.random.Generator) -> tuple[float, float, float, float]:
    x, y, width, _ = person["bbox"]
    side = min(drawn.image["width"], drawn.image["height"])
    top = y - 0.06 * side  # a little room above the head
    return _square(side, x + width / 2 + side * rng.uniform(-0.05, 0.05), top + side / 2, drawn)


def _square(side: float, x: float, y: float, drawn: Drawn) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of a square about (x, y), moved and made smaller so that it lies in the picture."""
    width, height = drawn.image["width"], drawn.image["height"]
    side = min(side, width, height)
    x0, y0 = min(max(x - side / 2, 0), width - side), min(max(y - side / 2, 0), height - side)
    return x0, y0, x0 + side, y0 + side


def flat(attributes: dict[str, Any], scene: str, view: str) -> dict[str, str]:
    """The drawing's attributes as one table of words."""
    clothing = attributes["clothing"]
    return {
        **{name: attributes[name] for name in ("kind", "skin", "hair", "hair_colour", "expression", "gaze")},
        **{name: attributes[name] for name in ("eye_colour", "glasses", "beard", "hat", "pose")},
        "top": clothing["top"],
        "top_colour": clothing["colour"],
        "pattern": clothing["pattern"],
        "bottom": clothing["bottom"],
        "bottom_colour": clothing["bottom_colour"],
        "scene": scene,
        "view": view,
    }
