"""What the engine asks of a decoder. Each is one file of this folder."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from mldm_plugin.decode.latent_decoder import LatentDecoder


class Decoder(Protocol):
    """A way from latents to pictures.

    Attributes:
        stand_in: in words, what stands in for the VAE; None for the VAE itself.
        exact: the VAE itself, to compare with until `settle`.
        checkpointing: whether activations are computed again in the backward pass instead of kept.
    """

    stand_in: str | None
    checkpointing: bool

    @property
    def exact(self) -> LatentDecoder: ...

    def __call__(self, latents: Tensor) -> Tensor:
        """Pictures of `latents` (N, C, h, w): float32 (N, 3, H, W), about [-1, 1], not clamped, with gradient."""

    def with_features(self, latents: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The pictures, and what the network's stages make on the way to them, see `stages`."""

    def image_size(self, latents: Tensor) -> tuple[int, int]:
        """Height and width in pixels of the pictures that `latents` decode to."""

    def settle(self) -> None:
        """Free what only the start-up checks need."""
