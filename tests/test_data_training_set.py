"""The training set: what it reads, what it draws, and what it refuses."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPTokenizer

from mldm_plugin.data.batch import FaceBoxes, checked, collate
from mldm_plugin.data.load import check_rows, find_examples, open_held_out, open_rows
from mldm_plugin.data.training_set import Columns, TrainingSet
from mldm_plugin.errors import DataError

ALL = Columns(mask="mask", boxes="face_boxes")


@pytest.fixture(scope="module")
def tokenizer(tiny_pipeline):
    return CLIPTokenizer.from_pretrained(tiny_pipeline / "tokenizer")


@pytest.fixture
def open_set(tokenizer):
    def open_set(folder: Path, columns: Columns = ALL, **options) -> TrainingSet:
        options = {"resolution": 64, "tokenizer": tokenizer, **options}
        return TrainingSet(open_rows(None, folder=str(folder)), columns, **options)

    return open_set


def test_an_example_has_everything_in_one_frame(open_set, tiny_data):
    example = open_set(tiny_data)[0]
    assert example.pixel_values.shape == example.conditioning_pixel_values.shape == (3, 64, 64)
    assert -1 <= example.pixel_values.min() < -0.5 < 0.5 < example.pixel_values.max() <= 1
    assert example.conditioning_pixel_values.min() >= 0
    assert example.person_mask.unique().tolist() == [0, 1]
    assert example.face_boxes.shape == (1, 4)
    assert example.input_ids.shape == (77,)


def test_plain_data_needs_no_annotation(open_set, make_data, tmp_path):
    example = open_set(make_data(tmp_path / "data", 2, annotated=False), Columns())[1]
    assert example.person_mask is None
    assert example.face_boxes is None


def test_a_batch_survives_workers_and_accelerate(open_set, tiny_data):
    loader = DataLoader(open_set(tiny_data), batch_size=4, collate_fn=collate, num_workers=1)
    batch = send_to_device(next(iter(loader)), torch.device("meta"))
    assert batch["pixel_values"].device.type == batch["person_mask"].device.type == "meta"
    assert batch["person_mask"].dtype == torch.uint8
    assert batch["person_mask"].shape == (4, 1, 64, 64)
    boxes = batch["face_boxes"]
    assert isinstance(boxes, FaceBoxes)
    assert [b.shape for b in boxes] == [(1, 4), (0, 4), (1, 4), (0, 4)]
    assert all(b.device.type == "cpu" and b.dtype == torch.float32 for b in boxes)
    assert len(boxes[1:3]) == 2


def test_captions_are_drawn_as_diffusers_draws_them(open_set, make_data, tmp_path, tokenizer):
    captions = ["a person", "somebody", "people"]
    data = open_set(make_data(tmp_path / "data", 6, captions=captions), empty_prompts=0.4)
    random.seed(5)
    drawn = [example.input_ids for example in data.__getitems__(range(6))]
    random.seed(5)
    texts = ["" if random.random() < 0.4 else random.choice(captions) for _ in range(6)]
    expected = tokenizer(texts, max_length=77, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert "" in texts
    assert torch.stack(drawn).equal(expected)


def test_a_skipped_batch_draws_its_captions_and_decodes_nothing(open_set, make_data, tmp_path, monkeypatch):
    data = open_set(make_data(tmp_path / "data", 6, captions=["a", "b", "c"]))
    random.seed(5)
    whole = [data.__getitems__([i, i + 1]) for i in (0, 2, 4)]
    monkeypatch.setattr(data, "look", lambda index: pytest.fail("decoded") if index < 4 else whole[2][index - 4])
    random.seed(5)
    data.skip_batches(2)
    parts = [data.__getitems__([i, i + 1]) for i in (0, 2, 4)]
    assert parts[:2] == [[], []]
    assert collate(parts[0]) == {}
    assert all(a.input_ids.equal(b.input_ids) for a, b in zip(parts[2], whole[2], strict=True))


AUGMENTED = {"random_crop": True, "random_flip": True, "interpolation": "lanczos"}


def test_the_mask_lies_on_the_person_whatever_is_drawn(open_set, tmp_path):
    """Pictures whose pixels are white where the mask is: IoU of both at least 0.98 in every crop."""
    folder, random_numbers = tmp_path / "data", np.random.default_rng(0)
    folder.mkdir()
    rows = []
    for i, (width, height) in enumerate([(400, 260), (240, 380), (300, 300)]):
        y, x = np.mgrid[:height, :width]
        mask = ((x / width - 0.45) ** 2 + (y / height - 0.55) ** 2 < 0.16).astype(np.uint8)
        shade = random_numbers.integers(0, 60, (height, width, 3), dtype=np.uint8)
        Image.fromarray(np.where(mask[..., None], 255 - shade, shade)).save(folder / f"{i}.png")
        Image.fromarray(mask).save(folder / f"{i}_mask.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": "a", "mask_file_name": f"{i}_mask.png"}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(rows))
    data = open_set(folder, Columns(conditioning=None, mask="mask"), resolution=128, framing=AUGMENTED)
    torch.manual_seed(0)
    examples = [data[i] for i in (0, 1, 2) * 8]
    assert len({e.person_mask.numpy().tobytes() for e in examples}) > 12
    for example in examples:
        seen, told = example.pixel_values.mean(dim=0) > 0, example.person_mask[0] > 0
        assert (seen & told).sum() / (seen | told).sum() >= 0.98


def test_pictures_are_drawn_before_captions_as_diffusers_draws_them(open_set, make_data, tmp_path):
    """torch's numbers for each picture, Python's for each caption of a list, and none for empty ones."""
    captions = ["a person", "somebody", "people"]
    data = open_set(make_data(tmp_path / "data", 5, captions=captions), framing=AUGMENTED)
    torch.manual_seed(5)
    random.seed(5)
    drawn = data.__getitems__(range(5))
    after = torch.get_rng_state(), random.getstate()
    torch.manual_seed(5)
    random.seed(5)
    cuts = [data.framing.draw(size) for size in ((80, 96), (70, 64), (64, 64), (100, 75), (128, 90))]
    texts = [random.choice(captions) for _ in range(5)]
    assert (after[0].equal(torch.get_rng_state()), after[1]) == (True, random.getstate())
    assert [e.input_ids.tolist() for e in drawn] == [data.tokens(text).tolist() for text in texts]
    assert len({(cut.top, cut.left, cut.mirrored) for cut in cuts}) > 2


def test_what_a_skipped_batch_draws_is_known_from_headers(open_set, make_data, tmp_path, monkeypatch):
    """A picture that is stored turned is drawn for as it is seen."""
    folder = make_data(tmp_path / "data", 6, annotated=False)
    turn_picture(folder)
    data = open_set(folder, Columns(conditioning=None), framing=AUGMENTED)
    torch.manual_seed(5)
    whole = [data.__getitems__([i, i + 1]) for i in (0, 2, 4)]
    decoded, convert = [], Image.Image.convert
    monkeypatch.setattr(Image.Image, "convert", lambda *args, **options: decoded.append(1) or convert(*args, **options))
    torch.manual_seed(5)
    data.skip_batches(2)
    parts = [data.__getitems__([i, i + 1]) for i in (0, 2, 4)]
    assert parts[:2] == [[], []]
    assert len(decoded) == 2  # pictures 4 and 5
    assert all(a.pixel_values.equal(b.pixel_values) for a, b in zip(parts[2], whole[2], strict=True))


def test_the_batch_after_those_skipped_is_drawn_from_where_it_was(open_set, tiny_data):
    """Something else drew from the same generators between two batches."""
    data = open_set(tiny_data, framing=AUGMENTED)
    data.__getitems__([0, 1])
    torch.rand(7)
    random.random()
    expected, state = data.__getitems__([4, 3]), data.before_last_batch
    data.skip_batches(1, state)
    assert data.__getitems__([0, 1]) == []
    again = data.__getitems__([4, 3])
    assert all(a.pixel_values.equal(b.pixel_values) for a, b in zip(again, expected, strict=True))


def test_no_box_is_lost_for_good_where_crops_are_drawn(open_set, make_data, tmp_path):
    folder = make_data(tmp_path / "data", 4, rows={3: {"face_boxes": [[0, 26, 14, 44]]}})  # of 100x75
    assert check_rows(open_set(folder), range(4)) == [str(folder / "3.png")]
    assert check_rows(open_set(folder, framing=AUGMENTED), range(4)) == []


@pytest.mark.parametrize("framing", [{}, AUGMENTED])
def test_looking_draws_nothing(open_set, tiny_data, framing):
    data = open_set(tiny_data, framing=framing)
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    find_examples(data, person=True, face=True)
    check_rows(data, range(len(data)))
    assert before[0] == random.getstate()
    assert before[1].equal(torch.get_rng_state())
    assert before[2] == np.random.get_state()[1].tolist()


def test_the_first_person_and_the_first_face_are_found(open_set, make_data, tmp_path):
    rows = {0: {"mask_file_name": None, "face_boxes": []}, 2: {"face_boxes": []}}
    data = open_set(make_data(tmp_path / "data", 6, rows=rows))
    one, other = find_examples(data, person=True, face=True)
    assert one.person_mask.any()
    assert len(other.face_boxes) == 1
    (first,) = find_examples(data, person=False, face=False)
    assert first.pixel_values.equal(data[0].pixel_values)
    (face,) = find_examples(data, person=False, face=True)
    assert face.pixel_values.equal(other.pixel_values)


@pytest.mark.parametrize(("person", "face", "what"), [(True, False, "person"), (True, True, "person or face")])
def test_nobody_anywhere(open_set, make_data, tmp_path, person, face, what):
    rows = {i: {"mask_file_name": None, "face_boxes": []} for i in range(1, 3)}
    folder = make_data(tmp_path / "data", 3, rows=rows | {0: {"face_boxes": []}})
    Image.new("L", (80, 96)).save(folder / "0_mask.png")
    with pytest.raises(DataError, match=f"no {what} anywhere in the 3 pictures"):
        find_examples(open_set(folder), person=person, face=face)


BOXES = {
    "reversed": ([40, 10, 20, 30], "reversed"),
    "empty": ([20, 20, 20, 40], "empty"),
    "three numbers": ([1, 2, 3], "not four numbers"),
    "outside": ([200, 10, 220, 30], "lies outside the picture, which is 64x64"),
}


@pytest.mark.parametrize("case", BOXES)
def test_bad_boxes_name_their_file(open_set, make_data, tmp_path, case):
    box, words = BOXES[case]
    rows = {i: {"face_boxes": [[10, 10, 20, 20]]} for i in range(4)} | {2: {"face_boxes": [[10, 10, 20, 20], box]}}
    data = open_set(make_data(tmp_path / "data", 4, rows=rows))
    check_rows(data, [0, 1, 3])
    for look in (lambda: check_rows(data, range(4)), lambda: checked(collate(data.__getitems__([1, 2])))):
        with pytest.raises(DataError, match=words) as error:
            look()
        assert "2.png" in str(error.value)
        assert "\n" not in str(error.value)


def test_boxes_that_json_cannot_say(open_set, make_data, tmp_path):
    from mldm_plugin.data.annotations import parse_boxes

    for bad in (math.nan, math.inf, "x", True, None):
        with pytest.raises(DataError, match="not four finite numbers"):
            parse_boxes([[bad, 0, 1, 1]], "a.png")
    with pytest.raises(DataError, match="expected a list"):
        parse_boxes(7, "a.png")
    assert parse_boxes(None, "a.png").shape == (0, 4)
    assert parse_boxes([[0, 0, 2, 1]], "a.png").dtype == torch.float32


def break_mask_size(folder: Path) -> None:
    Image.new("L", (32, 32)).save(folder / "1_mask.png")


def break_mask_mode(folder: Path) -> None:
    Image.new("RGB", (70, 64)).save(folder / "1_mask.png")


def break_mask_depth(folder: Path) -> None:
    Image.fromarray(np.zeros((64, 70), np.uint16)).save(folder / "1_mask.png")


def break_picture(folder: Path) -> None:
    (folder / "1.png").write_bytes(b"not a picture")


def break_hint(folder: Path) -> None:
    (folder / "1_hint.png").write_bytes((folder / "1_hint.png").read_bytes()[:3000])


def turn_picture(folder: Path) -> None:
    with Image.open(folder / "1.png") as picture:
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(folder / "1.png", exif=exif)


DAMAGE = {
    break_mask_size: (r"mask .*1_mask.png is 32x32, its picture .*1.png is 70x64", True),
    break_mask_mode: (r"mask .*1_mask.png is a picture of mode RGB", True),
    break_mask_depth: (r"mask .*1_mask.png is a picture of mode I;16", True),
    break_picture: (r"1.png cannot be read as a picture", True),
    break_hint: (r"1_hint.png cannot be read as a picture", False),
    turn_picture: (r"1.png has a mask, boxes or keypoints and is stored turned", True),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda d: d.__name__)
def test_damaged_files_are_named(open_set, make_data, tmp_path, damage):
    folder = make_data(tmp_path / "data", 3)
    damage(folder)
    words, at_start = DAMAGE[damage]
    data = open_set(folder)
    with pytest.raises(DataError, match=words) as error:
        data.look(1)
    assert "\n" not in str(error.value)
    if at_start:
        with pytest.raises(DataError, match=words):
            check_rows(data, range(3))
    # In a batch the fault is kept until that batch has its turn.
    with pytest.raises(DataError, match=words):
        checked(collate(data.__getitems__([0, 1])))


def test_palette_and_bilevel_masks_are_labels(open_set, make_data, tmp_path):
    folder = make_data(tmp_path / "data", 2)
    with Image.open(folder / "0_mask.png") as mask:
        mask.load()
    palette = mask.copy()
    palette.putpalette([0, 0, 0, 250, 10, 10])
    palette.save(folder / "0_mask.png")
    mask.point(lambda v: 255 * (v > 0)).convert("1").save(folder / "copy.png")
    expected = open_set(make_data(tmp_path / "same", 2)).look(0).person_mask
    assert open_set(folder).look(0).person_mask.equal(expected)
    (folder / "copy.png").replace(folder / "0_mask.png")
    assert open_set(folder).look(0).person_mask.bool().equal(expected.bool())


def test_a_turned_picture_without_annotation_is_turned_upright(open_set, make_data, tmp_path):
    folder = make_data(tmp_path / "data", 2, annotated=False)
    with Image.open(folder / "0.png") as picture:
        upright = picture.rotate(-90, expand=True)
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(folder / "0.png", exif=exif)
    data = open_set(folder, Columns())
    assert ((data.look(0).pixel_values + 1) / 2 - data.framing.picture(upright)).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (Columns(picture="imag"), r"no column 'imag' \(--image_column\); did you mean 'image'"),
        (Columns(conditioning="hint"), "--conditioning none"),
        (Columns(mask="masks"), "did you mean 'mask'"),
        (Columns(mask="text"), "expected pictures"),
    ],
)
def test_columns_are_checked(open_set, tiny_data, columns, words):
    with pytest.raises(DataError, match=words):
        open_set(tiny_data, columns)


def test_captions_are_checked(open_set, make_data, tmp_path):
    for row in ({"text": []}, {"text": 3}):
        data = open_set(make_data(tmp_path / f"data-{row['text']}", 1, rows={0: row}))
        with pytest.raises(DataError, match="expected a text or a list of texts"):
            data[0]


def test_data_sets_that_cannot_be_opened(make_data, tmp_path):
    with pytest.raises(DataError, match="cannot be opened"):
        open_rows(None, folder=str(tmp_path / "nothing"))
    folder = make_data(tmp_path / "data" / "validation", 2)
    with pytest.raises(DataError, match="no split 'train', only validation"):
        open_rows(None, folder=str(folder.parent))


def test_every_file_of_a_folder_is_one_split(make_data, tmp_path):
    """As diffusers' LoRA script reads; the same rows as of a plain folder."""
    folder = make_data(tmp_path / "data" / "val", 2)
    assert open_rows(None, folder=str(folder.parent), every_file=True)["text"] == [
        "a person number 0",
        "a person number 1",
    ]
    assert (
        open_rows(None, folder=str(folder), every_file=True).features
        == open_rows(None, folder=str(make_data(tmp_path / "same", 2))).features
    )


@pytest.mark.parametrize("every_file", [False, True])
def test_pictures_that_are_held_out_are_not_trained_on(make_data, tmp_path, every_file):
    folder = tmp_path / "people"
    for split, count in (("train", 3), ("validation", 2), ("test", 1)):
        make_data(folder / split, count)
    assert len(open_rows(None, folder=str(folder), every_file=every_file)) == 3
    for split in ("train", "test"):
        shutil.rmtree(folder / split)
    with pytest.raises(DataError, match="has no split 'train', only validation"):
        open_rows(None, folder=str(folder), every_file=every_file)


@pytest.mark.parametrize("every_file", [False, True])
def test_one_list_of_two_splits_is_refused(make_data, tmp_path, every_file):
    folder = make_data(tmp_path / "people", 2)
    for split in ("train", "test"):
        (folder / split).mkdir()
    with pytest.raises(DataError, match="one metadata.jsonl for train/ and test/: give each folder its own"):
        open_rows(None, folder=str(folder), every_file=every_file)


@pytest.mark.parametrize("every_file", [False, True])
def test_names_of_pictures_and_folders_make_no_splits(make_data, tmp_path, every_file):
    """`datasets` would find the splits test, validation and train in them, or nothing behind the brackets."""
    folder = make_data(tmp_path / "an[n]a*", 4)
    text = (folder / "metadata.jsonl").read_text()
    (folder / "test").mkdir()
    for old, new in (("0.png", "test_001.png"), ("1.png", "my val 2.png"), ("2.png", "test/2.png")):
        (folder / old).rename(folder / new)
        text = text.replace(f'"file_name": "{old}"', f'"file_name": "{new}"')
    (folder / "metadata.jsonl").write_text(text)
    rows = open_rows(None, folder=str(folder), every_file=every_file)
    assert sorted(rows["text"]) == [f"a person number {i}" for i in range(4)]
    assert open_held_out(str(folder))[1] == "train", "none of them is held out"


def test_a_subset_is_drawn_by_the_seed(make_data, tmp_path):
    folder = str(make_data(tmp_path / "data", 7))
    rows = open_rows(None, folder=folder, at_most=3, seed=1)
    assert rows["text"] == open_rows(None, folder=folder, at_most=3, seed=1)["text"]
    assert len(open_rows(None, folder=folder, at_most=30, seed=1)) == 7


def test_metadata_written_by_hand_is_what_datasets_reads(tiny_data):
    """The layout that docs/quickstart.md promises: `datasets` turns `*_file_name` into picture columns by itself."""
    first = json.loads((tiny_data / "metadata.jsonl").read_text().splitlines()[0])
    assert {"file_name", "text", "mask_file_name", "face_boxes"} <= first.keys()
    rows = open_rows(None, folder=str(tiny_data))
    assert {"image", "text", "mask", "conditioning_image", "face_boxes"} == set(rows.column_names)
