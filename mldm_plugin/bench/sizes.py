"""The networks that `mldm bench --size` names. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mldm_plugin.planning.families import FAMILIES

# One level at the latents' own resolution: many operations for few weights, as at 64² latents.
_TINY_UNET: dict[str, Any] = {
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "block_out_channels": (288,),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 64,
}


@dataclass(frozen=True)
class Size:
    """Networks, and what is measured on them unless asked otherwise.

    Args:
        what: in a few words.
        unet: arguments of UNet2DConditionModel; the ControlNet is made from it.
        vae_channels: widths of the VAE's levels; everything else is as in Stable Diffusion.
        scaling_factor: of the VAE.
        resolution: side of the pictures in pixels.
        loss_resolution: the same where losses are measured alone.
        batches, dtypes: measured one after the other.
        rounds: timed repetitions.
        face_crop: side of the face network's input; None is the network's own.
    """

    what: str
    unet: Mapping[str, Any] = field(repr=False)
    vae_channels: tuple[int, ...]
    scaling_factor: float
    resolution: int
    loss_resolution: int
    batches: tuple[int, ...]
    dtypes: tuple[str, ...]
    rounds: int
    face_crop: int | None = None


SIZES: dict[str, Size] = {
    # Chosen so that operations an image stand in the proportion of Stable Diffusion 1.5 at 512² (see `count`) without
    # narrowing VGG16, which cannot be: its VAE without the lowest level, 32² pictures, and faces of 16².
    "tiny": Size(
        what="the proportions of Stable Diffusion 1.5, for a CPU",
        unet=_TINY_UNET,
        vae_channels=(128, 256, 512),
        scaling_factor=0.18215,
        resolution=32,
        loss_resolution=128,
        batches=(2,),
        dtypes=("float32",),
        rounds=3,
        face_crop=16,
    ),
    "sd15": Size(
        what="Stable Diffusion 1.5 with random weights, for a GPU",
        unet=FAMILIES["sd15"].unet,
        vae_channels=(128, 256, 512, 512),
        scaling_factor=0.18215,
        resolution=512,
        loss_resolution=512,
        batches=(1, 4, 8),
        dtypes=("bfloat16", "float32"),
        rounds=15,
    ),
    "sdxl": Size(
        what="Stable Diffusion XL with random weights, for a GPU",
        unet=FAMILIES["sdxl"].unet,
        vae_channels=(128, 256, 512, 512),
        scaling_factor=0.13025,
        resolution=1024,
        loss_resolution=1024,
        batches=(1, 4, 8),
        dtypes=("bfloat16",),
        rounds=10,
    ),
}
SUBJECTS = ("step", "pixels", "losses")
DTYPES = ("float32", "bfloat16")
