"""openpeople's photographs as scenes: faces cut out of the sheets, and bodies with the places of their hands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from PIL import Image
from planted import Scene, as_tensor
from torch import Tensor

from mldm_plugin.evaluation.picture import find_faces
from mldm_plugin.people_mini.photos import openpeople_folder, photo_rows
from mldm_plugin.perceptual.hands import find_hands
from mldm_plugin.perceptual.pose import as_coco, find_pose

PEOPLE = tuple(f"P{number:03}" for number in range(3, 11))  # P001 hides the hands; eight are enough
SHOWN = ("happy", "disgusted", "pensive")  # panels that are degraded
OTHERS = (
    "neutral",
    "sad",
    "angry",
    "surprised",
    "scared",
    "thoughtful",
    "exhausted",
)  # beside which they are looked at
POSTURES = ("studio_posture", "amateur_posture")
SIDE, LONG = 256, 512  # pixels of a face's square, and of a body's longer side
HIGH = 1.9  # side of the square in heights of the face, as the demo's


@cache
def rows() -> dict[tuple[str, str, str], tuple[list[float], list[float] | None]]:
    """(person, picture, panel) → the boxes of the panel and of the face."""
    return {(person, picture, panel): (box, face) for person, picture, panel, box, face in photo_rows()}


def whole(person: str, picture: str) -> Image.Image:
    with Image.open(openpeople_folder() / person / "assets" / f"{picture}.jpg") as opened:
        return opened.convert("RGB")


def face_square(
    person: str, panel: str, picture: str = "emotions_sheet", side: int = SIDE, high: float = HIGH
) -> Tensor:
    """The square around the face of a panel, (3, side, side)."""
    box, face = rows()[person, picture, panel]
    assert face is not None
    cut = whole(person, picture).crop(tuple(box))
    x0, y0, x1, y1 = (v - corner for v, corner in zip(face, (*box[:2], *box[:2]), strict=True))
    long = min((y1 - y0) * high, *cut.size)
    left = min(max((x0 + x1 - long) / 2, 0), cut.width - long)
    top = min(max((y0 + y1 - long) / 2 + 0.06 * long, 0), cut.height - long)
    square = (left, top, left + long, top + long)
    return as_tensor(cut.resize((side, side), Image.Resampling.LANCZOS, box=square))


@cache
def face_scene(person: str, panel: str, seed: int = 0) -> Scene:
    """A face with its points; the other one is the next person's with the same expression."""

    following = PEOPLE[(PEOPLE.index(person) + 1) % len(PEOPLE)]
    return replace(_alone(person, panel), other=_alone(following, panel), seed=seed)


@cache
def _alone(person: str, panel: str) -> Scene:
    image = face_square(person, panel)
    found = find_faces(image)[0]
    return Scene(image, found.box, found.points)


def face_keys(people: Sequence[str] = PEOPLE, panels: Sequence[str] = SHOWN) -> list[tuple[str, str]]:
    return [(person, panel) for person in people for panel in panels]


def body(person: str, picture: str, long: int = LONG) -> Tensor:
    """A whole body, its longer side `long` pixels."""
    found = whole(person, picture)
    found.thumbnail((long, long), Image.Resampling.LANCZOS)
    return as_tensor(found)


def body_panel(person: str, panel: str, long: int = LONG) -> Tensor:
    """A whole body of the sheet of views."""
    cut = whole(person, "character_sheet").crop(tuple(rows()[person, "character_sheet", panel][0]))
    scale = long / max(cut.size)
    size = (round(cut.width * scale), round(cut.height * scale))
    return as_tensor(cut.resize(size, Image.Resampling.LANCZOS))


def body_scene(person: str, picture: str) -> tuple[Scene, Tensor]:
    """A body with its hands, and COCO's keypoints (1, 17, 3); both are found in a picture of twice the size.

    So an undegraded picture, too, has to find what its annotation holds.
    """
    image, large = body(person, picture), body(person, picture, 2 * LONG)
    ratio = image.shape[1] / large.shape[1]
    poses = find_pose(large)[:1]
    hands = tuple(found.points * ratio for found in find_hands(large, poses))
    keypoints = as_coco(poses[0]).clone()
    keypoints[:, :2] *= ratio
    keypoints[:, 2] = torch.where(keypoints[:, 2] >= 0.5, 2.0, 0.0)
    return Scene(image, hands=hands), keypoints[None]
