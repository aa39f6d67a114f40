"""Networks that a test builds in a blink: the architecture of `--size tiny`, hardly wide or deep."""

from dataclasses import replace

from mldm_plugin.bench.sizes import SIZES

_TINY = SIZES["tiny"].family
SMALL = replace(
    SIZES["tiny"],
    family=replace(
        _TINY,
        unet={**_TINY.unet, "block_out_channels": (32,), "layers_per_block": 1},
        vae={
            "block_out_channels": (32, 32),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "layers_per_block": 2,
        },
    ),
    loss_resolution=64,
)
