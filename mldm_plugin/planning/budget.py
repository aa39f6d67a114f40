"""The whole step in one peak, and which settings fit into a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mldm_plugin.errors import MldmError
from mldm_plugin.planning.families import Family
from mldm_plugin.planning.pixels import Decode, PixelMemory, measure_pixels
from mldm_plugin.planning.step import Kind, StepMemory, TrainedNetworks, Weights, measure_encoder

GB = 1e9
# Chosen. What tensors do not show: the CUDA context and loaded kernels (0.3 to 0.6 GB) and workspaces of cuDNN and
# cuBLAS; and what the caching allocator cannot use because it lies in pieces, as a share of the tensors.
CONTEXT_GB, FRAGMENTS = 1.0, 0.05
# Bytes of AdamW's two states for each trained weight; a few more for the scales of 8-bit blocks are left out.
STATES, STATES_8BIT = 8, 2
BATCHES = (1, 2, 4, 8, 16)
# Way of decoding and gradient checkpointing of the network, those first that cost least time: the decoder runs only
# for gated images, the network for all; windows are last, for they are not quite what the whole decoder gives.
_BY_TIME: tuple[tuple[Decode, bool], ...] = (
    ("full", False),
    ("checkpointed", False),
    ("full", True),
    ("checkpointed", True),
    ("region", False),
    ("region", True),
)


@dataclass(frozen=True)
class Setting:
    """What can be chosen about a run."""

    batch: int
    gradient_checkpointing: bool
    cache_latents: bool
    decode: Decode


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
class Measured:
    """All that peaks are put together from, in bytes; steps and encoder for one picture and for two."""

    weights: Weights
    dtype: torch.dtype
    trained_bytes: int
    steps: dict[bool, tuple[StepMemory, StepMemory]]
    encoder_weights: int
    encoder: tuple[int, int]
    text_weights: int
    pixels: PixelMemory

    @classmethod
    def of(cls, family: Family, kind: Kind, dtype: torch.dtype, resolution: int, *, rank: int = 4) -> Measured:
        """Everything that is measured of a family, each setting of the network on one picture and on two.

        Raises:
            MldmError: a resolution that the networks do not take.
        """
        if resolution < 64 or resolution % 64:
            raise MldmError(f"--resolution is {resolution}, expected a multiple of 64.")
        steps = {}
        for checkpointing in (False, True):
            networks = TrainedNetworks(family, kind, dtype, checkpointing=checkpointing, rank=rank)
            steps[checkpointing] = (networks.measure(1, resolution), networks.measure(2, resolution))
        encoder_weights, one = measure_encoder(family, dtype, 1, resolution)
        two = measure_encoder(family, dtype, 2, resolution)[1]
        # The LoRA trainer rounds its LoRA to bfloat16 with the U-Net; everything else that is trained is float32.
        trained_bytes = 2 if kind == "lora" and dtype == torch.bfloat16 else 4
        pixels = measure_pixels(family, resolution)
        return cls(
            networks.weights,
            dtype,
            trained_bytes,
            steps,
            encoder_weights,
            (one, two),
            family.text_parameters,
            pixels,
        )

    def resident(self, *, cached: bool, eight_bit: bool) -> int:
        """Weights, gradients and states: what is there all the time."""
        frozen = self.weights.frozen + (0 if cached else self.encoder_weights + self.text_weights)
        states = STATES_8BIT if eight_bit else STATES * self.trained_bytes // 4
        trained = self.weights.trained * (2 * self.trained_bytes + states)
        return frozen * self.dtype.itemsize + trained + self.pixels.weights

    def peak(self, setting: Setting, *, eight_bit: bool = False, pictures: int = 1) -> Peak:
        """The largest of the moments of a step.

        The encoder runs before the network; the losses on pictures run, a chunk at a time, while the network's
        activations are kept; the backward pass comes after them. AdamW's `foreach` makes one more copy of what it
        updates. `pictures` are decoded at once: one unless asked otherwise.
        """
        one, two = self.steps[setting.gradient_checkpointing]
        step = one.extrapolated(two, setting.batch)
        encoder = self.encoder[0] + (self.encoder[1] - self.encoder[0]) * (setting.batch - 1)
        moments = [step.forward, step.backward, 0 if setting.cache_latents else encoder]
        moments.append(0 if eight_bit else self.weights.trained * self.trained_bytes)
        pixels = step.kept + pictures * self.pixels.peak[setting.decode]
        resident = self.resident(cached=setting.cache_latents, eight_bit=eight_bit)
        plain, whole = max(moments), max(*moments, pixels)
        return Peak(setting, with_margin(resident + whole), with_margin(resident + plain))

    def pixel_budget(self, setting: Setting, vram: float, *, eight_bit: bool = False) -> float:
        """GB that are left for the losses on pictures when the network's activations are kept."""
        one, two = self.steps[setting.gradient_checkpointing]
        taken = self.resident(cached=setting.cache_latents, eight_bit=eight_bit)
        taken += one.extrapolated(two, setting.batch).kept
        return (vram - CONTEXT_GB) / (1 + FRAGMENTS) - taken / GB


def with_margin(taken: float) -> float:
    """GB on the GPU for so many bytes of tensors."""
    return taken / GB * (1 + FRAGMENTS) + CONTEXT_GB


def settings(batches: Iterable[int] = BATCHES) -> Iterator[Setting]:
    """All settings: larger batches first, and for each those that cost least time first."""
    for batch in sorted(batches, reverse=True):
        for decode, checkpointing in _BY_TIME:
            for cached in (True, False):
                yield Setting(batch, checkpointing, cached, decode)


def recommend(peaks: Iterable[Peak], vram: float) -> Peak | None:
    """The first that fits: the largest batch, and for it the setting that costs least time."""
    return next((p for p in peaks if p.gb <= vram), None)
