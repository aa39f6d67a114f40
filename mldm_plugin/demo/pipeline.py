"""A tiny pipeline with the architecture and the files of Stable Diffusion 1.x.

`build_tiny_pipeline` makes one with seeded random weights (tests), `build_pipeline` one with the fitted weights
that ship with the package (the demo). Either folder is read by `StableDiffusionPipeline.from_pretrained` and by
every trainer that takes a Stable Diffusion 1.x model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn

from mldm_plugin.demo.folders import replaced_folder
from mldm_plugin.demo.tokenizer import MODEL_MAX_LENGTH, vocabulary, write_tokenizer
from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.frozen import build_seeded

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
# Chosen: what two CPU cores fit within half an hour (python -m mldm_plugin.demo.fit) and 16 MB hold.
FITTED = Size(
    vae_channels=(24, 48, 80, 96),
    vae_layers=1,
    unet_channels=(32, 64, 128, 128),
    unet_layers=1,
    heads=2,
    text_width=64,
    text_layers=2,
    sample_size=32,
)


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
    """CLIPTextModel over the vocabulary of `mldm_plugin.demo.tokenizer`, or one of `vocabulary_size` tokens."""
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


BUILDERS = {"vae": build_vae, "unet": build_unet, "text_encoder": build_text_encoder}


def build_networks(size: Size, seed: int = 0) -> dict[str, nn.Module]:
    """The three networks with weights drawn from `seed`; the host's random generators stay as they were."""
    return {name: build_seeded(partial(build, size), seed).eval() for name, build in BUILDERS.items()}


def build_tiny_pipeline(folder: str | Path, *, size: Size = TINY, seed: int = 0) -> Path:
    """Write a pipeline of random seeded weights into `folder` and return it."""
    return _write(Path(folder), build_networks(size, seed))


def build_pipeline(folder: str | Path, *, fitted: bool = True) -> Path:
    """Write the demo's pipeline into `folder`; `fitted=False` leaves its weights random (seeded).

    Raises:
        WeightsError: a shipped weight file is missing or does not belong to this version.
    """
    networks = build_networks(FITTED)
    if fitted:
        for name, network in networks.items():
            load_fitted(name, network)
    return _write(Path(folder), networks)


def fitted_file(name: str) -> Path:
    """Where the fitted weights of `vae`, `unet` or `text_encoder` lie in the package."""
    return Path(str(resources.files("mldm_plugin.demo"))) / f"{name}.safetensors"


def load_fitted(name: str, network: Any, path: Path | None = None) -> None:
    """Load fitted half-precision weights into `network` as float32; a VAE also gets its scaling factor."""
    from safetensors import safe_open

    path = path or fitted_file(name)
    again = "rebuild it with `python -m mldm_plugin.demo.fit --out DIR`, or install the package again."
    if not path.is_file():
        raise WeightsError(f"the demo expected its fitted weights in {path.name}, but there is no such file; {again}")
    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata() or {}
        weights = {key: stored.get_tensor(key).float() for key in stored.keys()}  # noqa: SIM118
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise WeightsError(f"{path.name} does not fit the demo's {name} of this version; {again}") from error
    if name == "vae":
        network.register_to_config(scaling_factor=float(metadata["scaling_factor"]))


def _write(folder: Path, networks: dict[str, Any]) -> Path:
    """Save the pipeline; `folder` is never seen half-written."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    with replaced_folder(folder, "model_index.json") as made:
        write_tokenizer(made / "tokenizer")
        pipeline = StableDiffusionPipeline(
            **networks,
            tokenizer=CLIPTokenizer.from_pretrained(made / "tokenizer"),
            scheduler=PNDMScheduler(**SCHEDULER),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(made)
        write_tokenizer(made / "tokenizer")
        finish_scheduler(made / "scheduler" / "scheduler_config.json")
    return folder


def finish_scheduler(path: Path) -> None:
    """SD 1.5's file also carries `clip_sample: false`, which DDPM and DDIM read and PNDM does not know."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["clip_sample"] = False
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
