"""Networks with the architecture of Stable Diffusion 1.x in any size, and the folder that they are saved in.

The folder is read by `StableDiffusionPipeline.from_pretrained` and by every trainer that takes a Stable Diffusion 1.x
model. `build_tiny_pipeline` makes one with seeded random weights, for tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from mldm_plugin.people_mini.tokenizer import MODEL_MAX_LENGTH, vocabulary, write_tokenizer
from mldm_plugin.perceptual.frozen import build_seeded
from mldm_plugin.records.folders import replaced_folder

# stable-diffusion-v1-5/scheduler/scheduler_config.json, to the number.
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


@dataclass(frozen=True)
class Size:
    """Widths and depths of the three networks; everything else is as in Stable Diffusion 1.x."""

    vae_channels: tuple[int, int, int, int] = (8, 8, 16, 16)
    vae_layers: int = 1
    unet_channels: tuple[int, int, int, int] = (32, 64, 64, 64)
    unet_layers: int = 1
    heads: int = 4
    groups: int = 8
    text_width: int = 32
    text_layers: int = 1
    sample_size: int = 8


TINY = Size()


def build_vae(size: Size) -> nn.Module:
    """AutoencoderKL: four levels (factor 8), four latent channels, attention in the middle block."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=size.vae_channels,
        layers_per_block=size.vae_layers,
        norm_num_groups=min(size.groups, *size.vae_channels),
        latent_channels=4,
        sample_size=size.sample_size * 8,
        scaling_factor=0.18215,
    )


def build_unet(size: Size) -> nn.Module:
    """UNet2DConditionModel with the block types of Stable Diffusion 1.x."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=size.sample_size,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=size.unet_channels,
        layers_per_block=size.unet_layers,
        attention_head_dim=size.heads,
        norm_num_groups=size.groups,
        cross_attention_dim=size.text_width,
    )


def build_text_encoder(size: Size, vocabulary_size: int | None = None) -> nn.Module:
    """CLIPTextModel over the vocabulary of `people_mini.tokenizer`, or one of `vocabulary_size` tokens."""
    from transformers import CLIPTextConfig, CLIPTextModel

    last = (vocabulary_size or len(vocabulary()[0])) - 1
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=last + 1,
            hidden_size=size.text_width,
            intermediate_size=4 * size.text_width,
            projection_dim=size.text_width,
            num_hidden_layers=size.text_layers,
            num_attention_heads=4,
            max_position_embeddings=MODEL_MAX_LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=last - 1,
            eos_token_id=last,
            pad_token_id=last,
        )
    )


def build_networks(size: Size, seed: int = 0, vocabulary_size: int | None = None) -> dict[str, nn.Module]:
    """vae, unet and text_encoder with weights drawn from `seed`; the host's random generators stay as they were."""
    builders = {
        "vae": partial(build_vae, size),
        "unet": partial(build_unet, size),
        "text_encoder": partial(build_text_encoder, size, vocabulary_size),
    }
    return {name: build_seeded(build, seed).eval() for name, build in builders.items()}


def build_tiny_pipeline(folder: str | Path, *, size: Size = TINY, seed: int = 0) -> Path:
    """Write a pipeline of random seeded weights into `folder` and return it."""
    return write_pipeline(Path(folder), build_networks(size, seed), write_tokenizer)


def write_pipeline(folder: Path, networks: dict[str, Any], write_words: Callable[[Path], None]) -> Path:
    """Save the pipeline, the tokenizer's files by `write_words`; `folder` is never seen half-written."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    with replaced_folder(folder, "model_index.json") as made:
        write_words(made / "tokenizer")
        pipeline = StableDiffusionPipeline(
            **networks,
            tokenizer=CLIPTokenizer.from_pretrained(made / "tokenizer"),
            scheduler=PNDMScheduler(**SCHEDULER),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(made)
        write_words(made / "tokenizer")
        # SD 1.5's file also carries `clip_sample`, which DDPM and DDIM read and PNDM does not know.
        _say(made / "scheduler" / "scheduler_config.json", clip_sample=False)
        # transformers reads what its file names as the type, diffusers' networks come as float32; let them agree.
        _say(made / "text_encoder" / "config.json", dtype="float32")
    return folder


def _say(path: Path, **entries: Any) -> None:
    """Put entries into a file of JSON."""
    config = json.loads(path.read_text(encoding="utf-8")) | entries
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
