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
from torch.utils.checkpoint import checkpoint

from mldm_plugin.bench.candidates import ANSWERS, CACHED, EVERYTHING, OURS, PLAIN, WHOLE_BATCH
from mldm_plugin.bench.compare import exact
from mldm_plugin.bench.host import Host, decoded_step, decodes_nothing, draw_people, shrink_faces
from mldm_plugin.bench.measure import Candidate, gated_numbers
from mldm_plugin.bench.others import decode
from mldm_plugin.bench.sizes import Size
from mldm_plugin.errors import PresetError
from mldm_plugin.planning.operations import counting
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
        answer: a further one of the networks (estimate: ddim-K), forward twice and backward through to its question.
        decode: latents to picture, forward and backward.
        losses: by name, the target's features, forward and backward.
    """

    encode: float
    network: float
    answer: float
    decode: float
    losses: dict[str, float]

    def candidates(self, n: int) -> list[Candidate]:
        """The whole step of each way, TFLOP by number of gated images."""
        pixels = self.decode + sum(self.losses.values())
        plain, cached = n * (self.encode + self.network), n * self.network
        by_image = gated_numbers(n, "each image")
        return [
            Candidate(PLAIN, "none", tflop={1: plain}),
            Candidate(PLAIN + CACHED, "none", tflop={1: cached}),
            Candidate(OURS, "each image", tflop={k: plain + k * pixels for k in by_image}),
            Candidate(OURS + CACHED, "each image", tflop={k: cached + k * pixels for k in by_image}),
            Candidate(EVERYTHING, "none", tflop={1: plain + n * pixels}),
            Candidate(WHOLE_BATCH, "whole batch", tflop={0: plain, n: plain + n * pixels}),
            *(
                Candidate(name, "each image", tflop={k: plain + k * (pixels + (a - 1) * self.answer) for k in by_image})
                for a, name in ANSWERS.items()
            ),
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
        encode, network, answer, decoded, again = _count_networks(Host(size, CPU), resolution)
    losses = {}
    for name, settings in preset.losses.items():
        if settings.weight > 0:
            loss = plugins.losses[name](**settings.options)
            if decodes_nothing(loss):
                losses[name] = 0.0
            else:  # on features of the decoder a loss computes next to nothing: the clean latents are decoded for it
                losses[name] = again if "pred_features" in loss.needs else _count_loss(loss, size, resolution)
    return Counts(encode, network, answer, decoded, losses)


def _count_networks(host: Host, resolution: int) -> tuple[float, float, float, float, float]:
    """TFLOP of an encode, of the networks, of a further answer, of a decode with its gradient and of one without."""
    side = resolution // 2 ** (len(host.size.family.vae["block_out_channels"]) - 1)
    latents = torch.randn(1, 4, side, side, requires_grad=True)
    timesteps = torch.zeros(1, dtype=torch.long)

    inputs = host.draw_inputs(1, side)

    def predict(noisy: torch.Tensor) -> torch.Tensor:
        return host.predict(noisy, timesteps, **inputs)

    return (
        _tflop(lambda: host.encode(torch.randn(1, 3, resolution, resolution))),
        _tflop(lambda: predict(latents.detach()).square().mean().backward()),
        _tflop(lambda: checkpoint(predict, latents, use_reentrant=False).square().mean().backward()),
        _tflop(lambda: decode(host.vae, latents).sum().backward()),
        _tflop(lambda: decode(host.vae, latents.detach())),
    )


def _count_loss(loss: Any, size: Size, resolution: int) -> float:
    shrink_faces(loss, size)
    counts = []
    for side in _SIDES:
        people = draw_people(1, side, CPU)
        step = decoded_step(people, torch.rand_like(people["pixel_values"]).requires_grad_())
        counts.append(_tflop(lambda step=step: loss(step).sum().backward()))  # type: ignore[misc]
    slope = (counts[1] - counts[0]) / (_SIDES[1] ** 2 - _SIDES[0] ** 2)
    return counts[0] + slope * (resolution**2 - _SIDES[0] ** 2)


def _tflop(act: Callable[[], Any]) -> float:
    with counting() as operations:
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
