"""copying: how near a picture comes to one that was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mldm_plugin import hookimpl
from mldm_plugin.perceptual.lpips_network import LPIPSNetwork

SIDE = 128  # chosen: a copy is seen at the size of a stamp, and is one whatever the size of its file


class Copying:
    """Likeness of a picture to the nearest one that was trained on: the cosine of VGG16's last two stages, by place.

    1 is a copy. Pictures of one person in one studio are alike, too: held-out photographs, as one more model, say
    how much.

    Args:
        train_data: the pictures that were trained on.

    Raises:
        WeightsError: weights that cannot be had.

    Source: Somepalli et al., "Diffusion Art or Digital Forgery?", CVPR 2023, for the nearest neighbour in a feature
    space; theirs is SSCD's.
    """

    title = "likeness to the nearest training picture"
    better = "smaller"
    asks = "pictures"

    def __init__(self, *, train_data: Sequence[Any]) -> None:
        self.network = LPIPSNetwork("vgg")
        self.networks = self.network.networks
        self.known = torch.stack([self._embedded(picture.image) for picture in train_data])

    def __call__(self, picture: Any) -> float:
        """The likeness in [0, 1]."""
        return float((self.known @ self._embedded(picture.image)).max())

    def _embedded(self, image: Tensor) -> Tensor:
        """The features of a picture, (D,), of unit length."""
        small = F.interpolate(image[None], (SIDE, SIDE), mode="bicubic", antialias=True).clamp(-1, 1)
        with torch.no_grad():
            stages = self.network.features(small)[-2:]
        return F.normalize(torch.cat([F.normalize(s.flatten(1), dim=1) for s in stages], 1), dim=1)[0]


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("copying", Copying)
