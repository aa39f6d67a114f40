"""The demo, for real: `python -m mldm_plugin.demo` with few steps, and its pieces."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from run_trainer import run_here
from weights_entries import needs_weights

from mldm_plugin.demo import __main__ as demo
from mldm_plugin.demo import compare
from mldm_plugin.demo.__main__ import FLAGS, Training, make_room, seconds_a_step, training_command
from mldm_plugin.demo.compare import Drawn, Judge, faces_side_by_side, found_face, interval, pictures_of
from mldm_plugin.demo.photos import HELD_OUT, LEARNT, SHOWN, TUNED_ON, photos_of
from mldm_plugin.errors import DataError

pytest.importorskip("openpeople")


@pytest.fixture
def trainer_here(monkeypatch):
    """The trainer that `accelerate launch` would start, in this process, which has made its imports."""
    from mldm_plugin.training.text_to_image_lora import main

    def run(command, **_):
        launcher, module = command.index("accelerate.commands.launch"), command.index("-m", 3)
        assert launcher < module
        assert command[module + 1] == "mldm_plugin.training.text_to_image_lora"
        assert run_here(main, command[module + 2 :]) == 0

    monkeypatch.setattr(demo.subprocess, "run", run)


@needs_weights("alexnet", "vgg16", "dlib_resnet", "mtcnn")
def test_the_demo_trains_three_times_and_compares(trainer_here, tmp_path, monkeypatch, capfd):
    out = tmp_path / "run"
    monkeypatch.setattr(compare, "STEPS", 4)
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(out), "--steps", "3", "--photos", "1"])
    assert demo.main() == 0
    told, logged = capfd.readouterr()
    assert told.count("$ accelerate launch") == 3
    assert told.count("--loss-plugin mldm --preset demo") == 1
    assert logged.count("reaches the network") == 2
    assert "alexnet from " in logged
    assert "(CC0)" in logged
    assert "random" not in logged
    results = json.loads((out / "results.json").read_text())
    assert list(results) == ["plain loss", "plain loss, same time", "Masked LDM"]
    plain, same_time, masked = results.values()
    assert plain["steps"] == masked["steps"] == 3 < same_time["steps"]
    assert all(0 < row[name] < 2 for row in results.values() for name in ("face", "person"))
    with Image.open(out / "new.png") as new, Image.open(out / "restored.png") as restored:
        assert new.size == restored.size
        assert not np.array_equal(np.asarray(new), np.asarray(restored))


def test_the_commands_differ_in_the_losses_alone(tmp_path):
    plain = Training("plain", tmp_path / "a", 7)
    masked = Training("masked", tmp_path / "a", 7, ("--loss-plugin", "mldm"))
    one, other = (training_command(t, tmp_path) for t in (plain, masked))
    assert [word for word in other if word not in one] == ["--loss-plugin", "mldm"]
    assert {"--seed", "--cache_latents", *FLAGS} <= set(one)


def test_a_finished_demo_starts_anew_and_another_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="holds something else than a demo run"):
        make_room(tmp_path)
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / "data" / "metadata.jsonl").write_text("")
    make_room(out)
    assert (out / "data").exists()  # it goes on
    (out / "results.json").write_text("{}")
    make_room(out)
    assert not out.exists()
    make_room(out)
    assert (tmp_path / "thesis.txt").exists()


def test_the_time_of_a_step_leaves_out_what_lies_between_two_processes(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    for name, times in (("one", (100, 101, 102)), ("two", (5000, 5004))):
        writer = SummaryWriter(str(tmp_path / "logs" / name))
        for step, time in enumerate(times):
            writer.add_scalar("loss", 1.0, step, walltime=time)
        writer.close()
    assert seconds_a_step(tmp_path) == pytest.approx((2 + 4) / 3)


@needs_weights("vgg16", "dlib_resnet", "mtcnn")
def test_the_judge_knows_a_face_from_another_one_and_sharp_from_blurred():
    photos = photos_of(SHOWN, HELD_OUT[:2])
    judge = Judge(photos)
    own, others = pictures_of(photos), pictures_of(photos_of(TUNED_ON, HELD_OUT[:2]))
    learnt = pictures_of(photos_of(SHOWN, LEARNT[:2]))
    blurred = torch.nn.functional.avg_pool2d(own, 5, 1, 2)
    same = judge(Drawn(learnt, own))
    assert same["face"].abs().max() < 1e-6
    assert same["person"].abs().max() < 1e-6
    worse = judge(Drawn(others, blurred))
    assert (worse["face"] > 0.1).all()
    assert (worse["person"] > 0.1).all()
    assert (worse["identity"] > same["identity"] + 0.15).all()
    assert judge(Drawn(torch.zeros_like(own), own))["identity"].isinf().all()  # no face is the worst
    twice = judge(Drawn(learnt.repeat(2, 1, 1, 1), own.repeat(2, 1, 1, 1)))
    assert torch.allclose(twice["identity"], same["identity"].repeat(2))


@needs_weights("mtcnn")
def test_a_face_is_found_where_it_is():
    (photo,) = photos_of(SHOWN, HELD_OUT[:1])
    box = found_face(pictures_of([photo])[0])[0]
    wanted = torch.tensor(photo.face) / 2
    assert (box - wanted).abs().max() < 8
    assert found_face(torch.zeros(3, 128, 128)) is None


def test_the_interval_is_of_pairs():
    worse = torch.randn(400, generator=torch.Generator().manual_seed(0)) * 10
    better = worse - 1 + 0.1 * torch.randn(400, generator=torch.Generator().manual_seed(1))
    low, high = interval(better, worse)
    assert -1.03 < low < -1 < high < -0.97
    low, high = interval(worse.flip(0), worse)
    assert low < 0 < high
    better[0] = torch.inf  # a face that was not found has no distance
    assert interval(better, worse)[1] < -0.97


def test_faces_stand_side_by_side():
    photos = photos_of(SHOWN, HELD_OUT[:3])
    sheet = faces_side_by_side(photos, {"one": pictures_of(photos), "other": -pictures_of(photos)})
    assert sheet.width > 3 * 160
    assert sheet.height > 3 * 160
