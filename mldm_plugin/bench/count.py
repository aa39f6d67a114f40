"""Operations of the parts of a step, counted without a GPU and without memory for the networks.

Networks run on tensors that have a shape and no content (torch's FakeTensorMode), so Stable Diffusion XL takes
seconds on any machine. A count is no time: it leaves out what is limited by memory, and how well a device is used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mldm_plugin.bench.agreement import exact
from mldm_plugin.bench.candidates import CACHED, EVERYTHING, OURS, PLAIN, WHOLE_BATCH
from mldm_plugin.bench.expected import measured_gates
from mldm_plugin.bench.networks import TEXT_LENGTH, Networks, build_networks
from mldm_plugin.bench.rows import Row
from mldm_plugin.bench.sizes import Size
from mldm_plugin.bench.strategies import decode
from mldm_plugin.bench.workload import People
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import PresetError
from mldm_plugin.plugins import Plugins
from mldm_plugin.preset import Preset

# The losses are counted on real tensors of these sides, and drawn on a straight line over area: convolutions grow
# with it, faces, cut out at one size, do not.
_SIDES = (64, 128)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Counts:
    """TFLOP an image of each part of a step.

    Args:
        encode: picture to latents, without gradient.
        network: ControlNet and U-Net, forward and backward.
        decode: latents to picture, forward and backward.
        losses: by name, the target's features, forward and backward.
    """

    encode: float
    network: float
    decode: float
    losses: dict[str, float]

    @property
    def pixels(self) -> float:
        """Of a gated image, after the network's output."""
        return self.decode + sum(self.losses.values())

    def rows(self, n: int) -> list[Row]:
        """The whole step of each strategy, TFLOP by number of gated images."""
        plain, cached = n * (self.encode + self.network), n * self.network
        row = Row.counted
        return [
            row(PLAIN, "none", {1: plain}),
            row(PLAIN + CACHED, "none", {1: cached}),
            row(OURS, "each image", {k: plain + k * self.pixels for k in measured_gates(n, "each image")}),
            row(OURS + CACHED, "each image", {k: cached + k * self.pixels for k in measured_gates(n, "each image")}),
            row(EVERYTHING, "none", {1: plain + n * self.pixels}),
            row(WHOLE_BATCH, "whole batch", {0: plain, n: plain + n * self.pixels}),
        ]


def count(size: Size, resolution: int, preset: Preset, plugins: Plugins) -> Counts:
    """Counts the parts of a step.

    Raises:
        PresetError: the preset decodes with something else than the whole VAE.
    """
    if not exact(preset):
        raise PresetError(
            "only whole pictures decoded by the model's own VAE are counted without running, not this preset's "
            "decode or vae: leave --count out, and the operations of what runs are counted."
        )
    with _quiet(), FakeTensorMode(allow_non_fake_inputs=True):
        networks = build_networks(size, CPU, torch.float32)
        encode, network, decoded = _count_networks(networks, resolution)
    losses = {
        name: _count_loss(name, s.options, size, resolution, plugins)
        for name, s in preset.losses.items()
        if s.weight > 0
    }
    return Counts(encode, network, decoded, losses)


def _count_networks(networks: Networks, resolution: int) -> tuple[float, float, float]:
    side = resolution // 2 ** (len(networks.size.vae_channels) - 1)
    latents = torch.randn(1, 4, side, side, requires_grad=True)
    text = torch.randn(1, TEXT_LENGTH, networks.size.unet["cross_attention_dim"])
    hint, timesteps = torch.zeros(1, 3, side * 8, side * 8), torch.zeros(1, dtype=torch.long)

    def encode() -> None:
        with torch.no_grad():
            networks.vae.encode(torch.randn(1, 3, resolution, resolution))

    def predict() -> None:
        added = networks.added_conditions(1)
        networks.predict(latents.detach(), timesteps, text, hint, added).square().mean().backward()

    return _tflop(encode), _tflop(predict), _tflop(lambda: decode(networks.vae, latents).sum().backward())


def _count_loss(name: str, options: dict[str, Any], size: Size, resolution: int, plugins: Plugins) -> float:
    loss = plugins.losses[name](**options)
    if size.face_crop is not None and hasattr(loss, "features"):
        loss.features.size = size.face_crop
    counts = []
    for side in _SIDES:
        people = People.draw(1, side, CPU)
        nothing = torch.zeros(1, 4, 1, 1)
        step = DiffusionStep(
            latents=nothing,
            noise=nothing,
            noisy_latents=nothing,
            timesteps=torch.zeros(1, dtype=torch.long),
            model_pred=nothing,
            target=nothing,
            person_mask=people.person_mask,
            face_boxes=people.face_boxes,
            pred_images=torch.rand_like(people.pixel_values).requires_grad_(),
            target_images=people.pixel_values,
        )
        counts.append(_tflop(lambda step=step: loss(step).sum().backward()))  # type: ignore[misc]
    slope = (counts[1] - counts[0]) / (_SIDES[1] ** 2 - _SIDES[0] ** 2)
    return counts[0] + slope * (resolution**2 - _SIDES[0] ** 2)


def _tflop(act: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as operations:
        act()
    return operations.get_total_flops() / 1e12


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes that torch writes where tensors have no content."""
    logger = logging.getLogger("torch")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
