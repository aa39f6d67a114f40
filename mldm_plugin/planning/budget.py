"""The whole step in one peak, and which settings fit into a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mldm_plugin.engine.pictures import TOGETHER
from mldm_plugin.errors import MldmError
from mldm_plugin.planning.families import Family
from mldm_plugin.planning.pixels import PictureMemory
from mldm_plugin.planning.step import Kind, StepMemory, TrainedNetworks, measure_encoder

GB = 1e9
# Chosen. What tensors do not show: the CUDA context and loaded kernels (0.3 to 0.6 GB) and workspaces of cuDNN and
# cuBLAS; and what the caching allocator cannot use because it lies in pieces, as a share of the tensors.
CONTEXT_GB, FRAGMENTS = 1.0, 0.05
# Bytes of AdamW's two states for each trained weight; a few more for the scales of 8-bit blocks are left out.
STATES, STATES_8BIT = 8, 2
BATCHES = (1, 2, 4, 8, 16)
ONE, CHECKPOINTED = "decode_batch=1", "decode_checkpointing=true"
# Ways to decode and what to write for them, those first that cost least time.
DECODES: dict[str, tuple[str, ...]] = {
    "whole": (),
    "whole, one at a time": (ONE,),
    "checkpointed": (CHECKPOINTED,),
    "checkpointed, one at a time": (CHECKPOINTED, ONE),
}


@dataclass(frozen=True)
class Setting:
    """What can be chosen about a run; `decode` is of `DECODES`."""

    batch: int
    gradient_checkpointing: bool
    cache_latents: bool
    decode: str


@dataclass(frozen=True)
class Peak:
    """What a setting takes at most, in GB of 10⁹ bytes, margin included; `without_pixels` if no image is gated."""

    setting: Setting
    gb: float
    without_pixels: float

    def as_row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self.setting) | {"gb": round(self.gb, 2), "without_pixels_gb": round(self.without_pixels, 2)}


@dataclass(frozen=True)
class Footprint:
    """All that peaks are put together from, in bytes.

    Args:
        resident: weights, gradients and states, there all the time.
        uncached: weights of the VAE and the text encoders, there where latents are not cached.
        optimizer: what it takes for a moment; AdamW's `foreach` makes one copy of what it updates.
        steps: by gradient checkpointing, of one picture and of two.
        gated: the same where every picture is gated, which with `estimate: ddim-K` is asked about K times.
        encoder: of one picture and of two.
        pictures: of the losses on pictures, for as many as are decoded together at most; by way to decode.
        tflop: operations of the network in a step on one picture, 10¹², and how many more where it is gated.
    """

    resident: int
    uncached: int
    optimizer: int
    steps: dict[bool, tuple[StepMemory, StepMemory]]
    gated: dict[bool, tuple[StepMemory, StepMemory]]
    encoder: tuple[int, int]
    pictures: dict[str, tuple[int, int]]
    tflop: tuple[float, float]

    def peak(self, setting: Setting) -> Peak:
        """The largest of the moments of a step.

        The encoder runs before the network; the losses on pictures run, so many at a time, while the network's
        activations are kept; the backward pass and the optimizer come after them. Further answers are computed before
        the losses, and again in the backward pass, while the activations of the first are there.
        """
        step, gated = (
            one.extrapolated(two, setting.batch)
            for one, two in (steps[setting.gradient_checkpointing] for steps in (self.steps, self.gated))
        )
        encoder = self.encoder[0] + (self.encoder[1] - self.encoder[0]) * (setting.batch - 1)
        plain = max(step.forward, step.backward, self.optimizer, 0 if setting.cache_latents else encoder)
        bytes_each, together = self.pictures[setting.decode]
        pixels = gated.kept + bytes_each * min(together, setting.batch)
        whole = max(plain, gated.forward, gated.backward, pixels)
        resident = self.resident + (0 if setting.cache_latents else self.uncached)
        return Peak(setting, with_margin(resident + whole), with_margin(resident + plain))

    def settings(self, batches: Iterable[int], *, can_cache: bool = True) -> Iterator[Setting]:
        """All settings: larger batches first, and for each those that cost least time first.

        The decoder runs only for gated images, the network for all: its checkpointing costs more.
        """
        for batch in sorted(batches, reverse=True):
            for checkpointing in (False, True):
                for decode in self.pictures:
                    for cached in (True, False) if can_cache else (False,):
                        yield Setting(batch, checkpointing, cached, decode)


def measure(
    family: Family,
    kind: Kind,
    dtype: torch.dtype,
    resolution: int,
    *,
    rank: int = 4,
    eight_bit: bool = False,
    answers: int = 1,
    tell: Callable[[str], None] = lambda part: None,
) -> Footprint:
    """The footprint of a run.

    Args:
        answers: of the network that the losses look at, K of `estimate: ddim-K`.
        tell: called with the name of each part before it is measured, which takes seconds to a minute each.

    Raises:
        MldmError: a resolution that the networks do not take.
    """
    if resolution < 64 or resolution % 64:
        raise MldmError(f"--resolution is {resolution}, expected a multiple of 64.")
    steps, gated, tflop = {}, {}, (0.0, 0.0)
    for checkpointing in (False, True):
        tell("the network" + (", checkpointed" if checkpointing else ""))
        networks = TrainedNetworks(family, kind, dtype, checkpointing=checkpointing, rank=rank)
        gated[checkpointing] = steps[checkpointing] = _one_and_two(networks, resolution, 1)
        if answers > 1:
            tell(f"{answers} answers of it")
            gated[checkpointing] = _one_and_two(networks, resolution, answers)
            tflop = tflop if checkpointing else _operations(networks, resolution, answers)
    tell("the encoder")
    (vae, one), (_, two) = (measure_encoder(family, dtype, n, resolution) for n in (1, 2))
    tell("the decoder and the losses")
    losses = PictureMemory(family, torch.float32 if dtype == torch.float32 else torch.bfloat16, resolution)
    each = 2 if kind == "lora" and dtype == torch.bfloat16 else 4  # the LoRA trainer rounds its LoRA with the U-Net
    states = STATES_8BIT if eight_bit else STATES * each // 4
    trained = networks.trained_weights
    return Footprint(
        resident=networks.frozen_weights * dtype.itemsize + trained * (2 * each + states) + losses.weights,
        uncached=vae + family.text_parameters * dtype.itemsize,
        optimizer=0 if eight_bit else trained * each,
        steps=steps,
        gated=gated,
        encoder=(one, two),
        pictures=_pictures(losses, max(1, TOGETHER // resolution**2)),
        tflop=tflop,
    )


def _one_and_two(networks: TrainedNetworks, resolution: int, answers: int) -> tuple[StepMemory, StepMemory]:
    return networks.measure(1, resolution, answers), networks.measure(2, resolution, answers)


def _operations(networks: TrainedNetworks, resolution: int, answers: int) -> tuple[float, float]:
    """TFLOP of one picture with one answer, and how many more with so many."""
    plain = networks.tflop(resolution)
    return plain, networks.tflop(resolution, answers) - plain


def _pictures(losses: PictureMemory, together: int) -> dict[str, tuple[int, int]]:
    """Bytes of a picture and how many are decoded together, for the ways that differ at this size."""
    peaks = losses.peaks()
    return {
        name: (peaks[name.partition(",")[0]], 1 if ONE in words else together)
        for name, words in DECODES.items()
        if together > 1 or ONE not in words
    }


def with_margin(taken: float) -> float:
    """GB on the GPU for so many bytes of tensors."""
    return taken / GB * (1 + FRAGMENTS) + CONTEXT_GB


def recommend(peaks: Iterable[Peak], vram: float, most: int | None = None) -> Peak | None:
    """The first that fits: the largest batch, of at most `most`, and for it the setting that costs least time."""
    return next((p for p in peaks if p.gb <= vram and (most is None or p.setting.batch <= most)), None)
