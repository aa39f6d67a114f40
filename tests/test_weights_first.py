"""A weight that cannot be had ends a run at once: before a model is loaded, and before an attached script starts."""

import runpy
import sys
from pathlib import Path

import pytest

from mldm_plugin import weights_first
from mldm_plugin.attach.attachment import Attachment
from mldm_plugin.attach.flags import Settings
from mldm_plugin.errors import WeightsError
from mldm_plugin.plugins import load_plugins
from mldm_plugin.preset import load_preset
from mldm_plugin.training.controlnet import main

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("preset", "overrides", "expected"),
    [
        ("mldm", [], ["vgg16", "vggface2_resnet50"]),
        ("lora-flux", [], ["vgg16", "dlib_resnet"]),
        ("demo", ["losses.face.weight=0"], ["alexnet"]),
        ("mldm-open", ["losses.masked_lpips.weights=random"], ["dlib_resnet"]),
        ("mldm-open", ["losses={masked_mse: {weight: 0.1}, latent_perceptual: {weight: 0.1}}"], []),
        ("mldm-open", ["losses={identity: {weight: 0.1}}"], ["dlib_resnet"]),
    ],
)
def test_what_a_preset_will_ask_for(preset, overrides, expected):
    plugins = load_plugins()
    assert weights_first.needed(load_preset(preset, overrides, plugins=plugins), plugins) == expected


@pytest.fixture
def none_can_be_had(monkeypatch, weights_cache):
    """No weights here, and no source of any; what was asked for."""
    asked = []

    def fetch(name):
        asked.append(name)
        raise WeightsError(f"{name} cannot be had")

    monkeypatch.setattr(weights_first, "fetch", fetch)
    return asked


def test_our_trainers_ask_before_they_load(none_can_be_had, monkeypatch, the_error, tmp_path):
    monkeypatch.setattr("mldm_plugin.training.run.Run", None)
    flags = ["--pretrained_model_name_or_path", "x", "--train_data_dir", "x", "--output_dir", str(tmp_path / "out")]
    assert main([*flags, "--preset", "mldm-open"]) == 1
    assert the_error() == "mldm: vgg16 cannot be had"
    assert none_can_be_had == ["vgg16"]


def test_attached_scripts_are_not_started(none_can_be_had):
    with pytest.raises(WeightsError, match="dlib_resnet cannot be had"):
        Attachment(Settings(("mldm",), "mldm-open", set=("losses.masked_lpips.weight=0",)))


def test_what_lies_here_is_not_fetched(none_can_be_had, weights_cache):
    weights_cache.mkdir()
    for name in ("vgg16", "dlib_resnet"):
        (weights_cache / f"{name}.safetensors").touch()
    plugins = load_plugins()
    weights_first.fetch_needed(load_preset("mldm-open", plugins=plugins), plugins)
    assert none_can_be_had == []


@pytest.mark.parametrize("file", ["train_controlnet.py", "train_text_to_image_lora.py"])
def test_the_commands_ask_before_they_import_a_trainer(file, none_can_be_had, monkeypatch, the_error):
    """What they import until then needs no torch: test_training_flags.py."""
    monkeypatch.setattr("mldm_plugin.training.asked.import_module", None)
    flags = ["--pretrained_model_name_or_path", "x", "--train_data_dir", "x", "--preset", "mldm-open"]
    monkeypatch.setattr(sys, "argv", [file, *flags])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(ROOT / file), run_name="__main__")
    assert the_error() == "mldm: vgg16 cannot be had"
