"""Decoding only the windows of a picture that the losses look at, with the group norms of the whole picture.

The decoder of diffusers' AutoencoderKL is a trunk on the latent grid (convolution, middle block with attention) and
a chain of layers (residual blocks, upsamplers, output) that leads to pixels and costs nearly everything. A layer mixes
near pixels only, but for its group norms, which need mean and variance of the whole picture. So the trunk runs on the
whole latents, the chain on windows, and mean and variance are taken once from the clean latents and held fixed.

Before each layer a window is cropped to itself plus the halo that this and all later layers need, so nothing is
approximated but the statistics: with those of the same latents, a window is the full decode to rounding. What is
missing from its gradient is the part that goes through the statistics.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mldm_plugin.decode.region.chain import Normalise, by_itself, chain, check, moments, normalised, norms
from mldm_plugin.decode.region.windows import Cost, Window, cover, crop, extent, on_grid, pasted, scaled, union


class RegionDecode(nn.Module):
    """Latents to pictures where the losses look; elsewhere the picture that it is given.

    Args:
        vae: an AutoencoderKL. Its decoder becomes part of this module and is frozen, so hand over a copy.

    Raises:
        PresetError: another autoencoder, or a decoder of another structure.
    """

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        check(vae)
        self.post_quant_conv: Any = getattr(vae, "post_quant_conv", None)
        self.decoder: Any = vae.decoder
        self._layers = chain(self.decoder)
        self.downscale = math.prod(layer.scale for layer in self._layers)
        self._groups = [norm.num_groups for norm in norms(self.decoder)]
        self._work = [layer.work for layer in self._layers]
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` needs to know of the clean latents, and their pictures, which are made on the way.

        Args:
            z: (n, C, h, w) in the VAE's own scale.

        Returns:
            (n, S) float32 mean and variance of each group of each norm (S = 1600 for Stable Diffusion); the pictures
            (n, 3, H, W). Neither has a gradient.
        """
        measured: list[Tensor] = []

        def normalise(norm: nn.GroupNorm, x: Tensor) -> Tensor:
            measured.append(moments(norm, x))
            return normalised(norm, x, measured[-1])

        x = self._trunk(z)
        for layer in self._layers:
            x = layer.run(layer.module, x, normalise)
        return torch.cat(measured, dim=2).flatten(1), x

    def forward(self, z: Tensor, regions: Sequence[Tensor], statistics: Tensor, background: Tensor) -> Tensor:
        """`background` with the windows around `regions` decoded from `z`.

        Nothing here waits for the device.

        Args:
            z: (n, C, h, w) in the VAE's own scale; gradients flow.
            regions: n tensors (K_i, 4) on the CPU, pixel x0, y0, x1, y1, also partly outside; K_i may be 0.
            statistics: (n, S) of the clean latents of the same pictures.
            background: (n, 3, H, W), the pictures outside of the windows.

        Returns:
            (n, 3, H, W) in the dtype of `background`, not clamped. A window holds its region and some pixels more; a
            picture whose windows would cost as much as all of it is plainly decoded whole, its own norms and all.
        """
        latents, layout = z.split(1), defaultdict(list)
        for i, boxes in enumerate(regions):
            for window in self.windows(boxes, *z.shape[-2:]):
                layout[window.height, window.width].append((i, window))
        pictures = list((background + z[:, :0].sum()).split(1))  # a gradient of zeros where there is no region
        rows = sorted({i for batch in layout.values() for i, _ in batch})
        if not rows:
            return torch.cat(pictures)
        features = dict(zip(rows, self._trunk(torch.cat([latents[i] for i in rows])).split(1), strict=True))
        for size, batch in layout.items():
            whole = size == z.shape[-2:]
            normalise = by_itself if whole else self._held(torch.stack([statistics[i] for i, _ in batch]))
            decoded = self._decode([features[i] for i, _ in batch], [window for _, window in batch], normalise)
            for (i, window), pixels in zip(batch, decoded.split(1), strict=True):
                pictures[i] = pasted(pictures[i], pixels, window, self.downscale)
        return torch.cat(pictures)

    def windows(self, regions: Tensor, height: int, width: int) -> list[Window]:
        """The windows that are decoded for `regions` (K, 4) of a picture with latents of `height` x `width`.

        Two that cost no more as one are merged. Where two others overlap, both give the same pixels.
        """
        cost = Cost(self._layers, self._work, height, width)
        kept: list[Window] = []
        for region in regions.tolist():
            window = cover(region, self.downscale, height, width)
            while window is not None and (partner := cost.partner(window, kept)) is not None:
                kept.remove(partner)
                window = union(window, partner)
            kept += [window] if window is not None else []
        whole = Window(0, 0, height, width)
        if sum(cost(window) for window in kept) >= cost(whole):
            return [whole]
        return [on_grid(window, height, width) for window in kept]

    def share(self, regions: Sequence[Tensor], height: int, width: int) -> float:
        """Work of the chain for these pictures, as a part of decoding them whole; memory goes with it."""
        cost = Cost(self._layers, self._work, height, width)
        done = sum(cost(window) for boxes in regions for window in self.windows(boxes, height, width))
        return done / max(1, len(regions) * cost(Window(0, 0, height, width)))

    def _trunk(self, z: Tensor) -> Tensor:
        """The features (n, C', h, w) that the chain starts from."""
        z = z if self.post_quant_conv is None else self.post_quant_conv(z)
        return self.decoder.mid_block(self.decoder.conv_in(z))

    def _held(self, statistics: Tensor) -> Normalise:
        """Normalises by `statistics` (K, S), whose next mean and variance are taken at each call."""
        given = iter(statistics.unflatten(1, (2, -1)).split(self._groups, dim=2))
        return lambda norm, x: normalised(norm, x, next(given))

    def _decode(self, features: Sequence[Tensor], windows: Sequence[Window], normalise: Normalise) -> Tensor:
        """The pixels (K, 3, H', W') of K windows of one size.

        Args:
            features: K tensors (1, C', h, w), the trunk's output for the picture of each window.
        """
        height, width = features[0].shape[-2:]
        pieces, held = features, [Window(0, 0, height, width)] * len(windows)
        for layer in self._layers:
            wanted = [extent(w, layer.before, layer.halo, height, width) for w in windows]
            x = layer.run(layer.module, crop(pieces, held, wanted), normalise)
            pieces, held = x.split(1), [scaled(w, layer.scale) for w in wanted]
        return crop(pieces, held, [scaled(w, self.downscale) for w in windows])
