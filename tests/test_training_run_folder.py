"""Whose folder it is; and the bad input that ends a run before it begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from run_trainer import run_here

from mldm_plugin.errors import RunFolderError
from mldm_plugin.training.controlnet import ControlNetTrainer, main
from mldm_plugin.training.flags import ControlNetFlags
from mldm_plugin.training.run_folder import RunFolder, checkpoints_in, step_of


def folder(path: Path, preset: str | None = None, processes: int = 1, **changes) -> RunFolder:
    needed = {"pretrained_model_name_or_path": "sd", "train_data_dir": "data", "seed": 1}
    return RunFolder(path, ControlNetFlags(**(needed | changes)), processes, ControlNetTrainer, preset)


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.fixture
def used(tmp_path):
    """A folder in which a run with a preset has made steps."""
    path = tmp_path / "run"
    folder(path, preset="losses: {face: {weight: 0.5}}\ntraining: {train_controlnet: {resolution: 512}}\n").write()
    (path / "metrics.jsonl").write_text('{"step": 1}\n')
    return path


PRESET = "training: {train_controlnet: {resolution: 256}}\nlosses: {face: {weight: 0.5}}\n"


def test_a_new_or_an_unrelated_folder_is_free(tmp_path):
    folder(tmp_path / "new").check(resuming=False)
    (tmp_path / "notes.txt").write_text("mine")
    folder(tmp_path).check(resuming=False)
    folder(tmp_path).check(resuming=True)


def test_a_run_that_made_no_step_may_be_started_again(tmp_path):
    folder(tmp_path, preset=PRESET).write()
    folder(tmp_path, preset=PRESET).check(resuming=False)
    folder(tmp_path, learning_rate=1.0).check(resuming=False)


def test_a_preset_of_somebody_else_is_not_overwritten(tmp_path):
    (tmp_path / "preset.yaml").write_text(PRESET)
    with pytest.raises(RunFolderError, match=r"preset\.yaml"):
        folder(tmp_path, preset=PRESET).check(resuming=False)


def test_weights_of_somebody_else_are_not_overwritten(tmp_path):
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"theirs")
    with pytest.raises(RunFolderError, match=r"diffusion_pytorch_model\.safetensors.*--controlnet_model_name_or_path"):
        folder(tmp_path).check(resuming=False)
    folder(tmp_path).check(resuming=True)


def test_a_used_folder_is_refused_unless_resumed(used):
    with pytest.raises(RunFolderError, match="holds another run") as error:
        folder(used, preset=PRESET).check(resuming=False)
    assert "--resume_from_checkpoint latest" in str(error.value)
    folder(used, preset=PRESET).check(resuming=True)


def test_checkpoints_alone_make_a_folder_used(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(RunFolderError, match="checkpoint-5"):
        folder(tmp_path).check(resuming=False)
    folder(tmp_path).check(resuming=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 2}, "--seed was 1, is 2"),
        ({"processes": 2}, "--num_processes was 1, is 2"),
        ({"train_data_dir": "other"}, "--train_data_dir was 'data', is 'other'"),
        ({"preset": PRESET.replace("0.5", "0.4")}, "preset: losses.face.weight was 0.5, is 0.4"),
        ({"preset": None}, "preset: losses.face.weight was 0.5, is None"),
        ({"lr_scheduler": "cosine"}, "--lr_scheduler was 'constant'"),
    ],
)
def test_resuming_with_other_settings_is_refused_and_changes_nothing(used, changes, words):
    before = snapshot(used)
    with pytest.raises(RunFolderError, match="other settings") as error:
        folder(used, **{"preset": PRESET, **changes}).check(resuming=True)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert snapshot(used) == before


def test_what_alters_no_number_may_change(used):
    free = {"max_train_steps": 9, "checkpointing_steps": 7, "output_dir": "x", "report_to": "all"}
    free |= {"panel_steps": 3, "loss_plugin": ["mldm"], "curve_steps": 7}
    folder(used, preset=PRESET, **free).check(resuming=True)


def test_a_run_that_is_older_than_a_flag_can_be_resumed(used):
    """With a plugin some flags are on by default, which runs of before there were such had not."""
    folder(used, preset=PRESET, loss_plugin=["mldm"]).write()
    stored = json.loads((used / "arguments.json").read_text())
    assert stored["curve_steps"] == 100
    for name in ("panel_steps", "curve_steps", "evaluate_steps"):
        del stored[name]
    (used / "arguments.json").write_text(json.dumps(stored))
    folder(used, preset=PRESET, loss_plugin=["mldm"]).check(resuming=True)


def test_the_length_matters_when_the_learning_rate_follows_it(tmp_path):
    folder(tmp_path, lr_scheduler="cosine", max_train_steps=10).write()
    with pytest.raises(RunFolderError, match="--max_train_steps was 10, is 20"):
        folder(tmp_path, lr_scheduler="cosine", max_train_steps=20).check(resuming=True)


def test_damaged_arguments_are_another_run(used):
    (used / "arguments.json").write_text("{")
    with pytest.raises(RunFolderError, match="missing or damaged"):
        folder(used, preset=PRESET).check(resuming=True)


def test_tokens_are_not_written(tmp_path):
    folder(tmp_path, hub_token="secret").write()
    assert "secret" not in (tmp_path / "arguments.json").read_text()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="is a file"):
        folder(tmp_path / "run").check(resuming=False)


def test_only_whole_checkpoints_count(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", ".checkpoint-11.partial", "checkpoint-x"):
        (tmp_path / name).mkdir()
    assert [step_of(p) for p in checkpoints_in(tmp_path)] == [9, 10]


OWN = ["--preset", "{preset}"]
BAD_INPUT = {
    "unknown preset": (["--preset", "mlmd"], "did you mean 'mldm'"),
    "unknown plugin": (["--loss-plugin", "mldmm"], "without --preset"),
    "unknown loss": ([*OWN, "--set", "losses.fase.weight=0.1"], "did you mean 'face'"),
    "unknown flag in a preset": (
        [*OWN, "--set", "training.train_controlnet.resolutoin=64"],
        "did you mean 'resolution'",
    ),
    "no such pipeline": (["--pretrained_model_name_or_path", "{tmp}/nowhere"], "cannot be loaded"),
    "no such data": (["--train_data_dir", "{tmp}/nowhere"], "cannot be opened"),
    "no such column": (["--image_column", "picture"], "no column 'picture'"),
    "no mask column": ([*OWN, "--mask_column", "masks"], "needs person_mask, but the data set has no such column"),
    "no such checkpoint": (["--resume_from_checkpoint", "checkpoint-7"], "has no checkpoint 'checkpoint-7'"),
    "a checkpoint of another folder": (
        ["--resume_from_checkpoint", "{tmp}/elsewhere/checkpoint-1"],
        "resumed in the folder of its checkpoints, with --output_dir {tmp}/elsewhere",
    ),
    "a hint that is no picture": (
        ["--validation_prompt", "a person", "--validation_image", "{preset}"],
        "--validation_image {preset} cannot be read as a picture",
    ),
    "half precision on a CPU": (["--mixed_precision", "fp16"], "needs a GPU"),
    "an unknown tracker": (["--report_to", "paper"], "accelerate cannot start"),
    "a course that is unknown": (["--lr_scheduler", "zigzag"], "--lr_scheduler zigzag"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_flags_are_one_line_and_nothing_is_written(train, tmp_path, random_preset, capfd, case):
    flags, words = BAD_INPUT[case]
    flags = [f.format(preset=random_preset, tmp=tmp_path) for f in flags]
    assert train(tmp_path / "run", *flags) == 1
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert words.format(preset=random_preset, tmp=tmp_path) in err[err.index("mldm: ") :]
    assert not (tmp_path / "run").exists()


BAD_DATA = {
    "boxes reversed": ({1: {"face_boxes": [[30, 30, 10, 10]]}}, "1.png: face box [30.0, 30.0, 10.0, 10.0] is reversed"),
    "nobody anywhere": ({i: {"mask_file_name": "nobody.png"} for i in range(3)}, "no person anywhere"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_annotation_is_one_line_and_nothing_is_written(train, make_data, tmp_path, random_preset, the_error, case):
    rows, words = BAD_DATA[case]
    data = make_data(tmp_path / "data", 3, rows=rows)
    if case == "nobody anywhere":
        for i, size in enumerate([(80, 96), (70, 64), (64, 64)]):
            Image.new("L", size).save(data / f"{i}_mask.png")
        text = (data / "metadata.jsonl").read_text()
        for i in range(3):
            text = text.replace("nobody.png", f"{i}_mask.png", 1)
        (data / "metadata.jsonl").write_text(text)
    assert train(tmp_path / "run", "--train_data_dir", data, "--preset", random_preset) == 1
    assert words in the_error()
    assert not (tmp_path / "run").exists()


def test_a_picture_that_breaks_off_ends_the_run_in_its_turn(train, make_data, tmp_path, the_error):
    data = make_data(tmp_path / "data", 4, annotated=False)
    shutil.copy(data / "3.png", data / "whole.png")
    (data / "3.png").write_bytes((data / "3.png").read_bytes()[:2000])
    flags = ["--train_data_dir", data, "--train_batch_size", 1, "--max_train_steps", 8]
    for workers in (0, 1):
        run = tmp_path / f"run{workers}"
        assert train(run, *flags, "--dataloader_num_workers", workers) == 1
        line = the_error()
        assert "3.png cannot be read" in line
        assert "replace it" in line
        steps = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
        assert len(steps) < 4


def test_the_folder_of_another_run_is_left_alone(train, tmp_path, the_error):
    run = tmp_path / "run"
    assert train(run, "--max_train_steps", 1) == 0
    before = snapshot(run)
    assert train(run, "--max_train_steps", 1) == 1
    assert "holds another run (metrics.jsonl)" in the_error()
    assert train(run, "--resume_from_checkpoint", "latest", "--learning_rate", 1) == 1
    assert "--learning_rate was 5e-06, is 1.0" in the_error()
    assert train(run, "--resume_from_checkpoint", "latest", "--max_train_samples", 3) == 1
    assert snapshot(run) == before


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "--mixed_precision was 'no', is 'bf16'"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2", "--gradient_accumulation_steps was 1, is 2"),
    ],
)
def test_what_accelerate_is_told_elsewhere_counts_too(train, tmp_path, the_error, monkeypatch, variable, value, words):
    run = tmp_path / "run"
    assert train(run, "--max_train_steps", 1, "--checkpointing_steps", 1) == 0
    before = snapshot(run)
    monkeypatch.setenv(variable, value)
    assert train(run, "--resume_from_checkpoint", "latest") == 1
    assert words in the_error()
    assert snapshot(run) == before


def test_an_unseeded_subset_cannot_be_resumed(the_error, tiny_pipeline, tiny_data, tmp_path):
    argv = ["--pretrained_model_name_or_path", tiny_pipeline, "--train_data_dir", tiny_data, "--max_train_samples", 3]
    argv += ["--output_dir", tmp_path / "run", "--resume_from_checkpoint", "latest", "--report_to", "none"]
    assert run_here(main, [str(a) for a in argv]) == 1
    assert "without --seed" in the_error()


def test_preset_and_arguments_are_written_before_the_first_step(train, tmp_path, random_preset, monkeypatch):
    seen = []

    def look(trainer, model, batch, draw_timesteps):
        seen.extend(sorted(p.name for p in (tmp_path / "run").iterdir()))
        raise KeyboardInterrupt

    monkeypatch.setattr(ControlNetTrainer, "diffusion_step", look)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", "--preset", random_preset)
    assert seen == ["arguments.json", "crops.json", "preset.yaml", "proof.txt"]
    assert json.loads((tmp_path / "run" / "arguments.json").read_text())["preset"] == str(random_preset)
