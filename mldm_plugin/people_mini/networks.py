"""people-mini's three networks, and the folder that `StableDiffusionPipeline.from_pretrained` reads."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mldm_plugin.demo.folders import replaced_folder
from mldm_plugin.demo.pipeline import SCHEDULER, Size, build_text_encoder, build_unet, build_vae, finish_scheduler
from mldm_plugin.people_mini.words import read_tokenizer, vocabulary_size, write_words
from mldm_plugin.perceptual.frozen import build_seeded

# Chosen: 19 million parameters, 38 MB in half precision; the two outer levels, which faces need, get most of them.
PEOPLE_MINI = Size(
    vae_channels=(48, 80, 112, 144),
    vae_layers=1,
    unet_channels=(128, 160, 128, 96),
    unet_layers=1,
    heads=4,
    groups=16,
    text_width=192,
    text_layers=4,
    sample_size=16,
)
# For tests and for trying a command before it is sent to a GPU.
THIN = Size(
    vae_channels=(16, 16, 32, 32),
    unet_channels=(32, 32, 32, 32),
    heads=2,
    groups=8,
    text_width=32,
    text_layers=1,
    sample_size=16,
)
SIZES = {"full": PEOPLE_MINI, "thin": THIN}


def build_networks(size: Size, seed: int = 0) -> dict[str, Any]:
    """vae, unet and text_encoder with weights drawn from `seed`; the host's random generators stay as they were."""
    builders = {
        "vae": partial(build_vae, size),
        "unet": partial(build_unet, size),
        "text_encoder": partial(build_text_encoder, size, vocabulary_size()),
    }
    return {name: build_seeded(builder, seed) for name, builder in builders.items()}


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def write_pipeline(folder: Path, networks: dict[str, Any]) -> Path:
    """Save the pipeline in half precision; `folder` is never seen half-written."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    for network in networks.values():  # safetensors takes no other memory format
        network.cpu().half().to(memory_format=torch.contiguous_format).eval()
    with replaced_folder(folder, "model_index.json") as made:
        pipeline = StableDiffusionPipeline(
            **networks,
            tokenizer=read_tokenizer(made / "tokenizer"),
            scheduler=PNDMScheduler(**SCHEDULER),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(made)
        write_words(made / "tokenizer")
        _read_as_float32(made / "text_encoder" / "config.json")
        finish_scheduler(made / "scheduler" / "scheduler_config.json")
    return folder


def _read_as_float32(path: Path) -> None:
    """transformers reads what its file names as the type, diffusers' networks come as float32; let them agree."""
    config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
