"""Latent perceptual loss: the relative error of the decoder's features, on people."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage, AutoencoderTiny
from hypothesis import given, settings
from hypothesis import strategies as st
from make_step import PictureLoss, ddpm, make_stack, make_step, people_mask, tiny_vae
from odd_vaes import film_vae

from mldm_plugin import LossStack
from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.decode.own import OwnDecode
from mldm_plugin.decode.stages import stages
from mldm_plugin.decode.tiny import TinyDecoder
from mldm_plugin.engine.term import Term
from mldm_plugin.errors import CheckError, LossError, PresetError
from mldm_plugin.hooks.latent_perceptual import LEAST_SHARE, LatentPerceptual, latent_perceptual, relative_error
from mldm_plugin.perceptual.frozen import build_seeded, computing_in
from mldm_plugin.planning.tensor_memory import TensorMemory

SIDES = (4, 8, 16, 16)


def features(n=2, seed=0, dtype=torch.float32):
    """Four stages of a decoder whose pictures have 16 pixels a side."""
    g = torch.Generator().manual_seed(seed)
    channels = (6, 6, 4, 3)
    return [torch.randn(n, c, s, s, generator=g, dtype=dtype) for c, s in zip(channels, SIDES, strict=True)]


def mask(n=2, size=16):
    return (people_mask(n, size, people=1) > 0).float()


def step_of(person_mask, timesteps=(50, 50), **options):
    return replace(make_step(timesteps, **options), person_mask=person_mask)


def value_and_gradient(stack, step):
    report = stack(replace(step, base_loss=None))
    return report.terms["latent_perceptual"].raw, torch.autograd.grad(report.loss, step.model_pred)[0]


def stack_of(where="people", weight=1.0, **options):
    return make_stack(Term("latent_perceptual", LatentPerceptual(where=where), weight, 200), **options)


def test_by_hand():
    """Stage 1 of 1×2, stage 2 of 1×4, the mask on the two middle pixels."""
    t = [
        torch.tensor([[[[2.0, 1.0]]]]),
        torch.tensor([[[[1.0, 2.0, 2.0, 1.0]], [[0.0, 0.0, 0.0, 0.0]]]]).view(1, 2, 1, 4),
    ]
    p = [t[0] + torch.tensor([[[[2.0, 3.0]]]]), t[1].clone()]
    p[1][0, 1, 0, 2] = 4.0
    # e_1 = 1, 9, upsampled 1, 3, 7, 9, masked 3 + 7 = 10; e_2 = 0, 0, 16/4, 0, masked 4. ω = h_1/h_l = 1 here.
    middle = torch.tensor([[[[0.0, 1.0, 1.0, 0.0]]]])
    assert latent_perceptual(p, t, middle).item() == pytest.approx((10 + 4) / (2 * 2))


def test_a_finer_stage_counts_by_the_inverse_of_its_resolution():
    t = [torch.ones(1, 2, 2, 2), torch.ones(1, 2, 8, 8)]
    everywhere = torch.ones(1, 1, 8, 8)
    half = [t[0], 0.5 * t[1]]
    assert latent_perceptual(half, t, everywhere).item() == pytest.approx(0.25 * 0.25 / 1.25)
    assert latent_perceptual([0 * x for x in t], t, everywhere).item() == pytest.approx(1)


def test_equals_upsampling_and_masking_literally():
    """Both features divided by the length of the true one, as the authors' code does; no place is nearly silent."""
    p, t = ([x + 3 for x in features(seed=s)] for s in (1, 2))
    m = mask()
    theirs = 0
    for a, b in zip(p, t, strict=True):
        length = b.square().sum(1, keepdim=True).sqrt()
        e = (a / length - b / length).square().sum(1, keepdim=True)
        up = F.interpolate(e, size=16, mode="bilinear", align_corners=False)
        theirs = theirs + 4 / a.shape[-1] * (up * m).sum((1, 2, 3)) / m.sum((1, 2, 3))
    omegas = sum(4 / side for side in SIDES)
    torch.testing.assert_close(latent_perceptual(p, t, m), theirs / omegas, rtol=1e-5, atol=0)


def test_gradcheck():
    p = [x.requires_grad_() for x in features(dtype=torch.float64)]
    t, m = features(seed=1, dtype=torch.float64), mask().double()
    assert torch.autograd.gradcheck(lambda *given: latent_perceptual(given, t, m), p)


def test_equal_features_and_empty_masks_are_0_with_finite_gradient():
    p, t, m = [x.requires_grad_() for x in features()], features(), mask()
    equal = latent_perceptual(p, t, m)
    other = features(seed=3)
    m[1] = 0
    empty = latent_perceptual(p, other, m)
    assert equal.tolist() == [0, 0]
    assert empty[0] > 0
    assert empty[1] == 0
    for value in (equal, empty):
        for gradient in torch.autograd.grad(value.sum(), p, retain_graph=True):
            assert torch.isfinite(gradient).all()
    assert all(g[1].abs().max() == 0 for g in torch.autograd.grad(empty.sum(), p))


def test_a_silent_place_does_not_outweigh_the_picture():
    t = torch.ones(1, 2, 4, 4)
    t[..., 0, 0] = 0
    p = (t + 0.1).requires_grad_()
    error = relative_error(p, t)
    assert error.max().item() == pytest.approx(0.02 / (LEAST_SHARE * 2 * 15 / 16), rel=1e-5)
    nothing = relative_error(torch.zeros(1, 2, 4, 4, requires_grad=True), torch.zeros(1, 2, 4, 4))
    assert nothing.abs().max() == 0


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 1000))
def test_nothing_outside_the_mask_has_effect_or_gradient_at_feature_level(x, y, seed):
    m = torch.zeros(1, 1, 16, 16)
    m[..., y : y + 3, x : x + 3] = 1
    p, t = [q.requires_grad_() for q in features(1, seed)], features(1, seed + 1)
    for q, gradient in zip(p, torch.autograd.grad(latent_perceptual(p, t, m).sum(), p), strict=True):
        side = q.shape[-1]
        support = F.interpolate(torch.eye(side**2).view(-1, 1, side, side), size=16, mode="bilinear")
        reached = (support * m).sum((1, 2, 3)).view(side, side) > 0
        assert gradient[..., ~reached].abs().sum() == 0
        assert (gradient[..., reached].abs().sum(1) > 0).all()


def test_a_batch_equals_its_images():
    p, t, m = features(3), features(3, seed=1), mask(3)
    m[1, :, :8] = 0
    alone = [latent_perceptual([x[i : i + 1] for x in p], [x[i : i + 1] for x in t], m[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(latent_perceptual(p, t, m), torch.cat(alone))


# Through the engine


@pytest.mark.parametrize("where", ["people", "picture"])
def test_through_the_stack_it_is_the_decoders_features_and_reaches_the_network(where):
    step, vae = step_of(people_mask(2)), tiny_vae()
    values, gradient = value_and_gradient(stack_of(where), step)
    assert torch.isfinite(gradient).all()
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    alpha, sigma = (x.view(-1, 1, 1, 1) for x in make_stack().schedule.coefficients(step.timesteps))
    estimate = (step.noisy_latents - sigma * step.model_pred) / alpha

    def stages_by_hand(z):
        z = vae.post_quant_conv(z / vae.config.scaling_factor)
        found = [vae.decoder.mid_block(vae.decoder.conv_in(z))]
        for block in vae.decoder.up_blocks:
            found.append(block(found[-1]))
        return found

    everywhere = torch.ones(2, 1, 32, 32)
    m = (step.person_mask > 0).float() if where == "people" else everywhere
    expected = latent_perceptual(stages_by_hand(estimate), stages_by_hand(step.latents), m)
    torch.testing.assert_close(values, expected.detach(), rtol=1e-4, atol=0)
    own = torch.autograd.grad(expected.mean(), step.model_pred)[
        0
    ]  # convex, weight 1: nothing of the plain loss is left
    torch.testing.assert_close(gradient, own, rtol=1e-3, atol=1e-7)


def test_without_people_there_is_no_gate_and_no_decode():
    step = step_of(torch.zeros(2, 1, 32, 32, dtype=torch.uint8))
    stack = stack_of()
    report = stack(step)
    assert report.terms["latent_perceptual"].gated == 0
    assert report.loss == step.base_loss
    assert stack_of("picture")(step).terms["latent_perceptual"].gated == 2


def test_one_decode_serves_all_losses_and_features_are_kept_for_those_that_ask_alone():
    """Two of the three images are inside its T; those alone have their clean latents decoded."""
    step = step_of(people_mask(3), (50, 20, 80))
    terms = [Term("picture", PictureLoss(), 0.2), Term("latent_perceptual", LatentPerceptual(), 0.2, 60)]
    stack = make_stack(*terms, decode_batch=1)
    stack.prove(step)
    stack.start_up = None
    decodes, original = [], stack.decoder.vae.decode
    stack.decoder.vae.decode = lambda z, **o: decodes.append(z.requires_grad) or original(z, **o)
    stack(step)
    assert decodes == [False, True, False, True, True]
    decoded = make_stack(*terms, target="decoded", decode_batch=1)
    decoded.prove(step)
    decoded.start_up = None
    decodes, original = [], decoded.decoder.vae.decode
    decoded.decoder.vae.decode = lambda z, **o: decodes.append(z.requires_grad) or original(z, **o)
    decoded(step)
    assert decodes == [False, True] * 3


def test_the_other_losses_see_what_they_saw_without_it():
    step = step_of(people_mask(2), (50, 20))
    alone = make_stack(Term("picture", PictureLoss(), 0.2))(step)
    beside = make_stack(Term("picture", PictureLoss(), 0.2), Term("latent_perceptual", LatentPerceptual(), 0.2))(step)
    torch.testing.assert_close(alone.terms["picture"].raw, beside.terms["picture"].raw)


def test_groups_checkpointing_and_selection_change_nothing():
    step = step_of(people_mask(3), (50, 20, 900))
    expected = value_and_gradient(stack_of(), step)
    for stack in (
        stack_of(decode_batch=1),
        stack_of(decoder=LatentDecoder(tiny_vae(), checkpointing=True)),
    ):
        for ours, theirs in zip(value_and_gradient(stack, step), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7, equal_nan=True)


def test_slices_are_put_together_and_tiles_refused():
    vae = tiny_vae()
    latents = torch.randn(3, 4, 8, 8)
    whole = LatentDecoder(vae).with_features(latents)
    vae.enable_slicing()
    sliced = LatentDecoder(vae).with_features(latents)
    torch.testing.assert_close(sliced[0], whole[0])
    torch.testing.assert_close(sliced[1], whole[1])
    vae.disable_slicing()
    vae.enable_tiling()
    vae.tile_latent_min_size = 4
    with pytest.raises(LossError, match=r"decodes in tiles.*disable_tiling"):
        LatentDecoder(vae).with_features(latents)


def test_features_in_bfloat16_are_near_those_in_float32():
    latents = torch.randn(1, 4, 8, 8)
    decoder = LatentDecoder(tiny_vae())
    exact = decoder.with_features(latents)[1]
    with computing_in(torch.bfloat16):
        rounded = decoder.with_features(latents)[1]
    assert len(exact) == len(rounded) == 4
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.float32
        assert (a - b).norm() < 0.02 * a.norm()


def test_a_tiny_autoencoder_has_stages_too_and_the_table_says_how_far_its_gradient_is(tmp_path):
    tiny = build_seeded(
        lambda: AutoencoderTiny(
            latent_channels=4,
            encoder_block_out_channels=(8,) * 3,
            decoder_block_out_channels=(8,) * 3,
            num_encoder_blocks=(1,) * 3,
            num_decoder_blocks=(2, 2, 1),
        )
    )
    assert len(stages(tiny)) == 3
    decoder = TinyDecoder(LatentDecoder(tiny_vae()), tiny)
    pictures, found = decoder.with_features(torch.randn(2, 4, 8, 8))
    assert [f.shape[-1] for f in found] == [8, 16, 32]
    assert pictures.shape[-1] == 32
    table = stack_of(decoder=decoder).prove(step_of(people_mask(2)))
    assert "cosine of the gradient with that of the VAE in float32: latent_perceptual" in table


def test_a_film_of_one_frame_has_stages_too():
    decoder = LatentDecoder(film_vae(AutoencoderKLQwenImage))
    latents = torch.randn(2, 4, 8, 8, requires_grad=True)
    pictures, found = decoder.with_features(latents)
    torch.testing.assert_close(pictures, decoder(latents))
    assert all(f.ndim == 4 and len(f) == 2 for f in found)
    assert found[-1].shape[-2:] == pictures.shape[-2:]
    (gradient,) = torch.autograd.grad(sum(f.square().mean() for f in found), latents)
    assert (gradient != 0).all()


@pytest.mark.parametrize("vae", [OwnDecode(lambda z: z[:, :3]), torch.nn.Identity()])
def test_a_decoder_without_known_stages_is_refused(vae):
    with pytest.raises(LossError, match="no decoder with up_blocks"):
        stages(vae)


def test_no_grad_around_the_decoder_stops_the_run():
    """Defect 1 of the released code, for features."""
    stack = stack_of()
    stack.decoder.vae.decode = torch.no_grad()(stack.decoder.vae.decode)
    with pytest.raises(CheckError, match="'latent_perceptual' would train nothing"):
        stack(step_of(people_mask(2)))


def test_a_preset_builds_it_without_weights_and_refuses_another_place(tmp_path):
    preset = tmp_path / "p.yaml"
    preset.write_text("losses: {latent_perceptual: {weight: 0.5, max_timestep: 200}}\nchecks: {picture: warn}")
    tables = []
    stack = LossStack.from_preset(preset, vae=tiny_vae(), noise_scheduler=ddpm(), announce=tables.append)
    stack(step_of(people_mask(2)))
    assert "latent_perceptual" in tables[0]
    assert "reaches the network" in tables[0]
    assert stack.needs == {"pred_images", "pred_features", "person_mask"}
    with pytest.raises(PresetError, match="where: input should be 'people' or 'picture'"):
        LossStack.from_preset(
            preset, vae=tiny_vae(), noise_scheduler=ddpm(), overrides=["losses.latent_perceptual.where=faces"]
        )


def test_a_non_finite_gradient_of_features_is_stopped_before_it_reaches_other_losses():
    """A root at 0, taken of a feature that is 0 there."""

    class Root:
        needs = frozenset({"pred_features"})

        def __call__(self, step):
            return (step.pred_features[0] * 0).sum((1, 2, 3)).sqrt()

    step = step_of(people_mask(2))
    stack = make_stack(Term("picture", PictureLoss(), 0.2), Term("root", Root(), 0.2))
    stack.start_up = None
    report = stack(step)
    assert report.terms["root"].gradients_finite is False
    (gradient,) = torch.autograd.grad(report.loss, step.model_pred)
    assert torch.isfinite(gradient).all()
    assert report.terms["picture"].gradients_finite


def test_features_cost_no_second_decode_in_memory():
    """What is kept beyond the decode is the clean features and one difference a stage."""
    step = step_of(people_mask(1), (50,))
    peaks = {}
    for name, stack in (("without", make_stack(Term("p", PictureLoss(), 0.2))), ("with", stack_of())):
        stack.start_up = None
        stack(step)
        with TensorMemory() as memory:
            stack(step)
        peaks[name] = memory.peak
    sizes = sum(f.numel() * 4 for f in LatentDecoder(tiny_vae()).with_features(step.latents)[1])
    assert peaks["with"] - peaks["without"] < 2.6 * sizes
