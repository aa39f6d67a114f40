"""The plain strategies are the plugin's equals in result, whatever they cost."""

import pytest
import torch
from bench_sizes import SMALL

from mldm_plugin.bench import agreement, candidates, workload
from mldm_plugin.bench.networks import attach, build_networks, plain_vae, random_preset
from mldm_plugin.bench.strategies import WithPlugin, decode
from mldm_plugin.bench.workload import Batch, Timesteps, pixel_path, start_up
from mldm_plugin.errors import CheckError, PresetError
from mldm_plugin.plugins import load_plugins

CPU = torch.device("cpu")
N = 3


@pytest.fixture(scope="module")
def setting():
    """Networks, strategies, a batch and timesteps, at 32²."""
    plugins = load_plugins(())
    preset = random_preset("mldm", (), plugins)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = build_networks(SMALL, CPU, torch.float32)
        stack = attach(networks, preset, plugins)
        timesteps = Timesteps(stack, CPU)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(workload, "CHECKED_STEPS", 1)
            start_up(networks, stack, timesteps, 32)
        batch = Batch.draw(networks, N, 32)
    return networks, candidates.strategies(networks, stack, plain_vae(networks, preset)), batch, timesteps, preset


@pytest.mark.parametrize("timesteps", [(3, 700, 99), (100, 101, 0), (999, 999, 999), (50, 50, 50)])
def test_the_plugin_equals_decoding_everything_and_masking(setting, timesteps):
    networks, ways, batch, _, _ = setting
    ours, plain = (
        pixel_path(networks, batch, torch.tensor(timesteps), ways[name][0])
        for name in (candidates.OURS, candidates.EVERYTHING)
    )
    assert ours[0].item() == pytest.approx(plain[0].item(), rel=1e-4)
    assert (ours[1] - plain[1]).norm() <= 1e-4 * plain[1].norm()
    gated = [t <= 100 for t in timesteps]
    base = pixel_path(networks, batch, torch.tensor(timesteps), ways[candidates.PLAIN][0])[1]
    for row, g in enumerate(gated):  # the losses do something where the gate is open, and nothing elsewhere
        assert torch.allclose(ours[1][row], base[row], rtol=1e-5, atol=0) == (not g)


@pytest.mark.parametrize("timestep", [50, 100, 101])
def test_with_one_t_it_equals_the_whole_batch_gate(setting, timestep):
    networks, ways, batch, _, _ = setting
    ours, plain = (
        pixel_path(networks, batch, torch.tensor([timestep] * N), ways[name][0])
        for name in (candidates.OURS, candidates.WHOLE_BATCH)
    )
    assert ours[0].item() == pytest.approx(plain[0].item(), rel=1e-4)
    assert (ours[1] - plain[1]).norm() <= 1e-4 * plain[1].norm()


def test_all_strategies_agree(setting):
    found = agreement.compare_strategies(*setting)
    assert len(found) == 5
    assert all(a.value <= 1e-4 and a.gradient <= 1e-4 for a in found)


def test_a_disagreement_is_an_error(setting):
    networks, ways, batch, timesteps, preset = setting

    class Wrong(WithPlugin):
        def __call__(self, step):
            return 1.001 * super().__call__(step)

    wrong = {**ways, candidates.OURS: (Wrong(ways[candidates.OURS][0].stack), "each image")}
    with pytest.raises(CheckError, match=r"'decode everything, then mask, k=1' and the plugin differ by 0\.001 in v"):
        agreement.compare_strategies(networks, wrong, batch, timesteps, preset)


def test_a_gradient_that_is_cut_is_an_error(setting):
    networks, ways, batch, timesteps, preset = setting
    everything = ways[candidates.EVERYTHING][0]

    def cut(step):
        with torch.no_grad():
            value = everything(step)
        return value + (step.base_loss - step.base_loss.detach())

    with pytest.raises(CheckError, match="in gradient"):
        agreement.compare_strategies(networks, {**ways, candidates.EVERYTHING: (cut, "none")}, batch, timesteps, preset)


def test_a_preset_that_decodes_by_other_means_is_not_held_to_it(setting):
    networks, ways, batch, timesteps, preset = setting
    wrong = {**ways, candidates.OURS: (lambda step: 1.5 * step.base_loss, "each image")}
    found = agreement.compare_strategies(
        networks, wrong, batch, timesteps, preset.model_copy(update={"decode": "region"})
    )
    assert all(a.held_to is None for a in found)
    assert max(a.value for a in found) > 0.1


def test_in_bfloat16_the_plain_vae_decodes_in_what_the_plugin_does():
    plugins = load_plugins(())
    networks = build_networks(SMALL, CPU, torch.bfloat16)
    assert networks.unet.dtype == torch.bfloat16
    assert networks.controlnet.dtype == torch.float32
    for precision, expected in (("auto", torch.bfloat16), ("float32", torch.float32)):
        vae = plain_vae(networks, random_preset("mldm", [f"precision={precision}"], plugins))
        assert vae.dtype == expected
        assert decode(vae, torch.randn(1, 4, 16, 16)).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("baseline", (), "no losses"),
        ("mldm-p2", (), "weighs the plain one"),
        ("mldm", ["losses.face.max_timestep=null"], "lets every image through"),
    ],
)
def test_presets_that_cannot_be_measured(name, overrides, message):
    with pytest.raises(PresetError, match=message):
        random_preset(name, overrides, load_plugins(()))
