"""DINOv2's vision transformer, by the names of its published weights, and its features of a picture's patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mldm_plugin.perceptual.frozen import Frozen, build_seeded, build_to_fill
from mldm_plugin.perceptual.weights import described, fill, load_state_dict

PATCH = 14
GRID = 37  # patches of a side that positions were learnt for, 518 pixels
WEIGHTS = "dinov2_small"
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the network was trained
_OFFSET = 0.1  # in the scale of positions: the published network was evaluated with it


def weight_files(options: Mapping[str, Any]) -> list[str]:
    """The weights that a loss with this option `weights` asks for."""
    return [WEIGHTS] if options["weights"] == "pretrained" else []


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width))


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.ls1, self.ls2 = _Scale(width), _Scale(width)
        self.attn, self.mlp = _Attention(width, heads), _MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class DINOv2(nn.Module):
    """The transformer from pictures to its normalised tokens of patches. ViT-S/14 unless asked otherwise.

    Source: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision" (arXiv 2304.07193).
    """

    def __init__(self, width: int = 384, depth: int = 12, heads: int = 6, grid: int = GRID) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + grid * grid, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, 14 h, 14 w), normalised as ImageNet → (n, width, h, w)."""
        patches = self.patch_embed["proj"](images)
        h, w = patches.shape[-2:]
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches.flatten(2).mT], dim=1)
        x = x + self._positions(h, w).to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1:].mT.unflatten(2, (h, w))

    def _positions(self, h: int, w: int) -> Tensor:
        """Those that were learnt, brought to h×w patches."""
        grid = round((self.pos_embed.shape[1] - 1) ** 0.5)
        if (h, w) == (grid, grid):
            return self.pos_embed
        own = self.pos_embed[:, 1:].float().mT.unflatten(2, (grid, grid))
        scale = ((h + _OFFSET) / grid, (w + _OFFSET) / grid)
        moved = F.interpolate(own, scale_factor=scale, mode="bicubic", recompute_scale_factor=False)
        return torch.cat([self.pos_embed[:, :1].float(), moved.flatten(2).mT], dim=1)


_small = partial(DINOv2, width=48, depth=2, heads=3)


class DINOFeatures:
    """Features of the patches of pictures, by a frozen network.

    Args:
        weights: `pretrained` is ViT-S/14; `random` a seeded one, for tests.
        size: about how many pixels the shorter side of a picture is brought to, in whole patches.
        random: makes the network of `random`, a small one unless asked otherwise.

    `networks` names the network, where its weights came from and their terms of use.
    """

    def __init__(
        self,
        weights: Literal["pretrained", "random"] = "pretrained",
        size: int = 224,
        random: Callable[[], DINOv2] = _small,
    ) -> None:
        self.size = size
        if weights == "pretrained":
            network = build_to_fill(DINOv2)
            fill(network, load_state_dict(WEIGHTS), WEIGHTS, ignore=("mask_token",))
        else:
            network = build_seeded(random)
        self.networks = (described(WEIGHTS),) if weights == "pretrained" else ()
        self._network = Frozen(network)

    def __call__(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) RGB in [-1, 1] → (n, C, h, w), one vector a patch, with gradient to `images`."""
        height, width = images.shape[-2:]
        scale = self.size / (min(height, width) * PATCH)
        sides = [max(round(side * scale), 1) * PATCH for side in (height, width)]
        along, across = (_resampling(side, source, images) for side, source in zip(sides, (height, width), strict=True))
        with torch.autocast(images.device.type, enabled=False):
            images = along @ images @ across.T
        mean, deviation = (torch.tensor(of).view(3, 1, 1).to(images, non_blocking=True) for of in (_MEAN, _DEVIATION))
        features: Tensor = self._network(((images + 1) / 2 - mean) / deviation)
        return features


def _resampling(size: int, source: int, like: Tensor) -> Tensor:
    """The matrix (size, source) of resizing along one axis, which averages where it shrinks.

    Two products with it are what `F.interpolate` does, but their gradient is the same in each run on a GPU, too.
    """
    unit = torch.eye(source, dtype=torch.float64)[None, None]
    matrix = F.interpolate(unit, (size, source), mode="bilinear", antialias=True)[0, 0]
    return matrix.to(like.dtype).to(like.device, non_blocking=True)
