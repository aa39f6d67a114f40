"""Train a LoRA of the U-Net of Stable Diffusion 1.x.

`training_step` is one micro-batch; the loop around it is in `loop`, and how the pieces are made in `run`.
Without a plugin the numbers are those of diffusers' examples/text_to_image/train_text_to_image_lora.py, to the bit:
random draws keep its order, and gradients are not clipped unless `--clip_gradients` asks for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import compute_snr
from torch import Tensor

from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.training import loop
from mldm_plugin.training.lora_flags import FLAGS
from mldm_plugin.training.lora_networks import WEIGHTS, load_networks
from mldm_plugin.training.networks import encoded_text, posterior
from mldm_plugin.training.objective import Outcome, annotation_of
from mldm_plugin.training.run import Run
from mldm_plugin.training.trainer import Prompt, Reading, Trainer
from mldm_plugin.training.validation import load_pipeline


def training_step(run: Run, batch: dict[str, Any]) -> Outcome:
    """One micro-batch; with the last one of an accumulation the optimizer steps."""
    with run.accelerator.accumulate(run.model):
        outcome = diffusion_loss(run, batch)
        run.accelerator.backward(outcome.loss)
        if run.accelerator.sync_gradients and run.arguments.clip_gradients:
            run.accelerator.clip_grad_norm_(run.networks.trainable(), run.arguments.max_grad_norm)
        run.optimizer.step()
        run.lr_scheduler.step()
        run.optimizer.zero_grad()
    return outcome


def diffusion_loss(run: Run, batch: dict[str, Any]) -> Outcome:
    """Noise the latents, predict, compare."""
    net, scheduler = run.networks, run.networks.noise_scheduler
    latents = posterior(net, batch, run.dtype).sample() * net.vae.config.scaling_factor
    noise = draw_noise(latents, run.arguments.noise_offset)
    t = run.draw_timesteps(latents)
    noisy_latents = scheduler.add_noise(latents, noise, t)
    text = encoded_text(net, batch)
    predicts_noise = scheduler.config.prediction_type == "epsilon"
    target = noise if predicts_noise else scheduler.get_velocity(latents, noise, t)
    model_pred = run.model(noisy_latents, t, text, return_dict=False)[0]

    weights = min_snr_weights(scheduler, t, run.arguments.snr_gamma)
    if weights is None:
        plain = F.mse_loss(model_pred.float(), target.float())
    else:
        error = F.mse_loss(model_pred.float(), target.float(), reduction="none")
        plain = (error.mean(dim=(1, 2, 3)) * weights).mean()
    return run.objective(
        plain,
        lambda: DiffusionStep(
            latents=latents,
            noise=noise,
            noisy_latents=noisy_latents,
            timesteps=t,
            model_pred=model_pred,
            target=target,
            base_weights=weights,
            base_loss=plain,
            **annotation_of(batch),
        ),
    )


def draw_noise(latents: Tensor, offset: float) -> Tensor:
    """ε, (N, C, h, w); with an offset, each channel of each image is shifted as a whole by that much noise."""
    noise = torch.randn_like(latents)
    if offset:
        noise += offset * torch.randn((*latents.shape[:2], 1, 1), device=latents.device)
    return noise


def min_snr_weights(scheduler: Any, timesteps: Tensor, gamma: float | None) -> Tensor | None:
    """Factor on the squared error of each image, (N,); None without gamma.

    min(SNR, γ)/SNR for ε, min(SNR, γ)/(SNR + 1) for v. Source: Hang et al., "Efficient Diffusion Training via
    Min-SNR Weighting Strategy", section 3.4.
    """
    if gamma is None:
        return None
    snr = compute_snr(scheduler, timesteps)
    return snr.clamp(max=gamma) / (snr if scheduler.config.prediction_type == "epsilon" else snr + 1)


def read(arguments: argparse.Namespace) -> Reading:
    """The script's way of reading: every file of a folder, cropped and mirrored as the flags say."""
    framing = {
        "interpolation": arguments.image_interpolation_mode,
        "random_crop": not arguments.center_crop,
        "random_flip": arguments.random_flip,
    }
    return Reading(conditioning=None, empty_prompts=None, framing=framing, every_file=True)


def prompts(arguments: argparse.Namespace) -> list[Prompt]:
    """The one prompt, if there is one."""
    return [] if arguments.validation_prompt is None else [Prompt(arguments.validation_prompt)]


def make_pipeline(run: Run, stored: Path | None) -> Any:
    """The U-Net in training, or the pipeline's own with the LoRA that was stored."""
    parts = {"unet": run.networks.unet} if stored is None else {}
    pipeline = load_pipeline(StableDiffusionPipeline, run, safety_checker=None, **parts)
    if stored is not None:
        pipeline.unet.to(run.dtype)
        pipeline.load_lora_weights(stored)
    prediction_type = run.networks.noise_scheduler.config.prediction_type
    pipeline.scheduler.register_to_config(prediction_type=prediction_type)
    return pipeline


TRAINER = Trainer(
    what="LoRA",
    flags=FLAGS,
    load_networks=load_networks,
    weights=WEIGHTS,
    read=read,
    training_step=training_step,
    prompts=prompts,
    make_pipeline=make_pipeline,
    inference_steps=30,
    samples_after_pass=lambda run, epoch: epoch % run.arguments.validation_epochs == 0,
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 when trained or stopped in good order, 1 with one line on what to mend."""
    return loop.main(TRAINER, argv)


if __name__ == "__main__":
    sys.exit(main())
