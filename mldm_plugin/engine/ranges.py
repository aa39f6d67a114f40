"""Ranges of timesteps to average over, so that numbers do not jump with what t a batch happens to draw."""

from __future__ import annotations

import torch
from torch import Tensor

from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.engine.step import DiffusionStep

# Where ranges of Stable Diffusion's timesteps begin, by SNR on any other schedule. Chosen: the gates of the paper, T =
# 100 and 400, are among them, and each holds a sixth of the images or less than twice that.
BEGINNINGS = (0, 100, 200, 400, 700)
RANGES = tuple(f"t{a}-{b - 1}" for a, b in zip(BEGINNINGS, (*BEGINNINGS[1:], 1000), strict=True))


def range_of(step: DiffusionStep, schedule: NoiseSchedule) -> Tensor:
    """The range of each image, (N,) int64. Waits for nothing."""
    snr = schedule.snr(step.timesteps, step.sigmas)
    return sum((~schedule.gate(snr, start - 1)).long() for start in BEGINNINGS[1:]) + torch.zeros_like(snr).long()


def in_ranges(values: Tensor, place: Tensor) -> Tensor:
    """Sums of `values` (…, n) in each range, (…, R), by the `place` (n,) of each: a product, added up in one order."""
    return values @ (place[:, None] == torch.arange(len(RANGES), device=place.device)).to(values)
