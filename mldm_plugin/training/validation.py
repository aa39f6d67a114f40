"""Pictures sampled while training, for eyes and trackers."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator

from mldm_plugin.evaluation.models import set_sampler
from mldm_plugin.training import generators
from mldm_plugin.training.trainer import Trainer

log = logging.getLogger(__name__)

DPM_STEPS = 20  # as `mldm evaluate` takes; Lu et al., "DPM-Solver++" (arXiv 2211.01095): 15 to 20 with guidance


@dataclass(frozen=True)
class Sampled:
    """The pictures for one prompt, and its hint where the trainer has hints."""

    prompt: str
    hint: PIL.Image.Image | None
    pictures: list[PIL.Image.Image]

    @property
    def shown(self) -> list[PIL.Image.Image]:
        """The hint and the pictures, all of one size."""
        size = self.pictures[0].size
        return [*([] if self.hint is None else [self.hint.resize(size)]), *self.pictures]


def sample(
    trainer: Trainer, accelerator: Accelerator, folder: Path, step: int, *, final: bool = False
) -> list[Sampled]:
    """Sample every validation prompt; save the pictures under `validation/` and hand them to the trackers.

    At the end of a run the weights are those that were stored in its `folder`. With a seed the sampling has a generator
    of its own. Without one it draws from the global generators, which are put back, so that training goes on as if
    nothing had been sampled.
    """
    flags, device, prompts = trainer.flags, accelerator.device, trainer.prompts()
    if not prompts:
        return []
    with generators.untouched() if flags.seed is None else contextlib.nullcontext():
        pipeline = trainer.make_pipeline(folder if final else None).to(device)
        pipeline.set_progress_bar_config(disable=True)
        if flags.enable_xformers_memory_efficient_attention:
            pipeline.enable_xformers_memory_efficient_attention()
        options: dict[str, Any] = {"num_inference_steps": trainer.inference_steps}
        if flags.validation_scheduler is not None:
            set_sampler(pipeline, flags.validation_scheduler)
            if flags.validation_scheduler == "dpm++":
                options["num_inference_steps"] = DPM_STEPS
        if flags.seed is not None:
            options["generator"] = torch.Generator(device=device).manual_seed(flags.seed)
        sampled = []
        for prompt in prompts:
            pictures = []
            for _ in range(flags.num_validation_images):
                with _precision(device, trainer.dtype, final):
                    pictures.append(pipeline(**prompt.arguments, **options).images[0])
            sampled.append(Sampled(prompt.title, prompt.hint, pictures))
    _save(sampled, folder / "validation", step)
    hand_to_trackers(sampled, accelerator.trackers, step, "test" if final else "validation")
    if flags.cache_latents:
        trainer.set_encoders_aside()
    del pipeline
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return sampled


def _precision(device: torch.device, dtype: torch.dtype, final: bool) -> Any:
    """Autocast while the weights in training are float32 beside half-precision networks."""
    if final:
        return contextlib.nullcontext()
    if device.type == "cuda":
        return torch.autocast("cuda")
    if dtype != torch.float32:
        return torch.autocast(device.type, dtype=dtype)
    return contextlib.nullcontext()


def _save(sampled: list[Sampled], folder: Path, step: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, one in enumerate(sampled):
        for j, picture in enumerate(one.pictures):
            picture.save(folder / f"step-{step:06d}-prompt-{i}-{j}.png")


def hand_to_trackers(sampled: list[Sampled], trackers: Sequence[Any], step: int, key: str) -> None:
    """Show what was sampled in each of accelerate's trackers that takes pictures; the others are warned of."""
    for tracker in trackers:
        match tracker.name:
            case "tensorboard":
                for one in sampled:
                    rows = np.stack([np.asarray(p) for p in one.shown])
                    tracker.writer.add_images(one.prompt, rows, step, dataformats="NHWC")
            case "wandb":
                import wandb

                images = []
                for one in sampled:
                    if one.hint is not None:
                        images.append(wandb.Image(one.hint, caption="hint"))
                    images += [wandb.Image(p, caption=one.prompt) for p in one.pictures]
                tracker.log({key: images}, step=step)
            case other:
                log.warning(f"validation pictures are not sent to {other}; they are in validation/.")
