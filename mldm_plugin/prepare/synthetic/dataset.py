"""Data sets of drawn people, written by several processes, the same bytes each time: people in scenes as a COCO folder,
or portraits as a folder of CelebAMask-HQ."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from mldm_plugin import __version__
from mldm_plugin.errors import DataError
from mldm_plugin.prepare.engines import in_processes
from mldm_plugin.prepare.synthetic.annotation import CATEGORIES, annotate
from mldm_plugin.prepare.synthetic.caption import captions
from mldm_plugin.prepare.synthetic.picture import draw_plan, paint
from mldm_plugin.prepare.synthetic.portrait_files import write_lists, write_portrait
from mldm_plugin.prepare.workspace import Counts, Workspace, is_made, opened

SMALLEST, LARGEST = 64, 2048  # sides: less shows no face, more takes minutes
QUALITY = 95
SHARD = 8  # pictures between two marks to go on from; chosen: some seconds of work
INFO = {"description": "People drawn by program", "version": "1", "contributor": "mldm-plugin"}
LICENSES = [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}]


@dataclass(frozen=True)
class Drawn:
    """One picture, encoded, and its rows; ids of annotations are given when it is written."""

    image: dict[str, Any]
    jpeg: bytes
    annotations: list[dict[str, Any]]
    captions: list[str]


def draw(seed: int, index: int, size: int) -> Drawn:
    """Picture number `index` of the data set of this seed; it depends on nothing else."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    while True:  # until a person can be seen: once in a hundred the plant hides the only one
        picture = paint(draw_plan(rng, size), rng)
        found = annotate(picture, rng)
        people = [a["attributes"] for a in found if "attributes" in a]
        if people:
            break
    encoded = io.BytesIO()
    Image.fromarray(picture.pixels).save(encoded, "JPEG", quality=QUALITY, subsampling=0)
    width, height = picture.plan.size
    name = f"{index + 1:012d}.jpg"
    image = {"id": index + 1, "file_name": name, "width": width, "height": height, "license": 1}
    texts = captions(people, picture.plan.scene.name, picture.plan.shot, rng)
    return Drawn(image, encoded.getvalue(), found, texts)


def write_synthetic(
    out: str | Path,
    count: int,
    seed: int,
    size: int = 256,
    workers: int = 0,
    progress: bool = True,
    portraits: bool = False,
) -> Path:
    """Draw a data set into a new folder: images/, instances.json and captions.json.

    Args:
        out: appears when it is complete; until then it is `<out>.partial`, and the same call goes on there.
        count: of pictures.
        seed: two data sets of one seed begin with the same pictures, whatever their count and workers.
        size: of the pictures' sides, about.
        workers: processes besides this one; 0 draws in this one.
        progress: whether a bar is shown.
        portraits: draw one face a picture, with masks of its parts and attributes, as CelebAMask-HQ is handed out.

    Raises:
        DataError: the folder is something else, another run is writing it, or a number cannot be used.
    """
    out = Path(out).resolve()  # other processes may start elsewhere
    _check(count, seed, size)
    kind = "portraits" if portraits else "synthetic"
    command = {"data": kind, "mldm_plugin": __version__, "count": count, "seed": seed, "size": size}
    if is_made(out, command):
        return out
    with opened(out, command) as space:
        if is_made(out, command):  # by somebody else, until a moment ago
            return out
        if not space.is_joined():
            starts = [start for start in range(0, count, SHARD) if not space.is_done(start)]
            jobs = [Part(out, seed, size, start, min(start + SHARD, count), portraits) for start in starts]
            left = sum(job.stop - job.start for job in jobs)
            with tqdm(total=count, initial=count - left, desc="drawing", unit="picture", disable=not progress) as bar:
                for drawn in in_processes(draw_part, jobs, workers):
                    bar.update(drawn)
        space.publish(command, write_lists if portraits else assemble)
    return out


def _check(count: int, seed: int, size: int) -> None:
    if count < 1:
        raise DataError(f"count is {count}, expected at least 1.")
    if seed < 0:
        raise DataError(f"seed is {seed}, expected 0 or more.")
    if not SMALLEST <= size <= LARGEST:
        raise DataError(f"size is {size}, expected {SMALLEST} to {LARGEST} pixels.")


@dataclass(frozen=True)
class Part:
    """Pictures `start` up to `stop`, as they are sent to another process."""

    out: Path
    seed: int
    size: int
    start: int
    stop: int
    portraits: bool

    @property
    def indices(self) -> range:
        return range(self.start, self.stop)


def draw_part(part: Part) -> int:
    """Draw and write them; returns how many."""
    space = Workspace(part.out)
    if part.portraits:
        rows = {str(index): write_portrait(space.folder, part.seed, index, part.size) for index in part.indices}
        space.write_done(part.start, {"attributes": rows})
    else:
        _draw_scenes(space, part)
    return len(part.indices)


def _draw_scenes(space: Workspace, part: Part) -> None:
    (space.folder / "images").mkdir(exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "captions": []}
    for index in part.indices:
        drawn = draw(part.seed, index, part.size)
        (space.folder / "images" / drawn.image["file_name"]).write_bytes(drawn.jpeg)
        number = drawn.image["id"]
        texts = [{"caption": caption} for caption in drawn.captions]
        rows["images"].append(drawn.image)
        # Room for ids within the picture: they depend on the picture alone, not on how many came before.
        for key, room, found in (("annotations", 100, drawn.annotations), ("captions", 10, texts)):
            rows[key] += [{"id": number * room + i, "image_id": number, **one} for i, one in enumerate(found)]
    space.write_done(part.start, rows)


def assemble(space: Workspace) -> Counts:
    """Put the rows of all parts together to the two files, part by part."""
    head = json.dumps({"info": INFO, "licenses": LICENSES})[:-1]
    for name, key, tail in (
        ("instances.json", "annotations", {"categories": CATEGORIES}),
        ("captions.json", "captions", {}),
    ):
        with (space.folder / name).open("w", encoding="utf-8") as out:
            out.write(head + ', "images": [\n')
            _write_rows(out, (row for part in space.done() for row in part["images"]))
            out.write('\n], "annotations": [\n')
            _write_rows(out, (row for part in space.done() for row in part[key]))
            out.write("\n]" + "".join(f', "{k}": {json.dumps(v)}' for k, v in tail.items()) + "}\n")
    counts = Counts()
    for part in space.done():
        people = [a for a in part["annotations"] if "attributes" in a]
        counts.pictures += len(part["images"])
        counts.people += len(people)
        counts.faces += sum(a["face_valid"] for a in people)
    return counts


def _write_rows(out: TextIO, rows: Iterator[dict[str, Any]]) -> None:
    for number, row in enumerate(rows):
        out.write((",\n" if number else "") + json.dumps(row))
