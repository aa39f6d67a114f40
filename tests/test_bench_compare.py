"""The plain versions are the plugin's equals in result, whatever they cost."""

import re

import pytest
import torch
from bench_sizes import SMALL
from weights_entries import needs_weights

from mldm_plugin.bench import candidates, others
from mldm_plugin.bench.compare import (
    RELU_TOLERANCE,
    TOLERANCE,
    compare_losses,
    compare_ways,
    difference,
    exact,
)
from mldm_plugin.bench.count import count
from mldm_plugin.bench.further_losses import DINO, KEYPOINTS, LATENT, MSE, FurtherLosses, stages
from mldm_plugin.bench.host import Host, attach, draw_people, random_preset, shrink_faces, start_up, timesteps_of
from mldm_plugin.bench.report import loss_table
from mldm_plugin.decode.stages import decoded
from mldm_plugin.errors import CheckError, PresetError
from mldm_plugin.planning.operations import counting
from mldm_plugin.plugins import load_plugins

CPU = torch.device("cpu")
N = 3


@pytest.fixture(scope="module")
def plugins():
    return load_plugins(())


@pytest.fixture(scope="module")
def host():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Host(SMALL, CPU)


@pytest.fixture(scope="module")
def stack(host, plugins):
    return attach(host, random_preset("mldm", (), plugins), plugins)


@pytest.fixture(scope="module")
def after_the_network(host, stack):
    """From a way's name and timesteps to its loss and gradient, on one batch."""
    ways = candidates.ways_to_a_loss(host, stack, host.vae)
    batch = host.draw(N, 32)
    return lambda name, timesteps: host.after_the_network(batch, torch.tensor(timesteps), ways[name][0])


@pytest.mark.parametrize("timesteps", [(3, 700, 99), (100, 101, 0), (999, 999, 999), (50, 50, 50)])
def test_the_plugin_equals_decoding_everything_and_masking(after_the_network, timesteps):
    ours, plain = (after_the_network(name, timesteps) for name in (candidates.OURS, candidates.EVERYTHING))
    found = difference("everything", plain, ours, TOLERANCE, RELU_TOLERANCE)
    assert found.held_to == TOLERANCE
    base = after_the_network(candidates.PLAIN, timesteps)[1][0]
    for row, t in enumerate(timesteps):  # the losses do something where the gate is open, and nothing elsewhere
        assert torch.allclose(ours[1][0][row], base[row], rtol=1e-5, atol=0) == (t > 100)


@pytest.mark.parametrize("timestep", [50, 100, 101])
def test_with_one_t_it_equals_the_whole_batch_gate(after_the_network, timestep):
    ours, plain = (after_the_network(name, [timestep] * N) for name in (candidates.OURS, candidates.WHOLE_BATCH))
    difference("whole batch", plain, ours, TOLERANCE, RELU_TOLERANCE)


def test_all_ways_agree_before_anything_is_timed(host, plugins):
    found = compare_ways(host, random_preset("mldm", (), plugins), plugins, 32)
    assert len(found) == 5
    assert all(d.value <= TOLERANCE and d.gradient <= RELU_TOLERANCE for d in found), "a ReLU may turn by rounding"


def test_a_disagreement_is_an_error(host, plugins, monkeypatch):
    right = others.decode
    monkeypatch.setattr(others, "decode", lambda vae, latents: 1.01 * right(vae, latents))
    with pytest.raises(CheckError, match="'decode everything, then mask, k=1' and the plugin differ by"):
        compare_ways(host, random_preset("mldm", (), plugins), plugins, 32)


@pytest.mark.parametrize("means", ["precision=bfloat16", "vae=taesd"])
def test_what_decodes_by_other_means_may_differ(plugins, means):
    assert exact(random_preset("mldm", (), plugins))
    assert not exact(random_preset("mldm", [means], plugins))
    one = torch.ones(1)
    assert difference("x", (2 * one, [one]), (one, [one]), None, 1e-2).value == 1


def test_a_gradient_that_is_cut_is_an_error():
    one = torch.ones(1)
    with pytest.raises(CheckError, match="in gradient"):
        difference("x", (one, [torch.zeros(2)]), (one, [torch.ones(2)]), 1e-4, 1e-2)


@pytest.fixture(scope="module")
def losses(plugins):
    return candidates.LossesAlone(plugins, SMALL)


def test_losses_agree(losses):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = compare_losses(losses, CPU)
    assert len(found) == 3
    assert max(max(d.value, d.gradient) for d in found) < 1e-6


def test_a_mask_left_out_is_an_error(losses, monkeypatch):
    whole = others.spatial_times_mask
    monkeypatch.setattr(others, "spatial_times_mask", lambda m, p, t, mask: whole(m, p, t, torch.ones_like(mask)))
    with pytest.raises(CheckError, match="lpips spatial x mask"):
        compare_losses(losses, CPU)


def test_eq_2_by_hand():
    # One layer, one channel, 1 and 3 at two pixels, upsampled to 1, 1.5, 2.5, 3; the mask keeps the middle.
    predicted, target = torch.tensor([[[[1.0, 3.0]]]]), torch.zeros(1, 1, 1, 2)
    mask = torch.tensor([[[[0.0, 1.0, 1.0, 0.0]]]])
    expected = 0.5 * ((1.5**2 + 2.5**2) / 2) ** 0.5
    assert others.upsample_then_mask([predicted], [target], [0.5], mask).item() == pytest.approx(expected)


def test_gradients_are_left_behind_nowhere(losses):
    functions = losses.on(draw_people(1, 64, CPU))
    value, gradients = candidates.value_and_gradient(*functions[candidates.DISTANCE])
    assert value > 0
    assert all(g.abs().sum() > 0 for g in gradients)
    assert all(leaf.grad is None for leaf in functions[candidates.DISTANCE][1])


def test_a_person_covers_a_third_and_a_face_an_eighth():
    people = draw_people(2, 96, CPU)
    assert people["person_mask"].float().mean().item() == pytest.approx(1 / 3)
    assert people["face_boxes"][1].tolist() == [[44, 24, 56, 36]]


def test_as_many_images_are_gated_as_wanted(stack):
    timesteps = timesteps_of(stack, 4, 3, CPU).tolist()
    assert [t <= 100 for t in timesteps] == [True, True, True, False]


def test_start_up_ends_and_tells_what_the_plugin_decodes_in(plugins):
    host = Host(SMALL, CPU)
    host.use(torch.bfloat16)
    assert host.unet.dtype == torch.bfloat16
    assert host.controlnet.dtype == torch.float32
    stack = attach(host, random_preset("mldm", (), plugins), plugins)
    assert start_up(host, stack, 32) == torch.bfloat16
    assert stack.start_up is None


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("baseline", (), "no losses"),
        ("mldm-p2", (), "weighs the plain one"),
        ("mldm", ["losses.face.max_timestep=null"], "lets every image through"),
        ("mldm", ["losses={masked_mse: {weight: 0.3, max_timestep: null}}"], "no losses behind a gate"),
    ],
)
def test_presets_that_cannot_be_measured(plugins, name, overrides, message):
    with pytest.raises(PresetError, match=message):
        random_preset(name, overrides, plugins)


def test_the_decoders_features_are_the_same_when_everything_is_decoded(host, plugins):
    """`latent_perceptual` beside a loss on pictures, in both targets."""
    losses = "losses={latent_perceptual: {weight: 0.5}}"
    for target in ("image", "decoded"):
        found = compare_ways(host, random_preset("mldm", (losses, f"target={target}"), plugins), plugins, 32)
        assert all(d.value <= TOLERANCE for d in found)


@pytest.mark.parametrize("limit", ["null", 1000, 100])
def test_a_loss_on_latents_alone_needs_no_gate(host, plugins, limit):
    """`masked_mse` at every timestep beside a loss on pictures: above T, too, it is there in all ways."""
    losses = f"losses={{masked_mse: {{weight: 0.3, max_timestep: {limit}}}, masked_lpips: {{weight: 0.2}}}}"
    preset = random_preset("mldm", (losses,), plugins)
    found = compare_ways(host, preset, plugins, 32)
    assert len(found) == 5
    assert all(d.value <= TOLERANCE and d.gradient <= RELU_TOLERANCE for d in found)
    assert count(SMALL, 32, preset, plugins).losses["masked_mse"] == 0


def test_a_face_network_that_takes_no_small_faces_is_measured_as_it_is(plugins):
    """dlib's, on pictures whose faces are otherwise cut smaller."""
    shrunk, own = (plugins.losses[name](weights="random") for name in ("face", "identity"))
    for loss in (shrunk, own):
        shrink_faces(loss, SMALL)
    assert (shrunk.features.crop.size, own.features.crop.size) == (SMALL.face_crop, 150)


def test_losses_without_a_plain_version_are_measured_at_their_published_size(plugins):
    further = FurtherLosses(plugins, SMALL)
    names = {DINO, LATENT, MSE, KEYPOINTS} - {one.name for one in further.missing}
    functions = further.on(draw_people(2, 64, CPU))
    assert functions.keys() == names
    [candidate] = [one for one in candidates.loss_candidates(functions) if one.name == DINO]
    with counting() as operations:
        candidate.runs[1]()
    # ViT-S/14 has 21.3 million weights in its layers, each used for 257 tokens: 5.5 billion multiplications, and some
    # in its attention; of two pictures the photograph forward, the estimate forward and back to the picture.
    assert operations.get_total_flops() / (2 * 3 * 2) == pytest.approx(5.9e9, rel=0.15)
    for name, of in functions.items():
        value, gradients = candidates.value_and_gradient(*of)
        assert value > 0, name
        assert all(g.abs().sum() > 0 for g in gradients), name


def test_keypoints_without_its_file_is_a_row_that_says_so(plugins, weights_cache):
    further = FurtherLosses(plugins, SMALL)
    [row] = loss_table(further.missing).splitlines()[1:]
    assert re.match(r" *keypoints +- .*mldm weights fetch mediapipe_hand", row)
    assert KEYPOINTS not in further.on(draw_people(1, 64, CPU))


def test_the_stages_of_the_decoder_are_its_own(host):
    latents = torch.zeros(1, 4, 8, 8)
    _, features = decoded(host.vae, latents, features=True)
    shapes = [(f.shape[1], f.shape[2]) for f in features]
    assert stages(SMALL.family.vae["block_out_channels"], 8) == shapes


@needs_weights("mediapipe_hand")
def test_a_preset_keeps_the_weights_of_a_network_that_tests_have_smaller(plugins):
    """And its loss alone is counted, not that of a small one."""
    preset = random_preset("mldm", ["losses={keypoints: {weight: 0.1}, face: {weight: 0.1}}"], plugins)
    assert preset.losses["keypoints"].options["weights"] == "pretrained"
    assert preset.losses["face"].options["weights"] == "random"
    assert count(SMALL, 64, preset, plugins).losses["keypoints"] > 1e-3
