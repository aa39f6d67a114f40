"""What one picture takes between the network's output and its gradient there: decoder, VGG16, face network."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mldm_plugin.decode.checkpointed import Checkpointing
from mldm_plugin.decode.region import RegionDecode
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.perceptual.masked_distance import interpolation_matrix
from mldm_plugin.planning.families import Family
from mldm_plugin.planning.meta import building
from mldm_plugin.planning.tensor_memory import TensorMemory
from mldm_plugin.plugins import load_plugins

CPU = torch.device("cpu")


class PictureMemory:
    """Bytes that the losses on pictures take, with both losses of the paper.

    Args:
        family: whose VAE decodes.
        dtype: the decoder computes in.
        resolution: side of the pictures.

    Attributes:
        weights: of the decoder and of the losses' networks.
    """

    def __init__(self, family: Family, dtype: torch.dtype, resolution: int) -> None:
        self._dtype, self._resolution = dtype, resolution
        (self._lpips, self._face), networks = _losses()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        with self._fake, building(dtype, CPU):
            self._vae: Any = AutoencoderKL(**family.vae).requires_grad_(False).eval()
        self._vae.encoder = None
        self._checkpointing = Checkpointing(self._vae)
        self.weights = networks + dtype.itemsize * sum(p.numel() for p in self._vae.parameters())

    def peaks(self) -> dict[str, int]:
        """By what is decoded: pictures whole, whole with checkpointing, or a window of each."""
        kinds = {"whole": {}, "checkpointed": {"checkpointed": True}, "region": {"region": True}}
        return {kind: self.peak(**how) for kind, how in kinds.items()}

    def peak(self, *, checkpointed: bool = False, region: bool = False) -> int:
        """The most that one picture with a face takes on top of them."""
        side = self._resolution // 8
        middle = torch.tensor([[0.25, 0.25, 0.75, 0.75]]) * self._resolution  # a window of half the side, chosen
        with self._fake, TensorMemory() as memory:
            latents = torch.zeros(1, self._vae.config.latent_channels, side, side, requires_grad=True)
            with self._checkpointing.on(checkpointed):
                z = latents.to(self._dtype)
                pictures = _in_window(self._vae, z, middle) if region else self._vae.decode(z, return_dict=False)[0]
                torch.autograd.grad(self._distance(latents, pictures.float()), latents)
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
        size = [self._face.features.size] * 2  # cropping by boxes needs data: a corner is taken instead
        with torch.no_grad():
            target = self._face.features(F.interpolate(images[..., :64, :64], size=size))
        seen = self._face.features(F.interpolate(pictures[..., :64, :64], size=size))
        return on_people + sum((p - t).abs().mean() for p, t in zip(seen, target, strict=True))


@functools.cache
def _losses() -> tuple[list[Any], int]:
    """The losses, and the bytes of their weights."""
    known = load_plugins().losses
    with TensorMemory() as memory:
        losses = [known[name](weights="random") for name in ("masked_lpips", "face")]
    return losses, memory.live


def _in_window(vae: Any, z: Tensor, window: Tensor) -> Tensor:
    """As `decode: region` does."""
    decoder = RegionDecode(vae)
    return decoder(z, [window], *decoder.statistics(z))
