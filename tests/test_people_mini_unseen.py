"""Photographs of people to learn: nobody whom people-mini has seen, masks of the person alone, boxes on the face."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw

from mldm_plugin.errors import DataError
from mldm_plugin.people_mini import unseen
from mldm_plugin.people_mini.__main__ import main
from mldm_plugin.people_mini.split import TEST_PEOPLE, TUNING_PEOPLE
from mldm_plugin.people_mini.unseen import (
    HELD_OUT,
    LEARNT,
    NAMES,
    person_mask,
    photos_of,
    write_image_folder,
)
from mldm_plugin.people_mini.who import PEOPLE

pytest.importorskip("openpeople")


def test_nobody_whom_people_mini_has_seen():
    assert set(NAMES) == {*TUNING_PEOPLE, *TEST_PEOPLE}
    assert not set(NAMES) & set(PEOPLE)
    assert not set(LEARNT) & set(HELD_OUT)
    assert not set(NAMES.values()) & {who.name for who in PEOPLE.values()}


@pytest.mark.parametrize("person", NAMES)
def test_the_mask_is_the_person_and_the_box_is_on_it(person):
    for photo in photos_of(person, (*LEARNT, *HELD_OUT)):
        assert photo.picture.size == photo.mask.shape == (256, 256)
        assert 0.4 < photo.mask.mean() < 0.8
        x0, y0, x1, y1 = (round(v) for v in photo.face)
        assert photo.mask[y0:y1, x0:x1].mean() > (
            0.9 if person == "P010" else 0.97
        )  # hair and ears aside, all of the box is face
        assert not photo.mask[:10, :10].any()  # the studio's wall
        assert not photo.mask[:10, -10:].any()
        assert photo.mask[-1].mean() > (0.45 if person == "P010" else 0.5)  # the shoulders reach the lower border
        backdrop = np.asarray(photo.picture)[~photo.mask].astype(float)
        assert np.abs(backdrop - backdrop.mean(axis=1, keepdims=True)).mean() < 8  # grey, and nothing of the person


def test_a_white_shirt_and_a_hole_are_the_person_and_a_shadow_is_not():
    picture = Image.new("RGB", (128, 128), (128, 128, 128))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 60, 30, 127), fill=(118, 118, 118))
    draw.ellipse((44, 20, 84, 70), fill=(90, 60, 40))
    draw.rectangle((30, 70, 98, 127), fill=(250, 250, 250))
    draw.ellipse((60, 90, 70, 100), fill=(128, 128, 128))  # a button of the wall's colour
    mask = person_mask(picture)
    drawn = np.zeros((128, 128), bool)
    drawn[70:, 30:99] = True
    drawn |= np.asarray(Image.composite(Image.new("L", (128, 128), 1), Image.new("L", (128, 128)), ellipse())) > 0
    assert (mask & drawn).sum() / (mask | drawn).sum() > 0.95


def ellipse():
    made = Image.new("L", (128, 128))
    ImageDraw.Draw(made).ellipse((44, 20, 84, 70), fill=255)
    return made


def test_the_training_set_is_an_image_folder_and_always_the_same(tmp_path):
    photos = photos_of("P008", LEARNT[:2])
    one = write_image_folder(tmp_path / "one", photos)
    rows = [json.loads(line) for line in (one / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["portrait.png", "face_front.png"]
    assert rows[0]["text"] == "photo of helkar, calm, bust, in a studio"
    with Image.open(one / rows[0]["mask_file_name"]) as mask:
        assert np.array_equal(np.asarray(mask) > 0, photos[0].mask)
    again = write_image_folder(tmp_path / "again", photos)
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert len(files) == 5
    assert all((one / f).read_bytes() == (again / f).read_bytes() for f in files)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="something else"):
        write_image_folder(tmp_path / "mine", photos)


def test_a_person_is_written_once_and_in_two_splits(tmp_path, monkeypatch):
    monkeypatch.setattr(unseen, "LEARNT", LEARNT[:2])
    monkeypatch.setattr(unseen, "HELD_OUT", HELD_OUT[:1])
    result = CliRunner().invoke(main, ["person", "P010", "--out", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0
    found = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert {str(path.relative_to(tmp_path)) for path in found if "masks" not in str(path)} == {
        *("train/portrait.png", "train/face_front.png", "train/metadata.jsonl"),
        *("validation/happy.png", "validation/metadata.jsonl"),
    }
    unseen.write_person(tmp_path, "P010")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == found
