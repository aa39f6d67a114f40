"""What one picture takes between the network's output and its gradient there: decoder, VGG16, face network."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mldm_plugin.decode.checkpointed import checkpoint_blocks
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.perceptual.frozen import computing_in
from mldm_plugin.perceptual.masked_distance import interpolation_matrix
from mldm_plugin.planning.families import Family
from mldm_plugin.planning.meta import building
from mldm_plugin.planning.tensor_memory import TensorMemory
from mldm_plugin.plugins import load_plugins

CPU = torch.device("cpu")
COUNTED = ("masked_lpips", "face")  # losses, both of the paper: those of the presets that `mldm plan` recommends


class PictureMemory:
    """Bytes that the losses on pictures take, with those of `COUNTED`.

    Args:
        family: whose VAE decodes.
        dtype: float32 or bfloat16, of the decoder and of the losses' networks.
        resolution: side of the pictures.

    Attributes:
        weights: of the decoder and of the losses' networks.
    """

    def __init__(self, family: Family, dtype: torch.dtype, resolution: int) -> None:
        self._family, self._dtype, self._resolution = family, dtype, resolution
        (self._lpips, self._face), networks = _losses(dtype)
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        decoder: Any = self._decoder()
        self.weights = networks + dtype.itemsize * sum(p.numel() for p in decoder.parameters())

    def peaks(self) -> dict[str, int]:
        """The most that one picture with a face takes on top, if it is decoded whole or checkpointed."""
        whole, checkpointed = self._decoder(), self._decoder()
        checkpoint_blocks(checkpointed)
        return {
            "whole": self._peak(lambda z: whole.decode(z, return_dict=False)[0]),
            "checkpointed": self._peak(lambda z: checkpointed.decode(z, return_dict=False)[0]),
        }

    def _decoder(self) -> Any:
        with self._fake, building(self._dtype, CPU):
            vae: Any = AutoencoderKL(**self._family.vae).requires_grad_(False).eval()
        vae.encoder = None
        return vae

    def _peak(self, decode: Callable[[Tensor], Tensor]) -> int:
        channels, side = self._family.vae.get("latent_channels", 4), self._resolution // 8
        with self._fake, computing_in(self._dtype), TensorMemory() as memory:
            latents = torch.zeros(1, channels, side, side, requires_grad=True)
            pictures = decode(latents.to(self._dtype)).float()
            torch.autograd.grad(self._distance(latents, pictures), latents)
        interpolation_matrix.cache_clear()  # its tensors have no data
        return memory.peak

    def _distance(self, latents: Tensor, pictures: Tensor) -> Tensor:
        images = torch.zeros_like(pictures)
        step = DiffusionStep(
            *(latents,) * 3,
            timesteps=torch.zeros(1, dtype=torch.long),
            model_pred=latents,
            target=latents,
            person_mask=torch.ones(1, 1, *images.shape[-2:], dtype=torch.uint8),
            pred_images=pictures,
            target_images=images,
        )
        on_people = self._lpips(step).sum()
        size = [self._face.features.crop.size] * 2  # cropping by boxes needs data: a corner is taken instead
        with torch.no_grad():
            target = self._face.features(F.interpolate(images[..., :64, :64], size=size))
        seen = self._face.features(F.interpolate(pictures[..., :64, :64], size=size))
        return on_people + sum((p - t).abs().mean() for p, t in zip(seen, target, strict=True))


@functools.cache
def _losses(dtype: torch.dtype) -> tuple[list[Any], int]:
    """The losses, their networks in `dtype`, and the bytes of their weights."""
    known = load_plugins().losses
    with TensorMemory() as memory:
        lpips, face = (known[name](weights="random") for name in COUNTED)
        weights = memory.live * dtype.itemsize // 4
    with torch.no_grad(), computing_in(dtype):  # networks are brought to a precision when they are first used
        lpips.network.features(torch.zeros(1, 3, 32, 32))
        face.features(torch.zeros(1, 3, 32, 32))
    return [lpips, face], weights
