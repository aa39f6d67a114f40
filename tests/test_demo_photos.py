"""The demo's photographs, their annotation and the training set made from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mldm_plugin.demo import photos
from mldm_plugin.demo.photos import PHOTOS, WINDOWS, Window, load_annotations, write_training_set
from mldm_plugin.errors import DataError

COCO = load_annotations()
PEOPLE = {"astronaut.png": 1, "grace_hopper.jpg": 1, "Tom_Hanks_54745.png": 1, "t1.jpg": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_set(tmp_path_factory.mktemp("demo") / "set")


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.copy()


def people() -> Iterator[tuple[dict, dict]]:
    for image in COCO.dataset["images"]:
        for person in COCO.loadAnns(COCO.getAnnIds(imgIds=image["id"])):
            yield image, person


def digest(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_every_photo_is_annotated_at_its_size_with_all_its_people() -> None:
    for image in COCO.dataset["images"]:
        assert photos.photo(image["file_name"]).size == (image["width"], image["height"])
        assert image["caption"]
    found = [image["file_name"] for image, _ in people()]
    assert {name: found.count(name) for name in PHOTOS} == PEOPLE


def test_masks_agree_with_the_stored_areas_and_boxes() -> None:
    for image, person in people():
        mask = photos.decoded(COCO, person)
        assert mask.shape == (image["height"], image["width"])
        assert mask.sum() == person["area"] > 0.02 * mask.size
        x, y, width, height = person["bbox"]
        ys, xs = np.nonzero(mask)
        assert x - 1 <= xs.min() <= xs.max() <= x + width + 1
        assert y - 1 <= ys.min() <= ys.max() <= y + height + 1
        assert COCO.loadCats(person["category_id"])[0]["name"] == "person"


def test_faces_lie_inside_their_person_and_the_picture() -> None:
    for image, person in people():
        x0, y0, x1, y1 = (int(v) for v in person["face_box"])
        assert 0 <= x0 < x1 <= image["width"]
        assert 0 <= y0 < y1 <= image["height"]
        mask = photos.decoded(COCO, person)
        assert mask[y0:y1, x0:x1].mean() > 0.75
        quarter = (x1 - x0) // 4, (y1 - y0) // 4
        assert mask[y0 + quarter[1] : y1 - quarter[1], x0 + quarter[0] : x1 - quarter[0]].mean() > 0.97


def test_people_overlap_at_their_outlines_only() -> None:
    for image in COCO.dataset["images"]:
        masks = [photos.decoded(COCO, p).astype(int) for i, p in people() if i is image]
        together = np.sum(masks, 0)
        assert (together > 1).sum() < 0.01 * (together > 0).sum()


def test_windows_are_squares_inside_their_photo_that_show_every_face() -> None:
    seen = set()
    for window in WINDOWS:
        width, height = photos.photo(window.photo).size
        assert 0 <= window.x <= width - window.side
        assert 0 <= window.y <= height - window.side
        for image, person in people():
            x0, y0, x1, y1 = person["face_box"]
            inside = window.x <= x0 and x1 <= window.x + window.side
            if image["file_name"] == window.photo and inside and window.y <= y0 and y1 <= window.y + window.side:
                seen.add(person["id"])
    assert seen == {person["id"] for _, person in people()}
    assert len({w.name for w in WINDOWS}) == len({w.text for w in WINDOWS}) == len(WINDOWS)


def test_training_set_holds_masks_and_boxes_of_its_pictures(folder: Path) -> None:
    assert [row["file_name"] for row in rows(folder)] == [f"{window.name}.png" for window in WINDOWS]
    for row in rows(folder):
        picture = opened(folder / row["file_name"])
        label = opened(folder / row["mask_file_name"])
        assert picture.mode == "RGB"
        assert label.mode == "L"
        assert picture.size == label.size
        assert photos.RESOLUTION <= picture.width == picture.height <= photos.SIZE
        values = np.unique(np.asarray(label))
        assert list(values) == list(range(values.max() + 1))
        assert row["text"]
        assert row["face_boxes"]
        for x0, y0, x1, y1 in row["face_boxes"]:
            assert 0 <= x0 < x1 <= picture.width
            assert 0 <= y0 < y1 <= picture.height
            assert (np.asarray(label)[int(y0) : int(y1), int(x0) : int(x1)] > 0).mean() > 0.75


def test_training_set_is_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    first = digest(folder)
    write_training_set(folder)
    assert digest(folder) == first == digest(write_training_set(tmp_path / "again"))
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name]


def test_a_window_cut_through_a_face_leaves_it_out() -> None:
    half = Window("half", "astronaut.png", 226, 0, 256, "half an astronaut")
    label, boxes = photos.labels(half, COCO)
    assert boxes == []
    assert np.asarray(label).max() == 1
    shown = Window("shown", "astronaut.png", 200, 0, 256, "most of an astronaut")
    assert photos.labels(shown, COCO)[1] == [[0.0, 74.0, 73.0, 181.0]]


def test_a_sliver_of_a_person_is_left_out() -> None:
    corner = Window("corner", "astronaut.png", 360, 200, 152, "the shuttle")
    [person] = [p for image, p in people() if image["file_name"] == "astronaut.png"]
    assert photos.decoded(COCO, person)[200:352, 360:].sum() > 0
    label, _ = photos.labels(corner, COCO)
    assert np.asarray(label).max() == 0


def test_another_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep", "utf-8")
    with pytest.raises(DataError, match="something else"):
        write_training_set(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(photos, "labels", stop)
    with pytest.raises(KeyboardInterrupt):
        write_training_set(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("package", "says"), [("no_such_package", "not installed"), ("numpy", "not there")])
def test_a_missing_photo_says_what_to_install(monkeypatch: pytest.MonkeyPatch, package: str, says: str) -> None:
    monkeypatch.setitem(PHOTOS, "lost.png", (package, "lost.png"))
    with pytest.raises(DataError, match=says) as caught:
        photos.photo("lost.png")
    assert "pip install 'mldm-plugin[demo]'" in str(caught.value)
