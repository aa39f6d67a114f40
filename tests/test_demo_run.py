"""The demo with few steps, its trainings in this process, and its pieces."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from run_trainer import run_here
from weights_entries import needs_weights

from mldm_plugin.demo import __main__ as demo
from mldm_plugin.demo import compare
from mldm_plugin.demo.__main__ import FLAGS, Training, make_room, seconds_a_step, training_command
from mldm_plugin.demo.compare import (
    Drawn,
    Judge,
    Painter,
    everywhere,
    faces_side_by_side,
    found_face,
    interval,
    pictures_of,
)
from mldm_plugin.demo.photos import HELD_OUT, LEARNT, SHOWN, TUNED_ON, photos_of
from mldm_plugin.errors import DataError, MldmError
from mldm_plugin.people_mini import PIPELINE

pytest.importorskip("openpeople")


@pytest.fixture
def trainer_here(monkeypatch):
    """The trainer that `accelerate launch` would start, in this process, which has made its imports. Returns what was
    started."""
    from mldm_plugin.training.text_to_image_lora import main

    started = []

    def run(command, **_):
        module = command.index("-m", 3)
        assert command[1:3] == ["-m", "accelerate.commands.launch"]
        assert command[module + 1] == "mldm_plugin.training.text_to_image_lora"
        started.append(command)
        return SimpleNamespace(returncode=run_here(main, command[module + 2 :]))

    monkeypatch.setattr(demo.subprocess, "run", run)
    return started


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
    assert plain["steps"] == masked["steps"] == 3
    assert all(0 < row[name] < 2 for row in results.values() for name in ("face", "person"))
    assert plain["interval"]["face"] is None  # of one photograph
    assert f"{same_time['steps']} steps" in told
    with Image.open(out / "new.png") as new, Image.open(out / "restored.png") as restored:
        assert new.size == restored.size
        assert not np.array_equal(np.asarray(new), np.asarray(restored))
    (out / "results.json").unlink()  # as if it had been killed while it compared
    del trainer_here[:]
    assert demo.main() == 0
    assert not trainer_here
    again = json.loads((out / "results.json").read_text())
    assert {k: row["face"] for k, row in again.items()} == {k: row["face"] for k, row in results.items()}


def test_a_training_that_ends_early_stops_the_demo(monkeypatch, tmp_path):
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    with pytest.raises(MldmError, match="ended early.*goes on from there"):
        demo.train(Training("plain", tmp_path / "plain", 3), tmp_path)


def test_each_model_draws_from_the_same_noise(tmp_path, monkeypatch):
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    monkeypatch.setattr(compare, "STEPS", 4)
    unet = StableDiffusionPipeline.from_pretrained(PIPELINE, safety_checker=None).unet
    unet.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    StableDiffusionPipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(unet))
    painter = Painter(PIPELINE, photos_of(TUNED_ON, HELD_OUT[:1]))
    bare, lora, again = painter(None), painter(tmp_path), painter(None)
    for name in ("new", "restored"):
        assert torch.equal(getattr(bare, name), getattr(again, name))
        assert not torch.allclose(getattr(bare, name), getattr(lora, name), atol=0.02)
        assert not torch.allclose(*getattr(bare, name), atol=0.02)  # two noises


@pytest.mark.timeout(200)
def test_its_command_line_is_one_that_accelerate_launches(tmp_path):
    """A real process, up to what the trainer says of a folder without pictures."""
    command = training_command(Training("plain", tmp_path / "out", 2), tmp_path / "nothing")
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert str(tmp_path / "nothing") in done.stderr


def test_the_commands_differ_in_the_losses_alone(tmp_path):
    plain = Training("plain", tmp_path / "a", 7)
    masked = Training("masked", tmp_path / "a", 7, ("--loss-plugin", "mldm"))
    one, other = (training_command(t, tmp_path) for t in (plain, masked))
    assert [word for word in other if word not in one] == ["--loss-plugin", "mldm"]
    assert {"--seed", "--cache_latents", *FLAGS} <= set(one)


def test_a_folder_is_the_demos_only_if_it_says_so(tmp_path):
    asked = {"person": "P008", "steps": 3}
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    for name in ("thesis.tex", "results.json", "data/metadata.jsonl"):
        (project / name).write_text("years of work")
    with pytest.raises(DataError, match="holds something else than a demo run"):
        make_room(project, asked)
    assert len(list(project.rglob("*"))) == 4
    with pytest.raises(DataError, match="something else"):
        make_room(project / "thesis.tex", asked)
    out = tmp_path / "out"
    make_room(out, asked)
    (out / "plain").mkdir()
    make_room(out, asked)  # it goes on
    assert (out / "plain").exists()
    with pytest.raises(DataError, match="unfinished demo with.*P008.*now it is.*P009"):
        make_room(out, {"person": "P009", "steps": 3})
    (out / "results.json").write_text("{}")
    make_room(out, {"person": "P009", "steps": 3})
    assert not (out / "plain").exists()


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
    spoilt = torch.where(judge.masks > 0, own, -own)
    assert judge(Drawn(learnt, spoilt))["person"].max() < 0.5 * judge(Drawn(learnt, -own))["person"].min()
    twice = judge(Drawn(learnt.repeat(2, 1, 1, 1), own.repeat(2, 1, 1, 1)))
    assert torch.allclose(twice["identity"], same["identity"].repeat(2))


@needs_weights("mtcnn")
def test_a_face_is_found_where_it_is():
    (photo,) = photos_of(SHOWN, HELD_OUT[:1])
    box = found_face(pictures_of([photo])[0])[0]
    wanted = torch.tensor(photo.face) / 2
    assert (box - wanted).abs().max() < 8
    assert found_face(torch.zeros(3, 128, 128)) is None


def test_the_interval_is_students_of_the_photographs():
    """Differences of five photographs, mean −1, standard deviation 0.5, whatever the noises add: t is 2.776."""
    photos = torch.tensor([-1.5, -1.25, -1, -0.75, -0.5]) * torch.tensor(0.5 / 0.3952847)
    photos = photos - photos.mean() - 1
    gaps = torch.cat([photos + 0.3, photos - 0.3])
    low, high = interval(gaps + 7, torch.full((10,), 7.0), 5)
    assert (low, high) == pytest.approx((-1 - 2.7764 * 0.5 / 5**0.5, -1 + 2.7764 * 0.5 / 5**0.5), abs=1e-3)
    assert interval(gaps[:4], gaps[:4], 4) is None
    gaps[[0, 5]] = torch.inf  # a photograph whose faces were not found
    assert interval(gaps, torch.zeros(10), 5) is None


def test_only_pictures_with_a_face_from_everybody_count():
    found = [{"identity": torch.tensor([0.5, torch.inf, 0.2])}, {"identity": torch.tensor([torch.inf, 0.5, 0.2])}]
    assert everywhere(found).tolist() == [False, False, True]


def test_faces_stand_side_by_side():
    photos = photos_of(SHOWN, HELD_OUT[:3])
    sheet = faces_side_by_side(photos, {"one": pictures_of(photos), "other": -pictures_of(photos)})
    assert sheet.width > 3 * 160
    assert sheet.height > 3 * 160
