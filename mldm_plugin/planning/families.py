"""The shapes of the networks that are planned for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mldm_plugin.errors import MldmError


@dataclass(frozen=True)
class Family:
    """Configurations of a pipeline, as in its config.json files.

    Args:
        name: for people.
        resolution: side of the pictures it was made for.
        unet, vae: arguments of UNet2DConditionModel and AutoencoderKL.
        text_encoders: one configuration of a CLIP text model each.
    """

    name: str
    resolution: int
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoders: tuple[Mapping[str, Any], ...]

    @property
    def text_parameters(self) -> int:
        """Number of weights of the text encoders."""
        return sum(map(clip_parameters, self.text_encoders))


_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_CLIP_BIGG = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "projection_dim": 1280}

# The config.json files of stable-diffusion-v1-5/stable-diffusion-v1-5 and stabilityai/stable-diffusion-xl-base-1.0 on
# the Hub: what differs from the defaults of diffusers' classes.
FAMILIES = {
    "sd15": Family(
        "SD 1.5",
        512,
        {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        {**_VAE, "sample_size": 512},
        (_CLIP_L,),
    ),
    "sdxl": Family(
        "SDXL",
        1024,
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025},
        (_CLIP_L, _CLIP_BIGG),
    ),
}


def read_family(folder: Path) -> Family:
    """The family of a pipeline on this disk, of which only the config.json files are read.

    Raises:
        MldmError: no such folder, or not a pipeline with a U-Net.
    """
    unet, vae = _read(folder, "unet"), _read(folder, "vae")
    encoders = [f for f in ("text_encoder", "text_encoder_2") if (folder / f).is_dir()]
    resolution = unet.get("sample_size", 64) * 2 ** (len(vae.get("block_out_channels", (64,))) - 1)
    return Family(folder.name, resolution, unet, vae, tuple(_read(folder, f) for f in encoders))


def _read(folder: Path, part: str) -> dict[str, Any]:
    path = folder / part / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise MldmError(
            f"{path} cannot be read ({type(error).__name__}): expected the folder of a Stable Diffusion 1.x or SDXL "
            "pipeline in diffusers' format; or leave it out and say --family sd15 or sdxl."
        ) from error
    return {name: value for name, value in config.items() if not name.startswith("_")}


def clip_parameters(config: Mapping[str, Any]) -> int:
    """Number of weights of a CLIP text model, embeddings included.

    >>> clip_parameters({"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12})
    123060480
    """
    width, inner = config["hidden_size"], config["intermediate_size"]
    embeddings = (config.get("vocab_size", 49408) + config.get("max_position_embeddings", 77)) * width
    layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    projection = width * config["projection_dim"] if "projection_dim" in config and width == 1280 else 0
    return embeddings + config["num_hidden_layers"] * layer + 2 * width + projection
