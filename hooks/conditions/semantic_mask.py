"""Semantic mask: which part of a face every pixel shows, as tokens that know where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from mldm_plugin import ConditionEncoder, hookimpl
from mldm_plugin.conditions.celeba import PARTS
from mldm_plugin.errors import DataError


class SemanticMaskEncoder(ConditionEncoder):
    """A ResNet-18 on one channel a part, without its classifier: a token for each 32 × 32 pixels, or one for all.

    For small pictures the ResNet can end earlier: with two stages a token is of 8 × 8 pixels.

    Args:
        width: of a token; 512 in the paper, as many as the ResNet's last channels, which are then the token. Another
            width takes a linear layer after it.
        parts: names of the labels 1, 2, …; CelebAMask-HQ's 18 by default. Label 0 has no channel.
        resolution: side of the mask, a multiple of a token's side; 256 in the paper: 8 × 8 tokens.
        pooled: average over the picture into one token, which no longer knows where anything is.
        channels: of the ResNet's stages; the first halves the sides twice, each other once.

    Source: "Conditioning Diffusion Models via Attributes and Semantic Masks for Face Generation", sections 3.3 and 4.3
    (unpooled 𝓔_mnp, pooled 𝓔_m).
    """

    column = "parts"
    is_label_map = True

    def __init__(
        self,
        width: int,
        *,
        parts: Sequence[str] = PARTS,
        resolution: int = 256,
        pooled: bool = False,
        channels: Sequence[int] = (64, 128, 256, 512),
    ) -> None:
        from transformers import ResNetConfig, ResNetModel  # not at the top: it takes seconds, and losses need none

        super().__init__()
        side = 2 ** (len(channels) + 1)  # of a token, in pixels
        if resolution % side:
            raise DataError(
                f"semantic_mask: resolution is {resolution}, expected a multiple of {side}, as {len(channels)} stages "
                "halve it."
            )
        self.parts, self.resolution, self.pooled = list(parts), resolution, pooled
        self.tokens = 1 if pooled else (resolution // side) ** 2
        self.network = ResNetModel(
            ResNetConfig(
                num_channels=len(self.parts),
                embedding_size=channels[0],
                hidden_sizes=list(channels),
                depths=[2] * len(channels),
                layer_type="basic",
            )
        )
        self.project = torch.nn.Identity() if channels[-1] == width else torch.nn.Linear(channels[-1], width)
        self._mirror = self._sides()

    def _sides(self) -> Tensor:
        """Label → the label that it has in the mirror, for names that begin with l_ and r_."""
        labels = list(range(len(self.parts) + 1))
        for label, part in enumerate(self.parts, 1):
            if part.startswith("l_") and f"r_{part[2:]}" in self.parts:
                other = self.parts.index(f"r_{part[2:]}") + 1
                labels[label], labels[other] = other, label
        return torch.tensor(labels, dtype=torch.uint8)

    def read(self, value: Any) -> Tensor:
        """uint8 (1, H, W) of labels, from such a tensor, an array (H, W) or a picture of mode L or P.

        Raises:
            DataError: unknown labels, or not the size of this encoder.
        """
        if isinstance(value, PIL.Image.Image) and value.mode not in ("L", "P"):
            raise DataError(f"the mask is a picture of mode {value.mode}, expected labels (mode L or P).")
        labels = value.numpy(force=True) if isinstance(value, Tensor) else np.array(value)
        labels = labels[None] if labels.ndim == 2 else labels
        side = self.resolution
        if labels.shape != (1, side, side):
            raise DataError(f"the mask is {labels.shape}, expected (1, {side}, {side}); resize its picture too.")
        if labels.dtype.kind not in "biu" or labels.min() < 0 or labels.max() > len(self.parts):
            raise DataError(
                f"the mask has {labels.dtype} labels {labels.min()} to {labels.max()}, expected whole ones, 0 "
                f"to {len(self.parts)}: {', '.join(self.parts)}."
            )
        return torch.from_numpy(labels.astype(np.uint8))

    def mirrored(self, value: Tensor) -> Tensor:
        """Left and right parts have changed their names."""
        return self._mirror[value.long()]

    def forward(self, values: Tensor) -> Tensor:
        """(N, L, width) of labels (N, 1, S, S), row by row from the top left."""
        weight = self.network.embedder.embedder.convolution.weight
        one_hot = F.one_hot(values[:, 0].long(), len(self.parts) + 1)[..., 1:].permute(0, 3, 1, 2)
        features = self.network(one_hot.to(weight.dtype)).last_hidden_state
        features = features.mean((2, 3), keepdim=True) if self.pooled else features
        return self.project(features.flatten(2).transpose(1, 2))


@hookimpl
def register_condition_encoders(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("semantic_mask", SemanticMaskEncoder)
