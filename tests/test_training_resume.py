"""A run that is killed, at whatever step, and resumed is the run that was not."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from conftest import PROCESSES, command
from safetensors.torch import load_file

CAPTIONS = ["a person", "somebody", "a face", "people"]


def run_and_kill(trainer: str, argv: list[str], step: int | None, during_save: bool) -> None:
    """Train in this process; SIGKILL it as soon as `step` is logged, or within the saving of its checkpoint."""
    import torch

    from mldm_plugin import metrics
    from mldm_plugin.training import checkpoints

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers, as in a run from the shell
    write, flush = metrics.MetricsFile.write, checkpoints._flush

    def write_and_die(self: Any, record: Any) -> None:
        write(self, record)
        if record["step"] == step and not during_save:
            os.kill(os.getpid(), signal.SIGKILL)

    def flush_and_die(folder: Path) -> None:
        flush(folder)
        if folder.name == f".checkpoint-{step}.partial":
            os.kill(os.getpid(), signal.SIGKILL)

    metrics.MetricsFile.write = write_and_die
    if during_save:
        checkpoints._flush = flush_and_die
    sys.exit(import_module(f"mldm_plugin.training.{trainer}").main(argv))


def start(
    argv: list[str], step: int | None = None, during_save: bool = False, trainer: str = "controlnet"
) -> int | None:
    process = PROCESSES.Process(target=run_and_kill, args=(trainer, argv, step, during_save))
    process.start()
    process.join(200)
    return process.exitcode


def lines(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


CASES = {
    "plain": [],
    "accumulation": ["--gradient_accumulation_steps", 3, "--max_train_steps", 6],
    "workers": ["--dataloader_num_workers", 2],
    "crops, flips and colours": ["--random_crop", "--random_flip", "--color_jitter", 0.3, 0.3, 0.3, 0.1],
    "schedule": ["--lr_scheduler", "cosine", "--lr_warmup_steps", 2, "--train_batch_size", 3],
}


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_is_uninterrupted(case, tiny_pipeline, make_data, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    data = make_data(tmp_path / "data", 7, captions=CAPTIONS, annotated=False)
    flags = ["--max_train_steps", 9, "--checkpointing_steps", 2, "--proportion_empty_prompts", 0.3]
    flags = [f for f in flags if case != "accumulation" or f not in ("--max_train_steps", 9)] + CASES[case]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(command(whole, tiny_pipeline, data, *flags)) == 0

    argv = command(killed, tiny_pipeline, data, *flags, "--resume_from_checkpoint", "latest")
    for step, during_save in ((1, False), (3, False), (4, True), (5, False)):
        assert start(argv, step, during_save) == -signal.SIGKILL
    assert start(argv) == 0

    assert lines(killed) == lines(whole)
    one, other = (load_file(f / "diffusion_pytorch_model.safetensors") for f in (whole, killed))
    assert all(one[k].equal(other[k]) for k in one)
    assert not list(killed.glob(".*"))


LORA_CASES = {
    "crops and flips": [],
    "workers": ["--dataloader_num_workers", 2],
    "colours": ["--color_jitter", 0.3, 0.3, 0.3, 0.1],
}


@pytest.mark.parametrize("case", LORA_CASES)
def test_crops_and_flips_of_a_killed_run_are_drawn_again(case, tiny_pipeline, make_data, tmp_path, monkeypatch):
    """Where this process loads the pictures itself, its training steps draw from the same generator in between."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    data = make_data(tmp_path / "data", 7, captions=CAPTIONS, annotated=False)
    flags = ["--max_train_steps", 6, "--checkpointing_steps", 2, "--random_flip", *LORA_CASES[case]]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(command(whole, tiny_pipeline, data, *flags), trainer="text_to_image_lora") == 0

    argv = command(killed, tiny_pipeline, data, *flags, "--resume_from_checkpoint", "latest")
    assert start(argv, 3, trainer="text_to_image_lora") == -signal.SIGKILL
    assert start(argv, trainer="text_to_image_lora") == 0
    assert lines(killed) == lines(whole)
    one, other = (load_file(f / "pytorch_lora_weights.safetensors") for f in (whole, killed))
    assert all(one[k].equal(other[k]) for k in one)


def test_captions_of_a_killed_run_are_drawn_again(tiny_pipeline, make_data, tmp_path, monkeypatch):
    """Without the same captions the losses would differ: the data set must tell them apart."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    data = make_data(tmp_path / "data", 7, captions=CAPTIONS, annotated=False)
    assert start(command(tmp_path / "a", tiny_pipeline, data, "--proportion_empty_prompts", 0.9)) == 0
    assert start(command(tmp_path / "b", tiny_pipeline, data)) == 0
    assert [json.loads(x)["loss"] for x in lines(tmp_path / "a")] != [
        json.loads(x)["loss"] for x in lines(tmp_path / "b")
    ]
