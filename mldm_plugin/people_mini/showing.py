"""What a training shows of itself: sheets of samples, reconstructions, the curve of the losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mldm_plugin.people_mini.autoencoder import psnr, reconstructed
from mldm_plugin.people_mini.denoiser import Denoiser, sample
from mldm_plugin.people_mini.loop import Progress
from mldm_plugin.people_mini.pictures import Pictures, sheet, shown
from mldm_plugin.people_mini.who import PEOPLE

COLUMNS = 8
STEPS = 25  # of the sampler
# Each person three ways, then drawings in which each caption says something else.
SHEET_CAPTIONS = [
    *(f"photo of {who.name}, calm, bust, in a studio" for who in PEOPLE.values()),
    "photo of a calm woman, fair skin, curly black hair, white t-shirt, bust, in a studio",
    *(f"photo of {who.name}, smiling, bust, in a studio" for who in PEOPLE.values()),
    "photo of a smiling man, brown skin, black hair, full beard, white shirt, bust, in a studio",
    *(f"photo of {who.name}, smiling, selfie, close portrait, in a park" for who in PEOPLE.values()),
    "photo of alvora, surprised, close portrait, in a studio",
    "drawing of a smiling woman, fair skin, long wavy red hair, green t-shirt, bust, in a park",
    "drawing of a sad woman, fair skin, long wavy red hair, green t-shirt, bust, in a park",
    "drawing of a smiling woman, fair skin, long wavy red hair, round glasses, green t-shirt, bust, in a park",
    "drawing of a smiling woman, fair skin, long wavy red hair, sun hat, green t-shirt, bust, on a beach",
    "drawing of a calm man, brown skin, black afro, full beard, blue shirt, bust, in a room",
    "drawing of a calm man, brown skin, black afro, sunglasses, full beard, blue shirt, bust, in a room",
    "drawing of a laughing man, pale skin, bald, moustache, grey suit, close portrait, in a studio",
    "drawing of a surprised man, pale skin, spiky blonde hair, striped red t-shirt, close portrait, on a street",
    "drawing of a smiling girl, tan skin, brown hair in pigtails, checked yellow dress, half body, in a park",
    "drawing of a calm boy, deep brown skin, curly black hair, cap, orange hoodie, half body, on a street",
    "drawing of a smiling woman, olive skin, blue bob, square glasses, white sweater, half body, in a room",
    "drawing of a sad man, fair skin, brown hair with a side part, beanie, navy jacket, half body, on a beach",
    "drawing of a smiling woman, pale skin, long straight blonde hair, red dress, full body, on a beach",
    "drawing of a calm man, dark brown skin, black buzz cut, green hoodie, denim jeans, full body, on a street",
    "drawing of a smiling woman, fair skin, red hair in a bun, purple shirt, black trousers, full body, in a studio",
    "drawing, a woman with a black ponytail and glasses in a dotted pink t-shirt waves in a park, smiling.",
]


class Sheets:
    """Draws the same captions from the same noise each time it is asked.

    Args:
        folder: of the sheets.
        tokens_of: captions → tokens (n, 77).
        vae, factor: decode what is drawn.
        device: where the networks are.
    """

    def __init__(
        self, folder: Path, tokens_of: Callable[[list[str]], Tensor], vae: Any, factor: float, device: Any
    ) -> None:
        self.folder, self.vae, self.factor = folder, vae, factor
        tokens = tokens_of([*SHEET_CAPTIONS, ""]).to(device)
        self.tokens, self.empty = tokens[:-1], tokens[-1]
        generator = torch.Generator().manual_seed(1)
        self.noise = torch.randn((COLUMNS, 4, 16, 16), generator=generator).repeat(
            -(-len(self.tokens) // COLUMNS), 1, 1, 1
        )
        self.noise = self.noise[: len(self.tokens)].to(device)

    def __call__(self, denoiser: Denoiser, step: int) -> None:
        latents = sample(denoiser, self.tokens, self.empty, self.noise, STEPS)
        with torch.no_grad():
            made = self.vae.decode(latents / self.factor).sample
        self.folder.mkdir(parents=True, exist_ok=True)
        sheet([shown(one) for one in made], COLUMNS).save(self.folder / f"sheet_{step:06d}.png")


def sample_rows(
    folder: Path, captions: Sequence[str], *, count: int = 4, steps: int = STEPS, guidance: float = 3.0, seed: int = 0
) -> Image.Image:
    """A row of `count` samples for each caption, the same noise in each column, by the pipeline in `folder`."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config({**pipeline.scheduler.config, "clip_sample": False})
    noise = torch.randn((count, 4, 16, 16), generator=torch.Generator().manual_seed(seed))
    rows: list[Image.Image] = []
    for caption in captions:
        rows += pipeline(
            [caption] * count, num_inference_steps=steps, guidance_scale=guidance, latents=noise, height=128, width=128
        ).images
    return sheet(rows, count)


def show_reconstructions(vae: Any, pictures: Pictures, path: Path, count: int) -> dict[str, float]:
    """A picture of originals above their reconstructions; returns the mean PSNR of drawings and of photographs."""
    device = pictures.pixels.device
    found: dict[str, float] = {}
    rows = []
    for name, low, high in (("drawings", 0, pictures.drawings), ("photographs", pictures.drawings, len(pictures))):
        if low == high:
            continue
        wanted = pictures.floats(torch.linspace(low, high - 1, count, device=device).long())
        made = reconstructed(vae, wanted)
        found[name] = round(psnr(made, wanted), 2)
        few = torch.linspace(0, count - 1, 2 * COLUMNS).long().tolist()
        for some in (few[:COLUMNS], few[COLUMNS:]):
            rows += [shown(wanted[i]) for i in some] + [shown(made[i]) for i in some]
    sheet(rows, COLUMNS).save(path)
    return found


def show_curves(progress: dict[str, Progress], path: Path) -> None:
    """Each network's loss by step, as it was seen and smoothed."""
    from matplotlib.figure import Figure

    figure = Figure((10, 4), layout="constrained")
    for axes, (name, one) in zip(figure.subplots(1, len(progress), squeeze=False)[0], progress.items(), strict=True):
        steps, losses = [row[0] for row in one.losses], [row[2] for row in one.losses]
        axes.plot(steps, losses, color="#c0c6d0", linewidth=0.8)
        axes.plot(steps, _smooth(losses), color="#274b8f")
        axes.set(title=f"{name}: {one.step} steps in {one.seconds:.0f} s", xlabel="step", ylabel="loss", yscale="log")
    figure.savefig(path, dpi=110)


def _smooth(values: list[float], keep: float = 0.9) -> list[float]:
    made: list[float] = []
    for value in values:
        made.append(keep * made[-1] + (1 - keep) * value if made else value)
    return made
