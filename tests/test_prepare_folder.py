import json
import os
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from odd_pictures import encoded, scene
from PIL import Image
from weights_entries import needs_weights

from mldm_plugin.errors import DataError
from mldm_plugin.prepare import plans
from mldm_plugin.prepare.folder import sources
from mldm_plugin.prepare.run import Output, prepare


def put(path, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(scene(), "PNG") if content is None else content)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_captions_beside_the_pictures_and_in_the_folders_names(tmp_path):
    for name in ("10_anna_smith/a.png", "10_anna_smith/b.png", "3_beach/c.jpg", "plain/d.webp", "e.png"):
        put(tmp_path / name)
    (tmp_path / "10_anna_smith/a.txt").write_text(" anna on a chair \nsecond line\n")
    (tmp_path / "plain/d.caption").write_text("﻿a dog", encoding="utf-8")
    found = {s.name: s for s in sources(tmp_path, caption="somebody")}
    assert {name: s.text for name, s in found.items()} == {
        "10_anna_smith/a": "anna on a chair",
        "10_anna_smith/b": "anna smith",
        "3_beach/c": "beach",
        "e": "somebody",
        "plain/d": "a dog",
    }
    assert {name: s.columns["num_repeats"] for name, s in found.items()} == {
        "10_anna_smith/a": 10,
        "10_anna_smith/b": 10,
        "3_beach/c": 3,
        "e": None,
        "plain/d": None,
    }


def test_metadata_says_which_pictures_there_are_and_what_else(tmp_path):
    for name in ("a.png", "sub/b.png", "not_mentioned.png"):
        put(tmp_path / name)
    lines = [
        {"file_name": "sub/b.png", "text": ["one", "two"], "rating": 3},
        {"file_name": "a.png", "text": "three"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    found = list(sources(tmp_path))
    assert [(s.name, s.text, s.columns) for s in found] == [
        ("sub/b", ["one", "two"], {"rating": 3}),
        ("a", ["three"], {"rating": None}),
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 1: expected an object with a file_name"),
        ("[1]", "line 1: expected an object with a file_name"),
        ('{"text": "x"}', "line 1: expected an object with a file_name"),
        ('{"file_name": "../a.png"}', "which leaves the folder"),
        ('{"file_name": "a.png", "text": "\\ud800"}', "line 1: expected an object with a file_name"),
        ('{"file_name": "a.png", "text": "x"}\n{"file_name": "./a.png"}', "'a.png' is named a second time"),
        ('{"file_name": "none.png"}', "there is no file 'none.png'"),
        ('{"file_name": "a.png", "text": 5}', "text is 5, expected a caption"),
        ('{"file_name": "a.png", "text": []}', "expected a caption or a list"),
    ],
)
def test_a_fault_in_metadata_is_named_by_its_line(tmp_path, line, told):
    put(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=f"metadata.jsonl, {told}" if told.startswith("line") else told):
        list(sources(tmp_path))


def test_a_picture_without_a_caption_is_named(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"1 of 2 pictures have no caption, the first is b.png: write it into b.txt"):
        list(sources(tmp_path))


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no pictures"):
        list(sources(tmp_path))
    with pytest.raises(DataError, match="is not a folder"):
        list(sources(tmp_path / "x"))


def test_given_masks_are_taken_as_they_are(tmp_path):
    labels = np.zeros((64, 96), np.uint8)
    labels[10:30, 20:40], labels[35:60, 50:90] = 1, 2
    for name in ("a", "sub/b"):
        put(tmp_path / "photos" / f"{name}.jpg", encoded(scene(), "JPEG"))
        put(tmp_path / "photos" / "masks" / f"{name}.png", encoded(Image.fromarray(labels), "PNG"))
    put(tmp_path / "photos" / "c.jpg", encoded(scene(), "JPEG"))
    put(tmp_path / "photos" / "d.jpg", encoded(scene((128, 64)), "JPEG"))
    put(tmp_path / "photos" / "masks" / "d.png", encoded(Image.fromarray(labels), "PNG"))
    put(tmp_path / "photos" / "e.jpg", encoded(scene(), "JPEG"))
    put(tmp_path / "photos" / "masks" / "e.png", encoded(scene(), "PNG"))
    before = {p: p.read_bytes() for p in (tmp_path / "photos").rglob("*") if p.is_file()}
    plan = plans.folder(tmp_path / "photos", caption="x", masks=str(tmp_path / "photos/masks"), faces="none")
    counts = prepare(plan, Output(tmp_path / "out", workers=0))
    assert (counts.pictures, counts.people, counts.rejected) == (2, 4, 3)
    for row in rows_of(tmp_path / "out"):
        with Image.open(tmp_path / "out" / row["mask_file_name"]) as mask:
            np.testing.assert_array_equal(np.asarray(mask), labels)
        assert row["person_count"] == 2
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert reasons[0] == "has no mask among those given"
    assert "its mask d.png is 96x64" in reasons[1]
    assert "mode RGB, expected 8-bit labels" in reasons[2]
    assert {p: p.read_bytes() for p in before} == before


def test_pictures_of_the_same_name_are_not_mixed_up(tmp_path):
    put(tmp_path / "photos/a.png")
    put(tmp_path / "photos/a.jpg", encoded(scene(), "JPEG"))
    plan = plans.folder(tmp_path / "photos", caption="x", masks="none", faces="none")
    with pytest.raises(DataError, match=r"two pictures would both be called 'a', the second is .*a\.png"):
        prepare(plan, Output(tmp_path / "out", workers=0))
    assert not list(tmp_path.glob("out*"))


def test_a_link_out_of_the_folder_is_rejected(tmp_path):
    put(tmp_path / "photos/a.png")
    put(tmp_path / "elsewhere.png")
    (tmp_path / "photos/b.png").symlink_to(tmp_path / "elsewhere.png")
    plan = plans.folder(tmp_path / "photos", caption="x", masks="none", faces="none")
    counts = prepare(plan, Output(tmp_path / "out", workers=0))
    assert counts.pictures == 1
    assert "a link that leaves the folder" in counts.left_out[0]


@needs_weights("mtcnn")
@pytest.mark.parametrize("stored", ["imagefolder", "parquet"])
def test_faces_and_their_points_are_found_in_real_photographs(tmp_path, stored):
    """scikit-image's astronaut, and a picture without anybody."""
    data = pytest.importorskip("skimage.data")
    (tmp_path / "photos").mkdir()
    Image.fromarray(data.astronaut()).save(tmp_path / "photos" / "astronaut.png")
    Image.fromarray(data.coffee()).save(tmp_path / "photos" / "coffee.png")
    plan = plans.folder(tmp_path / "photos", caption="x", masks="none", faces="mtcnn")
    prepare(plan, Output(tmp_path / "out", workers=0, format=stored))
    if stored == "parquet":
        import pyarrow.parquet

        astronaut, coffee = pyarrow.parquet.read_table(next((tmp_path / "out").rglob("*.parquet"))).to_pylist()
    else:
        astronaut, coffee = rows_of(tmp_path / "out")
    assert astronaut["face_detector"] == "mtcnn"
    [[x0, y0, x1, y1]] = astronaut["face_boxes"]
    [points] = astronaut["face_points"]
    assert len(points) == 10
    assert all(x0 < x < x1 for x in points[::2])
    assert all(y0 < y < y1 for y in points[1::2])
    assert astronaut["face_scores"][0] > 0.99
    assert (coffee["face_boxes"], coffee["face_points"], coffee["face_scores"]) == ([], [], [])


def test_masks_that_are_no_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="is none of auto, maskrcnn, selfie, none, nor a folder"):
        plans.folder(tmp_path, masks=str(tmp_path / "nothing"))


def own(folder, **options):
    options = {"caption": "x", "masks": "none", "faces": "none"} | options
    return plans.folder(folder, **options)


def test_names_in_metadata_may_be_written_in_several_ways(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(
        json.dumps({"file_name": "./a.png", "text": "the\u2028caption"}, ensure_ascii=False)
    )
    [source] = sources(tmp_path, caption="fallback")
    assert (source.name, source.text) == ("a", "the\u2028caption")


def test_columns_that_are_written_anew_do_not_come_from_metadata(tmp_path, capsys):
    put(tmp_path / "photos/a.png")
    put(tmp_path / "photos/hint.png")
    row = {"file_name": "a.png", "text": "x", "mask_file_name": "m.png", "conditioning_image_file_name": "hint.png"}
    (tmp_path / "photos/metadata.jsonl").write_text(
        json.dumps(row | {"image": 5, "face_boxes": [[0, 0, 1, 1]], "mood": "x"})
    )
    prepare(own(tmp_path / "photos"), Output(tmp_path / "out", workers=0))
    assert rows_of(tmp_path / "out") == [{"file_name": "images/a.png", "text": "x", "mood": "x"}]
    left = "conditioning_image_file_name, face_boxes, image, mask_file_name"
    assert re.search(f"not carried over from .*, written anew or not at all: {left}", capsys.readouterr().err)


def test_a_mask_of_black_and_white_is_one_person(tmp_path):
    mask = np.zeros((64, 96), np.uint8)
    mask[10:30, 20:40] = 255
    smooth = np.tile(np.arange(96, dtype=np.uint8), (64, 1))
    for name, labels in (("a", mask), ("b", smooth), ("c", np.full((64, 96), 7, np.uint8))):
        put(tmp_path / f"photos/{name}.png")
        put(tmp_path / f"masks/{name}.png", encoded(Image.fromarray(labels), "PNG"))
    counts = prepare(own(tmp_path / "photos", masks=str(tmp_path / "masks")), Output(tmp_path / "out", workers=0))
    assert [row["person_count"] for row in rows_of(tmp_path / "out")] == [1, 1]
    with Image.open(tmp_path / "out/masks/a.png") as stored:
        np.testing.assert_array_equal(np.asarray(stored), mask > 0)
    assert "with 96 different values, expected a number for each person" in counts.left_out[0]


def test_photos_that_were_added_are_not_passed_over_in_silence(tmp_path, capsys):
    put(tmp_path / "photos/a.png")
    prepare(own(tmp_path / "photos"), Output(tmp_path / "out", workers=0))
    prepare(own(tmp_path / "photos"), Output(tmp_path / "out", workers=0))
    assert "was made by this command before; remove it to make it anew" in capsys.readouterr().err
    put(tmp_path / "photos/b.png")
    with pytest.raises(DataError, match="is not what this command makes"):
        prepare(own(tmp_path / "photos"), Output(tmp_path / "out", workers=0))


def test_a_training_set_inside_the_photos_is_not_taken_for_photos(tmp_path):
    put(tmp_path / "a.png")
    prepare(own(tmp_path), Output(tmp_path / "made", workers=0))
    assert [source.name for source in sources(tmp_path, caption="x")] == ["a"]


@pytest.mark.parametrize("format_", ["imagefolder", "parquet"])
def test_columns_have_one_type_in_all_shards(tmp_path, format_):
    rows = [{"mood": None, "rating": 1}, {"mood": "gay", "rating": 1.5}, {"mood": None, "rating": None}]
    for k, row in enumerate(rows):
        put(tmp_path / f"photos/{k}.png")
        row |= {"file_name": f"{k}.png", "text": ["x", "y"] if k == 1 else "x"}
    (tmp_path / "photos/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepare(own(tmp_path / "photos"), Output(tmp_path / "out", format_, shard_size=1, workers=0))
    read = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert [row["rating"] for row in read] == [1.0, 1.5, None]
    assert [row["mood"] for row in read] == [None, "gay", None]
    assert [row["text"] for row in read] == [["x"], ["x", "y"], ["x"]]


def test_a_column_of_texts_and_numbers_is_refused(tmp_path):
    for k in range(2):
        put(tmp_path / f"photos/{k}.png")
    rows = [{"file_name": f"{k}.png", "text": "x", "mood": [5, "gay"][k]} for k in range(2)]
    (tmp_path / "photos/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"column 'mood' of metadata.jsonl holds values of several kinds \(int, str\)"):
        prepare(own(tmp_path / "photos"), Output(tmp_path / "out", workers=0))


def test_a_name_that_is_not_utf8_is_rejected(tmp_path):
    put(tmp_path / "photos/a.png")
    path = os.fsencode(tmp_path / "photos") + b"/\xff.png"
    Path(os.fsdecode(path)).write_bytes(encoded(scene(), "PNG"))
    counts = prepare(own(tmp_path / "photos"), Output(tmp_path / "out", workers=0))
    assert (counts.pictures, counts.rejected) == (1, 1)
    assert "is not UTF-8: rename the file" in counts.left_out[0]


def test_pictures_are_left_out_and_held_out(tmp_path):
    for name in "abcdef":
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
    listed = list(sources(tmp_path, "anna", leave_out=("b.png",), held_out=2))
    assert [(one.name, one.split) for one in listed] == [
        ("a", "train"),
        ("c", "validation"),
        ("d", "train"),
        ("e", "validation"),
        ("f", "train"),
    ]
    with pytest.raises(DataError, match=r"--leave-out g\.png: there is no such picture"):
        list(sources(tmp_path, "anna", leave_out=("g.png",)))
    with pytest.raises(DataError, match="--held-out 6 of 6 pictures leaves none to train on"):
        list(sources(tmp_path, "anna", held_out=6))


@pytest.mark.parametrize("held_out", [0, 2])
def test_scripts_read_every_picture_whatever_it_is_called(tmp_path, held_out):
    """`datasets` alone would find splits in these names; without them nothing is written besides."""
    for name in ("test_001", "train", "val/2", "d", "e"):
        put(tmp_path / "photos" / f"{name}.png")
    out = tmp_path / "out"
    plan = plans.folder(tmp_path / "photos", caption="x", masks="none", faces="none", held_out=held_out)
    prepare(plan, Output(out, workers=0))
    learnt = out / "train" if held_out else out
    rows = datasets.load_dataset(str(learnt), cache_dir=str(tmp_path / "cache"))
    assert {split: len(of) for split, of in rows.items()} == {"train": 5 - held_out}
    assert rows["train"]["text"] == ["x"] * (5 - held_out)
    for name in ("test_001", "train", "val/2"):
        (tmp_path / "photos" / f"{name}.png").unlink()
    prepare(plans.folder(tmp_path / "photos", caption="x", masks="none", faces="none"), Output(tmp_path / "plain"))
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == [
        ".prepared.json",
        "images",
        "metadata.jsonl",
    ]
