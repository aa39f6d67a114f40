"""Drawn people as trainers and `mldm evaluate` read them: squares with person masks, face boxes and captions."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import count as numbers_from
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mldm_plugin.errors import DataError
from mldm_plugin.people_mini.attributes import partial_captions
from mldm_plugin.people_mini.draw_many import one_thread
from mldm_plugin.people_mini.drawn import Square, draw_square, is_wanted, plan_of
from mldm_plugin.people_mini.record import SIDE
from mldm_plugin.people_mini.split import SEED, is_drawing_held_out
from mldm_plugin.prepare.people import label_map
from mldm_plugin.records.folders import replaced_folder

SMALLEST_FACE = 4.0  # pixels of a side in the square; smaller ones are cut off. Chosen.
Row = tuple[Image.Image, np.ndarray, dict[str, Any]]


def write_drawings(
    folder: Path, count: int, start: int, *, held_out: bool, keypoints: bool = False, workers: int = 1
) -> Path:
    """Write the first `count` wanted drawings from number `start` on, the same bytes each time.

    Args:
        folder: appears when it is complete; one that holds just these drawings is left as it is.
        count: of pictures.
        start: number of the first drawing that is looked at.
        held_out: whether they are of the tenth that people-mini never sees, or of the others.
        keypoints: whether those of the people are written, too.
        workers: processes; 1 draws in this one.

    Raises:
        DataError: `folder` holds something else, or too few drawings can be used.
    """
    asked = {"count": count, "start": start, "held_out": held_out, **({"keypoints": True} if keypoints else {})}
    if _holds(folder, asked):
        return folder
    wanted = (i for i in numbers_from(start) if is_drawing_held_out(i) == held_out and is_wanted(plan_of(i)))
    # Of each number it is known whether it is wanted, but for the few whose person hides behind a plant.
    numbers = islice(wanted, count + count // 20 + 5)
    with replaced_folder(folder, "drawings.json") as made, _pool(workers) as pool:
        (made / "masks").mkdir()
        made_of = partial(row_of, keypoints=keypoints)
        rows = (row for row in (pool.map(made_of, numbers, chunksize=4) if pool else map(made_of, numbers)) if row)
        lines = []
        for picture, mask, row in tqdm(islice(rows, count), total=count, desc=f"drawing {folder.name}"):
            picture.save(made / row["file_name"])
            Image.fromarray(mask).save(made / row["mask_file_name"])
            lines.append(json.dumps(row) + "\n")
        if len(lines) < count:
            raise DataError(
                f"{len(lines)} of {count} drawings could be used, from number {start} on: take another start."
            )
        (made / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
        (made / "drawings.json").write_text(json.dumps(asked) + "\n", encoding="utf-8")
    return folder


def _pool(workers: int) -> Any:
    return ProcessPoolExecutor(workers, get_context("spawn"), one_thread) if workers > 1 else nullcontext()


def _holds(folder: Path, asked: dict[str, Any]) -> bool:
    try:
        return json.loads((folder / "drawings.json").read_text(encoding="utf-8")) == asked
    except (OSError, ValueError):
        return False


def row_of(index: int, keypoints: bool = False) -> Row | None:
    """Picture, label mask and row of the metadata of drawing number `index`; None where it is not wanted."""
    square = draw_square(index)
    if square is None:
        return None
    name = f"{index:07d}.png"
    rng = np.random.default_rng(np.random.SeedSequence([SEED, index, 2]))
    row = {
        "file_name": name,
        "text": partial_captions(square.attributes, rng.random, 2),
        "mask_file_name": f"masks/{name}",
        "face_boxes": face_boxes(square),
        "attributes": json.dumps(square.attributes),
        **({"keypoints": [keypoints_in(square)]} if keypoints else {}),
    }
    return square.picture(), label_mask(square), row


def label_mask(square: Square) -> np.ndarray:
    """uint8 (128, 128): 1 where the person is."""
    image = square.drawn.image
    labels = label_map([square.person], image["height"], image["width"])
    cut = Image.fromarray(labels * 255).resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=square.box)
    return (np.asarray(cut) > 127).astype(np.uint8)


def face_boxes(square: Square) -> list[list[float]]:
    """x0, y0, x1, y1 of the face in the square, if it is seen there."""
    if not square.person["face_valid"]:
        return []
    x, y, width, height = square.person["face_box"]
    x0, y0, x1, _ = square.box
    scale = SIDE / (x1 - x0)
    corners = ((x - x0) * scale, (y - y0) * scale, (x + width - x0) * scale, (y + height - y0) * scale)
    box = [round(min(max(v, 0.0), float(SIDE)), 2) for v in corners]
    return [box] if min(box[2] - box[0], box[3] - box[1]) >= SMALLEST_FACE else []


def keypoints_in(square: Square) -> list[float]:
    """COCO's 17 keypoints, x, y, v each, in the square; 0, 0, 0 for one that lies outside."""
    x0, y0, x1, _ = square.box
    scale = SIDE / (x1 - x0)
    found: list[float] = []
    for k in range(0, len(square.person["keypoints"]), 3):
        x, y, v = square.person["keypoints"][k : k + 3]
        place = [round((x - x0) * scale, 2), round((y - y0) * scale, 2), v]
        found += place if v and all(0 <= at < SIDE for at in place[:2]) else [0, 0, 0]
    return found
