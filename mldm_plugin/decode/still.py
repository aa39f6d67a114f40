"""Single pictures through the autoencoder of a video model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def reads_films(vae: nn.Module) -> bool:
    """Whether an autoencoder reads films, (N, 3, frames, H, W): it convolves over time, too."""
    return any(isinstance(module, nn.Conv3d) for module in vae.modules())


class Still(nn.Module):
    """An autoencoder of films, called as one of pictures is: each picture is a film of one frame.

    Those of Wan and Qwen-Image clamp what they decode to [-1, 1], which would take the gradient from every saturated
    pixel. Where that is all that they do with what their decoder gives, it is left out.

    Args:
        vae: an autoencoder of diffusers with convolutions in three dimensions.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self._clamps: bool | None = None

    def encode(self, images: Tensor, return_dict: bool = False) -> tuple[Any]:
        encoded = self.vae.encode(images.unsqueeze(2), return_dict=False)[0]
        return (encoded.squeeze(2) if isinstance(encoded, Tensor) else _Posterior(encoded),)

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        inner: list[Tensor] = []
        hook = self.vae.decoder.register_forward_hook(lambda _, __, output: inner.append(output))
        try:
            film = self.vae.decode(latents.unsqueeze(2), return_dict=False)[0]
        finally:
            hook.remove()
        if self._clamps is None:
            alike = len(inner) == 1 and inner[0].shape == film.shape
            self._clamps = alike and torch.equal(inner[0].clamp(-1, 1), film)
        return ((inner[0] if self._clamps else film).squeeze(2),)


class _Posterior:
    """The posterior of one frame, without its frame."""

    def __init__(self, of_film: Any) -> None:
        self._of_film = of_film

    def mode(self) -> Tensor:
        return self._of_film.mode().squeeze(2)

    @property
    def std(self) -> Tensor:
        return self._of_film.std.squeeze(2)
