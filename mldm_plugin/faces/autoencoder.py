"""An autoencoder of faces for where none can be had: factor 8, eight channels, trained on a training set of faces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor, nn

from mldm_plugin.faces.pictures import Faces
from mldm_plugin.people_mini.autoencoder import LIKENESS, PULL, psnr, scaling_factor
from mldm_plugin.people_mini.loop import Batch, Plan, Training
from mldm_plugin.people_mini.perceptual import ThreeStages
from mldm_plugin.perceptual.frozen import build_seeded
from mldm_plugin.records.files import write_text

CHANNELS = 8  # of the latents: four lose the eyes of a face of 80 pixels
WIDTHS = (32, 64, 96, 128)
SCALES = {1: 4, 2: 2, 4: 2}  # how many times smaller latents and pictures become → in how many of a batch; chosen
LOOKED_AT = 2  # of each scale, by LPIPS, whose network costs as much as the autoencoder
RATE = 1e-3
SHOWN = 256  # held-out pictures for the signal-to-noise ratio


def build() -> Any:
    """With seeded random weights."""
    return build_seeded(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=WIDTHS,
            layers_per_block=1,
            norm_num_groups=16,
            latent_channels=CHANNELS,
        )
    )


class CodingAtScales(nn.Module):
    """Encodes, adds the posterior's noise, shrinks the latents of a part of the batch, and decodes, in one call that a
    trainer can wrap.

    Source: Kouzelis et al., "EQ-VAE: Equivariance Regularized Latent Space for Improved Generative Image Modeling"
    (arXiv 2502.09509), eq. 5, with scaling alone: latents of a half and a quarter of their size shall be those of the
    shrunk picture. Latents that obey it are smooth, and so learnt in fewer steps by a diffusion model.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """The pictures of each scale, and the posterior of all: mean and logvar."""
        posterior = self.vae.encode(pixels).latent_dist
        latents = at_scales(posterior.mean + posterior.std * noise)
        return [self.vae.decode(some).sample for some in latents], posterior.mean, posterior.logvar


def at_scales(values: Tensor) -> list[Tensor]:
    """A batch (N, C, H, W) in the parts of SCALES, each shrunk by its own factor by averaging.

    >>> [tuple(part.shape) for part in at_scales(torch.zeros(8, 3, 32, 32))]
    [(4, 3, 32, 32), (2, 3, 16, 16), (2, 3, 8, 8)]
    """
    parts = values.split(list(SCALES.values()))
    return [F.avg_pool2d(part, by) if by > 1 else part for part, by in zip(parts, SCALES, strict=True)]


@dataclass
class FacesObjective:
    """Absolute difference, LPIPS on VGG16's first stages and a light pull to N(0, 1), as people-mini's was trained,
    but at several scales, and with LPIPS of a part of the batch alone.

    Args:
        faces: to be encoded and decoded.
        lpips: or None, which leaves the absolute difference alone.
    """

    faces: Faces
    lpips: ThreeStages | None

    def draw(self, generator: torch.Generator) -> Batch:
        device, count = generator.device, sum(SCALES.values())
        pixels = self.faces.floats(self.faces.drawn(count, generator), device)
        turned = torch.rand(count, 1, 1, 1, generator=generator, device=device) < 0.5
        size = (side // 8 for side in pixels.shape[-2:])
        noise = torch.randn(count, CHANNELS, *size, generator=generator, device=device)
        return {"pixels": torch.where(turned, pixels.flip(-1), pixels), "noise": noise}

    def loss(self, module: Any, batch: Batch) -> Tensor:
        pixels = batch["pixels"]
        made, mean, logvar = module(pixels, batch["noise"])
        loss = PULL * 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        for some, wanted in zip(made, at_scales(pixels), strict=True):
            apart = (some - wanted).abs().mean()
            if self.lpips is not None:
                apart = apart + LIKENESS * self.lpips(some[:LOOKED_AT], wanted[:LOOKED_AT])
            loss = loss + len(some) / len(pixels) * apart
        return loss


def train_autoencoder(faces: Faces, held_out: Faces, steps: int, folder: Path, lpips: ThreeStages | None) -> float:
    """Train, write `folder`/vae in diffusers' format; resumable. Returns decibels on held-out pictures.

    Args:
        lpips: as for `FacesObjective`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator()
    judge = None if lpips is None else lpips.to(accelerator.device)
    plan = Plan("autoencoder", RATE, steps=steps, warmup=min(100, steps))
    vae = Training(CodingAtScales(build()), plan, FacesObjective(faces, judge), accelerator, folder).run().vae
    with torch.no_grad():
        numbers = torch.arange(min(SHOWN, len(held_out)))
        device = next(vae.parameters()).device
        pixels = held_out.floats(numbers, device)
        latents = torch.cat([vae.encode(some).latent_dist.mean for some in pixels.split(16)])
        made = torch.cat([vae.decode(some).sample for some in latents.split(16)])
    vae.register_to_config(scaling_factor=scaling_factor(latents))
    vae.save_pretrained(folder / "vae")
    found = psnr(made, pixels)
    write_text(folder / "autoencoder.txt", f"{found:.2f} dB on {len(pixels)} held-out pictures after {steps} steps\n")
    return found
