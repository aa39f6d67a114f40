"""`mldm reproduce`: the commands it prints, the trainings it runs and takes up again, and one comparison from end to
end."""

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from weights_entries import needs_weights

from mldm_plugin import load_plugins, load_preset
from mldm_plugin.cli import main
from mldm_plugin.errors import MldmError
from mldm_plugin.reproduce import figure3
from mldm_plugin.reproduce.commands import Command, Training, seconds_a_step, stop
from mldm_plugin.reproduce.recipes import RECIPES, Arm, Recipe
from mldm_plugin.reproduce.run import Reproduction, claim
from mldm_plugin.reproduce.scales import FIRST_TEST, FIRST_TUNING, Mini, MiniWithKeypoints, Paper, losses_of
from mldm_plugin.stopping import stopping_in_order
from mldm_plugin.training.command_line import parse, resolve
from mldm_plugin.training.flags import ControlNetFlags


def told(*words):
    result = CliRunner().invoke(main, ["reproduce", *words])
    return result.exit_code, result.output


def flags_of(training):
    """As the trainer reads them, the preset's among them."""
    given = parse(ControlNetFlags, training.words[2:])
    return resolve(ControlNetFlags, given, load_preset(given["preset"]).training)


@pytest.mark.parametrize("scale", ["mini", "paper"])
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "likeness" and not RECIPES[name].family])
def test_every_arm_is_a_command_that_its_trainer_and_preset_take(name, scale, tmp_path):
    plugins = load_plugins()
    made = Mini(tmp_path, 20) if scale == "mini" else Paper(tmp_path, tmp_path / "coco", steps=20)
    seen = set()
    for arm in RECIPES[name].arms:
        if arm.preset is None:
            continue
        training = made.training(arm, 3, 20)
        flags = flags_of(training)
        assert (flags.seed, flags.max_train_steps) == (3, 20)
        assert flags.conditioning == "none"
        preset = load_preset(flags.preset, flags.set or (), plugins=plugins)
        seen.add((preset.model_copy(update={"training": {}}).dump(), arm.as_long_as))
    assert len(seen) == sum(arm.preset is not None for arm in RECIPES[name].arms), "two arms are the same training"


def test_the_arms_of_the_study_are_what_they_are_called(tmp_path):
    arms = {arm.name: arm for arm in RECIPES["evidence"].arms}
    plugins = load_plugins()

    def preset(name):
        flags = flags_of(Mini(tmp_path, 2).training(arms[name], 0, 2))
        return load_preset(flags.preset, flags.set or (), plugins=plugins)

    t100, t400, additive, released = (preset(n) for n in ("t100", "t400", "additive", "released"))
    for one, gate in ((t100, 100), (t400, 400), (additive, 400), (released, 100)):
        assert {loss.max_timestep for loss in one.losses.values()} == {gate}
        assert one.losses["face"].options["network"] == "dlib_resnet"
        assert {loss.detach for loss in one.losses.values()} == {one is released}
    assert (t100.combine, additive.combine) == ("convex", "additive")
    assert [loss.weight for loss in t400.losses.values()] == [0.2, 0.5]
    assert preset("p2").base.weighting == "p2"
    assert preset("plain").losses == preset("plain_t400").losses == {}
    [masked] = preset("masked_mse").losses.values()
    assert (masked.weight, masked.max_timestep) == (0.5, None)


def test_short_studies_add_one_loss_each_and_hands_are_known(tmp_path):
    plugins, arms = load_plugins(), RECIPES["losses"].arms
    scale = MiniWithKeypoints(tmp_path, 2)
    for arm in arms:
        flags = flags_of(scale.training(arm, 0, 2))
        preset = load_preset(flags.preset, flags.set or (), plugins=plugins)
        assert list(preset.losses) == ([] if arm.name == "plain" else [arm.name])
        for loss in preset.losses.values():
            assert (preset.combine, loss.balance, loss.weight) == ("additive", "gradient", 0.25)
            assert loss.max_timestep == (None if arm.name == "masked_mse" else 400)
    assert all("--keypoints" in command.words for command in scale.data())
    status, output = told("losses", "--out", str(tmp_path / "out"), "--dry-run")
    assert status == 0
    assert sum(line.startswith("accelerate launch") for line in output.splitlines()) == 3 * len(arms)
    assert "--keypoints" in output
    assert "--prompts 0" in output.splitlines()[-1]


def test_nobody_is_tuned_on_who_is_tested_on(tmp_path):
    """Drawings to train on, to tune on and to test on have no number in common, and people-mini saw none."""
    test, tuning = Mini(tmp_path, 2), Mini(tmp_path, 2, tuning=True)
    commands = [shlex.join(c.words) for one in (test, tuning) for c in one.data()]
    assert commands[0] == commands[2]
    assert f"--start {FIRST_TEST} " in commands[1]
    assert f"--start {FIRST_TUNING} " in commands[3]
    assert all(("--held-out" in c) == (i % 2 == 1) for i, c in enumerate(commands))
    assert 40 * max(test.pictures, test.held_out * 10) < 1_000_000, "they would reach the next one's numbers"


def test_a_dry_run_prints_commands_and_makes_nothing(tmp_path):
    out = tmp_path / "out"
    status, output = told("evidence", "--seeds", "2", "--out", str(out), "--dry-run")
    assert status == 0
    lines = output.splitlines()
    assert sum(line.startswith("accelerate launch") for line in lines) == 2 * 11
    assert sum("as many steps as t400 has time for" in line for line in lines) == 2
    assert lines[-1].startswith("mldm evaluate --model plain=")
    assert lines[-1].count("--model t100=") == 2
    assert lines[-1].count("--model base=") == 1
    assert not out.exists()


def test_the_papers_scale_says_what_it_costs(tmp_path):
    status, output = told("table1", "--scale", "paper", "--out", str(tmp_path / "out"), "--dry-run")
    assert status == 0
    assert "--target-count 37470" in output
    assert "--target-count 1565" in output
    assert "--sampler ddim --steps 50 --guidance 9" in output
    assert "187350 steps of 2 pictures" in output
    assert "449640 steps of 1 picture" in output


def test_a_folder_of_something_else_or_of_other_settings_is_refused(tmp_path):
    out = tmp_path / "out"
    claim(Mini(out, 20), "table1")
    claim(Mini(out, 20), "table1")
    with pytest.raises(MldmError, match="steps 20, now 30: give the same again"):
        claim(Mini(out, 30), "table1")
    with pytest.raises(MldmError, match="tuning False, now True"):
        claim(Mini(out, 20, tuning=True), "table1")
    with pytest.raises(MldmError, match="name table1, now p2"):
        claim(Mini(out, 20), "p2")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(MldmError, match="holds something else"):
        claim(Mini(tmp_path, 20), "table1")


class Counting(Mini):
    """Trainings that are programs of a few lines."""

    def training(self, arm, seed, steps):
        return Program(f"{arm.name}-s{seed}", self.out / "runs" / f"{arm.name}-s{seed}", arm.what, steps, ())


class Program(Training):
    """Logs a line a step, goes on where it was, and ends in good order when it is asked to."""

    TEXT = """
import pathlib, signal, sys, time
folder, steps, kind = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
signal.signal(signal.SIGTERM, lambda *_: (folder / "asked").touch() or sys.exit(0))
folder.mkdir(parents=True, exist_ok=True)
done = (folder / "metrics.jsonl").read_text().count("\\n") if (folder / "metrics.jsonl").exists() else 0
for step in range(done, steps):
    time.sleep(0.05 if kind == "quick" else 30)
    with (folder / "metrics.jsonl").open("a") as log:
        log.write("{}\\n")
    if kind == "broken":
        end = time.monotonic() + 10
        while len(list(folder.parent.iterdir())) < 2 and time.monotonic() < end:  # the other can be asked to stop
            time.sleep(0.02)
        sys.exit("mldm: the weights are gone,\\n  both of them")
(folder / "pytorch_lora_weights.safetensors").touch()
"""

    def start(self, threads, out=None):
        words = [sys.executable, "-c", self.TEXT, str(self.folder), str(self.steps), self.trainer]
        return subprocess.Popen(words, stdout=out, stderr=out, start_new_session=True)


def reproduction(tmp_path, monkeypatch, *kinds, jobs=2):
    monkeypatch.setattr("mldm_plugin.reproduce.run.LOOK", 0.05)
    arms = tuple(Arm(f"arm{i}", kind, "baseline") for i, kind in enumerate(kinds))
    return Reproduction(Recipe("test", "", arms), Counting(tmp_path, 3), 1, 0, jobs)


# Starts a program in a session of its own, as torchrun does, which says a word when it is interrupted.
STARTER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
open(sys.argv[1], "w").write(str(child.pid))
child.wait()
"""


def interrupted(folder, wait):
    """The first wait for a program is interrupted when it has begun."""

    def waiting(process, timeout=None):
        if not (folder / "asked").exists():
            (folder / "asked").touch()
            time.sleep(1)
            raise KeyboardInterrupt
        return wait(process, timeout)

    return waiting


def test_trainings_run_side_by_side_and_what_is_done_is_left(tmp_path, monkeypatch, capfd):
    one = reproduction(tmp_path, monkeypatch, "quick", "quick", "quick")
    trainings = [one.scale.training(arm, seed, 3) for arm, seed in one.pairs(timed=False)]
    one.train(trainings)
    assert [training.steps_done for training in trainings] == [3, 3, 3]
    assert "9/9" in capfd.readouterr().err
    (trainings[1].folder / "pytorch_lora_weights.safetensors").unlink()
    one.train(trainings)
    assert [training.steps_done for training in trainings] == [3, 3, 3]
    assert trainings[1].is_done


def test_a_training_that_fails_stops_the_others_and_says_why(tmp_path, monkeypatch):
    one = reproduction(tmp_path, monkeypatch, "slow", "broken")
    monkeypatch.setattr(Program, "TEXT", Program.TEXT.replace('"quick"', '"broken"', 1).replace("== '", "== '"))
    with pytest.raises(
        MldmError, match=r"arm1-s0 ended early \(status 1\): mldm: the weights are gone,   both of them .*arm1-s0.log"
    ):
        one.train([one.scale.training(arm, seed, 3) for arm, seed in one.pairs(timed=False)])
    assert (tmp_path / "runs" / "arm0-s0" / "asked").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_the_trainings_to_stop(tmp_path, monkeypatch, number):
    one = reproduction(tmp_path, monkeypatch, "slow", "slow")
    trainings = [one.scale.training(arm, seed, 3) for arm, seed in one.pairs(timed=False)]
    monkeypatch.setattr("mldm_plugin.stopping.leave_terminal", lambda _: None)  # this process's own is kept

    def look(_):
        if all(training.folder.exists() for training in trainings):
            time.sleep = sleep
            sleep(0.2)
            os.kill(os.getpid(), number)

    sleep = time.sleep
    monkeypatch.setattr("mldm_plugin.reproduce.run.time.sleep", look)
    with pytest.raises(KeyboardInterrupt), stopping_in_order():
        one.train(trainings)
    assert all((training.folder / "asked").exists() for training in trainings)


LAUNCHED = """
import pathlib, signal, sys, time
def end(*_):
    time.sleep(0.5)
    pathlib.Path(sys.argv[1], "checkpoint").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(60)
"""


def test_a_launcher_does_not_leave_its_trainer_behind(tmp_path, monkeypatch):
    """accelerate's dies of SIGTERM at once; its trainer still has a checkpoint to write. The clock is being set back,
    so that the trainer looks older than its launcher."""
    if psutil.LINUX:
        monkeypatch.setattr("psutil._pslinux.boot_time", itertools.count(1e9, -1).__next__)
    launcher = "import subprocess, sys; sys.exit(subprocess.Popen([sys.executable, '-c', *sys.argv[2:]]).wait())"
    words = [sys.executable, "-c", launcher, "accelerate.commands.launch", LAUNCHED, str(tmp_path)]
    process = subprocess.Popen(words, start_new_session=True)
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    stop([process])
    assert (tmp_path / "checkpoint").exists()


def test_the_start_up_proof_is_shown_once(tmp_path, monkeypatch, capfd):
    one = reproduction(tmp_path, monkeypatch, "quick")
    [training] = [one.scale.training(arm, seed, 3) for arm, seed in one.pairs(timed=False)]
    said = "Start-up proof (convex mix): gradient\\n  loss weight T value |gradient|  verdict\\n"
    said += "  face  0.5  999  0.7  0.29  reaches the network; dlib\\n  hand 0.1 999 0.7 0  logged, trains nothing"
    monkeypatch.setattr(Program, "TEXT", f"print('{said}', flush=True)\n" + Program.TEXT)
    one.train([training])
    told = capfd.readouterr().err
    assert told.count("start-up proof: each loss reaches the network (|gradient| face 0.29); only logged: hand") == 1


@pytest.mark.parametrize("what", ["import time; time.sleep(60)", STARTER])
def test_a_command_that_is_stopped_ends_with_all_it_started_and_says_nothing(tmp_path, capfd, monkeypatch, what):
    monkeypatch.setattr("subprocess.Popen.wait", interrupted(tmp_path, subprocess.Popen.wait))
    with pytest.raises(KeyboardInterrupt):
        Command((sys.executable, "-c", what, str(tmp_path / "pid")), tmp_path / "x").call()
    assert "".join(capfd.readouterr()) == ""
    if (tmp_path / "pid").is_file():
        with suppress(psutil.NoSuchProcess):  # one that nobody has waited for yet is dead, too
            started, end = psutil.Process(int((tmp_path / "pid").read_text())), time.monotonic() + 10
            while started.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < end
                time.sleep(0.02)


def test_the_time_of_a_step_leaves_out_what_lies_between_two_processes(tmp_path):
    write_times(tmp_path, [(100, 101, 102), (5000, 5004)])
    assert seconds_a_step(tmp_path) == pytest.approx((2 + 4) / 3)
    with pytest.raises(MldmError, match="no two steps"):
        seconds_a_step(tmp_path / "nothing")


def write_times(folder, of_processes):
    from torch.utils.tensorboard import SummaryWriter

    for number, times in enumerate(of_processes):
        writer = SummaryWriter(str(folder / "logs" / str(number)))
        for step, when in enumerate(times):
            writer.add_scalar("loss", 1.0, step, walltime=when)
        writer.close()


def test_an_arm_of_equal_time_has_as_many_steps_as_that_time_allows(tmp_path):
    recipe = replace(RECIPES["evidence"], arms=RECIPES["evidence"].arms)
    one = Reproduction(recipe, Mini(tmp_path, 100), 2, 0)
    for name, seconds in (("t400", 3), ("plain", 2)):
        for seed in range(2):
            write_times(tmp_path / "runs" / f"{name}-s{seed}", [(100, 100 + seconds, 100 + 2 * seconds)])
    [arm] = [arm for arm in recipe.arms if arm.as_long_as == "t400"]
    assert one.steps_of(arm) == 150
    kept = json.loads((tmp_path / "equal_time.json").read_text())
    assert kept == {"plain_t400": {"steps": 150, "seconds_a_step": [3.0, 2.0]}}
    write_times(tmp_path / "runs" / "plain-s0", [(100, 200)])
    assert one.steps_of(arm) == 150, "it is measured once"


def test_a_command_that_fails_is_named(tmp_path):
    with pytest.raises(MldmError, match="ended with status 3: python -c"):
        Command((sys.executable, "-c", "raise SystemExit(3)"), tmp_path / "x").call()
    with pytest.raises(MldmError, match="ended with status 0"):
        Command((sys.executable, "-c", "pass"), tmp_path / "x").call()


def test_an_arm_without_training_has_no_losses():
    with pytest.raises(MldmError, match="base is not trained"):
        losses_of(Arm("base", "as it is"))


@needs_weights("alexnet", "faceres")
def test_figure_3_shows_estimates_that_get_worse_with_noise(commands_here, tmp_path, monkeypatch):
    shown = {}
    draw = figure3.draw
    monkeypatch.setattr(figure3, "draw", lambda rows, out: shown.update(rows=rows) or draw(rows, out))
    monkeypatch.setattr(figure3, "ROWS", 1)
    path = figure3.Figure3(Mini(tmp_path / "f3", 2, held_out=3)).run()
    with Image.open(path) as figure:
        assert figure.size[0] > 1500
    [(example, estimates)] = shown["rows"]
    assert len(estimates) == 1 + len(figure3.TIMESTEPS)
    lpips = [estimate.values["one_step_lpips_person"] for estimate in estimates]
    assert lpips[0] < min(lpips[3:]), "the VAE's floor lies below the estimates at t ≥ 200"
    assert lpips[2] < lpips[4] < lpips[6]
    assert torch.isfinite(estimates[-1].picture).all()
    assert len(example.face_boxes) == 1, "those with faces come first"


@needs_weights("alexnet", "dlib_resnet", "vgg16", "mtcnn", "faceres")
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' scheduler
def test_table_1_from_end_to_end(commands_here, quick_evaluation, tmp_path):
    """One seed, few steps, trained by a real process; the report holds every arm that is left here."""
    out = tmp_path / "table1"
    scale = Mini(out, 2, pictures=4, held_out=2, photographs=1, batch=1)
    _, base, _, t400 = RECIPES["table1"].arms
    recipe = replace(RECIPES["table1"], arms=(base, t400), metrics=("attributes",))
    report = Reproduction(recipe, scale, 1, 1).run()
    results = json.loads(report.with_name("metrics.json").read_text())
    assert [model["name"] for model in results["models"]] == ["base", "t400"]
    assert {"one_step_face", "one_step_lpips_person", "attributes"} <= {m["name"] for m in results["metrics"]}
    one_step = next(m for m in results["metrics"] if m["name"] == "one_step_error")
    assert one_step["models"]["base"]["value"] != one_step["models"]["t400"]["value"], "every arm is another model"
    assert "reaches the network" in (out / "logs" / "t400-s0.log").read_text()
