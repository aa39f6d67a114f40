"""The commands of a run.yaml: what trains and judges, in which environment, from which folder, and one at a time."""

import itertools
import os
import re
import shlex
import sys

import pytest
from click.testing import CliRunner
from filelock import FileLock
from planned import commands, decided

from mldm_plugin.cli import main
from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.models import LORA
from mldm_plugin.project.models import how_to_get
from mldm_plugin.project.run_file import NAME, write_run
from mldm_plugin.project.scale import OwnPhotos
from mldm_plugin.reproduce.commands import Command


def test_the_commands_that_a_person_would_type(tmp_path):
    run, whole = commands(tmp_path)
    folder, check, plain, ours, judged = whole.plan().splitlines()
    assert folder.startswith(f"mldm data folder {run.photos} --caption 'photo of anna woman, bust' --masks auto")
    assert "--held-out 2" in folder
    assert check.startswith(f"mldm data check {tmp_path / 'people'}")
    assert plain.startswith(
        "accelerate launch -m mldm_plugin.training.text_to_image_lora --loss-plugin mldm --preset demo"
    )
    assert "--set 'losses={}'" in plain
    assert "losses={}" not in ours
    assert plain.replace("--set 'losses={}' ", "").replace("plain-s0", "mldm-s0") == ours, "they differ in that alone"
    assert f"--train_data_dir {tmp_path / 'people' / 'train'}" in ours
    assert "--random_flip" in ours
    assert f"--model plain={tmp_path}/runs/plain-s0 --model mldm={tmp_path}/runs/mldm-s0" in judged
    assert f"--person {tmp_path}/people/train" in judged


def test_somebody_elses_script_is_attached_to_and_finds_masks_by_name(tmp_path):
    script = tmp_path / "train_dreambooth_lora_sdxl.py"
    script.write_text("")
    run, whole = commands(tmp_path, model="sdxl", script=str(script))
    words = shlex.split(whole.plan().splitlines()[3].partition("   #")[0])
    assert words[:5] == ["accelerate", "launch", "-m", "mldm_plugin", str(script)]
    flags = dict(itertools.pairwise(words))
    assert flags["--mldm-mask-dir"] == flags["--dataset_name"] == str(tmp_path / "people" / "train")
    assert flags["--instance_prompt"] == "a photo of anna woman"
    assert flags["--pretrained_model_name_or_path"] == run.model
    assert flags["--max_train_steps"] == str(run.steps)


def test_a_script_that_is_not_here_is_said_with_the_command_that_gets_it(tmp_path):
    run, whole = commands(tmp_path, model="flux")
    script = tmp_path / "train_dreambooth_lora_flux.py"
    assert f"-m mldm_plugin {script}" in whole.plan(), "what would be run is shown all the same"
    lacks = OwnPhotos(tmp_path, run).lacks()
    assert re.search(rf"curl -o {script} https://.*/examples/dreambooth/train_dreambooth_lora_flux\.py", lacks)
    assert how_to_get("x/train_dreambooth_lora_sd3.py").endswith("examples/dreambooth/train_dreambooth_lora_sd3.py")
    (tmp_path / "flux").mkdir()
    write_run(tmp_path / "flux" / NAME, run, "x", {})
    shown = CliRunner().invoke(main, ["train", str(tmp_path / "flux"), "--dry-run"])
    assert shown.exit_code == 0
    assert f"note: the script {tmp_path}/flux/train_dreambooth_lora_flux.py is not there" in shown.output
    refused = CliRunner().invoke(main, ["train", str(tmp_path / "flux")])
    assert refused.exit_code == 1
    assert not (tmp_path / "flux" / "people").exists(), "said before anything is made"


def test_relative_paths_mean_the_same_wherever_the_command_is_typed(tmp_path, monkeypatch):
    """They are from run.yaml's folder; what only the folder of the shell has is not taken."""
    run = decided(tmp_path, "sd15").run
    out, elsewhere = tmp_path / "anna", tmp_path / "elsewhere"
    for folder in (out / "pipeline", elsewhere / "mine"):
        folder.mkdir(parents=True)
    (out / "cache" / "hub").mkdir(parents=True)
    (elsewhere / "mine" / "model").mkdir()
    changed = {"photos": "../photos", "masks": "masks", "model": "pipeline", "preset": "own.yaml"}
    changed |= {"plugins": ["mldm", "own_loss.py"], "script": "train_x.py", "prompts": "own.txt"}
    changed |= {"python": "venv/bin/python"}
    changed |= {"training": {**run.training, "cache_dir": "./cache/hub", "revision": "mine/model"}}
    write_run(out / NAME, run.model_copy(update=changed), "x", {})
    (out / "train_x.py").write_text("")
    told = []
    for folder, typed in ((elsewhere, "../anna"), (tmp_path, "anna/run.yaml"), (out, "run.yaml"), (out, ".")):
        monkeypatch.chdir(folder)
        shown = CliRunner().invoke(main, ["train", typed, "--dry-run"], catch_exceptions=False)
        assert shown.exit_code == 0
        told.append({os.path.normpath(word) for word in shlex.split(shown.output, comments=True)})
    assert all(words == told[0] for words in told)
    meant = ["masks", "pipeline", "own.yaml", "own_loss.py", "train_x.py", "own.txt", "cache/hub", "../photos"]
    for name in (*meant, "venv/bin/python"):
        assert os.path.normpath(out / name) in told[0], name
    assert "mine/model" in told[0], "not a path from here"


def test_kohyas_scripts_get_a_data_set_in_their_own_words(tmp_path):
    script = tmp_path / "sdxl_train_network.py"
    script.write_text("")
    run, whole = commands(tmp_path, model="sdxl", script=str(script))
    assert run.preset == "lora-sdxl"
    assert run.steps == 1000, "ten epochs, ten times each of ten photographs"
    described = whole.plan().splitlines()[2]
    assert described.startswith(f"mldm data kohya {tmp_path / 'people' / 'train'} --out {tmp_path / 'dataset.toml'}")
    assert "--repeats 10 --resolution 1024 --batch 1" in described
    words = shlex.split(whole.plan().splitlines()[4].partition("   #")[0])
    flags = dict(itertools.pairwise(words))
    assert flags["--dataset_config"] == str(tmp_path / "dataset.toml")
    assert flags["--mldm-mask-dir"] == str(tmp_path / "people" / "train")
    assert flags["--network_module"] == "networks.lora"
    assert flags["--output_name"] + ".safetensors" == LORA, "where an evaluation finds it"
    assert not {"--resume_from_checkpoint", "--checkpointing_steps", "--resolution", "--train_batch_size"} & {*words}


def test_a_script_runs_in_its_own_environment_where_this_package_is_needed_too(tmp_path):
    script, python = tmp_path / "sdxl_train_network.py", tmp_path / "bin" / "python"
    script.write_text("")
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    run, whole = commands(tmp_path, model="sdxl", script=str(script), python=str(python))
    assert run.python == str(python), "a link to an interpreter is what says which environment"
    lines = [line for line in whole.plan().splitlines() if "--loss-plugin" in line]
    assert len(lines) == 2
    assert all(line.startswith(f"{python} -m accelerate.commands.launch -m mldm_plugin {script} ") for line in lines)
    scale = OwnPhotos(tmp_path, run.model_copy(update={"python": sys.executable}))
    assert scale.lacks() == ""
    log = tmp_path / "log"
    with log.open("wb") as out:
        broken = whole.scale.training(whole.recipe.arms[0], 0, 2)
        python.unlink()
        python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'mldm_plugin' $2\" >&2\nexit 1\n")
        python.chmod(0o755)
        assert broken.start(1, out).wait(60) == 1
    assert "accelerate.commands.launch" in log.read_text(), "it is this interpreter that starts it"
    assert "cannot train with this package: ModuleNotFoundError: No module named 'mldm_plugin'" in whole.scale.lacks()
    python.unlink()
    assert "cannot be run" in whole.scale.lacks()


def test_without_comparison_there_is_one_training(tmp_path):
    run, whole = commands(tmp_path, compare=False)
    assert run.compare == "none"
    assert [training.name for training in whole.trainings(timed=False)] == ["mldm-s0"]
    assert str(whole.evaluation()).count("--model ") == 1
    assert "--data" not in str(whole.evaluation()).replace("--train-data", "")


def test_a_step_that_failed_is_not_done_the_second_time(tmp_path, monkeypatch):
    """Though it left its file behind, as `mldm data check` does of a set with faults."""
    _, whole = commands(tmp_path)
    made = tmp_path / "made"
    text = f"import pathlib, sys; pathlib.Path({str(made)!r}).touch(); sys.exit(not pathlib.Path('ok').exists())"
    monkeypatch.setattr(OwnPhotos, "data", lambda self: [Command((sys.executable, "-c", text), made)])
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with pytest.raises(MldmError, match="ended with status 1"):
            whole.make_data()
    (tmp_path / "ok").touch()
    whole.make_data()
    (tmp_path / "ok").unlink()
    whole.make_data()


def test_two_processes_do_not_fill_one_folder(tmp_path):
    """They would write and remove each other's checkpoints, and end with a clean page."""
    _, whole = commands(tmp_path)
    with FileLock(tmp_path / ".lock"), pytest.raises(MldmError, match="is being filled by another process already"):
        whole.run()
