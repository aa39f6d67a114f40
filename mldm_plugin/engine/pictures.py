"""From a step's latents to the pictures that losses compare: which decoder, which precision, how many at a time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from mldm_plugin.decode.decoder import Decoder
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import DataError, LossError
from mldm_plugin.perceptual.frozen import computing_in

Precision = Literal["auto", "float32", "bfloat16"]
# Pixels that are decoded together unless asked otherwise: one picture of Stable Diffusion. Chosen.
TOGETHER = 512 * 512
_HALF = (torch.bfloat16, torch.float16)


class Pictures:
    """How a step gets `pred_images` and `target_images`.

    Args:
        decoder: None if no loss needs pictures.
        target: compare with the `image`, or with the `decoded` clean latents.
        precision: of decoder and feature networks: `float32`, `bfloat16`, or `auto`, which is bfloat16 where the
            host's latents or output are of half precision and the device has bfloat16, else float32. Never float16,
            whose range SDXL's VAE and the face networks' pixels of 0–255 leave.
        batch: how many pictures are decoded together; None is as many as have the pixels of one 512² picture in all.
    """

    def __init__(
        self,
        decoder: Decoder | None,
        target: Literal["image", "decoded"] = "image",
        precision: Precision = "auto",
        batch: int | None = None,
    ) -> None:
        self.decoder, self.target, self.precision, self.batch = decoder, target, precision, batch

    def of(self, step: DiffusionStep, features: bool = False) -> DiffusionStep:
        """`step` with `pred_images`, with gradient to `pred_latents`, and `target_images`, without.

        With `features`, those of the decoder's stages, too, from the same decode; for those of the clean latents these
        are decoded, which `target: decoded` does anyhow.
        """
        return self._by(self.fitting(step), step, features)

    def exactly(self, step: DiffusionStep, features: bool = False) -> DiffusionStep:
        """`of` by the VAE itself in float32, for comparison."""
        with computing_in(torch.float32):  # checkpointed, so that it takes no more than the run's own bfloat16
            return self._by(self.fitting(step).exact.keeping_less(), step, features)

    def _by(self, decoder: Decoder, step: DiffusionStep, features: bool) -> DiffusionStep:
        def decode(latents: Tensor) -> tuple[Tensor, tuple[Tensor, ...] | None]:
            return decoder.with_features(latents) if features else (decoder(latents), None)

        given = step.pixel_values if self.target == "image" else None
        target_images, target_features = None, None
        if features or given is None:
            with torch.no_grad():
                target_images, target_features = decode(step.latents.float())
        if given is not None:
            target_images = given.detach().to(step.pred_latents, non_blocking=True)
        seen: dict[str, Any] = {"target_images": target_images, "target_features": target_features}
        seen["pred_images"], seen["pred_features"] = decode(step.pred_latents)
        return replace(step, **seen)

    def fitting(self, step: DiffusionStep) -> Decoder:
        """The decoder, if there is one and what it makes of the step's latents is of the size of its pictures.

        Raises:
            LossError, DataError: there is none, or it is not.
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
        return self.decoder

    def groups(self, rows: list[int], step: DiffusionStep) -> list[list[int]]:
        """`rows` of a step, in order, so many at a time as are decoded together."""
        size = self.together(step)
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def together(self, step: DiffusionStep) -> int:
        """How many pictures of a step are decoded at a time, ≥ 1."""
        if self.batch is not None or self.decoder is None:
            return self.batch or 1
        return max(1, TOGETHER // math.prod(self.decoder.image_size(step.latents)))

    def dtype_for(self, step: DiffusionStep) -> torch.dtype:
        """What decoder and feature networks compute in."""
        if self.precision != "auto":
            return torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        # accelerate hands a prepared network's output over in float32; its input tells.
        half = any(x.dtype in _HALF for x in (step.latents, step.noisy_latents, step.model_pred))
        return torch.bfloat16 if half and has_bfloat16(step.latents.device) else torch.float32

    @contextlib.contextmanager
    def in_its_precision(self, step: DiffusionStep) -> Iterator[None]:
        """Inside, they compute in it, and the host's autocast is off."""
        with torch.autocast(step.latents.device.type, enabled=False), computing_in(self.dtype_for(step)):
            yield

    def differs_by(self, step: DiffusionStep) -> str:
        """How this differs from the decode by the VAE in float32, in words; empty if it does not."""
        parts = [] if self.decoder is None or self.decoder.stand_in is None else [self.decoder.stand_in]
        return ", ".join([*parts, *(["bfloat16"] if self.dtype_for(step) == torch.bfloat16 else [])])

    def describe(self, step: DiffusionStep) -> str:
        """The memory rule in effect, for the start-up table."""
        if self.decoder is None:
            return ""
        height, width = self.decoder.image_size(step.latents)
        again = "computed again in the backward pass" if self.decoder.checkpointing else "kept"
        number = self.together(step)
        return (
            f"pictures of {width}x{height} are decoded {number} at a time in "
            f"{str(self.dtype_for(step)).removeprefix('torch.')}, activations {again}"
        )


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself; GPUs before Ampere emulate it, slower than float32."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
