"""Drawn people as an image folder: what trainers and the evaluation read of it is what was drawn."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from datasets import load_dataset
from PIL import Image

from mldm_plugin.errors import DataError
from mldm_plugin.people_mini import image_folder
from mldm_plugin.people_mini.__main__ import main
from mldm_plugin.people_mini.attributes import attributes_of
from mldm_plugin.people_mini.drawn import draw_sample, draw_square
from mldm_plugin.people_mini.image_folder import face_boxes, write_drawings
from mldm_plugin.people_mini.split import is_drawing_held_out
from mldm_plugin.prepare.people import label_map


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_drawings(tmp_path_factory.mktemp("drawn") / "validation", 6, 4000, held_out=True, workers=2)


def rows(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_it_holds_the_wanted_drawings_of_the_tenth_that_was_asked_for(folder):
    numbers = [int(row["file_name"][:7]) for row in rows(folder)]
    assert len(numbers) == 6
    assert numbers == sorted(set(numbers))
    assert all(is_drawing_held_out(number) for number in numbers)
    for row, number in zip(rows(folder), numbers, strict=True):
        sample = draw_sample(number)
        assert np.array_equal(np.asarray(Image.open(folder / row["file_name"])), np.asarray(sample.picture))
        said = attributes_of(row["text"][0])
        assert said == {k: v for k, v in sample.record.attributes.items() if k in said}
        assert json.loads(row["attributes"]) == sample.record.attributes


def test_masks_and_boxes_lie_on_the_person(folder):
    faces = 0
    for row in rows(folder):
        square = draw_square(int(row["file_name"][:7]))
        x0, y0, x1, y1 = square.box
        whole = label_map([square.person], square.drawn.image["height"], square.drawn.image["width"])
        across, down = (np.linspace(a, b, 128, endpoint=False) + (b - a) / 256 for a, b in ((x0, x1), (y0, y1)))
        expected = whole[down.astype(int)[:, None], across.astype(int)]
        assert (np.asarray(Image.open(folder / row["mask_file_name"])) == expected).mean() > 0.97
        mask = np.asarray(Image.open(folder / row["mask_file_name"]))
        assert mask.shape == (128, 128)
        assert set(np.unique(mask)) == {0, 1}
        assert 0.05 < mask.mean() < 0.9
        for x0, y0, x1, y1 in row["face_boxes"]:
            faces += 1
            assert 0 <= x0 < x1 <= 128
            assert mask[round(y0) : round(y1), round(x0) : round(x1)].mean() > 0.6
    assert faces >= 3


def test_keypoints_lie_in_the_square_and_on_the_person(tmp_path):
    folder = write_drawings(tmp_path / "train", 4, 4000, held_out=True, keypoints=True)
    seen = 0
    for row in rows(folder):
        [person] = np.array(row["keypoints"]).reshape(-1, 17, 3)
        square, mask = draw_square(int(row["file_name"][:7])), np.asarray(Image.open(folder / row["mask_file_name"]))
        drawn = np.array(square.person["keypoints"]).reshape(17, 3)
        x0, y0, x1, _ = square.box
        for (x, y, v), (px, py, pv) in zip(person, drawn, strict=True):
            inside = pv > 0 and x0 <= px < x1 and y0 <= py < y0 + x1 - x0
            assert (v > 0) == inside
            if v:
                assert (x, y) == pytest.approx(((px - x0) * 128 / (x1 - x0), (py - y0) * 128 / (x1 - x0)), abs=0.01)
            else:
                assert (x, y) == (0, 0)
            if v == 2 and 2 < x < 126 and 2 < y < 126:
                seen += 1
                assert mask[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3].any()
    assert seen > 10
    write_drawings(folder, 4, 4000, held_out=True)
    assert not any("keypoints" in row for row in rows(folder)), "it is another folder, so it is written anew"


def test_datasets_reads_it_and_writing_it_again_changes_nothing(folder):
    data = load_dataset(str(folder.parent), cache_dir=str(folder.parent.parent / "cache"))
    assert len(data["validation"]) == 6
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_drawings(folder, 6, 4000, held_out=True)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_command_writes_the_same_and_other_folders_are_left(folder, tmp_path):
    words = ["folder", "--out", str(tmp_path / "again"), "--count", "6", "--start", "4000", "--held-out"]
    assert CliRunner().invoke(main, words, catch_exceptions=False).exit_code == 0
    for path in folder.rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(DataError, match="holds something else"):
        write_drawings(tmp_path / "mine", 6, 4000, held_out=True)


def test_a_square_without_a_face_has_no_box():
    class Square:
        person, box = {"face_valid": False}, (0, 0, 192, 192)

    assert face_boxes(Square()) == []
    Square.person = {"face_valid": True, "face_box": [30.0, 30.0, 3.0, 4.0]}
    assert face_boxes(Square()) == [], "too small to be seen"
    Square.person = {"face_valid": True, "face_box": [-15.0, 30.0, 60.0, 60.0]}
    assert face_boxes(Square()) == [[0.0, 20.0, 30.0, 60.0]], "the part inside the picture, in its pixels"


def test_too_few_drawings_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder, "row_of", lambda index, keypoints: None)
    with pytest.raises(DataError, match="0 of 6"):
        write_drawings(tmp_path / "none", 6, 4000, held_out=True)
