"""COCO's annotation files as sources: which pictures show people, and how much of each is people."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm.auto import tqdm

from mldm_plugin.errors import DataError
from mldm_plugin.prepare.coco_format import (
    CocoAnnotation,
    CocoCaption,
    CocoCategory,
    CocoImage,
    CocoKeypoints,
    CocoPerson,
    Faults,
    parsed,
    read,
)
from mldm_plugin.prepare.index import opened, scratch
from mldm_plugin.prepare.json_stream import items
from mldm_plugin.prepare.paths import fault_of
from mldm_plugin.prepare.people import covered, run_lengths
from mldm_plugin.prepare.source import RejectedError, Source

_KEPT = ("id", "iscrowd", "segmentation", "keypoints", "face_box", "face_valid")  # of an annotation
_TABLES = """
CREATE TABLE images (place INTEGER PRIMARY KEY, id INTEGER UNIQUE, file_name TEXT, width INTEGER, height INTEGER,
                     covered REAL);
CREATE TABLE people (place INTEGER PRIMARY KEY, id INTEGER UNIQUE, image INTEGER, annotation TEXT);
CREATE TABLE captions (place INTEGER PRIMARY KEY, image INTEGER, caption TEXT);
"""


_SIZE_OF_PERSON = (
    "SELECT images.height, images.width FROM people JOIN images ON images.id = people.image WHERE people.id = ?"
)


@dataclass(frozen=True)
class CocoFiles:
    """The files of a COCO data set; the pictures' folder is not needed for counting.

    `keypoints` may be None, too, where the instances file holds keypoints itself.
    """

    instances: Path
    images: Path | None = None
    captions: Path | None = None
    keypoints: Path | None = None


class Coco:
    """The people of a COCO data set, in a database on disk; memory does not grow with the number of pictures.

    Args:
        files: are read from beginning to end and checked.
        database: a file to write; what is there is replaced.

    Raises:
        DataError: one of the files is not COCO's; every fault is named by file, id and field.
    """

    def __init__(self, files: CocoFiles, database: Path) -> None:
        self._files = files
        self._folder = files.images.resolve() if files.images else None
        self._path = database
        faults = Faults()
        with scratch(database) as tables:
            tables.executescript(_TABLES + "BEGIN;")
            person = self._read_images(tables, faults)
            self._read_people(tables, person, faults)
            if files.keypoints:
                self._read_keypoints(tables, files.keypoints, faults)
            if files.captions:
                self._read_captions(tables, files.captions, faults)
            tables.execute("CREATE INDEX people_of ON people (image, place)")
            tables.execute("CREATE INDEX captions_of ON captions (image, place)")
            self._measure(tables)
        faults.check()

    def areas(self) -> list[float]:
        """The part of each picture that is people, in [0, 1], of the pictures that show any; the largest first."""
        with opened(self._path) as tables:
            return [a for (a,) in tables.execute("SELECT covered FROM images WHERE covered > 0 ORDER BY covered DESC")]

    def threshold(self, target: int) -> float:
        """The person area that keeps `target` pictures: pictures of that area or more are as many, or more by ties.

        Raises:
            DataError: fewer pictures than that show people.
        """
        areas = self.areas()
        if target > len(areas):
            raise DataError(
                f"--target-count {target}: only {len(areas)} pictures of {self._files.instances} show people; ask "
                "for as many or fewer."
            )
        return areas[target - 1]

    def count(self) -> int:
        """Pictures in all."""
        with opened(self._path) as tables:
            return tables.execute("SELECT count(*) FROM images").fetchone()[0]

    def sources(self, least_area: float = 0.0) -> Iterator[Source]:
        """The pictures of which at least `least_area` is people, and some pixel in any case, in the file's order."""
        if self._folder is None:
            raise DataError("the folder of the pictures is not named: give --images DIR.")
        query = "SELECT id, file_name, width, height FROM images WHERE covered >= ? AND covered > 0 ORDER BY place"
        with opened(self._path) as tables:
            for image, file_name, width, height in tables.execute(query, (least_area,)):
                yield Source(
                    name=str(PurePosixPath(file_name).with_suffix("")),
                    path=str(self._folder / file_name),
                    text=self._captions(tables, image),
                    size=(width, height),
                    annotations=self._people(tables, image),
                )

    def has(self, field: str) -> bool:
        """Whether any person's annotation has `keypoints`, or a `face_box`."""
        with opened(self._path) as tables:
            query = "SELECT 1 FROM people WHERE json_extract(annotation, '$.' || ?) IS NOT NULL LIMIT 1"
            return tables.execute(query, (field,)).fetchone() is not None

    def _read_images(self, tables: sqlite3.Connection, faults: Faults) -> dict[int, bool]:
        """Fill in the images; returns the ids of the categories, and whether each is `person`."""
        path = self._files.instances
        person = {}
        for number, (key, raw) in enumerate(_progress(items(path, "images", "categories"), "images")):
            if key == "categories":
                if category := parsed(raw, CocoCategory, path, key, faults, number):
                    person[category.id] = category.name == "person"
            elif image := parsed(raw, CocoImage, path, key, faults, number):
                self._add_image(tables, image, faults)
        faults.check()
        if not any(person.values()):
            raise DataError(f"{path} has no category 'person', so nobody in it can be found; name COCO's instances.")
        return person

    def _add_image(self, tables: sqlite3.Connection, image: CocoImage, faults: Faults) -> None:
        reason = fault_of(image.file_name, self._folder) if self._folder else None
        if reason:
            faults.add(self._files.instances, "images", image.id, "file_name", reason)
        row = (image.id, image.file_name, image.width, image.height)
        if not _added(tables, "INSERT INTO images (id, file_name, width, height) VALUES (?, ?, ?, ?)", row):
            faults.add(self._files.instances, "images", image.id, "id", "is that of an earlier image")

    def _read_people(self, tables: sqlite3.Connection, person: dict[int, bool], faults: Faults) -> None:
        path = self._files.instances
        people = [identity for identity, shows_person in person.items() if shows_person]
        for number, (_, raw) in enumerate(_progress(items(path, "annotations"), "annotations")):
            shows_person = isinstance(raw, dict) and raw.get("category_id") in people
            item = parsed(raw, CocoPerson if shows_person else CocoAnnotation, path, "annotations", faults, number)
            if item is None:
                continue
            if item.category_id not in person:
                faults.add(path, "annotations", item.id, "category_id", f"{item.category_id} is no category's id")
            elif (size := _size_of(tables, item.image_id)) is None:
                faults.add(path, "annotations", item.id, "image_id", f"{item.image_id} is no image's id")
            elif shows_person:
                self._add_person(tables, item, raw, size, faults)

    def _add_person(
        self,
        tables: sqlite3.Connection,
        link: CocoAnnotation,
        raw: dict[str, Any],
        size: tuple[int, int],
        faults: Faults,
    ) -> None:
        """Masks are kept as run lengths, so that polygons are drawn once."""
        path = self._files.instances
        try:
            runs = run_lengths(raw["segmentation"], *size)
        except RejectedError as error:
            faults.add(path, "annotations", link.id, "segmentation", str(error))
            return
        if raw.get("keypoints") and _outside(raw["keypoints"], size):
            faults.add(path, "annotations", link.id, "keypoints", "all lie outside of the picture")
        kept = {key: raw[key] for key in _KEPT if raw.get(key) is not None}
        kept["segmentation"] = {"size": list(size), "counts": runs["counts"].decode("ascii")}
        row = (link.id, link.image_id, json.dumps(kept))
        if not _added(tables, "INSERT INTO people (id, image, annotation) VALUES (?, ?, ?)", row):
            faults.add(path, "annotations", link.id, "id", "is that of an earlier annotation")

    def _read_keypoints(self, tables: sqlite3.Connection, path: Path, faults: Faults) -> None:
        query = "UPDATE people SET annotation = json_set(annotation, '$.keypoints', json(?)) WHERE id = ?"
        for item in _progress(read(path, "annotations", CocoKeypoints, faults), "keypoints"):
            size = tables.execute(_SIZE_OF_PERSON, (item.id,)).fetchone()
            if item.keypoints is None:
                faults.add(path, "annotations", item.id, "keypoints", "is missing")
            elif size and _outside(item.keypoints, size):
                faults.add(path, "annotations", item.id, "keypoints", "all lie outside of the picture")
            elif not tables.execute(query, (json.dumps(item.keypoints), item.id)).rowcount:
                faults.add(path, "annotations", item.id, "id", f"is no person's in {self._files.instances}")

    def _read_captions(self, tables: sqlite3.Connection, path: Path, faults: Faults) -> None:
        for item in _progress(read(path, "annotations", CocoCaption, faults), "captions"):
            if _size_of(tables, item.image_id) is None:
                faults.add(path, "annotations", item.id, "image_id", f"{item.image_id} is no image's id")
            caption = item.caption.strip()
            tables.execute("INSERT INTO captions (image, caption) VALUES (?, ?)", (item.image_id, caption))

    def _measure(self, tables: sqlite3.Connection) -> None:
        """Fill in how much of each picture is people."""
        for image, width, height in _progress(
            tables.execute("SELECT id, width, height FROM images ORDER BY place").fetchall(), "person areas"
        ):
            area = covered(self._people(tables, image), height, width)
            tables.execute("UPDATE images SET covered = ? WHERE id = ?", (area, image))

    @staticmethod
    def _people(tables: sqlite3.Connection, image: int) -> list[dict[str, Any]]:
        rows = tables.execute("SELECT annotation FROM people WHERE image = ? ORDER BY place", (image,))
        return [json.loads(annotation) for (annotation,) in rows]

    @staticmethod
    def _captions(tables: sqlite3.Connection, image: int) -> list[str]:
        """All captions of a picture; one empty one where it has none."""
        rows = tables.execute("SELECT caption FROM captions WHERE image = ? ORDER BY place", (image,))
        return [caption for (caption,) in rows] or [""]


def _added(tables: sqlite3.Connection, query: str, row: tuple[Any, ...]) -> bool:
    try:
        tables.execute(query, row)
    except sqlite3.IntegrityError:
        return False
    return True


def _outside(points: Sequence[float], size: tuple[int, int]) -> bool:
    """Whether there are labelled points, and none in the picture of (height, width)."""
    labelled = [(x, y) for x, y, v in zip(points[::3], points[1::3], points[2::3], strict=True) if v > 0]
    return bool(labelled) and not any(0 <= x <= size[1] and 0 <= y <= size[0] for x, y in labelled)


def _size_of(tables: sqlite3.Connection, image: int) -> tuple[int, int] | None:
    """(height, width); None for an image that is not there."""
    return tables.execute("SELECT height, width FROM images WHERE id = ?", (image,)).fetchone()


def _progress(items: Any, what: str) -> Any:
    return tqdm(items, desc=f"reading {what}", unit="row", mininterval=0.5, leave=False)
