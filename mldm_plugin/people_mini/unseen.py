"""Photographs of a person of openpeople whom people-mini has never seen, with person masks and face boxes.

All are taken before the grey backdrop of a studio, which is what the masks are made from; the boxes are those of
`people_mini/openpeople.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mldm_plugin.people_mini.photos import Box, openpeople_folder, photo_rows
from mldm_plugin.people_mini.who import FEELINGS
from mldm_plugin.records.folders import replaced_folder

NAMES = {"P008": "helkar", "P009": "imara", "P010": "jasna"}

# Panels of openpeople's sheets, and whole pictures. What is held out, no training sees: nine, because a sign test of
# eight pairs cannot show a difference in eight metrics, whatever comes out.
LEARNT = (
    *("studio_portrait", "face front", "neutral", "sad", "surprised"),
    *("scared", "thoughtful", "smug", "exhausted", "determined"),
)
HELD_OUT = ("happy", "angry", "disgusted", "confused", "flirty", "pensive", "playful", "shocked", "studio_posture")
STUDIO = "studio_"  # of whole pictures; those of amateurs have other backdrops
SHEETS = ("emotions_sheet", "character_sheet")

SIDE = 256  # pixels of a stored picture
FACES_HIGH = 1.9  # the square's side in heights of the face, where the photograph is as large
BACKDROP = 9.0  # difference in Lab up to which a pixel may be the backdrop; chosen by eye on P008


@dataclass(frozen=True)
class Photo:
    """One square photograph.

    Args:
        name: of its file.
        text: its caption.
        picture: RGB, SIDE × SIDE.
        mask: where the person is, bool (SIDE, SIDE).
        face: x0, y0, x1, y1 in pixels.
    """

    name: str
    text: str
    picture: Image.Image
    mask: np.ndarray
    face: Box


def photos_of(person: str, panels: Sequence[str]) -> list[Photo]:
    """The photographs of a person in `NAMES`, in the order of `panels`: of sheets, or whole pictures of the studio.

    Raises:
        DataError: openpeople is not installed.
    """
    folder = openpeople_folder()
    rows = {row[2] or row[1]: row for row in photo_rows() if row[0] == person and row[1].startswith((STUDIO, *SHEETS))}
    return [_photo(folder, *rows[panel]) for panel in panels]


def _photo(folder: Path, person: str, picture: str, panel: str, box: Box, face: Box) -> Photo:
    with Image.open(folder / person / "assets" / f"{picture}.jpg") as whole:
        cut = whole.convert("RGB").crop(box)
    x0, y0, x1, y1 = (v - corner for v, corner in zip(face, (box[0], box[1]) * 2, strict=True))
    side = min((y1 - y0) * FACES_HIGH, *cut.size)
    left = min(max((x0 + x1 - side) / 2, 0), cut.width - side)
    top = min(max((y0 + y1 - side) / 2 + 0.06 * side, 0), cut.height - side)  # more of the body than of the wall
    square = cut.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    scale = SIDE / side
    return Photo(
        name=(panel or picture.removeprefix(STUDIO)).replace(" ", "_"),
        text=f"photo of {NAMES[person]}, {_feeling(panel)}, bust, in a studio",
        picture=square,
        mask=person_mask(square),
        face=((x0 - left) * scale, (y0 - top) * scale, (x1 - left) * scale, (y1 - top) * scale),
    )


def _feeling(panel: str) -> str:
    """As people-mini's captions say it."""
    return FEELINGS.get(panel, panel) if panel not in ("", "face front") else "calm"


def person_mask(picture: Image.Image) -> np.ndarray:
    """What is not the backdrop: the person, as bool (H, W).

    The backdrop is what has the colour of the two upper corners and touches the upper, left or right border. Of what is
    left the largest piece is taken, without holes.
    """
    from scipy import ndimage
    from skimage.color import rgb2lab
    from skimage.filters import gaussian

    lab = rgb2lab(gaussian(np.asarray(picture) / 255.0, 1, channel_axis=-1))
    n = picture.height // 16
    backdrop = np.median(np.concatenate([lab[:n, :n].reshape(-1, 3), lab[:n, -n:].reshape(-1, 3)]), axis=0)
    near = np.linalg.norm((lab - backdrop) * (0.6, 1, 1), axis=-1) < BACKDROP  # a backdrop has shadows, not colours
    pieces, _ = ndimage.label(near)
    outside = np.unique(np.concatenate([pieces[0], pieces[:, 0], pieces[:, -1]]))
    person = ndimage.binary_opening(~np.isin(pieces, outside[outside > 0]), iterations=2)
    pieces, count = ndimage.label(person)
    sizes = ndimage.sum(person, pieces, range(1, count + 1))
    return ndimage.binary_fill_holes(pieces == 1 + int(np.argmax(sizes)))


def write_person(folder: Path, person: str) -> Path:
    """Write `train/` and `validation/` of a person in `NAMES`; what is there is left as it is.

    Raises:
        DataError: openpeople is not installed, or `folder` holds something else.
    """
    for name, panels in (("train", LEARNT), ("validation", HELD_OUT)):
        if not (folder / name / "metadata.jsonl").is_file():
            write_image_folder(folder / name, photos_of(person, panels))
    return folder


def write_image_folder(folder: Path, photos: Sequence[Photo]) -> Path:
    """Write pictures, masks/ and metadata.jsonl, byte for byte the same each time.

    Raises:
        DataError: `folder` holds something else.
    """
    rows: list[dict[str, Any]] = []
    with replaced_folder(folder, "metadata.jsonl") as made:
        (made / "masks").mkdir()
        for photo in photos:
            file_name = f"{photo.name}.png"
            photo.picture.save(made / file_name)
            Image.fromarray(photo.mask.astype(np.uint8)).save(made / "masks" / file_name)
            boxes = [[round(float(v), 2) for v in photo.face]]
            rows.append(
                {
                    "file_name": file_name,
                    "text": photo.text,
                    "mask_file_name": f"masks/{file_name}",
                    "face_boxes": boxes,
                }
            )
        (made / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
