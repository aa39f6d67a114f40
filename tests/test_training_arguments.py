from __future__ import annotations

import subprocess
import sys

import pytest

from mldm_plugin.errors import MldmError, PresetError
from mldm_plugin.preset import built_in_presets, load_preset
from mldm_plugin.training import lora_flags
from mldm_plugin.training.arguments import TABLES, convert_training, name_the_plugin, of_other_trainers
from mldm_plugin.training.controlnet_flags import FLAGS

NEEDED = ["--pretrained_model_name_or_path", "sd", "--train_data_dir", "data"]

# The defaults of diffusers' examples/controlnet/train_controlnet.py at 58eb52c0; compared with the script itself in
# test_training_parity.py. What is not here is None or False.
DEFAULTS = {
    "output_dir": "controlnet-model",
    "resolution": 512,
    "train_batch_size": 4,
    "num_train_epochs": 1,
    "checkpointing_steps": 500,
    "gradient_accumulation_steps": 1,
    "learning_rate": 5e-6,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 500,
    "lr_num_cycles": 1,
    "lr_power": 1.0,
    "dataloader_num_workers": 0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_weight_decay": 1e-2,
    "adam_epsilon": 1e-08,
    "max_grad_norm": 1.0,
    "logging_dir": "logs",
    "report_to": "tensorboard",
    "image_column": "image",
    "conditioning_image_column": "conditioning_image",
    "caption_column": "text",
    "proportion_empty_prompts": 0,
    "num_validation_images": 4,
    "validation_steps": 100,
    "tracker_project_name": "train_controlnet",
}


def arguments(*argv: str, training: dict | None = None):
    return FLAGS.resolve(name_the_plugin(FLAGS.parse([*NEEDED, *argv])), training)


def test_the_defaults_are_those_of_diffusers():
    assert {f.name: f.default for f in FLAGS.theirs if f.default not in (None, False) or f.default == 0} == {
        **DEFAULTS,
        **{f.name: False for f in FLAGS.theirs if f.kind is bool},
    }
    resolved = vars(arguments())
    assert resolved == {
        **{f.name: f.default for f in FLAGS},
        **dict(zip(("pretrained_model_name_or_path", "train_data_dir"), NEEDED[1::2], strict=True)),
    }


def test_a_preset_fills_only_what_the_user_left_unset():
    training = {"learning_rate": "1e-5", "resolution": 256, "train_batch_size": 1, "conditioning": "none"}
    # The batch size is given, and is the default: it stays.
    resolved = arguments("--resolution", "512", "--train_batch_size", "4", training=training)
    assert (resolved.resolution, resolved.train_batch_size) == (512, 4)
    assert (resolved.learning_rate, resolved.conditioning) == (1e-5, "none")


def test_a_preset_may_set_switches_and_lists():
    values = convert_training({"gradient_checkpointing": True, "validation_prompt": ["a", "b"], "seed": None})
    assert values == {"gradient_checkpointing": True, "validation_prompt": ["a", "b"], "seed": None}
    assert convert_training({"validation_prompt": "a"}) == {"validation_prompt": ["a"]}


def test_a_section_is_checked_for_any_trainer_and_used_by_one():
    section = {"conditioning": "none", "rank": 8, "validation_prompt": "a person", "resolution": 256}
    assert convert_training(section)["rank"] == 8
    assert of_other_trainers(FLAGS, section) == ["rank"]
    assert of_other_trainers(lora_flags.FLAGS, section) == ["conditioning"]
    assert lora_flags.FLAGS.convert({"validation_prompt": "a person"}) == {"validation_prompt": "a person"}
    with pytest.raises(PresetError, match=r"unknown flag; did you mean 'rank'"):
        lora_flags.FLAGS.convert({"rnak": 8})


def test_what_a_script_has_no_flag_for_is_what_it_does():
    resolved = lora_flags.FLAGS.resolve(lora_flags.FLAGS.parse(NEEDED))
    assert (resolved.lr_num_cycles, resolved.lr_power, resolved.tokenizer_name) == (1, 1.0, None)
    assert (resolved.output_dir, resolved.train_batch_size, resolved.num_train_epochs, resolved.learning_rate) == (
        "sd-model-finetuned-lora",
        16,
        100,
        1e-4,
    )
    with pytest.raises(SystemExit):
        lora_flags.FLAGS.parse([*NEEDED, "--lr_power", "2"])


def test_every_fault_of_a_training_section_is_named():
    section = {
        "learning_rat": 1,
        "resolution": "big",
        "gradient_checkpointing": "yes",
        "mixed_precision": "fp8",
        "train_batch_size": 1.5,
        "max_train_steps": [1],
        "preset": "mldm",
    }
    with pytest.raises(PresetError) as error:
        convert_training(section)
    message = str(error.value)
    assert all(f"training.{key}" in message for key in section)
    assert "did you mean 'learning_rate'" in message
    assert "expected one of no, fp16, bf16, got 'fp8'" in message


@pytest.mark.parametrize("name", built_in_presets())
def test_the_training_sections_that_ship_are_flags(name):
    convert_training(load_preset(name).training)


def test_plugin_and_preset_imply_each_other():
    assert "preset" not in name_the_plugin({})
    assert name_the_plugin({"loss_plugin": ["mldm"]})["preset"] == "mldm"
    assert name_the_plugin({"preset": "p2"})["loss_plugin"] == ["mldm"]
    with pytest.raises(PresetError, match="without --preset"):
        name_the_plugin({"loss_plugin": ["own.py"]})
    with pytest.raises(PresetError, match="--set"):
        name_the_plugin({"set": ["a=1"]})


def test_both_spellings_and_repetition():
    given = FLAGS.parse([*NEEDED, "--loss-plugin", "mldm", "--loss_plugin", "x.py", "--set", "a=1", "--set", "b=2"])
    assert given["loss_plugin"] == ["mldm", "x.py"]
    assert given["set"] == ["a=1", "b=2"]


def test_panels_come_with_a_plugin():
    assert arguments().panel_steps is None
    assert arguments("--loss-plugin", "mldm").panel_steps == 500
    assert arguments("--loss-plugin", "mldm", "--panel_steps", "0").panel_steps == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--resolution", "100"], "multiple of 8"),
        (["--proportion_empty_prompts", "1.5"], "expected 0 to 1"),
        (["--train_batch_size", "0"], "at least 1"),
        (["--validation_prompt", "a"], "needs --validation_image"),
        (["--validation_image", "a"], "needs --validation_prompt"),
        (["--validation_prompt", "a", "b", "--validation_image", "1", "2", "3"], "as many of both"),
        (["--color_jitter", "0.1", "0.1"], "expected four numbers"),
        (["--color_jitter", "0.1", "0.1", "-0.1", "0"], "of at least 0"),
        (["--color_jitter", "0.1", "0.1", "0.1", "0.6"], "hue of at most 0.5"),
        (["--report_to", "wandb", "--hub_token", "secret"], "hf auth login"),
    ],
)
def test_flags_that_do_not_belong_together(argv, words):
    with pytest.raises(MldmError, match=words):
        arguments(*argv)


def test_model_and_data_are_required():
    with pytest.raises(MldmError, match="--pretrained_model_name_or_path is missing"):
        FLAGS.resolve(FLAGS.parse([]))
    with pytest.raises(MldmError, match="no data set"):
        FLAGS.resolve(FLAGS.parse(NEEDED[:2]))


def test_validation_without_a_hint_needs_no_picture():
    assert arguments("--conditioning", "none", "--validation_prompt", "a").validation_image is None


def test_help_names_every_flag_and_imports_no_torch():
    assert all(f"--{flag.name}" in table.parser().format_help() for table in TABLES for flag in table)
    code = "import sys, mldm_plugin.training.arguments; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
