"""people-mini's three networks, and the folder that `StableDiffusionPipeline.from_pretrained` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mldm_plugin.people_mini import architecture
from mldm_plugin.people_mini.architecture import Size
from mldm_plugin.people_mini.words import vocabulary_size, write_words

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
    """vae, unet and text_encoder over the words of the captions, with weights drawn from `seed`."""
    return architecture.build_networks(size, seed, vocabulary_size())


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def write_pipeline(folder: Path, networks: dict[str, Any]) -> Path:
    """Save the pipeline in half precision; `folder` is never seen half-written."""
    for network in networks.values():  # safetensors takes no other memory format
        network.cpu().half().to(memory_format=torch.contiguous_format).eval()
    return architecture.write_pipeline(folder, networks, write_words)
