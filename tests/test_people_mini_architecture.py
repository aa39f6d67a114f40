"""A tiny pipeline loads as Stable Diffusion 1.x, and is written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mldm_plugin.errors import DataError
from mldm_plugin.people_mini.architecture import SCHEDULER, build_tiny_pipeline


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


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
    assert SCHEDULER.items() <= scheduler.items()
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
