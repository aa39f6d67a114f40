"""Training the autoencoder: absolute difference, LPIPS, and a light pull of the latents to N(0, 1)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mldm_plugin.people_mini.loop import Batch
from mldm_plugin.people_mini.perceptual import ThreeStages
from mldm_plugin.people_mini.pictures import Pictures

LIKENESS = 0.5  # weight of LPIPS beside the absolute difference; chosen
PULL = 3e-4  # weight of the mean KL divergence of a latent; chosen: less leaves latents that are hard to denoise


class Coding(nn.Module):
    """Encodes, adds the posterior's noise, and decodes, in one call that a trainer can wrap."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        posterior = self.vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * noise
        return self.vae.decode(latents).sample, posterior.mean, posterior.logvar


@dataclass
class CodingObjective:
    """Half photographs, half drawings, mirrored at random.

    Args:
        pictures: on the device.
        batch: pictures in a step.
        lpips: or None, which leaves the absolute difference alone.
        autocast: makes the context in which LPIPS runs.
    """

    pictures: Pictures
    batch: int
    lpips: ThreeStages | None
    autocast: Any

    def draw(self, generator: torch.Generator) -> Batch:
        numbers = self.pictures.draw(self.batch, 0.5, generator)
        pixels, device = self.pictures.floats(numbers), self.pictures.pixels.device
        turned = torch.rand(self.batch, 1, 1, 1, generator=generator, device=device) < 0.5
        shape = (self.batch, 4, pixels.shape[-2] // 8, pixels.shape[-1] // 8)
        noise = torch.randn(shape, generator=generator, device=device)
        return {"pixels": torch.where(turned, pixels.flip(-1), pixels), "noise": noise}

    def loss(self, module: Any, batch: Batch) -> Tensor:
        made, mean, logvar = (value.float() for value in module(batch["pixels"], batch["noise"]))
        pull = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = (made - batch["pixels"]).abs().mean() + PULL * pull
        if self.lpips is not None:
            context: AbstractContextManager[None] = self.autocast()
            with context:
                loss = loss + LIKENESS * self.lpips(made, batch["pixels"])
        return loss


@torch.no_grad()
def encode_all(vae: Any, pictures: Pictures, batch: int = 128) -> Tensor:
    """Unscaled latents (N, 4, 16, 16) of all pictures: the posterior's mean."""
    numbers = torch.arange(len(pictures), device=pictures.pixels.device)
    return torch.cat([vae.encode(pictures.floats(some)).latent_dist.mean.float() for some in numbers.split(batch)])


def scaling_factor(latents: Tensor) -> float:
    """What makes the latents' standard deviation one."""
    return 1.0 / float(latents.std())


@torch.no_grad()
def reconstructed(vae: Any, pixels: Tensor, batch: int = 64) -> Tensor:
    """Pictures (n, 3, H, W) in [-1, 1], encoded and decoded."""
    return torch.cat([vae.decode(vae.encode(some).latent_dist.mean).sample.float() for some in pixels.split(batch)])


def psnr(made: Tensor, wanted: Tensor) -> float:
    """Mean peak signal-to-noise ratio of pictures in [-1, 1], in decibels."""
    error = ((made.clamp(-1, 1) - wanted) / 2).square().mean((1, 2, 3))
    return float((-10 * error.clamp(min=1e-10).log10()).mean())
