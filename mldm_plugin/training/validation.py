"""Pictures sampled while training, for eyes and trackers."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger

from mldm_plugin.training import generators

if TYPE_CHECKING:
    from mldm_plugin.training.run import Run

log = get_logger(__name__)


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


def validate(run: Run, *, final: bool = False) -> list[Sampled]:
    """Sample every validation prompt; save the pictures under `validation/` and hand them to the trackers.

    At the end of a run the weights are those that were stored. With a seed the sampling has a generator of its own.
    Without one it draws from the global generators, which are put back, so that training goes on as if nothing had
    been sampled.
    """
    arguments, device = run.arguments, run.accelerator.device
    keep = generators.untouched() if arguments.seed is None else contextlib.nullcontext()
    with keep:
        pipeline = run.trainer.make_pipeline(run, run.folder if final else None).to(device)
        pipeline.set_progress_bar_config(disable=True)
        if arguments.enable_xformers_memory_efficient_attention:
            pipeline.enable_xformers_memory_efficient_attention()
        options: dict[str, Any] = {"num_inference_steps": run.trainer.inference_steps}
        if arguments.seed is not None:
            options["generator"] = torch.Generator(device=device).manual_seed(arguments.seed)
        sampled = []
        for prompt in run.trainer.prompts(arguments):
            given = (prompt.text,) if prompt.hint is None else (prompt.text, prompt.hint)
            pictures = []
            for _ in range(arguments.num_validation_images):
                with _precision(device, run.dtype, final):
                    pictures.append(pipeline(*given, **options).images[0])
            sampled.append(Sampled(prompt.text, prompt.hint, pictures))
    _save(sampled, run.folder / "validation", run.step)
    _hand_to_trackers(sampled, run.accelerator, run.step, "test" if final else "validation")
    if arguments.cache_latents:
        run.networks.set_encoders_aside()
    del pipeline
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return sampled


def load_pipeline(kind: Any, run: Run, **parts: Any) -> Any:
    """A pipeline of a class of diffusers around the frozen networks of a run and `parts`, the rest from its files."""
    networks, arguments = run.networks, run.arguments
    return kind.from_pretrained(
        arguments.pretrained_model_name_or_path,
        vae=networks.vae,
        text_encoder=networks.text_encoder,
        tokenizer=networks.tokenizer,
        revision=arguments.revision,
        variant=arguments.variant,
        **parts,
    )


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


def _hand_to_trackers(sampled: list[Sampled], accelerator: Accelerator, step: int, key: str) -> None:
    for tracker in accelerator.trackers:
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
