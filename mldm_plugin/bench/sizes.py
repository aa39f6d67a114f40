"""The networks that `mldm bench --size` names. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from mldm_plugin.planning.families import FAMILIES, Family


@dataclass(frozen=True)
class Size:
    """Networks, and what is measured on them unless asked otherwise.

    Args:
        what: in a few words.
        family: shapes of U-Net, which the ControlNet is made from, and VAE; side of the pictures.
        loss_resolution: side of the pictures where losses are measured alone.
        batches, dtypes: measured one after the other.
        rounds: timed repetitions.
        face_crop: side of the face network's input; None is the network's own.
    """

    what: str
    family: Family = field(repr=False)
    loss_resolution: int
    batches: tuple[int, ...]
    dtypes: tuple[str, ...]
    rounds: int
    face_crop: int | None = None


# Chosen so that operations an image stand in the proportion of Stable Diffusion 1.5 at 512² (see `count`) without
# narrowing VGG16, which cannot be: its VAE without the lowest level, 32² pictures, faces of 16², and a U-Net of one
# level, which makes many operations for few weights, as at 64² latents.
_TINY = Family(
    "tiny",
    32,
    unet={
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "block_out_channels": (288,),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 64,
    },
    vae={
        "block_out_channels": (128, 256, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 2,
    },
    text_encoders=(),
)
SIZES = {
    "tiny": Size("the proportions of Stable Diffusion 1.5, for a CPU", _TINY, 128, (2,), ("float32",), 3, face_crop=16),
    "sd15": Size(
        "Stable Diffusion 1.5 with random weights, for a GPU",
        FAMILIES["sd15"],
        loss_resolution=512,
        batches=(1, 4, 8),
        dtypes=("bfloat16", "float32"),
        rounds=7,
    ),
    "sdxl": Size(
        "Stable Diffusion XL with random weights, for a GPU",
        FAMILIES["sdxl"],
        loss_resolution=1024,
        batches=(1, 4, 8),
        dtypes=("bfloat16",),
        rounds=5,
    ),
}
SUBJECTS = ("step", "pixels", "losses")
DTYPES = ("float32", "bfloat16")
