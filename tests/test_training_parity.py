"""Without a plugin the trainer is diffusers' script, flag by flag and bit by bit.

The comparison needs that script: set MLDM_DIFFUSERS_EXAMPLES to the examples/ folder of a checkout of diffusers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from conftest import command
from safetensors.torch import load_file

from mldm_plugin.training.arguments import DIFFUSERS_FLAGS

EXAMPLES = os.environ.get("MLDM_DIFFUSERS_EXAMPLES")
THEIRS = Path(EXAMPLES or ".") / "controlnet" / "train_controlnet.py"
OURS = Path(__file__).parent.parent / "train_controlnet.py"
with_diffusers = pytest.mark.skipif(
    EXAMPLES is None, reason="MLDM_DIFFUSERS_EXAMPLES is not set to diffusers' examples/ folder"
)


@with_diffusers
@pytest.mark.filterwarnings("ignore")
def test_flags_names_types_and_defaults(monkeypatch):
    spec = spec_from_file_location("diffusers_train_controlnet", THEIRS)
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    parsers = []
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda self, *a: parsers.append(self) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        script.parse_args([])
    theirs = {
        a.dest: (a.type or bool, a.default, tuple(a.choices or ()), a.nargs == "+")
        for a in parsers[0]._actions
        if a.dest != "help"
    }
    ours = {f.name: (f.kind, f.default, f.choices or (), f.many) for f in DIFFUSERS_FLAGS}
    assert ours == theirs
    assert {k: type(v[1]) for k, v in ours.items()} == {k: type(v[1]) for k, v in theirs.items()}


CASES = {
    "plain": [],
    "accumulation": ["--gradient_accumulation_steps", 2, "--lr_scheduler", "cosine", "--lr_warmup_steps", 1],
    "captions": ["--proportion_empty_prompts", 0.5, "--max_train_steps", 5],
    "v-prediction": [],
    "gradient checkpointing": ["--gradient_checkpointing", "--scale_lr", "--set_grads_to_none"],
    "workers": ["--dataloader_num_workers", 2, "--proportion_empty_prompts", 0.5, "--max_train_steps", 5],
    "subset": ["--max_train_samples", 5, "--num_train_epochs", 2],
    "bf16": ["--mixed_precision", "bf16"],
    "validation": ["--validation_steps", 1, "--num_validation_images", 1, "--checkpointing_steps", 1],
}


@with_diffusers
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_same_weights_to_the_bit(case, tiny_pipeline, make_data, tmp_path):
    captions = ["a person", "somebody", "a face"] if case in ("captions", "workers") else None
    data = make_data(tmp_path / "data", 7, captions=captions, annotated=False)
    flags = ["--max_train_steps", 3, *CASES[case]]
    if case == "validation":
        flags += ["--validation_prompt", "a person", "--validation_image", data / "2_hint.png"]
    if case == "v-prediction":
        _set_prediction_type(tiny_pipeline, "v_prediction")
    try:
        for script, output in ((THEIRS, "theirs"), (OURS, "ours")):
            launch(script, command(tmp_path / output, tiny_pipeline, data, *flags, "--report_to", "tensorboard"))
    finally:
        _set_prediction_type(tiny_pipeline, "epsilon")
    theirs, ours = (load_file(tmp_path / o / "diffusion_pytorch_model.safetensors") for o in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert [k for k in theirs if not theirs[k].equal(ours[k])] == []
    assert (tmp_path / "theirs" / "config.json").read_text() == (tmp_path / "ours" / "config.json").read_text()


def launch(script: Path, argv: list[str]) -> None:
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    accelerate += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    accelerate += ["--num_cpu_threads_per_process", "1"]
    done = subprocess.run(
        [*accelerate, str(script), *argv],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _set_prediction_type(pipeline: Path, prediction_type: str) -> None:
    path = pipeline / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": prediction_type}))
