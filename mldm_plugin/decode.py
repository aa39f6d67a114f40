"""Latents to pictures, with gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mldm_plugin.perceptual.frozen import Frozen


class LatentDecoder:
    """Decodes latents as the denoiser sees them: x = decode(z · std / scaling_factor + shift), shift the VAE's mean.

    It keeps a float32 copy of `vae` and runs it with autocast off: the copy survives a host that moves or deletes its
    VAE, and SDXL's half precision VAE would overflow. The encoder half is needed by the start-up check alone and
    dropped after it. Pictures are not clamped to [-1, 1], because clamping would take the gradient from every
    saturated pixel.

    Args:
        vae: an AutoencoderKL (or another autoencoder of diffusers with `.decode` and these config entries).
        scaling_factor: the trainer's own factor, where it is not `vae.config.scaling_factor`.
        latents_mean, latents_std: (C,) by channel, where the trainer normalises by them (SDXL variants that have them
            in their VAE's config); they take the place of the VAE's shift_factor. Both or neither.
    """

    def __init__(
        self,
        vae: nn.Module,
        scaling_factor: float | None = None,
        latents_mean: Sequence[float] | Tensor | None = None,
        latents_std: Sequence[float] | Tensor | None = None,
    ) -> None:
        config: Any = vae.config
        self.scaling_factor = scaling_factor if scaling_factor is not None else config.scaling_factor
        self._shift = _per_channel(config.get("shift_factor") or 0.0 if latents_mean is None else latents_mean)
        self._scale = _per_channel(1.0 if latents_std is None else latents_std) / self.scaling_factor
        blocks = getattr(config, "block_out_channels", None) or config.encoder_block_out_channels  # AutoencoderDC
        self.downscale = 2 ** (len(blocks) - 1)
        self._vae: Any = copy.deepcopy(vae)
        self._decode = Frozen(_Call(self._vae, lambda vae, z: vae.decode(z, return_dict=False)[0]))
        self._encode: Frozen | None = None
        if hasattr(vae, "encode"):
            self._encode = Frozen(_Call(self._vae, lambda vae, x: _mode(vae.encode(x, return_dict=False)[0])))

    def __call__(self, latents: Tensor) -> Tensor:
        """Pictures of `latents` (N, C, h, w): float32 (N, 3, H, W), about [-1, 1], with gradient."""
        return self._decode(latents * self._scale.to(latents) + self._shift.to(latents))

    @property
    def can_encode(self) -> bool:
        """Until `forget_encoder`, if the VAE has an encoder."""
        return self._encode is not None

    def encode(self, images: Tensor) -> Tensor:
        """The latents of `images` (N, 3, H, W) in [-1, 1], the mode of the posterior: float32 (N, C, h, w)."""
        if self._encode is None:
            raise RuntimeError("the encoder is gone")
        encoded = self._encode(images)
        return (encoded - self._shift.to(encoded)) / self._scale.to(encoded)

    def forget_encoder(self) -> None:
        """Free the memory of the encoder half."""
        self._encode = None
        if hasattr(self._vae, "encoder"):
            self._vae.encoder = nn.Identity()

    def image_size(self, latents: Tensor) -> tuple[int, int]:
        """Height and width in pixels of the pictures that `latents` (N, C, h, w) decode to."""
        return latents.shape[-2] * self.downscale, latents.shape[-1] * self.downscale


def _per_channel(value: float | Sequence[float] | Tensor) -> Tensor:
    """(1, C or 1, 1, 1) float32."""
    return torch.as_tensor(value, dtype=torch.float32).detach().cpu().reshape(1, -1, 1, 1)


def _mode(encoded: Any) -> Tensor:
    """The latents of a posterior, or of an autoencoder that gives them directly."""
    return encoded.mode() if hasattr(encoded, "mode") and not isinstance(encoded, Tensor) else encoded


class _Call(nn.Module):
    """One method of a module as a module of its own, so that `Frozen` takes it."""

    def __init__(self, module: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self, tensor: Tensor) -> Tensor:
        return self.call(self.module, tensor)
