"""The Inception network of FID, whose features every published FID was computed in."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.inception import (
    BasicConv2d,
    Inception3,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)

WIDTH = 2048


class _Average(nn.Module):
    """The last branch of a block averages its neighbourhood; TensorFlow leaves the padding out of the count."""

    _forward: Callable[[Tensor], list[Tensor]]
    branch_pool: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        *branches, _ = self._forward(x)
        return torch.cat([*branches, self.branch_pool(self.pooled(x))], dim=1)

    def pooled(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


class _A(_Average, InceptionA):
    pass


class _C(_Average, InceptionC):
    pass


class _E(_Average, InceptionE):
    pass


class _Last(_E):
    """The last block of the graph of 2015 takes the greatest of the neighbourhood, where the paper has the mean."""

    def pooled(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, kernel_size=3, stride=1, padding=1)


class FIDInception(Inception3):
    """Inception-v3 as it stands in the TensorFlow graph `inception-2015-12-05`, up to its global average.

    torchvision's network, but for the pooling branches and the classifier, which is left out. Names of parameters are
    torchvision's, which are also those of the published file. The initial random weights keep the magnitude of what
    they are given.

    Args to the call:
        images: (K, 3, 299, 299), what `fid_input` gives.

    Returns:
        (K, 2048).

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision"; Heusel et al., "GANs Trained
    by a Two Time-Scale Update Rule", for the graph; what differs from torchvision was found by pytorch-fid.
    """

    def __init__(self) -> None:
        blocks = [BasicConv2d, _A, InceptionB, _C, InceptionD, _E, InceptionAux]
        super().__init__(num_classes=1, aux_logits=False, inception_blocks=blocks, init_weights=False)
        self.Mixed_7c = _Last(2048)
        self.fc = nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        features, _ = self._forward(images)
        return features


def fid_input(images: Tensor) -> Tensor:
    """(K, 3, S, S) RGB in [-1, 1] → (x - 128)/128 of 0–255, as the graph has it."""
    return ((images + 1) * 127.5 - 128) / 128
