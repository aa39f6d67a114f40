"""Autoencoders that are not diffusers' own, in the form of diffusers: what one has says which it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from mldm_plugin.decode.latent_decoder import said, says_scale
from mldm_plugin.decode.own import OwnDecode


def in_form_of_diffusers(vae: Any, factor: float | None = None) -> tuple[Any, float | None]:
    """An autoencoder of diffusers, and the factor of the host where it is not in the autoencoder's config.

    Args:
        vae: what the host encodes with, of diffusers or of the host's own; one that is not known is returned as it is.
        factor: that the host multiplies its latents by, or None.
    """
    if said(getattr(vae, "config", None), "norm_type") == "spatial" and hasattr(vae, "quantize"):  # Kandinsky's MOVQ
        return Called(vae, replace(_config_of(vae.config), scaling_factor=1.0), _unquantised), None
    if hasattr(vae, "register_to_config") or isinstance(vae, (Halves, Called, OwnDecode)):  # diffusers', or ours
        return vae, factor
    if hasattr(vae, "config"):
        return (Called(vae, _config_of(vae.config)), factor) if says_scale(vae) else (vae, factor)
    if hasattr(vae, "process_in"):  # SD3
        zero, one = (vae.process_in(x) for x in (0.0, 1.0))
        return _halves(vae, Config(scaling_factor=one - zero, shift_factor=-zero / (one - zero))), None
    if hasattr(vae, "shift_factor") and hasattr(vae, "scale_factor"):  # Flux
        return _halves(vae, Config(scaling_factor=vae.scale_factor, shift_factor=vae.shift_factor)), None
    if isinstance(getattr(vae, "bn", None), nn.BatchNorm2d) and hasattr(vae, "ps"):  # Flux.2
        made = _halves(vae, Config(latent_channels=vae.bn.num_features // (vae.ps[0] * vae.ps[1])))
        made.bn = vae.bn
        return made, None
    if hasattr(vae, "latents_mean") and hasattr(vae, "latents_std"):  # Qwen-Image
        return Called(vae, Config(latents_mean=vae.latents_mean, latents_std=vae.latents_std)), None
    if hasattr(vae, "model") and hasattr(vae, "mean") and hasattr(vae, "std"):  # Wan
        unscaled = (0.0, 1.0)
        statistics = Config(latents_mean=vae.mean.tolist(), latents_std=vae.std.tolist())
        return Called(vae.model, statistics, lambda call, tensor: call(tensor, unscaled)), None
    return vae, None


@dataclass(frozen=True)
class Config:
    """What `LatentDecoder` reads off an autoencoder's config."""

    scaling_factor: float | None = None
    shift_factor: float | None = None
    latents_mean: Any = None
    latents_std: Any = None
    latent_channels: int | None = None
    block_out_channels: tuple[int, ...] | None = None

    def get(self, name: str) -> Any:
        return getattr(self, name, None)


class Halves(nn.Module):
    """An encoder and a decoder, called as diffusers' autoencoders are; scaling is left to the caller.

    Encoding gives the mean: no random numbers are drawn.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, config: Config) -> None:
        super().__init__()
        self.encoder, self.decoder, self.config = encoder, decoder, config

    def encode(self, images: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (self.encoder(images).chunk(2, dim=1)[0],)

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (self.decoder(latents),)


class Called(nn.Module):
    """A whole autoencoder whose `encode` and `decode` return a tuple as diffusers' do, or what stands in it alone.

    Args:
        vae: it.
        config: how its latents are scaled.
        call: how one of its methods is called with a tensor.
    """

    def __init__(self, vae: nn.Module, config: Config, call: Callable[[Any, Tensor], Any] | None = None) -> None:
        super().__init__()
        self.vae, self.config, self._call = vae, config, call or _plainly

    def __deepcopy__(self, memo: dict[int, Any]) -> Called:
        own = getattr(self.vae, "config", None)
        memo[id(own)] = own  # Z-Image's cannot be copied, and nobody looks at it
        made = memo[id(self)] = Called.__new__(Called)
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    @property
    def encoder(self) -> Any:
        return self.vae.encoder

    @property
    def decoder(self) -> Any:
        return self.vae.decoder

    def encode(self, images: Tensor, return_dict: bool = False) -> tuple[Any]:
        return self._alone("encode", images)

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Any]:
        return self._alone("decode", latents)

    def _alone(self, name: str, tensor: Tensor) -> tuple[Any]:
        made = self._call(getattr(self.vae, name), tensor)
        return (made[0] if isinstance(made, tuple) else made,)


def _unquantised(call: Any, tensor: Tensor) -> Any:
    """A decoder that is shown its latents beside decoding them does so as they are; its config's scale is not used."""
    options = {"force_not_quantize": True} if call.__name__ == "decode" else {}
    return call(tensor, return_dict=False, **options)


def _plainly(call: Any, tensor: Tensor) -> Any:
    return call(tensor, return_dict=False)


def _halves(vae: Any, config: Config) -> Halves:
    blocks = getattr(vae.decoder, "num_resolutions", None)
    known = {**vars(config), "block_out_channels": None if blocks is None else (1,) * blocks}
    return Halves(vae.encoder, vae.decoder, Config(**known))


def _config_of(config: Any) -> Config:
    return Config(**{name: said(config, name) for name in Config.__dataclass_fields__})
