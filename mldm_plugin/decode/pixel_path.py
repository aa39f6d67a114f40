"""From a step's latents to the pictures that losses compare: by what, in which precision, how many at a time."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.decode.looked_at import regions_of
from mldm_plugin.decode.pixel_memory import GB, PixelMemory
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import DataError, LossError
from mldm_plugin.perceptual.frozen import in_bfloat16

log = logging.getLogger(__name__)


class PixelPath:
    """How a step gets `pred_images` and `target_images`.

    Args:
        decoder: None if no loss needs pictures.
        target: compare with the `image`, or with the `decoded` clean latents.
        precision: of decoder and feature networks: `float32`, `bfloat16`, or `auto`, which is bfloat16 where the
            host's latents or output are of half precision.
        memory_gb: what decoding with gradient may take at most; None decodes one large picture at a time.
        looked_at: what the losses look at, `person_mask`, `face_boxes` or both: where windows are needed.

    Attributes:
        memory: what the start-up proof saw a picture take.
    """

    def __init__(
        self,
        decoder: LatentDecoder | None,
        target: Literal["image", "decoded"] = "image",
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        memory_gb: float | None = None,
        looked_at: frozenset[str] = frozenset(),
    ) -> None:
        self.decoder = decoder
        self.target = target
        self.precision = precision
        self.memory = PixelMemory(memory_gb)
        self.looked_at = looked_at
        self._told_overfull = False

    def decode(self, step: DiffusionStep, *, exact: bool = False) -> DiffusionStep:
        """`step` with `pred_images`, with gradient, and `target_images`, without.

        `exact` decodes by the VAE itself in float32, whatever the settings are.
        """
        if self.decoder is None:
            raise LossError("a loss needs pictures, but no VAE was given: pass vae to LossStack.from_preset.")
        size = self.decoder.image_size(step.latents)
        for name in ("pixel_values", "person_mask"):
            given = getattr(step, name)
            if given is not None and given.shape[-2:] != size:
                raise DataError(
                    f"{name} is {tuple(given.shape[-2:])}, the latents decode to {size}: pass what belongs to the "
                    "picture that the latents were encoded from."
                )
        return self._whole(step, self.decoder.exact) if exact else self._as_asked(step, self.decoder)

    def _as_asked(self, step: DiffusionStep, decoder: LatentDecoder) -> DiffusionStep:
        if not decoder.in_windows:
            return self._whole(step, decoder)
        statistics, target = step.decoder_statistics, self._pictures(step)
        if statistics is None or target is None:
            statistics, decoded = decoder.statistics(step.latents.float())
            target = decoded if target is None else target
        pred_images = decoder.windows(step.pred_latents, regions_of(step, self.looked_at), statistics, target)
        return replace(step, pred_images=pred_images, target_images=target)

    def _whole(self, step: DiffusionStep, decode: Callable[[Tensor], Tensor]) -> DiffusionStep:
        target = self._pictures(step)
        if target is None:
            with torch.no_grad():
                target = decode(step.latents.float())
        return replace(step, pred_images=decode(step.pred_latents), target_images=target)

    def _pictures(self, step: DiffusionStep) -> Tensor | None:
        """The pictures to compare with, float32; None if it is the decoded clean latents."""
        if self.target == "decoded" or step.pixel_values is None:
            return None
        return step.pixel_values.detach().to(step.pred_latents)

    def groups(self, step: DiffusionStep, rows: list[int]) -> Iterator[list[int]]:
        """`rows` of a step in groups that fit into memory together."""
        if not rows:
            return iter(())
        shares = None if self.decoder is None or not self.decoder.in_windows else self.shares(step.select(rows))
        groups = list(self.memory.groups(step, rows, self.pixels(step), shares))
        if self.memory.overfull and not self._told_overfull:
            self._told_overfull = True
            if self.decoder is not None and not self.decoder.in_windows:
                self.decoder.checkpointing = True
            log.warning(
                "a picture of %d x %d takes more than pixel_memory_gb %g: larger, with more faces or a larger window "
                "than the one at start-up. From here on the decoder's activations are computed twice (but for "
                "windows); if memory runs out, lower the resolution.",
                *(self.decoder.image_size(step.latents) if self.decoder is not None else (0, 0)),
                self.memory.budget_gb,
            )
        return iter(groups)

    def shares(self, step: DiffusionStep) -> list[float]:
        """How much of each picture of a step is decoded with gradient."""
        if self.decoder is None or not self.decoder.in_windows:
            return [1.0] * len(step)
        size = step.latents.shape[-2:]
        return [self.decoder.share(regions, *size) for regions in regions_of(step, self.looked_at)]

    def foresee_memory(self, step: DiffusionStep) -> None:
        """Have the decoder compute activations twice from the start, where it alone exceeds the budget."""
        if self.decoder is None:
            return
        with self.in_its_precision(step):
            kept = self.decoder.kept_bytes(step.latents)
        if not self.decoder.in_windows and self.memory.budget_gb is not None:
            self.decoder.checkpointing = kept > self.memory.budget_gb * GB

    def save_memory(self, step: DiffusionStep) -> bool:
        """Have the decoder compute activations twice, if a picture takes more than the budget. Whether that is new."""
        decoder, exceeded = self.decoder, self.memory.exceeded(self.pixels(step))
        if decoder is None or decoder.in_windows or decoder.checkpointing or not exceeded:
            return False
        decoder.checkpointing, self.memory.passing = True, 0
        return True

    def describe_memory(self, step: DiffusionStep) -> str:
        """What a picture takes, in words."""
        if self.decoder is None:
            return ""
        return self.memory.describe(self.pixels(step), self.decoder.checkpointing, self.decoder.in_windows)

    def pixels(self, step: DiffusionStep) -> int:
        """Of one picture of a step."""
        return 0 if self.decoder is None else math.prod(self.decoder.image_size(step.latents))

    def uses_bfloat16(self, step: DiffusionStep) -> bool:
        """Whether decoder and feature networks compute in bfloat16 for this step."""
        # accelerate hands a prepared network's output over in float32; its input tells.
        half = any(
            x.dtype in (torch.bfloat16, torch.float16) for x in (step.latents, step.noisy_latents, step.model_pred)
        )
        return half if self.precision == "auto" else self.precision == "bfloat16"

    @contextlib.contextmanager
    def in_its_precision(self, step: DiffusionStep) -> Iterator[None]:
        """Inside, they do so, or not; and the host's autocast is off."""
        with torch.autocast(step.latents.device.type, enabled=False), in_bfloat16(self.uses_bfloat16(step)):
            yield

    def stand_in(self, step: DiffusionStep) -> str:
        """What stands in for the whole decode by the VAE in float32, in words; empty if nothing does."""
        parts = [] if self.decoder is None or self.decoder.stand_in is None else [self.decoder.stand_in]
        return ", ".join([*parts, *(["bfloat16"] if self.uses_bfloat16(step) else [])])
