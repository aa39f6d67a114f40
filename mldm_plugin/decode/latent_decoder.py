"""Latents to pictures by the VAE itself, with gradient."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mldm_plugin.decode.checkpointed import checkpoint_blocks
from mldm_plugin.decode.stages import decoded
from mldm_plugin.decode.still import Still, reads_films
from mldm_plugin.errors import CheckError
from mldm_plugin.perceptual.frozen import Frozen, computing_in


class LatentDecoder:
    """Decodes latents as the denoiser sees them: x = decode(z · std / scaling_factor + shift), shift the VAE's mean.

    What is known of a VAE is read off it: its config's scaling_factor and shift_factor; or statistics by channel, its
    config's latents_mean and latents_std (Qwen-Image, Wan) or those of a batch norm `bn` (Flux.2), whose channels are
    those of p×p latents together, p² times as many; convolutions over time, for films of which a picture is one frame.

    It keeps a float32 copy of `vae`: the copy survives a host that moves or deletes its VAE, and SDXL's half precision
    VAE would overflow. The encoder half is needed by the start-up check alone and dropped after it. Pictures are not
    clamped to [-1, 1], because clamping would take the gradient from every saturated pixel.

    Args:
        vae: an autoencoder of diffusers.
        scaling_factor: the trainer's own factor, where it is not `vae.config.scaling_factor`.
        latents_mean, latents_std: (C,) by channel, where the trainer normalises by them (SDXL variants that have them
            in their VAE's config); they take the place of the VAE's shift_factor. Both or neither.
        checkpointing: compute the activations inside ResNet blocks again in the backward pass, instead of keeping them.

    Raises:
        CheckError: the VAE does not say how its latents are scaled.
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
        scale = scale_of(vae, scaling_factor, latents_mean, latents_std)
        self.scaling_factor, self._patch = scale.factor, scale.patch
        self._shift, self._scale = _per_channel(scale.mean), _per_channel(scale.std) / scale.factor
        config: Any = vae.config
        blocks = said(config, "block_out_channels") or said(config, "encoder_block_out_channels")  # AutoencoderDC
        self._downscale = scale.patch * 2 ** (len(blocks) - 1) if blocks else None
        self.checkpointing = checkpointing
        self.vae = _without(vae, "encoder")
        if checkpointing:
            checkpoint_blocks(self.vae)
        self._decode: Frozen | None = Frozen(Method(self.vae, decoded))
        self._encode: Frozen | None = None
        if hasattr(vae, "encode"):
            self._encode = Frozen(Method(_without(vae, "decoder"), lambda vae, x: vae.encode(x, return_dict=False)[0]))

    @property
    def exact(self) -> LatentDecoder:
        return self

    def __call__(self, latents: Tensor) -> Tensor:
        return self._run(latents)

    def with_features(self, latents: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self._run(latents, features=True)

    def _run(self, latents: Tensor, features: bool = False) -> Any:
        if self._decode is None:
            raise RuntimeError("this decoder was only there to be compared with, and is gone")
        return self._decode(self.in_vae_scale(latents), features=features)

    def in_vae_scale(self, latents: Tensor) -> Tensor:
        """What the VAE's own decoder reads, for `latents` (N, C, h, w) as the denoiser sees them."""
        scaled = latents * _beside(self._scale, latents) + _beside(self._shift, latents)
        return scaled if self._patch == 1 else F.pixel_shuffle(scaled, self._patch)

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
        if self._patch != 1:
            mode, spread = (F.pixel_unshuffle(x, self._patch) for x in (mode, spread))
        scale, shift = _beside(self._scale, mode), _beside(self._shift, mode)
        return (mode - shift) / scale, spread / scale.abs()

    def keeping_less(self) -> LatentDecoder:
        """The same decoder, checkpointed, for a moment: it has weights of its own."""
        if self.checkpointing:
            return self
        other = copy.copy(self)
        other.checkpointing, other.vae = True, copy.deepcopy(self.vae)
        checkpoint_blocks(other.vae)
        other._decode = Frozen(Method(other.vae, decoded))
        return other

    def image_size(self, latents: Tensor) -> tuple[int, int]:
        if self._downscale is None:  # seen on two rows, once; the other configs say it each in its own words
            with torch.no_grad():
                self._downscale = self(latents[:1, :, :2, :2].float()).shape[-2] // min(2, latents.shape[-2])
        return latents.shape[-2] * self._downscale, latents.shape[-1] * self._downscale

    def settle(self) -> None:
        self._encode = None
        if self._decode is not None:
            self._decode.rest()

    def leave(self) -> None:
        """Free all of it: another decoder stands in, and the comparison is done."""
        self._encode = self._decode = None
        self.vae = nn.Identity()


@dataclass(frozen=True)
class Scale:
    """How the denoiser's latents z come from a VAE's own u: z = (patched u − mean) / std · factor, p×p in a patch."""

    factor: float
    mean: Any
    std: Any
    patch: int = 1


def says_scale(vae: Any) -> bool:
    """Whether an autoencoder is one of diffusers that says how its latents are scaled."""
    config = getattr(vae, "config", None)
    return isinstance(getattr(vae, "bn", None), nn.BatchNorm2d) or any(
        said(config, name) is not None for name in ("scaling_factor", "latents_mean")
    )


def said(config: Any, name: str) -> Any:
    """An entry of a config, which hosts have as a mapping or as an object."""
    entry = getattr(config, name, None)
    return config.get(name) if entry is None and hasattr(config, "get") else entry


def scale_of(
    vae: Any,
    factor: float | None = None,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
) -> Scale:
    """The scale of a VAE's latents: the trainer's own, where it is given, else what the VAE says.

    A VAE with a scaling_factor in its config has its statistics, if any, from the trainer: the config of SDXL's
    variants holds them, and not every trainer uses them. One without has nothing but its statistics.

    Raises:
        CheckError: the VAE does not say it.
    """
    config: Any = getattr(vae, "config", None)
    if config is None:
        raise CheckError(
            f"the {type(vae).__name__} is no autoencoder of diffusers (it has no config), so how it is called and how "
            "its latents are scaled is not known: pass decode, a function, in the place of vae (docs/attach.md)."
        )
    factor = said(config, "scaling_factor") if factor is None else factor
    if factor is not None or mean is not None:
        shift = said(config, "shift_factor") or 0.0
        return Scale(1.0 if factor is None else factor, shift if mean is None else mean, 1.0 if std is None else std)
    bn = getattr(vae, "bn", None)
    if isinstance(bn, nn.BatchNorm2d) and bn.running_mean is not None and bn.running_var is not None:
        patch = math.isqrt(bn.num_features // said(config, "latent_channels"))
        return Scale(1.0, bn.running_mean, (bn.running_var + bn.eps).sqrt(), patch)
    if (mean := said(config, "latents_mean")) is not None:
        return Scale(1.0, mean, said(config, "latents_std"))
    raise CheckError(
        f"the {type(vae).__name__} does not say how its latents are scaled, neither by a scaling_factor nor by "
        "latents_mean and latents_std in its config: pass scaling_factor, or decode in the place of vae "
        "(docs/attach.md)."
    )


class Method(nn.Module):
    """One method of a module as a module of its own, so that `Frozen` takes it."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self, tensor: Tensor, **options: Any) -> Any:
        return self.call(self.module, tensor, **options)


def _without(vae: nn.Module, half: str) -> Any:
    """A copy of an autoencoder without its `encoder` or its `decoder`."""
    # What is left out is never copied: the memo tells deepcopy what stands for it.
    left_out = {id(getattr(vae, half)): nn.Identity()} if hasattr(vae, half) else {}
    kept = copy.deepcopy(vae, left_out)
    return Still(kept) if reads_films(kept) else kept


def _per_channel(value: float | Sequence[float] | Tensor) -> Tensor:
    """(1, C or 1, 1, 1) float32."""
    return torch.as_tensor(value, dtype=torch.float32).detach().cpu().reshape(1, -1, 1, 1)


def _beside(value: Tensor, tensor: Tensor) -> Tensor:
    return value.to(tensor, non_blocking=True)
