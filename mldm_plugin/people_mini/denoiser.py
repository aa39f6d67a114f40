"""Training U-Net and text encoder together: predicting the noise in latents whose picture the caption describes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mldm_plugin.people_mini.architecture import SCHEDULER
from mldm_plugin.people_mini.loop import Batch
from mldm_plugin.people_mini.pictures import Captions, Pictures

UNSAID = 0.1  # share of captions left empty, as in Stable Diffusion 1.x, for guidance
PHOTO_SHARE = 0.35
STEEPEST = 5.0  # most that 1/SNR may weigh a step


class Denoiser(nn.Module):
    """Text encoder and U-Net in one call that a trainer can wrap."""

    def __init__(self, text_encoder: Any, unet: Any) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        states = self.text_encoder(tokens)[0]
        return self.unet(noisy, timesteps, states).sample


@dataclass
class DenoisingObjective:
    """Noise prediction, weighted by min(max(1, 1/SNR), 5).

    The weight is the "truncated SNR" of "Progressive Distillation for Fast Sampling of Diffusion Models", eq. 9,
    written for the noise and held below 5 (chosen): without it the steps that lay out a picture hardly count.

    Args:
        latents: scaled, of all pictures, on the device.
        pictures: says which are photographs.
        captions: tokens, on the device.
        batch: pictures in a step.
    """

    latents: Tensor
    pictures: Pictures
    captions: Captions
    batch: int

    def __post_init__(self) -> None:
        from diffusers import DDPMScheduler

        alphas = DDPMScheduler.from_config({**SCHEDULER, "clip_sample": False}).alphas_cumprod
        self.alphas = alphas.to(self.latents.device)
        self.weights = ((1 - self.alphas) / self.alphas).clamp(1.0, STEEPEST)

    def draw(self, generator: torch.Generator) -> Batch:
        device, count = self.latents.device, self.batch
        numbers = self.pictures.draw(count, PHOTO_SHARE, generator)

        def chance() -> Tensor:
            return torch.rand(count, generator=generator, device=device)

        which = (chance() * self.captions.rows.shape[1]).long()
        rows = torch.where(chance() < UNSAID, self.captions.empty, self.captions.rows[numbers, which])
        # one timestep out of each of `count` equal stretches
        timesteps = ((torch.arange(count, device=device) + chance()) * (1000 / count)).long().clamp(max=999)
        clean = self.latents[numbers]
        noise = torch.randn(clean.shape, generator=generator, device=device)
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        tokens = self.captions.tokens[rows]
        return {"noisy": noisy, "noise": noise, "timesteps": timesteps, "tokens": tokens}

    def loss(self, module: Any, batch: Batch) -> Tensor:
        made = module(batch["noisy"], batch["timesteps"], batch["tokens"]).float()
        error = (made - batch["noise"]).square().mean((1, 2, 3))
        return (self.weights[batch["timesteps"]] * error).mean()


@torch.no_grad()
def sample(
    denoiser: Denoiser, tokens: Tensor, empty: Tensor, noise: Tensor, steps: int = 25, guidance: float = 3.0
) -> Tensor:
    """Scaled latents drawn by DDIM with classifier-free guidance, each from its own noise (n, 4, h, w).

    Args:
        denoiser: in evaluation mode.
        tokens: (n, 77).
        empty: (77,), those of the empty caption.
        noise: what is begun with.
        steps: of the sampler.
        guidance: 1 is none.
    """
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config({**SCHEDULER, "clip_sample": False})
    scheduler.set_timesteps(steps, device=noise.device)
    both, latents = torch.cat([empty.expand_as(tokens), tokens]), noise
    for timestep in scheduler.timesteps:
        unsaid, said = denoiser(latents.repeat(2, 1, 1, 1), timestep.expand(len(both)), both).float().chunk(2)
        latents = scheduler.step(unsaid + guidance * (said - unsaid), timestep, latents).prev_sample
    return latents
