"""Networks that a test builds in a blink: the architecture of `--size tiny`, hardly wide or deep."""

from dataclasses import replace

from mldm_plugin.bench.sizes import SIZES

SMALL = replace(
    SIZES["tiny"],
    unet={**SIZES["tiny"].unet, "block_out_channels": (32,), "layers_per_block": 1},
    vae_channels=(32, 32),
    loss_resolution=64,
)
