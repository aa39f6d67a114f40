"""Keypoints read from a data set, and hints, masks and colours that follow what is drawn for their picture."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPTokenizer

from mldm_plugin.data.annotations import parse_keypoints
from mldm_plugin.data.batch import Keypoints, checked, collate
from mldm_plugin.data.load import check_rows, open_rows
from mldm_plugin.data.training_set import Columns, TrainingSet
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.engine.term import Term
from mldm_plugin.errors import DataError
from mldm_plugin.training.trainer import annotation_of

PERSON = [v for k in range(17) for v in (24 + k / 2, 30 + k, k % 3)]
ALL = Columns(mask="mask", boxes="face_boxes", keypoints="keypoints")
AUGMENTED = {"random_crop": True, "random_flip": True, "color_jitter": (0.4, 0.4, 0.4, 0.1)}


@pytest.fixture(scope="module")
def tokenizer(tiny_pipeline):
    return CLIPTokenizer.from_pretrained(tiny_pipeline / "tokenizer")


@pytest.fixture
def open_set(tokenizer):
    def open_set(folder: Path, columns: Columns = ALL, **options) -> TrainingSet:
        return TrainingSet(open_rows(None, folder=str(folder)), columns, resolution=64, tokenizer=tokenizer, **options)

    return open_set


def with_people(*numbers: int) -> dict:
    return {i: {"keypoints": [PERSON] * n} for i, n in enumerate(numbers)}


def test_keypoints_reach_the_step_and_stay_on_the_cpu(open_set, make_data, tmp_path):
    data = open_set(make_data(tmp_path / "data", 3, rows=with_people(2, 0, 1)))
    loader = DataLoader(data, batch_size=3, collate_fn=collate, num_workers=1)
    batch = send_to_device(next(iter(loader)), torch.device("meta"))
    assert batch["pixel_values"].device.type == "meta"
    people = batch["keypoints"]
    assert isinstance(people, Keypoints)
    assert [p.shape for p in people] == [(2, 17, 3), (0, 17, 3), (1, 17, 3)]
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 for p in people)
    # Picture 2 is 64x64, as it is trained: nothing moves, and what is not labelled is 0.
    stored = torch.tensor(PERSON).reshape(17, 3)
    assert people[2][0].equal(torch.where(stored[:, 2:] > 0, stored, 0.0))

    latents = torch.zeros(3, 4, 8, 8)
    same = dict.fromkeys(("latents", "noise", "noisy_latents", "model_pred", "target"), latents)
    step = DiffusionStep(**same, timesteps=torch.zeros(3), **annotation_of({"keypoints": people}))
    assert [len(p) for p in step.select([2, 0]).keypoints] == [1, 2]
    with pytest.raises(DataError, match="keypoints is for 2 images, expected 3"):
        DiffusionStep(**same, timesteps=torch.zeros(3), keypoints=people[:2])
    with pytest.raises(DataError, match=r"keypoints have shape \(1, 5, 3\)"):
        DiffusionStep(**same, timesteps=torch.zeros(3), keypoints=[torch.zeros(1, 5, 3)] * 3)


def test_without_the_column_there_are_none(open_set, tiny_data):
    example = open_set(tiny_data, Columns(mask="mask", boxes="face_boxes"))[0]
    assert example.keypoints is None
    assert "keypoints" not in collate([example])


BAD = {
    "numbers": ([PERSON[:-1]], "the keypoints of person 1 are 50, expected 51 numbers"),
    "labels": ([PERSON, [*PERSON[:-1], 3]], "of person 2 have v = 3"),
    "outside": ([[v + 500 * (i % 3 < 2) for i, v in enumerate(PERSON)]], "of person 1 all lie outside the picture"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_keypoints_name_their_picture(open_set, make_data, tmp_path, case):
    people, words = BAD[case]
    data = open_set(make_data(tmp_path / "data", 3, rows=with_people(1, 1, 1) | {1: {"keypoints": people}}))
    check_rows(data, [0, 2])
    for look in (lambda: check_rows(data, range(3)), lambda: checked(collate(data.__getitems__([0, 1])))):
        with pytest.raises(DataError, match=words) as error:
            look()
        assert "1.png" in str(error.value)


def test_keypoints_that_json_cannot_say():
    for bad in (math.nan, math.inf, "x", True, None):
        with pytest.raises(DataError, match=r"a\.png: the keypoints of person 1 hold .*, expected finite numbers"):
            parse_keypoints([[bad, *PERSON[1:]]], "a.png")
    with pytest.raises(DataError, match="expected a list with 51 numbers"):
        parse_keypoints(7, "a.png")
    with pytest.raises(DataError, match="of person 1 are 7, expected 51"):
        parse_keypoints([7], "a.png")
    assert parse_keypoints(None, "a.png").shape == (0, 17, 3)
    for kind in (np.float32, np.float64, np.int64):  # as `datasets` may give them
        given = np.array([PERSON]).astype(kind)
        assert torch.equal(parse_keypoints(given, "a.png"), torch.tensor(given).float().reshape(1, 17, 3))


def test_a_turned_picture_with_keypoints_is_refused(open_set, make_data, tmp_path):
    rows = {i: {"mask_file_name": None, "face_boxes": [], "keypoints": [PERSON]} for i in range(2)}
    folder = make_data(tmp_path / "data", 2, rows=rows)
    with Image.open(folder / "1.png") as picture:
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(folder / "1.png", exif=exif)
    data = open_set(folder, Columns(keypoints="keypoints"))
    for look in (lambda: data.look(1), lambda: check_rows(data, [1])):
        with pytest.raises(DataError, match="boxes or keypoints and is stored turned"):
            look()


def test_the_hint_follows_its_picture_and_keeps_its_colours(open_set, tmp_path):
    """The hint is the picture itself, so whatever is drawn, both show the same, but for the colours."""
    folder, numbers = tmp_path / "data", np.random.default_rng(0)
    folder.mkdir()
    lines = []
    for i, (width, height) in enumerate([(150, 100), (90, 140), (80, 80)]):
        picture = Image.fromarray(numbers.integers(60, 190, (height, width, 3), dtype=np.uint8))
        for name in (f"{i}.png", f"{i}_hint.png"):
            picture.save(folder / name)
        lines.append(
            json.dumps({"file_name": f"{i}.png", "text": "a", "conditioning_image_file_name": f"{i}_hint.png"})
        )
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    same = open_set(folder, Columns(), framing=AUGMENTED | {"color_jitter": None})
    torch.manual_seed(0)
    drawn = [same[i] for i in (0, 1, 2) * 4]
    assert len({e.pixel_values.sum().item() for e in drawn}) > 6
    for example in drawn:
        assert (example.conditioning_pixel_values * 2 - 1 - example.pixel_values).abs().max() < 1e-6
    coloured = open_set(folder, Columns(), framing={"color_jitter": (0.4, 0.4, 0.4, 0.1)})
    plain, example = same.look(1), coloured[1]
    assert example.conditioning_pixel_values.equal(plain.conditioning_pixel_values)
    assert (example.pixel_values - plain.pixel_values).abs().mean() > 0.02
    assert coloured.look(1).pixel_values.equal(plain.pixel_values)


def test_a_hint_of_another_shape_cannot_be_cropped_with_its_picture(open_set, make_data, tmp_path):
    folder = make_data(tmp_path / "data", 2)
    Image.new("RGB", (96, 80)).save(folder / "0_hint.png")  # of a picture of 80x96
    assert open_set(folder, Columns(), framing={"random_flip": True})[0].conditioning_pixel_values.shape == (3, 64, 64)
    with pytest.raises(DataError, match=r"0_hint.png is 96x80, its picture 80x96.*without --random_crop"):
        open_set(folder, Columns(), framing={"random_crop": True})[0]


def test_a_skipped_batch_draws_its_colours(open_set, tiny_data):
    columns = Columns(mask="mask", boxes="face_boxes")
    for framing in (AUGMENTED, {"color_jitter": (0.2, 0, 0, 0)}):
        data = open_set(tiny_data, columns, framing=framing)
        torch.manual_seed(5)
        random.seed(5)
        whole = [data.__getitems__([i, i + 1]) for i in (0, 2, 4)]
        torch.manual_seed(5)
        random.seed(5)
        data.skip_batches(2)
        parts = [data.__getitems__([i, i + 1]) for i in (0, 2, 4)]
        assert parts[:2] == [[], []]
        assert all(a.pixel_values.equal(b.pixel_values) for a, b in zip(parts[2], whole[2], strict=True))
        assert all(a.person_mask.equal(b.person_mask) for a, b in zip(parts[2], whole[2], strict=True))


LOSS = """
from mldm_plugin import hookimpl

class Pose:
    needs = frozenset({"keypoints"})
    def __call__(self, step):
        there = [float((p[..., 2] > 0).sum()) for p in step.keypoints]
        return step.model_pred.square().flatten(1).mean(dim=1) + step.model_pred.new_tensor(there) * 1000

@hookimpl
def register_losses(register):
    register("pose", Pose)
"""


def test_a_loss_of_the_users_own_sees_keypoints_in_training(train, make_data, tmp_path, capsys):
    """Each person adds a thousand times its eleven labelled points; a picture without any does not reach the loss."""
    (tmp_path / "pose.py").write_text(LOSS)
    (tmp_path / "pose.yaml").write_text("losses:\n  pose: {weight: 1.0, max_timestep: null}\n")
    data = make_data(tmp_path / "data", 4, rows=with_people(0, 2, 2, 2))
    flags = ["--loss-plugin", tmp_path / "pose.py", "--preset", tmp_path / "pose.yaml", "--train_data_dir", data]
    flags += ["--panel_steps", 1, "--max_train_steps", 1, "--random_flip"]
    assert train(tmp_path / "run", *flags, "--train_batch_size", 4) == 0
    (record,) = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert record["pose"] // 1000 == 22
    assert record["pose/gated"] == 3
    assert train(tmp_path / "without", *flags, "--keypoints_column", "none") == 1
    assert "needs keypoints, but the data set has no such column (--keypoints_column)" in capsys.readouterr().err
    nobody = make_data(tmp_path / "nobody", 4, rows=with_people(0, 0, 0, 0))
    assert train(tmp_path / "none", *flags, "--train_data_dir", nobody) == 1
    assert "no keypoint anywhere in the 4 pictures" in capsys.readouterr().err


def test_people_without_a_labelled_point_have_no_keypoints():
    class Pose:
        needs = frozenset({"keypoints"})

    same = dict.fromkeys(("latents", "noise", "noisy_latents", "model_pred", "target"), torch.zeros(3, 4, 8, 8))
    labelled = torch.zeros(2, 17, 3)
    labelled[1, 5] = torch.tensor([3.0, 4.0, 1.0])
    people = [torch.zeros(1, 17, 3), labelled, torch.zeros(0, 17, 3)]
    step = DiffusionStep(**same, timesteps=torch.zeros(3), keypoints=people)
    assert Term("pose", Pose(), 1.0).has(step).tolist() == [False, True, False]
