"""Latents to pictures, with gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mldm_plugin.decode.checkpointed import Checkpointing
from mldm_plugin.decode.region import RegionDecode
from mldm_plugin.perceptual.frozen import Frozen, in_bfloat16
from mldm_plugin.planning.tensor_memory import TensorMemory

_NO_WINDOWS = "this decoder was not made for windows: LatentDecoder(…, region=True)"


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
        tiny: an AutoencoderTiny that decodes in the VAE's place, from latents as the denoiser sees them.
        region: decode only windows with gradient, see `windows`. Not with `tiny`.

    Attributes:
        checkpointing: compute the activations inside ResNet blocks again in the backward pass, instead of keeping them.
    """

    def __init__(
        self,
        vae: nn.Module,
        scaling_factor: float | None = None,
        latents_mean: Sequence[float] | Tensor | None = None,
        latents_std: Sequence[float] | Tensor | None = None,
        *,
        tiny: nn.Module | None = None,
        region: bool = False,
    ) -> None:
        config: Any = vae.config
        self.scaling_factor = scaling_factor if scaling_factor is not None else config.scaling_factor
        self._shift = _per_channel(config.get("shift_factor") or 0.0 if latents_mean is None else latents_mean)
        self._scale = _per_channel(1.0 if latents_std is None else latents_std) / self.scaling_factor
        blocks = getattr(config, "block_out_channels", None) or config.encoder_block_out_channels  # AutoencoderDC
        self.downscale = 2 ** (len(blocks) - 1)
        self._vae: Any = copy.deepcopy(vae)
        self._decode = Frozen(_Call(self._vae, _decode))
        self.stand_in = "windows" if region else None if tiny is None else "a tiny autoencoder"
        self._windows = self._measure = None
        if region:
            self._windows = Frozen(RegionDecode(self._vae))
            self._measure = Frozen(_Call(self._windows.network, lambda region, z: region.statistics(z)))
        self._tiny = None if tiny is None else Frozen(_Call(tiny, _decode))
        self.checkpointing = False
        self._checkpointing = Checkpointing(self._vae if tiny is None else tiny)
        self._encode: Frozen | None = None
        if hasattr(vae, "encode"):
            self._encode = Frozen(_Call(self._vae, lambda vae, x: _mode(vae.encode(x, return_dict=False)[0])))

    def __call__(self, latents: Tensor) -> Tensor:
        """Pictures of `latents` (N, C, h, w): float32 (N, 3, H, W), about [-1, 1], with gradient."""
        with self._checkpointing.on(self.checkpointing):
            return self._whole(latents)

    def exact(self, latents: Tensor) -> Tensor:
        """The same by the VAE itself in float32, whatever stands in for it."""
        with in_bfloat16(False), self._checkpointing.on(self.checkpointing):
            return self._decode(self._in_vae_scale(latents))

    @property
    def in_windows(self) -> bool:
        """Whether only windows are decoded with gradient."""
        return self._windows is not None

    def statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """What `windows` needs of clean `latents` (N, C, h, w), (N, S) float32, and their pictures; no gradients."""
        if self._measure is None:
            raise RuntimeError(_NO_WINDOWS)
        one_by_one = [self._measure(z) for z in self._in_vae_scale(latents).split(1)]  # the memory of one whole decode
        statistics, pictures = zip(*one_by_one, strict=True)
        return torch.cat(statistics), torch.cat(pictures)

    def windows(self, latents: Tensor, regions: Sequence[Tensor], statistics: Tensor, background: Tensor) -> Tensor:
        """Pictures of `latents` inside windows around the regions, `background` elsewhere: float32 (N, 3, H, W).

        Args:
            latents: (N, C, h, w), with gradient.
            regions: N tensors (K_i, 4) of pixel x0, y0, x1, y1, on the CPU.
            statistics: (N, S) of the clean latents.
            background: (N, 3, H, W).
        """
        if self._windows is None:
            raise RuntimeError(_NO_WINDOWS)
        return self._windows(self._in_vae_scale(latents), regions, statistics.to(background), background)

    def share(self, regions: Tensor, height: int, width: int) -> float:
        """How much of the work and memory of a whole decode the windows around `regions` (K, 4) of a picture take.

        `height`, `width`: of its latents. A little more than 0 even without a region, for what is always whole.
        """
        if self._windows is None:
            raise RuntimeError(_NO_WINDOWS)
        network: Any = self._windows.network
        return max(network.share([regions], height, width), 0.02)

    def kept_bytes(self, latents: Tensor) -> int:
        """About what decoding one of `latents` keeps for its backward pass without checkpointing, in bytes.

        Measured on a sixteenth of the picture.
        """
        height, width = latents.shape[-2:]
        part = latents[:1, :, : -(-height // 4), : -(-width // 4)].detach().float().requires_grad_()
        with torch.no_grad():
            self._whole(part)  # brings weights to the device, which is not to be counted
        with torch.enable_grad(), TensorMemory() as memory:
            pictures = self._whole(part)
            kept = memory.live
        del pictures
        return kept * height * width // part[0, 0].numel()

    def _whole(self, latents: Tensor) -> Tensor:
        return self._decode(self._in_vae_scale(latents)) if self._tiny is None else self._tiny(latents)

    def _in_vae_scale(self, latents: Tensor) -> Tensor:
        return latents * self._scale.to(latents) + self._shift.to(latents)

    @property
    def has_exact(self) -> bool:
        """Whether `exact` can be asked: with a tiny autoencoder until `forget_encoder`."""
        return self._tiny is None or self.can_encode

    @property
    def can_encode(self) -> bool:
        """Until `forget_encoder`, if the VAE has an encoder."""
        return self._encode is not None

    def encode(self, images: Tensor) -> Tensor:
        """The latents of `images` (N, 3, H, W) in [-1, 1], the mode of the posterior: float32 (N, C, h, w)."""
        if self._encode is None:
            raise RuntimeError("the encoder is gone")
        with in_bfloat16(False):
            encoded = self._encode(images)
        return (encoded - self._shift.to(encoded)) / self._scale.to(encoded)

    def forget_encoder(self) -> None:
        """Free the memory of what only the start-up checks need: the encoder half, and the VAE that is stood in for."""
        self._encode = None
        if hasattr(self._vae, "encoder"):
            self._vae.encoder = nn.Identity()
        if self._tiny is not None:
            self._vae.decoder = nn.Identity()

    def image_size(self, latents: Tensor) -> tuple[int, int]:
        """Height and width in pixels of the pictures that `latents` (N, C, h, w) decode to."""
        return latents.shape[-2] * self.downscale, latents.shape[-1] * self.downscale


def _decode(vae: Any, z: Tensor) -> Tensor:
    return vae.decode(z, return_dict=False)[0]


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
