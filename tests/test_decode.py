"""Latents to pictures: the trainer's scale, shift and normalisation undone, and made again by `encode`."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan, Flux2Pipeline
from make_step import ddpm, flow, loss_and_gradient, make_step, tiny_vae
from odd_vaes import MEAN, STD, film_vae, flux2_vae

from mldm_plugin import LossStack
from mldm_plugin.decode.latent_decoder import LatentDecoder, says_scale
from mldm_plugin.errors import CheckError, DataError, PresetError


@pytest.mark.parametrize(
    ("own", "trainers"),
    [
        ({}, lambda z: z * 0.5),
        ({"scaling_factor": 0.13025}, lambda z: z * 0.13025),
        (
            {"latents_mean": MEAN, "latents_std": torch.tensor(STD).reshape(1, 4, 1, 1)},
            lambda z: (z - torch.tensor(MEAN)[:, None, None]) * 0.5 / torch.tensor(STD)[:, None, None],
        ),
    ],
)
def test_decodes_what_the_trainer_scaled(own, trainers):
    vae = tiny_vae()
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        z = vae.encode(pictures).latent_dist.mode()
        expected = vae.decode(z).sample
    decoder = LatentDecoder(vae, **own)
    assert torch.allclose(decoder(trainers(z)), expected, atol=1e-5)
    assert torch.allclose(decoder.encode(pictures)[0], trainers(z), atol=1e-5)


def test_a_shift_of_the_vae_is_added_back():
    vae = tiny_vae()
    vae.register_to_config(shift_factor=0.3)
    z = torch.randn(1, 4, 8, 8)
    assert torch.allclose(LatentDecoder(vae)((z - 0.3) * 0.5), vae.decode(z).sample, atol=1e-5)


@pytest.mark.parametrize("kind", [AutoencoderKLQwenImage, AutoencoderKLWan])
def test_a_picture_is_a_film_of_one_frame_scaled_by_statistics_by_channel(kind):
    vae = film_vae(kind)
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        z = vae.encode(pictures.unsqueeze(2)).latent_dist.mode()
        expected = vae.decode(z).sample.squeeze(2)
    latents = (z.squeeze(2) - mean) / std
    assert says_scale(vae)
    decoder = LatentDecoder(vae)
    assert decoder.image_size(latents) == (32, 32)
    assert torch.allclose(decoder(latents).clamp(-1, 1), expected, atol=1e-5)
    mode, spread = decoder.encode(pictures)
    assert torch.allclose(mode, latents, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(spread, vae.encode(pictures.unsqueeze(2)).latent_dist.std.squeeze(2) / std, atol=1e-5)
    decoder.settle()
    assert torch.allclose(decoder(latents).clamp(-1, 1), expected, atol=1e-5)


def test_a_saturated_pixel_of_a_film_vae_keeps_its_gradient():
    vae = film_vae(AutoencoderKLQwenImage)
    with torch.no_grad():
        vae.decoder.conv_out.bias += 3  # all pixels above 1, which the VAE's own decode clamps
    latents = torch.randn(1, 4, 4, 4, requires_grad=True)
    pictures = LatentDecoder(vae)(latents)
    assert pictures.min() > 1
    (gradient,) = torch.autograd.grad(pictures.sum(), latents)
    assert gradient.abs().min() > 0


def test_patches_are_scaled_by_the_statistics_of_a_batch_norm():
    """As diffusers' scripts for Flux.2 write it."""
    vae = flux2_vae()
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    with torch.no_grad():
        z = vae.encode(pictures).latent_dist.mode()
        expected = vae.decode(z).sample
    latents = (Flux2Pipeline._patchify_latents(z) - mean) / std
    decoder = LatentDecoder(vae)
    assert torch.allclose(decoder(latents), expected, atol=1e-5)
    assert torch.allclose(decoder.encode(pictures)[0], latents, atol=1e-5)
    assert decoder.image_size(latents) == (32, 32)


class CompVis(torch.nn.Module):
    """An autoencoder and a diffusion model around it, in the manner of CompVis: no config, `scale_factor`."""

    def __init__(self):
        super().__init__()
        self.first_stage_model, self.scale_factor = tiny_vae(), 0.5

    def differentiable_decode_first_stage(self, z):
        return self.first_stage_model.decode(z / self.scale_factor, return_dict=False)[0]

    @torch.no_grad()
    def decode_first_stage(self, z):
        return self.differentiable_decode_first_stage(z)


PRESET = "checks: {picture: warn}\nlosses: {masked_lpips: {weight: 0.2, weights: random, network: alex}}\n"


def stack_of(tmp_path, **options):
    (tmp_path / "preset.yaml").write_text(PRESET, encoding="utf-8")
    return LossStack.from_preset(tmp_path / "preset.yaml", announce=lambda text: None, **options)


def test_a_decode_function_and_a_schedule_in_plain_numbers(tmp_path):
    model = CompVis()
    step = make_step((50, 20))
    own = stack_of(
        tmp_path, decode=model.differentiable_decode_first_stage, alphas_cumprod=ddpm().alphas_cumprod.tolist()
    )
    known = stack_of(tmp_path, vae=model.first_stage_model, noise_scheduler=ddpm())
    for one, other in zip(loss_and_gradient(own, step), loss_and_gradient(known, step), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
    assert own.decoder.image_size(step.latents) == (32, 32)
    v = stack_of(tmp_path, decode=lambda z: z[:, :3], alphas_cumprod=[0.9, 0.1], prediction_type="v_prediction")
    assert v.schedule.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    "given", [{"scaling_factor": 0.5}, SimpleNamespace(scaling_factor=0.5)], ids=["mapping", "object"]
)
def test_a_config_of_any_form(given):
    """That of an autoencoder of one's own, which need not be diffusers' class."""
    vae = torch.nn.Conv2d(4, 3, 1)
    vae.config, vae.decode = given, lambda z, return_dict=False: (z[:, :3],)
    latents = torch.randn(1, 4, 4, 4)
    assert says_scale(vae)
    assert torch.equal(LatentDecoder(vae)(latents), latents[:, :3] / 0.5)
    assert LatentDecoder(vae).image_size(latents) == (4, 4)


def test_a_decode_function_without_gradient_is_a_dead_loss(tmp_path):
    stack = stack_of(tmp_path, decode=CompVis().decode_first_stage, noise_scheduler=ddpm())
    with pytest.raises(CheckError, match="masked_lpips"):
        stack(make_step((50, 20)))


def test_what_cannot_decode_or_add_noise_is_told_in_plain_words(tmp_path):
    with pytest.raises(CheckError, match="no autoencoder of diffusers .* pass decode, a function"):
        stack_of(tmp_path, vae=torch.nn.Identity(), noise_scheduler=ddpm(), scaling_factor=0.5)
    bare = tiny_vae()
    bare.register_to_config(scaling_factor=None)
    assert not says_scale(bare)
    with pytest.raises(CheckError, match="does not say how its latents are scaled"):
        stack_of(tmp_path, vae=bare, noise_scheduler=ddpm())
    with pytest.raises(PresetError, match="expected noise_scheduler or alphas_cumprod"):
        stack_of(tmp_path, vae=tiny_vae())
    with pytest.raises(PresetError, match="vae and decode were both given"):
        stack_of(tmp_path, vae=tiny_vae(), decode=lambda z: z, noise_scheduler=ddpm())
    for beta in (torch.linspace(0.0001, 0.02, 10), torch.ones(3, 3), [0.5]):
        with pytest.raises(CheckError, match="alphas_cumprod does not fall"):
            stack_of(tmp_path, decode=lambda z: z, alphas_cumprod=beta)
    with pytest.raises(DataError, match=r"decode gave \(1, 4, \d, \d\), expected a tensor \(1, 3, H, W\)"):
        stack_of(tmp_path, decode=lambda z: z, noise_scheduler=flow())(make_step((50, 20), scheduler=flow()))
    with pytest.raises(PresetError, match="use vae: model"):
        stack_of(tmp_path, decode=lambda z: z, noise_scheduler=ddpm(), overrides=["vae=taesd"])
