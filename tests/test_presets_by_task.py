"""The presets by task: each is for scripts whose flags take it, and what its comments say of T is so."""

import json
import math
import os
import re
from pathlib import Path
from statistics import NormalDist

import pytest
import script_flags
from make_step import ddpm

from mldm_plugin.attach.script_flags import fill, fill_when_parsed
from mldm_plugin.engine.schedule import NoiseSchedule, stable_diffusion_snr
from mldm_plugin.errors import PresetError
from mldm_plugin.plugins import load_plugins
from mldm_plugin.preset import built_in_presets, load_preset, task_preset
from mldm_plugin.training.command_line import TRAINERS, training_faults

TASKS = built_in_presets("task")
RECORDED = json.loads(script_flags.FILE.read_text(encoding="utf-8"))
# Flags that diffusers' script has not; a trainer that stands in for none has all of them for itself.
OURS_ALONE = {kind.section(): set(kind.ours() if kind.stands_in else kind.model_fields) for kind in TRAINERS}
FLOW = [name for name in TASKS if name.endswith(("flux", "sd3"))]


def test_the_tasks():
    families = ("sd15", "sdxl", "flux", "sd3")
    assert set(TASKS) == {"controlnet", *(f"{task}-{family}" for task in ("lora", "dreambooth") for family in families)}


@pytest.mark.parametrize("name", built_in_presets())
def test_every_flag_of_a_preset_is_one_of_the_script_and_takes_the_value(name):
    training = load_preset(name, plugins=load_plugins(), check_training=training_faults).training
    assert training or name == "mldm-tuned" or name in built_in_presets("loss"), "those leave a trainer its settings"
    for script, section in training.items():
        known = RECORDED.get(script, {})
        assert known or script in OURS_ALONE
        assert section.keys() - known.keys() <= OURS_ALONE.get(script, set())
        parser = script_flags.parser_of(known)
        wanted = {flag: value for flag, value in section.items() if flag in known}
        fill(parser, wanted, [], name, script)
        parsed = vars(parser.parse_args([]))
        assert {flag: parsed[flag] for flag in wanted} == {flag: _typed(known[flag], wanted[flag]) for flag in wanted}


def _typed(flag, value):
    return value if flag.get("action") else script_flags.TYPES[flag.get("type", "str")](value)


@pytest.mark.parametrize("name", TASKS)
def test_losses_are_the_same_for_every_family_and_go_away_together(name):
    preset = load_preset(name)
    assert {n: (s.weight, s.max_timestep) for n, s in preset.losses.items()} == {
        "masked_lpips": (0.2, 100),
        "face": (0.5, 100),
    }
    plain = load_preset(name, ["losses={}"])
    assert plain.losses == {}
    assert plain.training == preset.training
    assert "add --set losses={}" in TASKS[name].read_text(encoding="utf-8")


def test_what_the_comments_say_of_t():
    """The SNR, the σ that has it in flow matching, and how many pictures the scripts draw inside."""
    snr = stable_diffusion_snr()[100].item()
    assert round(snr, 2) == 8.45
    flow = NoiseSchedule("flow_prediction")
    assert flow.timestep_at(snr) == pytest.approx(256, abs=0.5)
    assert NoiseSchedule.from_scheduler(ddpm()).timestep_at(snr) == 100
    for name in TASKS:
        text = " ".join(TASKS[name].read_text(encoding="utf-8").replace("#", " ").split())
        assert "SNR ≥ 8.45" in text
        assert ("σ = 0.256: t ≤ 256 of 1000" in text) == (name in FLOW)
    odds = snr**-0.5  # σ / (1 − σ)
    assert round((1 + odds) / odds) == 4, "σ drawn evenly: a quarter"
    assert odds / (3 + odds) == pytest.approx(0.10, abs=0.005), "and shifted by 3: a tenth"
    assert round(1 / NormalDist().cdf(math.log(odds / 3))) == 66, "logit-normal, shifted by 3"
    # flux_shift is exp(µ), µ = 1.15 at 1024 px (scheduler/scheduler_config.json of FLUX.1 dev: max_shift).
    assert round(1 / NormalDist().cdf(math.log(odds) - 1.15)) == 75, "kohya's flux_shift"


def test_a_script_finds_the_preset_of_its_task():
    expected = {
        "train_controlnet": "controlnet",
        "train_text_to_image_lora": "lora-sd15",
        "train_dreambooth_lora": "dreambooth-sd15",
        "train_dreambooth_lora_flux": "dreambooth-flux",
        "sdxl_train_network": "lora-sdxl",
        "flux_train_network": "lora-flux",
    }
    assert {script: task_preset(script) for script in expected} == expected
    with pytest.raises(PresetError, match="no built-in preset has settings for own.py"):
        task_preset("own")


@pytest.mark.skipif("MLDM_DIFFUSERS_EXAMPLES" not in os.environ, reason="needs a clone of diffusers")
def test_the_recorded_flags_are_those_of_diffusers():
    examples = Path(os.environ["MLDM_DIFFUSERS_EXAMPLES"])
    for script in re.findall(r"(\w+)\.py", "\n".join(p.name for p in examples.glob("*/train_*.py"))):
        if script in RECORDED:
            flags = script_flags.flags_in(next(examples.glob(f"*/{script}.py")).read_text(encoding="utf-8"))
            assert {name: flags.get(name) for name in RECORDED[script]} == RECORDED[script]


def parser_with(*flags):
    import argparse

    parser = argparse.ArgumentParser()
    for names, options in flags:
        parser.add_argument(*names, **options)
    return parser


FLAGS = (
    (["--learning_rate", "--lr"], {"type": float, "default": 1e-4}),
    (["--flip"], {"action": "store_true"}),
    (["--words"], {"nargs": "*"}),
    (["--kind"], {"choices": ["a", "b"], "default": "a"}),
    (["--needed"], {"required": True}),
)


def test_a_scripts_parser_takes_the_settings_that_its_command_line_leaves_unset(monkeypatch, capfd):
    import argparse

    section = {"learning_rate": "5e-5", "flip": True, "words": ["x", "y"], "kind": "b", "needed": 3, "other": 1}
    untouched = argparse.ArgumentParser.parse_known_args
    fill_when_parsed("own", "train", {"train": section})
    assert parser_with((["--unrelated"], {})).parse_args([]).unrelated is None
    parsed = parser_with(*FLAGS).parse_args(["--lr=1", "--kind", "a"])
    assert argparse.ArgumentParser.parse_known_args is untouched
    assert vars(parsed) == {"learning_rate": 1.0, "flip": True, "words": ["x", "y"], "kind": "a", "needed": "3"}
    assert capfd.readouterr().err.splitlines() == [
        "preset own: flip False → True",
        "preset own: words unset → ['x', 'y']",
        "preset own: needed unset → 3",
        "preset own: train.py has no flag for other; not used.",
    ]


def test_a_shortened_flag_is_given_all_the_same(capfd):
    """argparse takes it, so the user's value holds, and nothing is told of the preset's."""
    flags = (*FLAGS, (["--num_train_epochs"], {"type": int}), (["--max_train_steps"], {"type": int}))
    parser = parser_with(*flags)
    section = {"learning_rate": 5e-5, "kind": "b", "num_train_epochs": 9}
    typed = ["--learning", "1", "--ki=a", "--need", "1", "--max_train", "7"]
    fill(parser, section, typed, "own", "train")
    parsed = parser.parse_args(typed)
    assert (parsed.learning_rate, parsed.kind) == (1.0, "a")
    assert (parsed.max_train_steps, parsed.num_train_epochs) == (7, None), "one length is the only one"
    assert capfd.readouterr().err == ""


def test_a_script_without_a_section_is_left_alone(capfd):
    fill_when_parsed("own", "train", {"other": {"kind": "b"}})
    assert parser_with(*FLAGS).parse_args(["--needed", "1"]).kind == "a"
    assert capfd.readouterr().err == "preset own has settings for other.py, none for train.py: its own hold.\n"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"learning_rate": "fast"}, "training.s.learning_rate: 'fast' cannot be --learning_rate"),
        ({"flip": 1}, "training.s.flip: expected true or false for a switch, got 1"),
        ({"kind": "c"}, "training.s.kind: got 'c', expected one of a, b"),
        ({"kind": ["a", "b"]}, "training.s.kind: expected one value"),
    ],
)
def test_values_that_a_flag_cannot_have(section, message):
    with pytest.raises(PresetError, match=message):
        fill(parser_with(*FLAGS), section, [], "own", "s")
