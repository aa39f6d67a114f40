from __future__ import annotations

import subprocess
import sys

import pytest

from mldm_plugin.errors import MldmError, PresetError
from mldm_plugin.preset import built_in_presets, load_preset
from mldm_plugin.training.command_line import (
    TRAINERS,
    changes,
    make_parser,
    parse,
    resolve,
    training_faults,
)
from mldm_plugin.training.flags import ControlNetFlags, LoraFlags

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


def flags(*argv: str, training: dict | None = None):
    section = None if training is None else {"train_controlnet": training}
    return resolve(ControlNetFlags, parse(ControlNetFlags, [*NEEDED, *argv]), section)


def test_the_defaults_are_those_of_diffusers():
    resolved = flags().model_dump(include=set(ControlNetFlags.theirs()))
    assert {name: value for name, value in resolved.items() if value not in (None, False) or value == 0} == {
        **DEFAULTS,
        **{name: False for name, value in resolved.items() if value is False},
        **dict(zip(("pretrained_model_name_or_path", "train_data_dir"), NEEDED[1::2], strict=True)),
    }


def test_a_preset_fills_only_what_the_user_left_unset():
    training = {"learning_rate": "1e-5", "resolution": 256, "train_batch_size": 1, "conditioning": "none"}
    # The batch size is given, and is the default: it stays.
    resolved = flags("--resolution", "512", "--train_batch_size", "4", training=training)
    assert (resolved.resolution, resolved.train_batch_size) == (512, 4)
    assert (resolved.learning_rate, resolved.conditioning) == (1e-5, "none")


def test_a_preset_may_set_switches_lists_and_nothing():
    training = {"gradient_checkpointing": True, "validation_prompt": "a", "conditioning": "none", "seed": None}
    resolved = flags(training=training)
    assert resolved.gradient_checkpointing
    assert resolved.validation_prompt == ["a"]
    assert resolved.seed is None
    assert flags("--conditioning", "none", training={"validation_prompt": ["a", "b"]}).validation_prompt == ["a", "b"]


def test_a_trainer_takes_its_own_section_alone():
    training = {
        "train_controlnet": {"conditioning": "none", "learning_rate": 1e-5},
        "train_text_to_image_lora": {"rank": 8, "learning_rate": 2e-4},
        "somebody_elses": {"rnak": 8},
    }
    assert training_faults(training) == []
    lora = resolve(LoraFlags, parse(LoraFlags, NEEDED), training)
    assert (lora.rank, lora.learning_rate) == (8, 2e-4)
    control = resolve(ControlNetFlags, parse(ControlNetFlags, NEEDED), training)
    assert (control.conditioning, control.learning_rate) == ("none", 1e-5)
    del training["train_text_to_image_lora"]
    assert resolve(LoraFlags, parse(LoraFlags, NEEDED), training).learning_rate == 1e-4
    with pytest.raises(PresetError, match=r"training.train_text_to_image_lora.rnak: unknown flag; did you mean 'rank'"):
        resolve(LoraFlags, parse(LoraFlags, NEEDED), {"train_text_to_image_lora": {"rnak": 8}})
    with pytest.raises(PresetError, match="conditioning: unknown flag"):
        resolve(LoraFlags, parse(LoraFlags, NEEDED), {"train_text_to_image_lora": {"conditioning": "none"}})


def test_each_setting_that_a_preset_changes_has_a_line():
    training = {
        "train_text_to_image_lora": {"learning_rate": "5e-5", "rank": 4, "max_train_steps": 9, "resolution": 64}
    }
    given = parse(LoraFlags, [*NEEDED, "--resolution", "256"])
    assert changes(resolve(LoraFlags, given, training), given, "own", training) == [
        "preset own: learning_rate 0.0001 → 5e-05",
        "preset own: max_train_steps unset → 9",
    ]
    short = parse(LoraFlags, [*NEEDED, "--resolu", "256", "--learning=1e-3", "--max_train_st", "3"])
    flags = resolve(LoraFlags, short, training)
    assert (flags.resolution, flags.learning_rate, flags.max_train_steps) == (256, 1e-3, 3)
    assert changes(flags, short, "own", training) == []
    control = resolve(ControlNetFlags, parse(ControlNetFlags, NEEDED), training)
    assert changes(control, {}, "own", training) == [
        "preset own has settings for train_text_to_image_lora.py, none for train_controlnet.py: its own hold."
    ]
    assert changes(control, {}, "own", {}) == []


def test_each_trainer_has_the_defaults_of_its_script():
    resolved = resolve(LoraFlags, parse(LoraFlags, NEEDED))
    found = (resolved.output_dir, resolved.train_batch_size, resolved.num_train_epochs, resolved.learning_rate)
    assert found == ("sd-model-finetuned-lora", 16, 100, 1e-4)
    with pytest.raises(SystemExit):
        parse(LoraFlags, [*NEEDED, "--lr_power", "2"])


def test_every_fault_of_a_training_section_is_named():
    section = {
        "learning_rat": 1,
        "resolution": "big",
        "gradient_checkpointing": "perhaps",
        "mixed_precision": "fp8",
        "train_batch_size": 1.5,
        "max_train_steps": [1],
        "num_train_epochs": 0,
        "preset": "mldm",
    }
    faults = training_faults({"train_controlnet": section})
    named = sorted(f"training.train_controlnet.{key}" for key in section)
    assert sorted(fault.partition(":")[0] for fault in faults) == named
    with pytest.raises(PresetError) as error:
        flags(training=section)
    assert all(fault in str(error.value) for fault in faults)
    assert "did you mean 'learning_rate'" in str(error.value)
    assert "'no', 'fp16' or 'bf16', got 'fp8'" in str(error.value)


def test_faults_of_the_command_line_and_of_the_preset_are_told_apart_and_together():
    with pytest.raises(PresetError) as error:
        flags("--train_batch_size", "0", training={"resolution": 4})
    assert "--train_batch_size: " in str(error.value)
    assert "training.train_controlnet.resolution: " in str(error.value)


@pytest.mark.parametrize("name", built_in_presets())
def test_the_training_sections_that_ship_are_flags(name):
    assert training_faults(load_preset(name).training) == []


def test_plugin_and_preset_imply_each_other():
    assert "preset" not in parse(ControlNetFlags, [])
    assert parse(ControlNetFlags, ["--loss-plugin", "mldm"])["preset"] == "controlnet"
    assert parse(LoraFlags, ["--loss-plugin", "mldm"])["preset"] == "lora-sd15"
    assert parse(ControlNetFlags, ["--preset", "p2"])["loss_plugin"] == ["mldm"]
    with pytest.raises(PresetError, match="without --preset"):
        parse(ControlNetFlags, ["--loss-plugin", "own.py"])
    with pytest.raises(PresetError, match="--set"):
        parse(ControlNetFlags, ["--set", "a=1"])


def test_both_spellings_and_repetition():
    argv = ["--preset", "x", "--loss-plugin", "mldm", "--loss_plugin", "x.py", "--set", "a=1", "--set", "b=2"]
    given = parse(ControlNetFlags, argv)
    assert given == {"preset": "x", "loss_plugin": ["mldm", "x.py"], "set": ["a=1", "b=2"]}


@pytest.mark.parametrize(("name", "default"), [("panel_steps", 500), ("curve_steps", 100)])
def test_panels_and_curves_come_with_a_plugin(name, default):
    assert getattr(flags(), name) is None
    assert getattr(flags("--loss-plugin", "mldm"), name) == default
    assert getattr(flags("--loss-plugin", "mldm", f"--{name}", "0"), name) == 0
    assert getattr(flags(f"--{name}", "0"), name) == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--resolution", "100"], "multiple of 8"),
        (["--proportion_empty_prompts", "1.5"], "--proportion_empty_prompts: input should be less than or equal to 1"),
        (["--train_batch_size", "0"], "--train_batch_size: input should be greater than 0, got 0"),
        (["--resolution", "100", "--validation_image", "a"], "multiple of 8.*needs --validation_prompt"),
        (["--validation_prompt", "a"], "needs --validation_image"),
        (["--validation_image", "a"], "needs --validation_prompt"),
        (["--validation_prompt", "a", "b", "--validation_image", "1", "2", "3"], "as many of both"),
        (["--color_jitter", "0.1", "0.1"], "expected four numbers"),
        (["--color_jitter", "0.1", "0.1", "-0.1", "0"], "of at least 0"),
        (["--color_jitter", "0.1", "0.1", "0.1", "0.6"], "hue of at most 0.5"),
        (["--report_to", "wandb", "--hub_token", "secret"], "hf auth login"),
        (["--curve_steps", "5"], "--curve_steps .* with --loss-plugin"),
    ],
)
def test_flags_that_do_not_belong_together(argv, words):
    with pytest.raises(MldmError, match=words):
        flags(*argv)


def test_model_and_data_are_required():
    with pytest.raises(MldmError, match="--pretrained_model_name_or_path is missing"):
        resolve(ControlNetFlags, {})
    with pytest.raises(MldmError, match="no data set"):
        resolve(ControlNetFlags, parse(ControlNetFlags, NEEDED[:2]))


def test_validation_without_a_hint_needs_no_picture():
    assert flags("--conditioning", "none", "--validation_prompt", "a").validation_image is None


@pytest.mark.parametrize(
    ("kind", "argv", "words"),
    [
        (LoraFlags, ["--cache_latents"], "drawn at random in each pass: add --center_crop"),
        (ControlNetFlags, ["--cache_latents", "--random_crop"], "leave out --random_crop"),
        (ControlNetFlags, ["--cache_latents", "--color_jitter", "1", "0", "0", "0"], "leave out --color_jitter"),
        (ControlNetFlags, ["--latents_cache_dir", "x"], "--latents_cache_dir is for --cache_latents"),
        (LoraFlags, ["--cache_latents", "--center_crop", "--resolution", "100"], "multiple of 8"),
        (LoraFlags, ["--prediction_type", "sample"], "--prediction_type is 'sample', expected epsilon"),
        (LoraFlags, ["--snr_gamma", "0"], "--snr_gamma: input should be greater than 0"),
        (LoraFlags, ["--rank", "0"], "--rank: input should be greater than 0"),
    ],
)
def test_what_one_trainer_refuses(kind, argv, words):
    with pytest.raises(MldmError, match=words):
        resolve(kind, parse(kind, [*NEEDED, *argv]))


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_word_that_is_no_choice_is_refused(kind, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(kind, ["--timestep_sampling", "even"])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("mldm: argument --timestep_sampling: invalid choice: 'even'")
    assert "uniform" in line
    assert line.endswith(f"(see {kind.script} --help)")
    assert (
        "'uniform' or 'stratified', got 'even'" in training_faults({kind.section(): {"timestep_sampling": "even"}})[0]
    )


def test_help_names_every_flag_and_imports_no_torch():
    assert all(f"--{name}" in make_parser(kind).format_help() for kind in TRAINERS for name in kind.model_fields)
    code = "import sys, mldm_plugin.training.asked; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
