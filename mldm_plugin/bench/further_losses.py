"""Losses that no plain version stands beside, each alone, on pictures, features or latents at hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mldm_plugin.bench.candidates import LossAlone
from mldm_plugin.bench.host import decoded_step
from mldm_plugin.bench.measure import Candidate
from mldm_plugin.bench.sizes import Size
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.perceptual.dinov2 import DINOFeatures, DINOv2
from mldm_plugin.perceptual.weights import locate
from mldm_plugin.plugins import Plugins

DINO, KEYPOINTS, LATENT, MSE = "dino", "keypoints", "latent_perceptual", "masked_mse"
KEYPOINTS_OPTIONS = {"of": "hands", "weights": "pretrained"}


class FurtherLosses:
    """Such losses with networks of their published size. What `latent_perceptual` needs decoded is not in its cost.

    Args:
        plugins: with the losses.
        size: whose latents and decoder's stages are at hand.
    """

    def __init__(self, plugins: Plugins, size: Size) -> None:
        self._channels = size.family.vae["block_out_channels"]
        self._losses: dict[str, Any] = {name: plugins.losses[name]() for name in (LATENT, MSE)}
        self._losses[DINO] = dino = plugins.losses[DINO](weights="random")
        dino.features = DINOFeatures("random", dino.features.size, DINOv2)
        self.missing: list[Candidate] = []
        keypoints: Any = plugins.losses[KEYPOINTS]
        if gone := [name for name in keypoints.weight_files(KEYPOINTS_OPTIONS) if locate(name) is None]:
            why = f"its network is known by its file alone: mldm weights fetch {' '.join(gone)}"
            self.missing.append(Candidate(KEYPOINTS, "none", faults={1: why}))
        else:
            self._losses[KEYPOINTS] = keypoints(**KEYPOINTS_OPTIONS)

    def on(self, people: dict[str, Any]) -> dict[str, LossAlone]:
        """By name, of pictures as `draw_people` makes them."""
        images = people["pixel_values"]
        step = decoded_step(people, _nearly(images).requires_grad_())
        seen = {name: (step, [step.pred_images]) for name in (DINO, KEYPOINTS)}
        side = images.shape[-1] // 2 ** (len(self._channels) - 1)
        seen[MSE] = _of_latents(step, side)
        seen[LATENT] = _of_features(step, stages(self._channels, side))
        return {name: (partial(loss, seen[name][0]), seen[name][1]) for name, loss in self._losses.items()}


def _of_latents(step: DiffusionStep, side: int) -> tuple[DiffusionStep, list[Tensor]]:
    latents = step.pred_images.detach().new_zeros(len(step), 4, side, side)
    model_pred = _nearly(latents).requires_grad_()
    same: dict[str, Any] = dict.fromkeys(("latents", "noise", "noisy_latents", "target"), latents)
    return replace(step, model_pred=model_pred, **same), [model_pred]


def _of_features(step: DiffusionStep, shapes: list[tuple[int, int]]) -> tuple[DiffusionStep, list[Tensor]]:
    images = step.pred_images.detach()
    true = tuple(images.new_ones(len(step), channels, side, side) for channels, side in shapes)
    leaves = [_nearly(stage).requires_grad_() for stage in true]
    return replace(step, pred_features=tuple(leaves), target_features=true), leaves


def stages(channels: tuple[int, ...], side: int) -> list[tuple[int, int]]:
    """Channels and side of what each stage of an AutoencoderKL's decoder gives: the middle and every level.

    >>> stages((128, 256, 512), 32)
    [(512, 32), (512, 64), (256, 128), (128, 128)]
    """
    last = len(channels) - 1
    return [(channels[-1], side), *((c, side * 2 ** min(i + 1, last)) for i, c in enumerate(reversed(channels)))]


def _nearly(true: Tensor) -> Tensor:
    """With a fifth of noise, the same each time."""
    return true + 0.2 * torch.randn(true.shape, generator=torch.Generator().manual_seed(0)).to(true)
