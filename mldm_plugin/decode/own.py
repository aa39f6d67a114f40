"""A function of the host's in the place of an autoencoder of diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from mldm_plugin.errors import DataError


class OwnDecode(nn.Module):
    """What a host decodes with, as an autoencoder without encoder, scale or shift.

    It is called, not copied. Nothing of it is frozen or moved, so where and how exactly it computes is the host's own.

    Args:
        decode: from latents (N, C, h, w) as the denoiser sees them, float32, to pictures (N, 3, H, W), about [-1, 1],
            with gradient.

    Raises:
        DataError: it gives something else.
    """

    config: Mapping[str, Any] = {"scaling_factor": 1.0}

    def __init__(self, decode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._decode = (decode,)  # in a tuple, so that it is no submodule

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnDecode:
        return self

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        pictures = self._decode[0](latents.float())
        if not isinstance(pictures, Tensor) or pictures.ndim != 4 or pictures.shape[:2] != (len(latents), 3):
            came = tuple(pictures.shape) if isinstance(pictures, Tensor) else type(pictures).__name__
            raise DataError(f"decode gave {came}, expected a tensor ({len(latents)}, 3, H, W), about [-1, 1].")
        return (pictures,)
