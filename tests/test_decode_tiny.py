"""TAESD in the VAE's place: loaded from a folder, told apart by family, and compared with the VAE at start-up."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from make_step import ddpm, make_step, tiny_vae

from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.decode.tiny import FAMILIES, TinyDecoder, load_tiny
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.errors import PresetError, WeightsError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small AutoencoderTiny of factor 4, saved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
        )
    path = tmp_path_factory.mktemp("tiny")
    tiny.save_pretrained(path)
    return path


def test_it_decodes_latents_as_the_denoiser_sees_them(folder):
    vae = tiny_vae()
    tiny = load_tiny(str(folder), vae.config)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    decoder = TinyDecoder(LatentDecoder(vae), tiny)
    torch.testing.assert_close(decoder(latents), tiny.decode(latents).sample)
    torch.testing.assert_close(decoder.exact(latents), vae.decode(latents / 0.5).sample)


def test_a_stack_decodes_by_it_and_says_how_far_its_gradients_are(folder):
    lines = []
    vae = tiny_vae()
    stack = LossStack.from_preset(
        "mldm",
        vae=vae,
        noise_scheduler=ddpm(),
        plugins=["mldm"],
        overrides=[
            f"vae={folder}",
            "losses.masked_lpips.weights=random",
            "losses.face.weight=0",
            "checks.picture=warn",
        ],
        announce=lines.append,
    )
    step = make_step((50, 20))
    report = stack(step)
    assert (
        "warning: decoding by a tiny autoencoder: cosine of the gradient with that of the VAE in float32: " in lines[0]
    )
    report.loss.backward()
    assert step.model_pred.grad.abs().sum() > 0
    stack.decoder.settle()
    assert not list(stack.decoder.exact.vae.parameters())
    stack(make_step((50, 20)))


def test_the_family_is_known_by_the_latents(monkeypatch):
    asked = []
    monkeypatch.setattr(
        AutoencoderTiny, "from_pretrained", lambda name, **options: asked.append((name, options)) or AutoencoderTiny()
    )
    for (channels, factor), name in FAMILIES.items():
        vae = AutoencoderKL(
            latent_channels=channels,
            scaling_factor=factor,
            block_out_channels=(8,) * 4,
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        if channels == 4:
            load_tiny("taesd", vae.config)
        else:  # what came is one of four channels
            with pytest.raises(
                PresetError, match="reads latents of 4 channels at 1/8 of the picture, this model's have 16"
            ):
                load_tiny("taesd", vae.config)
        assert asked[-1] == (name, {"use_safetensors": True})


def test_what_cannot_be_had_or_does_not_fit_is_said(folder, tmp_path):
    with pytest.raises(PresetError, match="has no member for latents of 4 channels and scaling factor 0.5"):
        load_tiny("taesd", tiny_vae().config)
    with pytest.raises(WeightsError, match="hf download"):
        load_tiny(str(tmp_path / "nothing"), tiny_vae().config)
    with pytest.raises(PresetError, match="at 1/4 of the picture, this model's have 4 at 1/2"):
        load_tiny(str(folder), tiny_vae(downscale=2).config)
    with pytest.raises(PresetError, match="reads latents scaled by 0.5, this trainer scales them by 0.18"):
        LossStack.from_preset(
            "mldm",
            vae=tiny_vae(),
            noise_scheduler=ddpm(),
            plugins=["mldm"],
            overrides=[f"vae={folder}", "losses.masked_lpips.weights=random", "losses.face.weight=0"],
            scaling_factor=0.18,
        )
    with pytest.raises(PresetError, match="normalised by channel"):
        LossStack.from_preset(
            "mldm",
            vae=tiny_vae(),
            noise_scheduler=ddpm(),
            plugins=["mldm"],
            overrides=[f"vae={folder}", "losses.masked_lpips.weights=random", "losses.face.weight=0"],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        )


def test_a_vae_whose_config_says_too_little_is_refused_and_a_mapping_is_read(folder):
    def stack_with(config):
        vae = tiny_vae()
        if config is None:
            bare = torch.nn.Module()
            bare.decode = vae.decode
        else:
            bare = vae
            bare.__dict__["_internal_dict"] = config
        return LossStack.from_preset(
            "mldm",
            vae=bare,
            noise_scheduler=ddpm(),
            plugins=["mldm"],
            overrides=[f"vae={folder}", "losses.masked_lpips.weights=random", "losses.face.weight=0"],
        )

    with pytest.raises(PresetError, match="stands in for a VAE with a scaling_factor, this has none: use vae: model"):
        stack_with(None)
    with pytest.raises(PresetError, match="whose config has scaling_factor, latent_channels and block_out_channels"):
        stack_with({"scaling_factor": 0.5})
    whole = {"scaling_factor": 0.5, "latent_channels": 4, "block_out_channels": (8, 8, 8)}
    assert isinstance(stack_with(whole).decoder, TinyDecoder)
