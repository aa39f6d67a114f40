"""Pictures sampled while training, for eyes and trackers."""

from __future__ import annotations

import argparse
import contextlib
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, UniPCMultistepScheduler

from mldm_plugin.data.annotations import read_picture
from mldm_plugin.errors import DataError
from mldm_plugin.training import generators
from mldm_plugin.training.networks import Networks

log = get_logger(__name__)

INFERENCE_STEPS = 20  # as in diffusers' script, so that its pictures and ours compare


@dataclass(frozen=True)
class Sampled:
    """The pictures for one prompt and hint."""

    prompt: str
    hint: PIL.Image.Image
    pictures: list[PIL.Image.Image]


def validate(
    arguments: argparse.Namespace,
    accelerator: Accelerator,
    networks: Networks,
    controlnet: ControlNetModel,
    step: int,
    *,
    final: bool = False,
) -> list[Sampled]:
    """Sample every validation prompt; save the pictures under `validation/` and hand them to the trackers.

    With a seed the sampling has a generator of its own. Without one it draws from the global generators, which
    are put back, so that training goes on as if nothing had been sampled.
    """
    keep = generators.untouched() if arguments.seed is None else contextlib.nullcontext()
    with keep:
        pipeline = _make_pipeline(arguments, accelerator, networks, controlnet)
        generator = None
        if arguments.seed is not None:
            generator = torch.Generator(device=accelerator.device).manual_seed(arguments.seed)
        sampled = []
        for prompt, hint in pairs(arguments):
            pictures = []
            for _ in range(arguments.num_validation_images):
                with _precision(accelerator.device, networks.unet.dtype, final):
                    result = pipeline(prompt, hint, num_inference_steps=INFERENCE_STEPS, generator=generator)
                pictures.append(result.images[0])
            sampled.append(Sampled(prompt, hint, pictures))
    _save(sampled, Path(arguments.output_dir) / "validation", step)
    _hand_to_trackers(sampled, accelerator, step, "test" if final else "validation")
    del pipeline
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return sampled


def pairs(arguments: argparse.Namespace) -> list[tuple[str, PIL.Image.Image]]:
    """Prompts with their hints; a single one of either goes with all of the other.

    Raises:
        DataError: a hint that cannot be read.
    """
    prompts = list(arguments.validation_prompt or [])
    if arguments.conditioning == "none":
        blank = PIL.Image.new("RGB", (arguments.resolution, arguments.resolution))
        return [(prompt, blank) for prompt in prompts]
    paths = list(arguments.validation_image or [])
    number = max(len(prompts), len(paths))
    prompts = prompts * number if len(prompts) == 1 else prompts
    paths = paths * number if len(paths) == 1 else paths
    return list(zip(prompts, map(_read_hint, paths), strict=True))


def _read_hint(path: str) -> PIL.Image.Image:
    try:
        return read_picture({"path": path, "bytes": None}, path).convert("RGB")
    except DataError as error:
        reason = error.__cause__ or error
        raise DataError(
            f"--validation_image {path} cannot be read as a picture ({type(reason).__name__}: {reason}); give the "
            "path of a picture."
        ) from error


def _make_pipeline(
    arguments: argparse.Namespace, accelerator: Accelerator, networks: Networks, controlnet: ControlNetModel
) -> Any:
    sampler = StableDiffusionControlNetPipeline.from_pretrained(
        arguments.pretrained_model_name_or_path,
        vae=networks.vae,
        text_encoder=networks.text_encoder,
        tokenizer=networks.tokenizer,
        unet=networks.unet,
        controlnet=controlnet,
        safety_checker=None,
        revision=arguments.revision,
        variant=arguments.variant,
    )
    sampler.scheduler = UniPCMultistepScheduler.from_config(sampler.scheduler.config)
    sampler = sampler.to(accelerator.device)
    sampler.set_progress_bar_config(disable=True)
    if arguments.enable_xformers_memory_efficient_attention:
        sampler.enable_xformers_memory_efficient_attention()
    return sampler


def _precision(device: torch.device, dtype: torch.dtype, final: bool) -> Any:
    """Autocast while the ControlNet has float32 weights beside half-precision networks."""
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
                    size = one.pictures[0].size
                    rows = np.stack([np.asarray(p) for p in (one.hint.resize(size), *one.pictures)])
                    tracker.writer.add_images(one.prompt, rows, step, dataformats="NHWC")
            case "wandb":
                import wandb

                images = []
                for one in sampled:
                    images.append(wandb.Image(one.hint, caption="hint"))
                    images += [wandb.Image(p, caption=one.prompt) for p in one.pictures]
                tracker.log({key: images}, step=step)
            case other:
                log.warning(f"validation pictures are not sent to {other}; they are in validation/.")
