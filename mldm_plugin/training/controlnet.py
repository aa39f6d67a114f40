"""Train a ControlNet for Stable Diffusion 1.x.

`training_step` is one micro-batch; the loop around it is in `loop`, and how the pieces are made in `run`.
Without a plugin the numbers are those of diffusers' examples/controlnet/train_controlnet.py, to the bit: random
draws keep its order.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, UniPCMultistepScheduler
from torch import Tensor

from mldm_plugin.data.annotations import read_picture
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import DataError
from mldm_plugin.training import loop
from mldm_plugin.training.controlnet_flags import FLAGS
from mldm_plugin.training.controlnet_networks import WEIGHTS, load_networks
from mldm_plugin.training.networks import encoded_text, posterior
from mldm_plugin.training.objective import Outcome, annotation_of
from mldm_plugin.training.run import Run
from mldm_plugin.training.trainer import Prompt, Reading, Trainer
from mldm_plugin.training.validation import load_pipeline


def training_step(run: Run, batch: dict[str, Any]) -> Outcome:
    """One micro-batch; with the last one of an accumulation the optimizer steps."""
    accelerator, arguments = run.accelerator, run.arguments
    with accelerator.accumulate(run.model):
        outcome = diffusion_loss(run, batch)
        accelerator.backward(outcome.loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(run.networks.trained.parameters(), arguments.max_grad_norm)
        run.optimizer.step()
        run.lr_scheduler.step()
        run.optimizer.zero_grad(set_to_none=arguments.set_grads_to_none)
    return outcome


def diffusion_loss(run: Run, batch: dict[str, Any]) -> Outcome:
    """Noise the latents, predict, compare."""
    net = run.networks
    latents = posterior(net, batch, run.dtype).sample() * net.vae.config.scaling_factor
    noise = torch.randn_like(latents)
    timesteps = run.draw_timesteps(latents)
    noisy_latents = net.noise_scheduler.add_noise(latents.float(), noise.float(), timesteps).to(run.dtype)
    model_pred = predict(run, batch, noisy_latents, timesteps)
    if net.noise_scheduler.config.prediction_type == "v_prediction":
        target = net.noise_scheduler.get_velocity(latents, noise, timesteps)
    else:
        target = noise
    plain = F.mse_loss(model_pred.float(), target.float())
    return run.objective(
        plain,
        lambda: DiffusionStep(
            latents=latents,
            noise=noise,
            noisy_latents=noisy_latents,
            timesteps=timesteps,
            model_pred=model_pred,
            target=target,
            base_loss=plain,
            **annotation_of(batch),
        ),
    )


def predict(run: Run, batch: dict[str, Any], noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
    """The U-Net's output, steered by the ControlNet."""
    text = encoded_text(run.networks, batch)
    hint = batch.get("conditioning_pixel_values")
    if hint is None:
        side = run.arguments.resolution
        hint = noisy_latents.new_zeros(len(noisy_latents), 3, side, side)
    down, middle = run.model(
        noisy_latents, timesteps, encoder_hidden_states=text, controlnet_cond=hint.to(run.dtype), return_dict=False
    )
    return run.networks.unet(
        noisy_latents,
        timesteps,
        encoder_hidden_states=text,
        down_block_additional_residuals=[residual.to(run.dtype) for residual in down],
        mid_block_additional_residual=middle.to(run.dtype),
        return_dict=False,
    )[0]


def read(arguments: argparse.Namespace) -> Reading:
    """The script's way of reading: hints, some captions left empty, the middle of each picture unless asked."""
    hints = arguments.conditioning_image_column if arguments.conditioning == "image" else None
    framing = {"random_crop": arguments.random_crop, "random_flip": arguments.random_flip}
    return Reading(hints, arguments.proportion_empty_prompts, framing, every_file=False)


def prompts(arguments: argparse.Namespace) -> list[Prompt]:
    """Prompts with their hints; a single one of either goes with all of the other.

    Raises:
        DataError: a hint that cannot be read.
    """
    texts = list(arguments.validation_prompt or [])
    if arguments.conditioning == "none":
        blank = PIL.Image.new("RGB", (arguments.resolution, arguments.resolution))
        return [Prompt(text, blank) for text in texts]
    paths = list(arguments.validation_image or [])
    number = max(len(texts), len(paths))
    texts = texts * number if len(texts) == 1 else texts
    paths = paths * number if len(paths) == 1 else paths
    return [Prompt(text, _read_hint(path)) for text, path in zip(texts, paths, strict=True)]


def _read_hint(path: str) -> PIL.Image.Image:
    try:
        return read_picture({"path": path, "bytes": None}, path).convert("RGB")
    except DataError as error:
        reason = error.__cause__ or error
        raise DataError(
            f"--validation_image {path} cannot be read as a picture ({type(reason).__name__}: {reason}); give the "
            "path of a picture."
        ) from error


def make_pipeline(run: Run, stored: Path | None) -> Any:
    """The ControlNet in training, or the one that was stored, with the scheduler that the script samples by."""
    controlnet = run.networks.trained if stored is None else ControlNetModel.from_pretrained(stored).to(run.dtype)
    pipeline = load_pipeline(
        StableDiffusionControlNetPipeline, run, unet=run.networks.unet, controlnet=controlnet, safety_checker=None
    )
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    return pipeline


TRAINER = Trainer(
    what="ControlNet",
    flags=FLAGS,
    load_networks=load_networks,
    weights=WEIGHTS,
    read=read,
    training_step=training_step,
    prompts=prompts,
    make_pipeline=make_pipeline,
    inference_steps=20,
    samples_after_step=lambda run: run.step % run.arguments.validation_steps == 0,
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 when trained or stopped in good order, 1 with one line on what to mend."""
    return loop.main(TRAINER, argv)


if __name__ == "__main__":
    sys.exit(main())
