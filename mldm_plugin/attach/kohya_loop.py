"""The training step of kohya's scripts: collected from the methods that it is spread over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


class Notes:
    """What the methods of a trainer class had in their variables when they returned."""

    def __init__(self) -> None:
        self.factor: float | None = None  # that latents are multiplied by
        self._variables: dict[str, Any] = {}

    def add(self, variables: Mapping[str, Any]) -> None:
        """Keep the variables of a method until the loss comes by; those of a validation step are left."""
        if variables.get("is_train") is not False:
            self._variables.update(variables)

    def take(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The variables of the training loop and all that was noted for this step, which is forgotten here."""
        noted, self._variables = self._variables, {}
        return {**variables, **noted}


def autoencoder(vae: Any, factor: float | None) -> tuple[Any, float | None]:
    """An autoencoder of diffusers, and the factor of the script where it is not in the autoencoder's config.

    Args:
        vae: what the script encodes with; one of kohya's own, of Flux and SD3, is put in the form of diffusers.
        factor: that the script multiplies its latents by, or None.
    """
    if hasattr(vae, "config"):
        return vae, factor
    if hasattr(vae, "process_in"):  # SD3
        zero, one = (vae.process_in(x) for x in (0.0, 1.0))
        return _Autoencoder(vae, one - zero, -zero / (one - zero)), None
    if hasattr(vae, "shift_factor") and hasattr(vae, "scale_factor"):  # Flux
        return _Autoencoder(vae, vae.scale_factor, vae.shift_factor), None
    return vae, None


@dataclass(frozen=True)
class _Config:
    scaling_factor: float
    shift_factor: float
    block_out_channels: tuple[int, ...]

    def get(self, name: str) -> Any:
        return getattr(self, name, None)


class _Autoencoder(nn.Module):
    """kohya's encoder and decoder of Flux or SD3, called as diffusers' autoencoders are; scaling is left to the caller.

    Encoding gives the mean: no random numbers are drawn.
    """

    def __init__(self, vae: Any, scaling_factor: float, shift_factor: float) -> None:
        super().__init__()
        self.encoder, self.decoder = vae.encoder, vae.decoder
        self.config = _Config(scaling_factor, shift_factor, (1,) * vae.decoder.num_resolutions)

    def encode(self, images: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (self.encoder(images).chunk(2, dim=1)[0],)

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (self.decoder(latents),)
