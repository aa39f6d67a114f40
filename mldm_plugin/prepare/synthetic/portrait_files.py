"""Drawn portraits as files, laid out as CelebAMask-HQ is handed out (`prepare.celebamask_hq`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mldm_plugin.conditions.celeba import ATTRIBUTES
from mldm_plugin.prepare.celebamask_hq import ATTRIBUTES_FILE, MASKS, PICTURES, PICTURES_A_FOLDER, VALIDATION_LIST
from mldm_plugin.prepare.synthetic.portrait import draw_portrait
from mldm_plugin.prepare.workspace import Counts, Workspace

QUALITY = 95
VALIDATION = 6  # one picture in so many is of the validation split: 5 000 of 30 000


def write_portrait(folder: Path, seed: int, index: int, size: int) -> dict[str, bool]:
    """Draw picture number `index` of this seed, which depends on nothing else; returns its attributes."""
    made = draw_portrait(np.random.default_rng(np.random.SeedSequence([seed, index])), size)
    masks = folder / MASKS / str(index // PICTURES_A_FOLDER)
    for there in (folder / PICTURES, masks):
        there.mkdir(parents=True, exist_ok=True)
    Image.fromarray(made.pixels).save(folder / PICTURES / f"{index}.jpg", quality=QUALITY, subsampling=0)
    for part, mask in made.masks():
        Image.fromarray(mask).save(masks / f"{index:05d}_{part}.png")
    return made.attributes


def write_lists(space: Workspace) -> Counts:
    """Write the files of attributes and of the validation split from what the shards noted."""
    rows = [(int(number), row) for part in space.done() for number, row in part["attributes"].items()]
    lines = [str(len(rows)), " ".join(ATTRIBUTES)]
    lines += [" ".join([f"{number}.jpg", *("1" if row[name] else "-1" for name in ATTRIBUTES)]) for number, row in rows]
    (space.folder / ATTRIBUTES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    held = [f"imgHQ{number:05d}.npy\n" for number, _ in rows if number % VALIDATION == VALIDATION - 1]
    (space.folder / VALIDATION_LIST).write_text("".join(held), encoding="utf-8")
    return Counts(pictures=len(rows), people=len(rows), faces=len(rows))
