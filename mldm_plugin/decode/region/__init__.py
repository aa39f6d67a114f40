"""`decode: region`: only the windows that the losses look at are decoded with gradient.

region_decode.py   the mathematics
windows.py         which windows, and what they cost
chain.py           the decoder's layers behind its middle block
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.decode.region.region_decode import RegionDecode
from mldm_plugin.errors import PresetError
from mldm_plugin.perceptual.face_crops import square_boxes
from mldm_plugin.perceptual.frozen import Frozen

if TYPE_CHECKING:
    from mldm_plugin.engine.step import DiffusionStep

_PLACES = frozenset({"person_mask", "face_boxes"})


class RegionDecoder:
    """Windows of the VAE's pictures around people and faces; elsewhere the picture that they are compared with.

    Statistics of the group norms come from the clean latents, which are decoded once without gradient for it: half the
    work of a whole decode with gradient, a tenth of its memory.

    Args:
        exact: the VAE.
        needs: of the losses that look at pictures, by name: where windows are needed.

    Raises:
        PresetError: a loss that looks at whole pictures, or a VAE of another structure.
    """

    stand_in: str | None = "windows"
    checkpointing = False

    def __init__(self, exact: LatentDecoder, needs: Mapping[str, frozenset[str]]) -> None:
        for name, of_loss in needs.items():
            if not of_loss & _PLACES:
                raise PresetError(
                    f"loss {name!r} looks at whole pictures, so decode: region would hide most of them from it: "
                    "use decode: full."
                )
        self.exact = exact
        self._looked_at = frozenset[str]().union(*needs.values())
        network = RegionDecode(exact.vae)
        self._decode = Frozen(network)
        self._measure = Frozen(_Statistics(network))

    def __call__(self, latents: Tensor) -> Tensor:
        return self.exact(latents)

    def pair(self, step: DiffusionStep, pictures: Tensor | None) -> tuple[Tensor, Tensor]:
        statistics, decoded = self._measure(self.exact.in_vae_scale(step.latents.float()))
        pictures = decoded if pictures is None else pictures
        regions = regions_of(step, self._looked_at)
        return self._decode(self.exact.in_vae_scale(step.pred_latents), regions, statistics, pictures), pictures

    def image_size(self, latents: Tensor) -> tuple[int, int]:
        return self.exact.image_size(latents)

    def settle(self) -> None:
        self.exact.settle()


class _Statistics(torch.nn.Module):
    def __init__(self, network: RegionDecode) -> None:
        super().__init__()
        self.decode = network

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        statistics, pictures = zip(*map(self.decode.statistics, z.split(1)), strict=True)  # the memory of one decode
        return torch.cat(statistics), torch.cat(pictures)


def regions_of(step: DiffusionStep, looked_at: Collection[str]) -> list[Tensor]:
    """The rectangles of each image that hold all that is looked at.

    Args:
        step: N images.
        looked_at: `person_mask` for each person of the mask, `face_boxes` for the square around each face that
            `crop_faces` cuts out.

    Returns:
        N float32 tensors (K_i, 4) of pixel x0, y0, x1, y1 on the CPU, also partly outside. A mask on a GPU is waited
        for.
    """
    regions = [torch.zeros(0, 4)] * len(step)
    if "person_mask" in looked_at and step.person_mask is not None:
        regions = [torch.cat([r, _people(m)]) for r, m in zip(regions, step.person_mask.cpu(), strict=True)]
    if "face_boxes" in looked_at and step.face_boxes is not None:
        # One pixel more for the neighbour that bilinear reading wants.
        margin = torch.tensor([-1.0, -1.0, 1.0, 1.0])
        faces = [square_boxes(b.cpu().float()) + margin for b in step.face_boxes]
        regions = [torch.cat([r, f]) for r, f in zip(regions, faces, strict=True)]
    return regions


def _people(mask: Tensor) -> Tensor:
    """(K, 4) boxes of the labels of a map (1, H, W), their last row and column included."""
    labels = mask.unique()
    labels = labels[labels > 0]
    return masks_to_boxes(mask == labels[:, None, None]) + torch.tensor([0.0, 0.0, 1.0, 1.0])
