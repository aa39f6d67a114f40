"""An autoencoder of faces for where none can be had: factor 8, eight channels, trained on a training set of faces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor

from mldm_plugin.faces.pictures import Faces
from mldm_plugin.people_mini.autoencoder import LIKENESS, PULL, Coding, psnr, scaling_factor
from mldm_plugin.people_mini.loop import Batch, Plan, Training
from mldm_plugin.people_mini.perceptual import ThreeStages
from mldm_plugin.perceptual.frozen import build_seeded
from mldm_plugin.records.files import write_text

CHANNELS = 8  # of the latents: four lose the eyes of a face of 80 pixels
WIDTHS = (32, 64, 96, 128)
BATCH = 8
LOOKED_AT = 2  # of a batch, by LPIPS, whose network costs as much as the autoencoder
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


@dataclass
class FacesObjective:
    """Absolute difference, LPIPS on VGG16's first stages and a light pull to N(0, 1), as people-mini's was trained,
    but for LPIPS of a part of the batch alone.

    Args:
        faces: to be encoded and decoded.
        lpips: or None, which leaves the absolute difference alone.
    """

    faces: Faces
    lpips: ThreeStages | None

    def draw(self, generator: torch.Generator) -> Batch:
        device = generator.device
        pixels = self.faces.floats(self.faces.drawn(BATCH, generator), device)
        turned = torch.rand(BATCH, 1, 1, 1, generator=generator, device=device) < 0.5
        size = (side // 8 for side in pixels.shape[-2:])
        noise = torch.randn(BATCH, CHANNELS, *size, generator=generator, device=device)
        return {"pixels": torch.where(turned, pixels.flip(-1), pixels), "noise": noise}

    def loss(self, module: Any, batch: Batch) -> Tensor:
        pixels = batch["pixels"]
        made, mean, logvar = module(pixels, batch["noise"])
        pull = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = (made - pixels).abs().mean() + PULL * pull
        if self.lpips is None:
            return loss
        return loss + LIKENESS * self.lpips(made[:LOOKED_AT], pixels[:LOOKED_AT])


def train_autoencoder(faces: Faces, held_out: Faces, steps: int, folder: Path, lpips: ThreeStages | None) -> float:
    """Train, write `folder`/vae in diffusers' format; resumable. Returns decibels on held-out pictures.

    Args:
        lpips: as for `FacesObjective`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator()
    judge = None if lpips is None else lpips.to(accelerator.device)
    plan = Plan("autoencoder", RATE, steps=steps, warmup=min(100, steps))
    vae = Training(Coding(build()), plan, FacesObjective(faces, judge), accelerator, folder).run().vae
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
