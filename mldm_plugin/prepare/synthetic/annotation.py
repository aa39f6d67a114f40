"""What a painted picture shows, in COCO's terms; all of it is known from the drawing."""

from __future__ import annotations

from typing import Any

import numpy as np

from mldm_plugin.prepare.synthetic.part import FACE_PARTS, KEYPOINTS, SKELETON, Part, seen_through
from mldm_plugin.prepare.synthetic.person import Person
from mldm_plugin.prepare.synthetic.picture import FINER, Picture
from mldm_plugin.prepare.synthetic.silhouette import box_of, compressed, polygons, run_lengths, visible_masks

CATEGORIES: list[dict[str, Any]] = [
    {
        "supercategory": "person",
        "id": 1,
        "name": "person",
        "keypoints": list(KEYPOINTS),
        "skeleton": [list(bone) for bone in SKELETON],
    },
    {"supercategory": "furniture", "id": 64, "name": "potted plant"},  # COCO's own number
]
# Share of a face's box that must show the face. Chosen: a fringe and a beanie leave more, a hand before it less.
FACE_SHOWN = 0.35
SMALLEST_HAND = 4.0  # pixels that must show it; fewer are no hand to anybody
SMALLEST_MASK = 12  # pixels; less than that is a sliver between others


def annotate(picture: Picture, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The picture's annotations, without ids; those of people in the order in which they were painted."""
    found = []
    masks = visible_masks(picture.shares)
    for i, (item, mask) in enumerate(zip(picture.items, masks, strict=True)):
        as_polygon = rng.random() < 0.5
        if item.kind == "prop" or mask.sum() < SMALLEST_MASK:
            continue
        crowd = item.kind == "crowd"
        shape: Any = run_lengths(mask) if crowd else (polygons(mask) if as_polygon else None) or compressed(mask)
        made = {
            "category_id": 64 if item.kind == "potted plant" else 1,
            "iscrowd": int(crowd),
            "area": float(mask.sum()),
            "bbox": box_of(mask),
            "segmentation": shape,
        }
        if item.person is not None:
            made |= _of_person(picture, i, item.person, mask)
        found.append(made)
    return found


def _of_person(picture: Picture, index: int, person: Person, mask: np.ndarray) -> dict[str, Any]:
    on_top = np.where(picture.top == index + 1, picture.parts, 0)
    keypoints = _keypoints(person, on_top, mask)
    face = _face_box(person, on_top)
    left, right = (_hand_box(on_top, part) for part in (Part.LEFT_HAND, Part.RIGHT_HAND))
    made: dict[str, Any] = {
        "keypoints": [v for point in keypoints for v in point],
        "num_keypoints": sum(v > 0 for *_, v in keypoints),
    }
    for name, box in (("face", face), ("lefthand", left), ("righthand", right)):
        made |= {f"{name}_box": box or [0.0, 0.0, 0.0, 0.0], f"{name}_valid": box is not None}
    shown = (left is not None, right is not None)
    return made | {"attributes": attributes_seen(person, picture.plan.shot, face is not None, shown)}


def _keypoints(person: Person, on_top: np.ndarray, mask: np.ndarray) -> list[tuple[float, float, int]]:
    height, width = mask.shape
    found = []
    for name, (wx, wy) in zip(KEYPOINTS, person.keypoints(), strict=True):
        x, y = round(float(wx) / FINER, 2), round(float(wy) / FINER, 2)
        if not (0 <= x < width and 0 <= y < height):
            found.append((0.0, 0.0, 0))
            continue
        of_face = name == "nose" or name.endswith("_eye")
        seen = bool(mask[int(y), int(x)]) and on_top[int(y * FINER), int(x * FINER)] in seen_through(name)
        found.append((x, y, 2 if seen and not (of_face and person.pose.back) else 1))
    return found


def _face_box(person: Person, on_top: np.ndarray) -> list[float] | None:
    """x, y, width, height of the part inside the picture; None where too little of the face is seen."""
    if person.pose.back:
        return None
    height, width = on_top.shape
    x0, y0, x1, y1 = person.head.face_box()
    whole = (x1 - x0) * (y1 - y0)
    x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if x1 <= x0 or y1 <= y0:
        return None
    inside = on_top[round(y0) : round(y1), round(x0) : round(x1)]
    if np.isin(inside, [*FACE_PARTS, Part.GLASSES]).sum() < FACE_SHOWN * whole:
        return None
    return [round(v / FINER, 2) for v in (x0, y0, x1 - x0, y1 - y0)]


def _hand_box(on_top: np.ndarray, part: Part) -> list[float] | None:
    """x, y, width, height around what is seen of a hand."""
    seen = on_top == part
    if seen.sum() < SMALLEST_HAND * FINER**2:
        return None
    return [v / FINER for v in box_of(seen)]


def attributes_seen(person: Person, shot: str, face: bool, hands: tuple[bool, bool]) -> dict[str, Any]:
    """What was drawn, by name; "unseen" for what the picture does not show."""
    look, pose = person.look, person.pose
    eyes = face and look.glasses != "sunglasses"
    return {
        "kind": look.kind,
        "skin": look.skin,
        "hair": look.hair,
        "hair_colour": "none" if look.hair == "bald" else look.hair_colour,
        "expression": look.expression if face else "unseen",
        "gaze": look.gaze if eyes else "unseen",
        "eye_colour": look.eye_colour if eyes else "unseen",
        "glasses": look.glasses if face else "unseen",
        "beard": look.beard if face else "unseen",
        "hat": look.hat,
        "clothing": {
            "top": look.top,
            "colour": look.top_colour,
            "pattern": look.pattern,
            "second_colour": look.second_colour,
            "bottom": look.bottom if shot in ("knee", "full") else "unseen",
            "bottom_colour": look.bottom_colour if shot in ("knee", "full") else "unseen",
        },
        "pose": {"close": "portrait", "half": "half body"}.get(shot, pose.legs),
        "arms": {"left": pose.arms[0], "right": pose.arms[1]},
        "hands": {w: pose.hands[i] if hands[i] else "unseen" for i, w in enumerate(("left", "right"))},
        "holding": person.thing or "nothing",
        "view": "back" if pose.back else "front",
        "place": person.place,
    }
