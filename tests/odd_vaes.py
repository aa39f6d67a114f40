"""Small random autoencoders of diffusers that have no scaling_factor: Qwen-Image's, Wan's and Flux.2's."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLFlux2

from mldm_plugin.perceptual.frozen import build_seeded

MEAN, STD = [0.5, -0.25, 1.0, 0.0], [2.0, 0.5, 1.0, 4.0]


def film_vae(kind):
    """A small random autoencoder of films, of Qwen-Image's or Wan's architecture: factor 4, statistics by channel."""
    shape = {
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True],
    }
    return build_seeded(lambda: kind(**shape, latents_mean=MEAN, latents_std=STD)).eval().requires_grad_(False)


def flux2_vae():
    """A small random autoencoder of Flux.2's architecture, with the statistics of a batch norm over 2×2 latents."""
    levels = {"block_out_channels": (8, 8), "latent_channels": 4, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = build_seeded(lambda: AutoencoderKLFlux2(**levels, **blocks)).eval().requires_grad_(False)
    g = torch.Generator().manual_seed(1)
    vae.bn.running_mean.copy_(torch.randn(16, generator=g))
    vae.bn.running_var.copy_(torch.rand(16, generator=g) + 0.5)
    return vae
