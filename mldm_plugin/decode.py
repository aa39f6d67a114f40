"""Latents to pictures, with gradient."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from mldm_plugin.perceptual.frozen import Frozen


class LatentDecoder:
    """Decodes latents as the denoiser sees them: x = decode(z / scaling_factor + shift_factor).

    It keeps a float32 copy of the decoder half of `vae` and runs it with autocast off: the copy survives a host
    that moves or deletes its VAE, and SDXL's half precision VAE would overflow. The result is not clamped to
    [-1, 1], because clamping would take the gradient from every saturated pixel.

    Args:
        vae: an AutoencoderKL (or another autoencoder of diffusers with `.decode` and these config entries).
        scaling_factor: the trainer's own factor, where it is not `vae.config.scaling_factor`.
    """

    def __init__(self, vae: nn.Module, scaling_factor: float | None = None) -> None:
        config: Any = vae.config
        self.scaling_factor = scaling_factor if scaling_factor is not None else config.scaling_factor
        self.shift_factor = config.get("shift_factor") or 0.0
        self.downscale = 2 ** (len(config.block_out_channels) - 1)
        self._decode = Frozen(_Decoder(vae))

    def __call__(self, latents: Tensor) -> Tensor:
        """Pictures of `latents` (N, C, h, w): float32 (N, 3, H, W), about [-1, 1], with gradient."""
        return self._decode(latents / self.scaling_factor + self.shift_factor)

    def image_size(self, latents: Tensor) -> tuple[int, int]:
        """Height and width in pixels of the pictures that `latents` (N, C, h, w) decode to."""
        return latents.shape[-2] * self.downscale, latents.shape[-1] * self.downscale


class _Decoder(nn.Module):
    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = copy.deepcopy(vae)
        self.vae.encoder = nn.Identity()

    def forward(self, latents: Tensor) -> Tensor:
        vae: Any = self.vae
        return vae.decode(latents, return_dict=False)[0]
