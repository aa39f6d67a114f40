"""Latents to pictures by the VAE itself, with gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mldm_plugin.decode.checkpointed import checkpoint_blocks
from mldm_plugin.perceptual.frozen import Frozen, computing_in


class LatentDecoder:
    """Decodes latents as the denoiser sees them: x = decode(z · std / scaling_factor + shift), shift the VAE's mean.

    It keeps a float32 copy of `vae`: the copy survives a host that moves or deletes its VAE, and SDXL's half precision
    VAE would overflow. The encoder half is needed by the start-up check alone and dropped after it. Pictures are not
    clamped to [-1, 1], because clamping would take the gradient from every saturated pixel.

    Args:
        vae: an AutoencoderKL (or another autoencoder of diffusers with `.decode` and these config entries).
        scaling_factor: the trainer's own factor, where it is not `vae.config.scaling_factor`.
        latents_mean, latents_std: (C,) by channel, where the trainer normalises by them (SDXL variants that have them
            in their VAE's config); they take the place of the VAE's shift_factor. Both or neither.
        checkpointing: compute the activations inside ResNet blocks again in the backward pass, instead of keeping them.
    """

    stand_in: str | None = None

    def __init__(
        self,
        vae: nn.Module,
        scaling_factor: float | None = None,
        latents_mean: Sequence[float] | Tensor | None = None,
        latents_std: Sequence[float] | Tensor | None = None,
        *,
        checkpointing: bool = False,
    ) -> None:
        config: Any = vae.config
        self.scaling_factor = scaling_factor if scaling_factor is not None else config.scaling_factor
        self._shift = _per_channel(config.get("shift_factor") or 0.0 if latents_mean is None else latents_mean)
        self._scale = _per_channel(1.0 if latents_std is None else latents_std) / self.scaling_factor
        blocks = getattr(config, "block_out_channels", None) or config.encoder_block_out_channels  # AutoencoderDC
        self.downscale = 2 ** (len(blocks) - 1)
        self.checkpointing = checkpointing
        self.vae = _without(vae, "encoder")
        if checkpointing:
            checkpoint_blocks(self.vae)
        self._decode: Frozen | None = Frozen(Method(self.vae, lambda vae, z: vae.decode(z, return_dict=False)[0]))
        self._encode: Frozen | None = None
        if hasattr(vae, "encode"):
            self._encode = Frozen(Method(_without(vae, "decoder"), lambda vae, x: vae.encode(x, return_dict=False)[0]))

    @property
    def exact(self) -> LatentDecoder:
        return self

    def __call__(self, latents: Tensor) -> Tensor:
        if self._decode is None:
            raise RuntimeError("this decoder was only there to be compared with, and is gone")
        return self._decode(self.in_vae_scale(latents))

    def in_vae_scale(self, latents: Tensor) -> Tensor:
        """What the VAE's own decoder reads, for `latents` (N, C, h, w) as the denoiser sees them."""
        return latents * _beside(self._scale, latents) + _beside(self._shift, latents)

    @property
    def can_decode(self) -> bool:
        """False once it is gone: where another decoder stands in, after the start-up checks."""
        return self._decode is not None

    @property
    def can_encode(self) -> bool:
        """Until `settle`, if the VAE has an encoder."""
        return self._encode is not None

    def encode(self, images: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """The posterior of the latents of `images`, as the denoiser sees latents.

        Args:
            images: (N, 3, H, W) in [-1, 1].
            dtype: float32 or bfloat16, what is computed in.

        Returns:
            its mode and its standard deviation, float32 (N, C, h, w) each; the latter is 0 for an autoencoder without
            a posterior, or one that does not tell it.
        """
        if self._encode is None:
            raise RuntimeError("the encoder is gone")
        with computing_in(dtype):
            encoded = self._encode(images)
        if isinstance(encoded, Tensor):
            mode, spread = encoded.float(), torch.zeros_like(encoded, dtype=torch.float32)
        else:
            mode = encoded.mode().float()
            spread = getattr(encoded, "std", torch.zeros_like(mode)).float()
        scale, shift = _beside(self._scale, mode), _beside(self._shift, mode)
        return (mode - shift) / scale, spread / scale.abs()

    def keeping_less(self) -> LatentDecoder:
        """The same decoder, checkpointed, for a moment: it has weights of its own."""
        if self.checkpointing:
            return self
        other = copy.copy(self)
        other.checkpointing, other.vae = True, copy.deepcopy(self.vae)
        checkpoint_blocks(other.vae)
        other._decode = Frozen(Method(other.vae, lambda vae, z: vae.decode(z, return_dict=False)[0]))
        return other

    def image_size(self, latents: Tensor) -> tuple[int, int]:
        return latents.shape[-2] * self.downscale, latents.shape[-1] * self.downscale

    def settle(self) -> None:
        self._encode = None
        if self._decode is not None:
            self._decode.rest()

    def leave(self) -> None:
        """Free all of it: another decoder stands in, and the comparison is done."""
        self._encode = self._decode = None
        self.vae = nn.Identity()


class Method(nn.Module):
    """One method of a module as a module of its own, so that `Frozen` takes it."""

    def __init__(self, module: nn.Module, call: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self, tensor: Tensor) -> Any:
        return self.call(self.module, tensor)


def _without(vae: nn.Module, half: str) -> Any:
    """A copy of an autoencoder without its `encoder` or its `decoder`."""
    if not hasattr(vae, half):
        return copy.deepcopy(vae)
    # What is left out is never copied: the memo tells deepcopy what stands for it.
    return copy.deepcopy(vae, {id(getattr(vae, half)): nn.Identity()})


def _per_channel(value: float | Sequence[float] | Tensor) -> Tensor:
    """(1, C or 1, 1, 1) float32."""
    return torch.as_tensor(value, dtype=torch.float32).detach().cpu().reshape(1, -1, 1, 1)


def _beside(value: Tensor, tensor: Tensor) -> Tensor:
    return value.to(tensor, non_blocking=True)
