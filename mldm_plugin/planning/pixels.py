"""What one picture takes between the network's output and its gradient there: decoder, VGG16, face network."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mldm_plugin.decode.checkpointed import checkpoint_blocks
from mldm_plugin.decode.region import RegionDecode
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.perceptual.masked_distance import interpolation_matrix
from mldm_plugin.planning.families import Family
from mldm_plugin.planning.step import count
from mldm_plugin.planning.tensor_memory import TensorMemory
from mldm_plugin.plugins import load_plugins

Decode = Literal["full", "checkpointed", "region"]
DECODES: tuple[Decode, ...] = ("full", "checkpointed", "region")

# For `decode: region`: where a window of half the picture's side lies. Chosen.
_WINDOW = (0.25, 0.25, 0.75, 0.75)


@dataclass(frozen=True)
class PixelMemory:
    """Bytes of the float32 weights, and the most that one picture takes, by the way it is decoded."""

    weights: int
    peak: dict[Decode, int]


@functools.cache
def losses() -> tuple[Any, Any]:
    """The two losses of the paper, with random weights."""
    known = load_plugins().losses
    return known["masked_lpips"](weights="random"), known["face"](weights="random")


def measure_pixels(family: Family, resolution: int) -> PixelMemory:
    """Each way of decoding, on one picture with a face."""
    lpips, face = losses()
    with FakeTensorMode(allow_non_fake_inputs=True):
        vae: Any = AutoencoderKL(**family.vae).requires_grad_(False).eval()
        decoder = count(vae) - count(vae.encoder)
        peaks: dict[Decode, int] = {decode: _peak(vae, lpips, face, resolution, decode) for decode in DECODES}
    interpolation_matrix.cache_clear()  # its tensors have no data
    networks = (lpips.network._features.network, face.features.frozen.network)
    return PixelMemory(4 * (decoder + sum(map(count, networks))), peaks)


def _peak(vae: Any, lpips: Any, face: Any, resolution: int, decode: Decode) -> int:
    side = resolution // 8
    latents = torch.zeros(1, vae.config.latent_channels, side, side, requires_grad=True)
    images = torch.zeros(1, 3, resolution, resolution)
    label_map = torch.ones(1, 1, resolution, resolution, dtype=torch.uint8)
    if decode == "checkpointed":
        vae = copy.deepcopy(vae)
        checkpoint_blocks(vae)
    with TensorMemory() as memory:
        pictures = _decode(vae, latents, decode)
        step = DiffusionStep(
            *(latents,) * 3,
            timesteps=torch.zeros(1, dtype=torch.long),
            model_pred=latents,
            target=latents,
            person_mask=label_map,
            pred_images=pictures,
            target_images=images,
        )
        total = lpips(step).sum() + _face_distance(face, pictures, images)
        torch.autograd.grad(total, latents)
    return memory.peak


def _decode(vae: Any, latents: Tensor, decode: Decode) -> Tensor:
    if decode != "region":
        return vae.decode(latents, return_dict=False)[0]
    region = RegionDecode(vae)
    side = latents.shape[-1] * region.downscale
    statistics, background = region.statistics(latents)
    return region(latents, [_Box(*(side * part for part in _WINDOW))], statistics, background)


class _Box(NamedTuple):
    """A region in numbers: a tensor would have no data here."""

    x0: float
    y0: float
    x1: float
    y1: float

    def tolist(self) -> list[list[float]]:
        return [list(self)]


def _face_distance(face: Any, pictures: Tensor, images: Tensor) -> Tensor:
    """As the face loss on one face; cropping by boxes needs data, so a corner of the picture is taken."""
    size = [face.features.crop.size] * 2
    with torch.no_grad():
        target = face.features(F.interpolate(images[..., :64, :64], size=size))
    predicted = face.features(F.interpolate(pictures[..., :64, :64], size=size))
    return torch.stack([(p - t).abs().mean() for p, t in zip(predicted, target, strict=True)]).sum()
