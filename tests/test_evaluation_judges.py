"""Judges are those that no loss of the compared runs looked with, as far as there are any."""

import inspect

import pytest

from mldm_plugin.evaluation import judges
from mldm_plugin.evaluation.judges import choose_judges, networks_of_losses
from mldm_plugin.evaluation.models import Model, Run
from mldm_plugin.perceptual.weights import WEIGHT_FILES
from mldm_plugin.plugins import load_plugins


@pytest.mark.parametrize(
    ("here", "used", "face", "lpips"),
    [
        (("faceres", "dlib_resnet", "alexnet", "vgg16"), (), "faceres", "alex"),
        (("faceres", "dlib_resnet", "alexnet", "vgg16"), ("alexnet", "dlib_resnet"), "faceres", "vgg"),
        (("dlib_resnet", "vgg16"), ("vggface2_resnet50",), "dlib_resnet", "vgg"),
        (("dlib_resnet", "alexnet"), ("dlib_resnet", "alexnet"), "dlib_resnet", "alex"),
        ((), (), "dlib_resnet", "alex"),
    ],
)
def test_the_first_that_is_here_and_not_used(monkeypatch, here, used, face, lpips):
    monkeypatch.setattr(judges, "locate", lambda name: name if name in here else None)
    chosen = choose_judges(used)
    assert (chosen.face, chosen.lpips) == (face, lpips)


def test_what_a_run_was_trained_on_is_in_its_preset(tmp_path):
    losses = ("masked_lpips: {weight: 0.2, network: alex}", "face: {weight: 0.5}", "other: {weight: 1, network: x}")
    preset = "losses:\n" + "".join(f"  {loss}\n" for loss in losses)
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "preset.yaml").write_text(preset)
    for what in (tmp_path, tmp_path / "checkpoint-3", tmp_path / "pytorch_lora_weights.safetensors"):
        found = networks_of_losses(Model("m", [Run(str(what), "lora", "base")]))
        assert found == {"alexnet", "vggface2_resnet50", "x"}
    (tmp_path / "preset.yaml").write_text("losses:\n  face: {weight: 0}\n")
    assert networks_of_losses(Model("m", [Run(str(tmp_path), "lora", "base")])) == set()
    assert networks_of_losses(Model("m", [Run("name/on-the-hub", "pipeline")])) == set()


def test_a_loss_without_a_choice_of_networks_is_known_by_its_own(tmp_path):
    """By the names under which metrics look with them; each built-in loss with weights is one of either kind."""
    options = {name: inspect.signature(loss).parameters for name, loss in load_plugins().losses.entries.items()}
    fixed = {name for name, asked in options.items() if "weights" in asked and "network" not in asked}
    assert fixed == judges.ONLY_NETWORKS.keys()
    assert judges.networks_in("losses: {dino: {weight: 0.1}, keypoints: {weight: 0}}") == {"dinov2"}
    assert judges.ONLY_NETWORKS["keypoints"] < WEIGHT_FILES.keys()


def test_a_preset_that_leaves_the_network_out_means_the_losses_own():
    """Else a judge would be taken for one that no loss used."""
    asked = {
        name: inspect.signature(loss).parameters.get("network") for name, loss in load_plugins().losses.entries.items()
    }
    assert {name: one.default for name, one in asked.items() if one is not None} == judges.LOSS_NETWORKS
