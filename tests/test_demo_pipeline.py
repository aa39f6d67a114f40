"""The demo's pipeline: it loads as Stable Diffusion 1.x, and the fitted one shows the photographs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mldm_plugin.demo import pipeline as pipeline_module
from mldm_plugin.demo.photos import WINDOWS
from mldm_plugin.demo.pipeline import (
    TINY,
    build_networks,
    build_pipeline,
    build_tiny_pipeline,
    fitted_file,
    load_fitted,
)
from mldm_plugin.errors import DataError, WeightsError

# Measured when the weights were made: worst picture 23.3 dB, mean 27.9 dB; worst x̂0 error 0.067 at t = 200,
# 0.116 at t = 400.
VAE_PSNR, VAE_PSNR_MEAN = 22.5, 27.0
X0_ERROR = 0.12

SHIPPED = ("vae", "unet", "text_encoder")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    folder = build_pipeline(tmp_path_factory.mktemp("fitted") / "pipeline")
    loaded = StableDiffusionPipeline.from_pretrained(folder)
    loaded.scheduler = DDIMScheduler.from_config(loaded.scheduler.config)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    from mldm_plugin.demo.fit import load_pictures

    return load_pictures()


@pytest.fixture(scope="module")
def latents(fitted: Any, pictures: torch.Tensor) -> torch.Tensor:
    """The pictures' latents at the U-Net's scale."""
    from mldm_plugin.demo.fit import encode

    return encode(fitted.vae, pictures) * fitted.vae.config.scaling_factor


def psnr(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Per picture, in dB, for pictures in [-1, 1]."""
    return -10 * torch.log10(((made - wanted) / 2).square().mean((1, 2, 3)))


def test_tiny_pipeline_loads_and_draws(tiny: Path) -> None:
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(tiny)
    loaded.set_progress_bar_config(disable=True)
    made = loaded("a man", num_inference_steps=2, height=64, width=64, output_type="pt").images
    assert made.shape == (1, 3, 64, 64)
    assert torch.isfinite(made).all()


def test_tiny_pipeline_has_the_blocks_of_stable_diffusion(tiny: Path) -> None:
    def config(name: str) -> dict:
        return json.loads((tiny / name).read_text("utf-8"))

    unet, vae = config("unet/config.json"), config("vae/config.json")
    assert unet["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert unet["up_block_types"] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert (unet["in_channels"], unet["out_channels"], vae["latent_channels"]) == (4, 4, 4)
    assert len(vae["block_out_channels"]) == 4
    scheduler = config("scheduler/scheduler_config.json")
    assert scheduler["clip_sample"] is False
    assert pipeline_module.SCHEDULER.items() <= scheduler.items()
    assert config("text_encoder/config.json")["architectures"] == ["CLIPTextModel"]


def test_same_seed_same_weights_and_the_hosts_generator_untouched(tmp_path: Path, tiny: Path) -> None:
    before = torch.random.get_rng_state()
    again = build_tiny_pipeline(tmp_path / "again")
    other = build_tiny_pipeline(tmp_path / "other", seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (again / name).read_bytes() == (tiny / name).read_bytes() != (other / name).read_bytes()


def test_earlier_pipeline_is_replaced_and_another_folder_is_not(tmp_path: Path) -> None:
    folder = build_tiny_pipeline(tmp_path / "pipeline")
    build_tiny_pipeline(folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pipeline"]
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(DataError, match="something else"):
        build_tiny_pipeline(tmp_path)


def test_tokenizer_is_clips(tiny: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny, subfolder="tokenizer", use_fast=False)
    assert tokenizer.model_max_length == 77
    texts = ["A smiling  Astronaut, naïve 7!", "", "man " * 200]
    ids = tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    assert ids.shape == (3, 77)
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert (ids[2, -1], ids[1, 1]) == (tokenizer.eos_token_id, tokenizer.eos_token_id)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "a smiling astronaut , naïve 7 !"
    encoder = json.loads((tiny / "text_encoder/config.json").read_text("utf-8"))
    assert encoder["vocab_size"] == len(tokenizer)
    assert encoder["eos_token_id"] == tokenizer.eos_token_id == int(ids.max())


def test_captions_stay_short_and_apart(tiny: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tiny / "tokenizer")
    tokens = [tuple(tokenizer(window.text).input_ids) for window in WINDOWS]
    assert len(set(tokens)) == len(WINDOWS)
    assert max(map(len, tokens)) < 30


def test_shipped_weights_are_small() -> None:
    assert sum(fitted_file(name).stat().st_size for name in SHIPPED) <= 20_000_000


def test_missing_or_foreign_weights_say_what_to_do(tmp_path: Path) -> None:
    vae = build_networks(TINY)["vae"]
    with pytest.raises(WeightsError, match="no such file.*mldm_plugin.demo.fit"):
        load_fitted("vae", vae, tmp_path / "vae.safetensors")
    with pytest.raises(WeightsError, match="does not fit.*mldm_plugin.demo.fit"):
        load_fitted("vae", vae, fitted_file("vae"))


@torch.no_grad()
def test_fitted_vae_shows_each_photo(fitted: Any, pictures: torch.Tensor, latents: torch.Tensor) -> None:
    made = torch.cat([fitted.vae.decode(z[None] / fitted.vae.config.scaling_factor).sample for z in latents])
    assert (latents.std() - 1).abs() < 0.02
    assert psnr(made, pictures).min() > VAE_PSNR
    assert psnr(made, pictures).mean() > VAE_PSNR_MEAN


@torch.no_grad()
def test_fitted_unet_restores_the_photo_in_one_step(fitted: Any, latents: torch.Tensor) -> None:
    """At t = 300, where SNR is 1.4, the predicted clean latents hold most of the photo."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    timesteps = torch.full((len(latents),), 300)
    noisy = fitted.scheduler.add_noise(latents, noise, timesteps)
    states = torch.cat([fitted.encode_prompt(w.text, "cpu", 1, False)[0] for w in WINDOWS])
    predicted = fitted.unet(noisy, timesteps, states).sample
    alpha = fitted.scheduler.alphas_cumprod[300]
    restored = (noisy - (1 - alpha).sqrt() * predicted) / alpha.sqrt()
    error = (restored - latents).square().mean((1, 2, 3))
    assert error.max() < X0_ERROR


def test_fitted_pipeline_draws_the_named_photo(fitted: Any, pictures: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    made = fitted(WINDOWS[0].text, num_inference_steps=10, generator=generator, guidance_scale=2.0, output_type="pt")
    assert made.images.shape == (1, 3, 256, 256)
    assert psnr(2 * made.images - 1, pictures).argmax() == 0
