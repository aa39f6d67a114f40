"""Without a plugin a trainer is diffusers' script, flag by flag and bit by bit.

The comparison needs that script: set MLDM_DIFFUSERS_EXAMPLES to the examples/ folder of a checkout of diffusers.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from run_trainer import command, start_script
from safetensors.torch import load_file

from mldm_plugin.training.command_line import make_parser
from mldm_plugin.training.flags import ControlNetFlags, LoraFlags

EXAMPLES = os.environ.get("MLDM_DIFFUSERS_EXAMPLES")
ROOT = Path(__file__).parent.parent
CONTROLNET = ("controlnet/train_controlnet.py", "diffusion_pytorch_model.safetensors")
LORA = ("text_to_image/train_text_to_image_lora.py", "pytorch_lora_weights.safetensors")
with_diffusers = pytest.mark.skipif(
    EXAMPLES is None, reason="MLDM_DIFFUSERS_EXAMPLES is not set to diffusers' examples/ folder"
)


@with_diffusers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("script", "kind"),
    [(CONTROLNET[0], ControlNetFlags), (LORA[0], LoraFlags)],
    ids=["controlnet", "lora"],
)
def test_flags_names_types_and_defaults(monkeypatch, script, kind):
    spec = spec_from_file_location("script_of_diffusers", Path(EXAMPLES) / script)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    parsers = []
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda self, *a: parsers.append(self) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        module.parse_args()
    theirs = options_of(parsers[0])
    given = {name: f.default if not f.is_required() else None for name, f in kind.model_fields.items()}
    ours = {name: option for name, (option, _) in options_of(make_parser(kind)).items() if name in kind.theirs()}
    assert ours == {name: option for name, (option, _) in theirs.items()}
    defaults = {name: default for name, (_, default) in theirs.items()}
    assert {name: given[name] for name in ours} == defaults
    assert {name: type(given[name]) for name in ours} == {name: type(default) for name, default in defaults.items()}


def options_of(parser):
    """Of each flag its type, choices, and whether it takes several values; with its default."""
    return {
        a.dest: ((a.type or bool, tuple(a.choices or ()), a.nargs == "+"), a.default)
        for a in parser._actions
        if a.dest != "help"
    }


SHARED = {
    "plain": [],
    "accumulation": ["--gradient_accumulation_steps", 2, "--lr_scheduler", "cosine", "--lr_warmup_steps", 1],
    "v-prediction": [],
    "subset": ["--max_train_samples", 5, "--num_train_epochs", 2],
    "bf16": ["--mixed_precision", "bf16"],
}
OF_CONTROLNET = {
    "captions": ["--proportion_empty_prompts", 0.5, "--max_train_steps", 5],
    "gradient checkpointing": ["--gradient_checkpointing", "--scale_lr", "--set_grads_to_none"],
    "workers": ["--dataloader_num_workers", 2, "--proportion_empty_prompts", 0.5, "--max_train_steps", 5],
    "validation": ["--validation_steps", 1, "--num_validation_images", 1, "--checkpointing_steps", 1],
}
FLIPPED = ["--random_flip", "--snr_gamma", 5]
OF_LORA = {
    "captions": ["--max_train_steps", 5, *FLIPPED],
    "centre crop": ["--center_crop", "--image_interpolation_mode", "bicubic", "--rank", 3],
    "centre crop, flips, offset": ["--center_crop", "--random_flip", "--noise_offset", 0.3],
    "v-prediction asked for": ["--prediction_type", "v_prediction", *FLIPPED],
    "norm": ["--max_grad_norm", 1e-12, "--learning_rate", 0.1],
    "gradient checkpointing": ["--gradient_checkpointing", "--scale_lr", *FLIPPED],
    "bf16, all at once": ["--mixed_precision", "bf16", "--noise_offset", 0.3, *FLIPPED],
    "workers": ["--dataloader_num_workers", 2, "--max_train_steps", 9, *FLIPPED],
    "validation": ["--num_validation_images", 1, "--checkpointing_steps", 1, "--max_train_steps", 5, "--random_flip"],
}
CASES = [(CONTROLNET, case, flags) for case, flags in (SHARED | OF_CONTROLNET).items()]
CASES += [(LORA, case, flags) for case, flags in (SHARED | OF_LORA).items()]


@with_diffusers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "case", "flags"), CASES, ids=[f"{Path(t[0]).stem}: {case}" for t, case, _ in CASES]
)
def test_same_weights_to_the_bit(trainer, case, flags, tiny_pipeline, make_data, tmp_path):
    script, weights = trainer
    captions = ["a person", "somebody", "a face"] if case in ("captions", "workers") else None
    data = make_data(tmp_path / "data", 7, captions=captions, annotated=False)
    flags = ["--max_train_steps", 3, *flags]
    if case == "validation":
        flags += ["--validation_prompt", "a person"]
        flags += ["--validation_image", data / "2_hint.png"] if trainer is CONTROLNET else []
    if case == "v-prediction":
        _set_prediction_type(tiny_pipeline, "v_prediction")
    try:
        for path, output in ((Path(EXAMPLES) / script, "theirs"), (ROOT / Path(script).name, "ours")):
            launch(path, command(tmp_path / output, tiny_pipeline, data, *flags, "--report_to", "tensorboard"))
    finally:
        _set_prediction_type(tiny_pipeline, "epsilon")
    theirs, ours = (load_file(tmp_path / o / weights) for o in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert [k for k in theirs if not theirs[k].equal(ours[k])] == []
    assert {k: v.dtype for k, v in theirs.items()} == {k: v.dtype for k, v in ours.items()}
    if trainer is CONTROLNET:
        assert (tmp_path / "theirs" / "config.json").read_text() == (tmp_path / "ours" / "config.json").read_text()


@with_diffusers
@pytest.mark.slow
def test_a_lora_checkpoint_of_either_goes_on_in_the_other(tiny_pipeline, make_data, tmp_path):
    """At the end of a pass, where the script itself resumes as if it had not stopped."""
    data = make_data(tmp_path / "data", 6, annotated=False)
    flags = ["--max_train_steps", 3, "--checkpointing_steps", 3]
    scripts = {"theirs": Path(EXAMPLES) / LORA[0], "ours": ROOT / Path(LORA[0]).name}
    more = ["--max_train_steps", 6, "--resume_from_checkpoint", "latest"]
    for name, script in scripts.items():
        launch(script, command(tmp_path / name, tiny_pipeline, data, *flags))
    for ours in ("metrics.jsonl", "arguments.json", "checkpoint-3/position_0.pt"):
        (tmp_path / "ours" / ours).unlink()
    for name, script in zip(scripts, reversed(scripts.values()), strict=True):
        launch(script, command(tmp_path / name, tiny_pipeline, data, *more))
    one, other = (load_file(tmp_path / name / LORA[1]) for name in scripts)
    assert [k for k in one if not one[k].equal(other[k])] == []


def launch(script: Path, argv: list[str]) -> None:
    """Run a script as `accelerate launch --cpu --num_processes 1` would."""
    if "none" in argv:  # the scripts of diffusers do not know it
        argv = [*argv, "--report_to", "tensorboard"]
    output = Path(argv[argv.index("--output_dir") + 1]).with_suffix(".txt")
    assert start_script(script, argv, output) == 0, output.read_text()[-3000:]


def _set_prediction_type(pipeline: Path, prediction_type: str) -> None:
    path = pipeline / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": prediction_type}))
