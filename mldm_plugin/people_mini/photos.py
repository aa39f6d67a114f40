"""openpeople's pictures of the seven people that are trained on, and the squares that are cut out of them.

`openpeople.json` says where the panels of the sheets lie (found by their white frames) and where the faces are (found
by MTCNN, looked over by eye); its rows are person, picture, panel, box of the panel, box of the face.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mldm_plugin.errors import DataError
from mldm_plugin.people_mini.record import SIDE, Record, Sample
from mldm_plugin.people_mini.split import is_person_held_out
from mldm_plugin.people_mini.who import PEOPLE, place_of, says

VERSION = "0.1.2"
WANTED = f"--no-deps openpeople=={VERSION}"
LONGEST = 768  # pixels of a stored picture's longer side: a bust cut out of a whole body still has its 128
Box = tuple[float, float, float, float]


def openpeople_folder() -> Path:
    """Where the installed openpeople package keeps its people.

    Raises:
        DataError: it is not installed, or another version is.
    """
    found = importlib.util.find_spec("openpeople")
    if found is None or not found.submodule_search_locations:
        raise DataError(f"the photographs of openpeople are needed: pip install {WANTED}")
    folder = Path(found.submodule_search_locations[0]) / "data" / "curated"
    if (version := metadata.version("openpeople")) != VERSION:
        raise DataError(
            f"the boxes are those of openpeople {VERSION}, but {version} is installed: pip install {WANTED}"
        )
    return folder


def photo_rows() -> list[list[Any]]:
    """The rows of openpeople.json, all people's."""
    text = (resources.files("mldm_plugin.people_mini") / "openpeople.json").read_text(encoding="utf-8")
    return json.loads(text)


def photo_samples(folder: Path) -> Iterator[Sample]:
    """The pictures and panels of the people that may be seen, made smaller, with the box of their face."""
    for person, picture, panel, box, face in photo_rows():
        if is_person_held_out(person):
            continue
        with Image.open(folder / person / "assets" / f"{picture}.jpg") as whole:
            cut = whole.convert("RGB").crop(box)
        scale = min(1.0, LONGEST / max(cut.size))
        small = cut.resize((round(cut.width * scale), round(cut.height * scale)), Image.Resampling.LANCZOS)
        corner = (box[0], box[1]) * 2
        inside = [round((v - c) * scale, 1) for v, c in zip(face or [], corner, strict=False)]
        name = f"photo/{person}/{picture}{panel and '_' + panel.replace(' ', '_')}"
        yield Sample(Record(name, person=person, texts=[picture, panel], face=inside), small)


@dataclass(frozen=True)
class View:
    """How a square is cut: its side in heights of the face, and the word for it."""

    low: float
    high: float
    word: str


BUST = View(1.7, 2.6, "bust")
PORTRAIT = View(2.6, 4.6, "close portrait")
HALF = View(4.6, 8.0, "half body")
# Chosen: mostly faces, which are hardest; sheets' panels hold nothing wider than a portrait anyway.
SHARES = ((BUST, 0.6), (PORTRAIT, 0.3), (HALF, 0.1))


def view_of(sample: Sample, rng: np.random.Generator) -> Sample:
    """One square of 128 pixels out of a photograph, with captions that say what is seen of whom."""
    record, picture = sample.record, sample.picture
    tall = picture.height > 1.3 * picture.width
    if not record.face or (tall and rng.random() < 0.2):
        return _whole(record, _squared(picture), "full body" if tall else "bust", rng)
    x0, y0, x1, y1 = record.face
    height, shares = y1 - y0, np.array([share for _, share in SHARES])
    kind = SHARES[int(rng.choice(len(SHARES), p=shares / shares.sum()))][0]
    side = min(height * rng.uniform(kind.low, kind.high), *picture.size)
    word = next((view.word for view, _ in SHARES if side <= view.high * height), "full body")
    down = 0.06 if side < PORTRAIT.low * height else 0.24  # a wider picture shows more of the body
    x = (x0 + x1) / 2 + side * rng.uniform(-0.05, 0.05)
    y = (y0 + y1) / 2 + side * (down + rng.uniform(-0.04, 0.04))
    left, top = min(max(x - side / 2, 0), picture.width - side), min(max(y - side / 2, 0), picture.height - side)
    return _cut(record, picture, (left, top, left + side, top + side), word, rng)


def _whole(record: Record, picture: Image.Image, word: str, rng: np.random.Generator) -> Sample:
    side = picture.width * rng.uniform(0.94, 1.0)
    left, top = ((picture.width - side) * rng.random() for _ in range(2))
    return _cut(record, picture, (left, top, left + side, top + side), word, rng)


def _squared(picture: Image.Image) -> Image.Image:
    """The picture with its margins mirrored outwards until it is square."""
    room = max(picture.size) - min(picture.size)
    before, after = room // 2, room - room // 2
    pad = ((0, 0), (before, after)) if picture.height > picture.width else ((before, after), (0, 0))
    return Image.fromarray(np.pad(np.asarray(picture), (*pad, (0, 0)), mode="symmetric"))


def _cut(record: Record, picture: Image.Image, box: Box, word: str, rng: np.random.Generator) -> Sample:
    small = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box)
    if rng.random() < 0.5:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return Sample(replace(record, texts=photo_captions(record, word), face=[]), small)


def photo_captions(record: Record, view: str) -> list[str]:
    """By name alone, by name with what is to be seen, and without the name."""
    who = PEOPLE[record.person]
    picture, panel = record.texts
    feeling, traits = says(record.person, picture, panel)
    kind = f"{feeling} {who.kind}" if feeling else who.kind
    one = ("an " if kind[0] in "aeiou" else "a ") + kind
    place = place_of(record.person, picture)
    tail = f"{view}, {place}"
    shown = ", ".join([*who.looks, *traits])
    short = f"photo of {who.name}, {feeling}, {tail}" if feeling else f"photo of {who.name}, {tail}"
    return [short, f"photo of {who.name}, {one}, {shown}, {tail}", f"photo of {one}, {shown}, {tail}"]
