"""A run that is killed, at whatever step, and resumed is the run that was not."""

from __future__ import annotations

import signal

import pytest
from run_trainer import CONTROLNET, LORA, command, records, same_weights, start

CAPTIONS = ["a person", "somebody", "a face", "people"]
ALWAYS = ["--max_train_steps", 9, "--checkpointing_steps", 2, "--proportion_empty_prompts", 0.3]
OF_LORA = ["--max_train_steps", 6, "--checkpointing_steps", 2, "--random_flip"]
EVERYWHERE = (
    (1, None),
    (3, None),
    (1, ".checkpoint-4.partial"),
    (5, None),
)  # one of them while a checkpoint is written
BETWEEN = ((3, None),)  # one step after a checkpoint

# Where this process loads the pictures itself, its training steps draw from the generators of crops and captions in
# between; where others do, each of them has its own.
CASES = {
    "plain": (CONTROLNET, ALWAYS, EVERYWHERE),
    "accumulation": (CONTROLNET, [*ALWAYS[2:], "--gradient_accumulation_steps", 3, "--max_train_steps", 6], BETWEEN),
    "workers": (CONTROLNET, [*ALWAYS, "--dataloader_num_workers", 2], BETWEEN),
    "crops, flips and colours": (
        CONTROLNET,
        [*ALWAYS, "--random_crop", "--random_flip", "--color_jitter", 0.3, 0.3, 0.3, 0.1],
        BETWEEN,
    ),
    "schedule": (
        CONTROLNET,
        [*ALWAYS, "--lr_scheduler", "cosine", "--lr_warmup_steps", 2, "--train_batch_size", 3],
        BETWEEN,
    ),
    "lora": (LORA, OF_LORA, BETWEEN),
    "lora, workers": (LORA, [*OF_LORA, "--dataloader_num_workers", 2], BETWEEN),
    "lora, colours": (LORA, [*OF_LORA, "--color_jitter", 0.3, 0.3, 0.3, 0.1], BETWEEN),
}


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_is_uninterrupted(case, train, train_lora, tiny_pipeline, make_data, tmp_path):
    trainer, flags, kills = CASES[case]
    data = make_data(tmp_path / "data", 7, captions=CAPTIONS, annotated=False)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = train if trainer == CONTROLNET else train_lora
    assert run(whole, "--train_data_dir", data, *flags) == 0

    argv = command(killed, tiny_pipeline, data, *flags, "--resume_from_checkpoint", "latest")
    for step, during in kills:
        assert start(argv, step, during=during, trainer=trainer) == -signal.SIGKILL
    assert start(argv, trainer=trainer) == 0

    assert (killed / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert same_weights(killed, whole)
    assert not list(killed.glob(".*"))


def test_captions_tell_in_the_losses(train, make_data, tmp_path):
    """Else the tests above would not see captions that are drawn anew."""
    data = make_data(tmp_path / "data", 7, captions=CAPTIONS, annotated=False)
    assert train(tmp_path / "a", "--train_data_dir", data, "--proportion_empty_prompts", 0.9) == 0
    assert train(tmp_path / "b", "--train_data_dir", data) == 0
    assert [r["loss"] for r in records(tmp_path / "a")] != [r["loss"] for r in records(tmp_path / "b")]
