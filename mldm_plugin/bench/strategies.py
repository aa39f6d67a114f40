"""How others decide which images to decode for a loss on pixels, each written plainly, with gradient.

All of them take the losses, weights and T of a preset, so that a difference in time is one of strategy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.step import DiffusionStep


def plain_loss(step: DiffusionStep) -> Tensor:
    """A trainer without any loss on pixels."""
    if step.base_loss is None:
        raise ValueError("the step has no base_loss")
    return step.base_loss


@dataclass
class WithPlugin:
    """The plugin, as a trainer calls it."""

    stack: LossStack

    def __call__(self, step: DiffusionStep) -> Tensor:
        return self.stack(step).loss


@dataclass
class DecodeEverything:
    """Decode every image of the batch with gradient, then mask out the losses of those above T.

    Source: Li et al., "ControlNet++: Improving Conditional Controls with Efficient Consistency Feedback", whose
    released train/reward_control.py multiplies the reward loss of each image by `timestep_mask`.

    Args:
        stack: gives the terms and how they are mixed, nothing else.
        vae: decodes in its own precision.
        noise_scheduler: the trainer's.
    """

    stack: LossStack
    vae: Any
    noise_scheduler: Any

    def __call__(self, step: DiffusionStep) -> Tensor:
        error = (step.model_pred.float() - step.target.float()).square().mean(dim=(1, 2, 3))
        total = error
        with self.stack.pictures.in_its_precision(step):
            decoded = decode_all(step, self.vae, self.noise_scheduler, self.stack.pictures.target)
            for term in self.stack.terms:
                limit: Any = term.max_timestep
                mask = (step.timesteps <= limit) * term.weight
                replaced = error if self.stack.combine == "convex" else 0
                total = total + mask * (term.loss(decoded) - replaced)
        return total.mean()


@dataclass
class WholeBatchGate:
    """One timestep for the whole batch: decode all of it at or below T, nothing above.

    Source: the released code of "Improving Latent Diffusion with Perceptual Mask-Aware Loss" (mldm/mldm.py), which
    draws one t a batch; it decoded without gradient, here there is one. Arguments as in `DecodeEverything`.
    """

    stack: LossStack
    vae: Any
    noise_scheduler: Any

    def __call__(self, step: DiffusionStep) -> Tensor:
        timestep = int(step.timesteps[0])
        total = base_loss = plain_loss(step)
        terms = [t for t in self.stack.terms if t.max_timestep is None or timestep <= t.max_timestep]
        if not terms:
            return total
        with self.stack.pictures.in_its_precision(step):
            decoded = decode_all(step, self.vae, self.noise_scheduler, self.stack.pictures.target)
            for term in terms:
                replaced = base_loss if self.stack.combine == "convex" else 0
                total = total + term.weight * (term.loss(decoded).mean() - replaced)
        return total


def decode_all(step: DiffusionStep, vae: Any, noise_scheduler: Any, target: str) -> DiffusionStep:
    """`step` with the decoded one-step estimate of every image, and what it is compared with."""
    alphas_cumprod = noise_scheduler.alphas_cumprod.to(step.timesteps.device)[step.timesteps][:, None, None, None]
    noisy, model_pred = step.noisy_latents.float(), step.model_pred.float()
    pred_latents = (noisy - (1 - alphas_cumprod).sqrt() * model_pred) / alphas_cumprod.sqrt()
    pred_images = decode(vae, pred_latents)
    target_images: Any = step.pixel_values
    if target == "decoded":
        with torch.no_grad():
            target_images = decode(vae, step.latents)
    return replace(step, pred_images=pred_images, target_images=target_images)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Pictures, float32."""
    return vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0].float()
