"""What is stored of pictures, and its way into a batch; the folder of masks; which pictures had none."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_people import SCENES
from torchvision.transforms import functional as F

from mldm_plugin.attach.annotation import KEY, Annotation, Collate, annotate
from mldm_plugin.attach.coverage import Coverage
from mldm_plugin.attach.followed import FollowedTensor
from mldm_plugin.attach.frame import Frame
from mldm_plugin.attach.on_record import ExampleColumns, SideFolder
from mldm_plugin.attach.placement import check_placement
from mldm_plugin.errors import DataError

COLUMNS = ExampleColumns("mask", "face_boxes")


def example(path="a.png", flip=False, mask=True, boxes=((2, 4, 10, 12),)):
    """An example as a data set hands it on, with the frame that the ledger would have kept."""
    torch.manual_seed(len(path))
    picture = F.normalize(torch.rand(3, 32, 48), [0.5], [0.5])
    affine = (-1.0, 0, 48, 0, 1, 0) if flip else (1.0, 0, 0, 0, 1, 0)
    row = {"pixel_values": FollowedTensor.of(picture, Frame(path, (48, 32), (48, 32), affine))}
    if mask is not None:
        labels = torch.zeros(32, 48, dtype=torch.uint8)
        labels[4:20, 2:20] = 1
        row["mask"] = Image.fromarray(labels.numpy()) if mask else None
    if boxes is not None:
        row["face_boxes"] = [list(b) for b in boxes]
    return row


def turned_mask():
    """A mask that the script has mirrored itself: of the right size, and wrong."""
    mask = Image.new("L", (48, 32), 1)
    mask.info["mldm_frame"] = Frame("m.png", (48, 32), (48, 32), (-1.0, 0, 48, 0, 1, 0))
    return mask


def batch_of(examples):
    return {"pixel_values": torch.stack([e["pixel_values"] for e in examples])}


def test_masks_and_boxes_come_in_the_batchs_order_and_frame():
    examples = [example("a.png"), example("b.png", flip=True)]
    placed = annotate(examples, batch_of(examples), COLUMNS)
    assert placed.names == ("a.png", "b.png")
    assert placed.person_mask.shape == (2, 1, 32, 48)
    assert torch.equal(placed.person_mask[1], placed.person_mask[0].flip(-1))
    assert [b.tolist() for b in placed.face_boxes] == [[[2, 4, 10, 12]], [[38, 4, 46, 12]]]
    assert placed.on_record == {"person_mask": (True, True), "face_boxes": (True, True)}


def test_a_picture_without_mask_is_nobodys_and_named():
    examples = [example("a.png"), example("b.png", mask=False, boxes=())]
    placed = annotate(examples, batch_of(examples), COLUMNS)
    assert not placed.person_mask[1].any()
    assert placed.on_record == {"person_mask": (True, False), "face_boxes": (True, True)}


def test_columns_that_the_data_do_not_have_stay_none():
    examples = [example(mask=None, boxes=None)]
    placed = annotate(examples, batch_of(examples), COLUMNS)
    assert placed.person_mask is None
    assert placed.face_boxes is None
    assert placed.on_record == {}


def test_class_pictures_after_the_instance_pictures_need_no_annotation():
    examples = [{"instance_images": example("a.png")["pixel_values"], "class_images": torch.rand(3, 32, 48)}]
    batch = {"pixel_values": torch.stack([examples[0]["instance_images"], examples[0]["class_images"]])}
    assert len(annotate(examples, batch, COLUMNS)) == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda e, b: b.update(pixel_values=b["pixel_values"].flip(-1)), "is not in its place in the batch"),
        (lambda e, b: b.update(pixel_values=b["pixel_values"].flip(0)), "is not in its place in the batch"),
        (lambda e, b: b.update(pixel_values=b["pixel_values"][..., ::2]), "is not in its place in the batch"),
        (lambda e, b: b.pop("pixel_values"), "no pictures were found in the script's batch"),
        (lambda e, b: b.update(pixel_values=torch.zeros(2, 6, 32, 48)), "6 channels: 2 pictures in each example"),
        (lambda e, b: e[0].pop("pixel_values"), "no picture was found in the examples"),
        (lambda e, b: e.__setitem__(0, 5), "are not dictionaries"),
        (lambda e, b: e[0].update(mask=Image.new("L", (9, 9))), "is 9x9, its picture a.png is 48x32"),
        (lambda e, b: e[0].update(mask=Image.new("RGB", (48, 32))), "picture of mode RGB"),
        (lambda e, b: e[0].update(mask=turned_mask()), "moved twice"),
        (lambda e, b: e[0].update(mask="a_mask.png"), "holds str, expected a label picture"),
        (lambda e, b: delattr(e[0]["pixel_values"], "mldm_planes"), "not known"),
    ],
)
def test_what_cannot_be_used_is_named(spoil, message):
    examples = [example("a.png"), example("bb.png")]
    batch = batch_of(examples)
    spoil(examples, batch)
    with pytest.raises(DataError, match=message):
        annotate(examples, batch, COLUMNS)


@pytest.mark.parametrize(
    ("boxes", "message"), [([[5, 5, 2, 9]], "is reversed"), ([[100, 100, 120, 120]], "outside the picture")]
)
def test_boxes_that_cannot_be_used_wait_for_a_loss_that_needs_them(boxes, message):
    examples = [example("a.png"), example("bb.png", boxes=boxes)]
    placed = annotate(examples, batch_of(examples), COLUMNS)
    assert placed.face_boxes.message.startswith("bb.png")
    assert message in placed.face_boxes.message
    assert placed.person_mask.flatten(1).any(1).tolist() == [True, True]


def test_a_turned_picture_with_annotation_is_ambiguous():
    turned = example("a.png")
    of_file = Frame("a.png", (48, 32), (48, 32), orientation=6)
    turned["pixel_values"] = FollowedTensor.of(turned["pixel_values"].as_subclass(torch.Tensor), of_file)
    with pytest.raises(DataError, match="EXIF orientation 6"):
        annotate([turned], batch_of([turned]), COLUMNS)


def test_faults_wait_in_the_batch_for_their_turn():
    collate = Collate(batch_of, COLUMNS)
    placed, fault = (collate([e])[KEY] for e in (example(), example() | {"mask": "a_mask.png"}))
    assert isinstance(placed, Annotation)
    assert "holds str" in fault.message
    assert placed.to("cuda") is placed  # loops that move all that their batch holds
    assert fault.to("cuda") is fault
    with pytest.raises(DataError, match="is a Tensor"):
        Collate(lambda examples: torch.zeros(1), COLUMNS)([example()])
    assert Collate(lambda examples: 3, COLUMNS, strict=False)([example()]) == 3


def side_folder(folder, masks=("a",), boxes=("a",)):
    folder.mkdir(exist_ok=True)
    for stem in masks:
        Image.new("L", (48, 32), 1).save(folder / f"{stem}.png")
    for stem in boxes:
        (folder / f"{stem}.json").write_text(json.dumps({"face_boxes": [[2, 4, 10, 12]]}), encoding="utf-8")
    return SideFolder(folder)


def test_a_side_folder_is_searched_by_file_name(tmp_path):
    stored_of = side_folder(tmp_path / "masks", masks=("a", "b"), boxes=("b",))
    examples = [example("x/a.jpg", mask=None, boxes=None), example("x/b.webp", mask=None, boxes=None)]
    examples.append(example("x/c.png", mask=None, boxes=None))
    placed = annotate(examples, batch_of(examples), stored_of)
    assert placed.person_mask.flatten(1).any(1).tolist() == [True, True, False]
    assert [len(b) for b in placed.face_boxes] == [0, 1, 0]
    assert placed.on_record["person_mask"] == (True, True, False)
    assert placed.on_record["face_boxes"] == (False, True, False)


def training_set(folder, *rows):
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    Image.new("L", (48, 32), 1).save(folder / "masks" / "a.png")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


PERSON = [10.0, 8.0, 2, 12.0, 7.0, 2, 8.0, 7.0, 1] + [0.0] * 42  # nose, left eye, right eye


def test_keypoints_come_from_columns_files_and_training_sets_in_the_batchs_frame(tmp_path):
    examples = [example("x/a.png"), example("x/b.png", flip=True)]
    for row in examples:
        row["keypoints"] = [PERSON]
    nobody = example("x/c.png", mask=None, boxes=None) | {"keypoints": None}
    placed = annotate([*examples, nobody], batch_of([*examples, nobody]), COLUMNS)
    bare = [example(name, flip=name == "x/b.png", mask=None, boxes=None) for name in ("x/a.png", "x/b.png", "x/c.png")]
    (tmp_path / "files").mkdir()
    for stem in "ab":
        (tmp_path / "files" / f"{stem}.json").write_text(json.dumps({"keypoints": [PERSON]}), encoding="utf-8")
    rows = [{"file_name": f"images/{stem}.jpg", "keypoints": [PERSON]} for stem in "ab"]
    training_set(tmp_path / "set", *rows)
    stored = [annotate(bare, batch_of(bare), SideFolder(tmp_path / name)) for name in ("files", "set")]
    for one in (placed, *stored):
        upright, mirrored, none = one.keypoints
        assert upright.flatten().tolist() == PERSON
        assert mirrored[0, :3].tolist() == [[38.0, 8.0, 2.0], [40.0, 7.0, 1.0], [36.0, 7.0, 2.0]]  # eyes change names
        assert none.shape == (0, 17, 3)
    assert all(one.on_record["keypoints"] == (True, True, False) for one in (placed, *stored))
    assert all(one.person_mask is None for one in stored)
    of_files, of_set = stored
    assert 'a.json has no "face_boxes"' in of_files.face_boxes.message  # for a loss that needs them
    assert of_set.face_boxes is None


def test_keypoints_that_cannot_be_used_wait_for_a_loss_that_needs_them(tmp_path):
    picture = example("a.png", mask=None, boxes=None)
    (tmp_path / "0.json").write_text('{"keypoints": ["nose"]}', encoding="utf-8")  # of something else
    for record, message in (
        ({"face_boxes": []}, r'a\.json has no "keypoints"; expected '),
        ({"face_boxes": [], "keypoints": [PERSON[:9]]}, r"a\.json: the keypoints of person 1 are 9, expected 51"),
        ({"face_boxes": [], "keypoints": [[99.0, 99.0, 2] * 17]}, r"a\.png: the keypoints of person 1 all lie outside"),
    ):
        (tmp_path / "a.json").write_text(json.dumps(record), encoding="utf-8")
        placed = annotate([picture], batch_of([picture]), SideFolder(tmp_path))
        assert re.match(f".*{message}", placed.keypoints.message)
        assert [len(boxes) for boxes in placed.face_boxes] == [0]
    rows = [example("a.png") | {"keypoints": value} for value in ([[1.0, 2.0]] * 68, None)]  # another tool's landmarks
    placed = annotate(rows, batch_of(rows), COLUMNS)
    assert "a.png, column 'keypoints': the keypoints of person 1 are 2, expected 51" in placed.keypoints.message
    assert placed.person_mask.any()
    assert placed.on_record["keypoints"] == (True, False)


def test_a_training_set_is_a_side_folder(tmp_path, monkeypatch):
    """`mldm data` keeps boxes in its metadata.jsonl; there is no second place where they could be others."""
    rows = [
        {"file_name": "images/a.jpg", "mask_file_name": "masks/a.png", "face_boxes": [[2, 4, 10, 12]]},
        {"file_name": "images/b.png", "face_boxes": []},
    ]
    examples = [example("x/a.jpg", mask=None, boxes=None), example("x/b.webp", mask=None, boxes=None)]
    training_set(tmp_path / "people", *rows)
    monkeypatch.chdir(tmp_path)
    placed = annotate(examples, batch_of(examples), SideFolder(Path("people")))
    assert placed.person_mask.flatten(1).any(1).tolist() == [True, False]
    assert placed.face_boxes[0].tolist() == [[2, 4, 10, 12]]
    assert len(placed.face_boxes[1]) == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (({"file_name": "x/a.jpg"}, {"file_name": "y/a.png"}), "a second picture is called a"),
        (({"file_name": "a.jpg", "mask_file_name": "../masks/a.png"},), "leaves the folder"),
        (({"text": "nobody"},), "line 1: expected an object with a file_name"),
        ((), "holds neither"),
    ],
)
def test_a_training_set_that_cannot_be_used(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        SideFolder(training_set(tmp_path / "people", *rows))


def test_a_side_folder_without_boxes_offers_none(tmp_path):
    examples = [example("a.jpg", mask=None, boxes=None)]
    placed = annotate(examples, batch_of(examples), side_folder(tmp_path / "masks", boxes=()))
    assert placed.face_boxes is None


def test_a_side_folder_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        SideFolder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds neither NAME\.png nor NAME\.json"):
        SideFolder(tmp_path / "empty")
    stored_of = side_folder(tmp_path / "masks")
    unnamed = example("", mask=None, boxes=None)
    with pytest.raises(DataError, match="file name is not known"):
        annotate([unnamed], batch_of([unnamed]), stored_of)
    named = example("a.png", mask=None, boxes=None)
    for text, message in (("{", "cannot be read as JSON"), ("[]", 'no "face_boxes"'), ("[" * 99999, "cannot be read")):
        (tmp_path / "masks" / "a.json").write_text(text, encoding="utf-8")
        placed = annotate([named], batch_of([named]), stored_of)
        assert message in placed.face_boxes.message
        assert placed.person_mask.any()  # for losses that need no boxes
    (tmp_path / "masks" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot be read"):
        annotate([named], batch_of([named]), stored_of)


def seen(names, unmasked=()):
    return [(name, name not in unmasked) for name in names]


def test_coverage_is_reported_once_after_one_pass(capsys):
    coverage = Coverage()
    coverage.add(seen(["a", "b"], ["b"]))
    coverage.add(seen(["c"]))
    coverage.add(seen(["b"], ["b"]))
    assert capsys.readouterr().err == ""
    coverage.add(seen(["b", "a"] * 50, ["b"]))
    assert "1 of 3 pictures have no mask" in capsys.readouterr().err
    coverage.add(seen(["d"], ["d"]))
    coverage.conclude()
    assert capsys.readouterr().err == ""


def test_a_script_that_repeats_its_pictures_is_given_time():
    coverage = Coverage(by_stem=True)
    for _ in range(20):
        coverage.add(seen(["a", "b", "a"], ["a", "b"]))
    coverage.add(seen(["c"]))  # the one that has a mask
    coverage.conclude()
    coverage = Coverage(by_stem=True)
    coverage.add(seen(["a"] * 100, ["a"]))
    with pytest.raises(DataError, match="none of the 1 pictures"):
        coverage.add(seen(["a"], ["a"]))


def test_coverage_of_none_is_warned_about_and_stops_in_the_end(capsys):
    many = [str(i) for i in range(500)]
    coverage = Coverage(by_stem=True)
    coverage.add(seen(many[:50], many))
    coverage.add(seen(many[50:99], many))
    assert capsys.readouterr().err.count("none of the first 50 pictures has a mask") == 1
    with pytest.raises(DataError, match="none of the 500 pictures"):
        coverage.add(seen(many[99:], many))
    coverage = Coverage()
    coverage.add(seen(["a"], ["a"]))
    with pytest.raises(DataError, match="none of the 1 pictures"):
        coverage.conclude()


def test_pictures_read_from_memory_are_not_taken_for_each_other(capsys):
    coverage = Coverage()
    for _ in range(3):
        coverage.add(seen(["", ""], [""]))
    coverage.add(seen(["named"]))
    assert capsys.readouterr().err == ""
    coverage.conclude()
    assert "6 of 7 pictures have no mask" in capsys.readouterr().err


def test_boxes_alone_are_covered_too():
    coverage = Coverage("face boxes", by_stem=True)
    coverage.add([("a", False)])
    with pytest.raises(DataError, match="none of the 1 pictures that came by has face boxes"):
        coverage.conclude()


def test_one_process_of_several_only_warns(capsys):
    coverage = Coverage(alone=False)
    coverage.add(seen(["a"], ["a"]))
    coverage.conclude()
    assert "warning: none of the 1 pictures" in capsys.readouterr().err


def test_two_pictures_that_would_share_a_mask_of_the_side_folder():
    coverage = Coverage(by_stem=True)
    coverage.add(seen(["x/1.jpg", "x/1.jpg"]))
    with pytest.raises(DataError, match="would share the mask"):
        coverage.add(seen(["y/1.jpg"]))


@pytest.mark.parametrize("hue", [-11, 11])  # of 256, as far as kohya's scripts turn it
def test_another_hue_is_no_other_place(tmp_path, hue):
    source = Image.fromarray(SCENES[1].pixels())
    source.save(tmp_path / "a.png")
    hsv = np.array(source.convert("HSV"))
    hsv[..., 0] += np.uint8(hue % 256)
    turned = F.to_tensor(Image.fromarray(hsv, "HSV").convert("RGB")) * 2 - 1
    frame = Frame(str(tmp_path / "a.png"), source.size, source.size)
    assert check_placement(turned, frame, {}, "a.png").likeness > 0.99
    with pytest.raises(DataError, match="its mask would lie elsewhere"):
        check_placement(turned.flip(-1), frame, {}, "a.png")


def test_placement_tells_a_picture_from_its_mirror_image(tmp_path):
    torch.manual_seed(0)
    source = F.to_pil_image(
        torch.nn.functional.interpolate(torch.rand(1, 3, 8, 12), (64, 96), mode="bicubic")[0].clamp(0, 1)
    )
    source.save(tmp_path / "a.png")
    tensor = F.to_tensor(source) * 2 - 1
    frame = Frame(str(tmp_path / "a.png"), (96, 64), (96, 64))
    placement = check_placement(tensor, frame, {}, "a.png")
    assert placement.distance < 0.01
    assert placement.likeness > 0.999
    darker = check_placement(tensor * 0.5 - 0.4, frame, {}, "a.png")  # colours may change
    assert darker.likeness > 0.99
    with pytest.raises(DataError, match="its mask would lie elsewhere"):
        check_placement(tensor.flip(-1), frame, {}, "a.png")
    with pytest.raises(DataError, match="its mask would lie elsewhere"):
        check_placement(tensor.roll(12, -1), frame, {}, "a.png")
    assert check_placement(tensor, Frame("gone.png", (96, 64), (96, 64)), {}, "gone.png") is None
