"""The same pictures and the same noise before and after training: what changed, free of chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mldm_plugin.data.batch import Example
from mldm_plugin.data.load import open_rows
from mldm_plugin.data.training_set import Columns, TrainingSet
from mldm_plugin.demo.photos import WINDOWS
from mldm_plugin.engine.report import LossReport
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.records.panels import arrange, as_bytes

# Chosen to show a large face, small ones, whole bodies; the first timestep keeps detail, the second loses it.
SHOWN = ("astronaut", "hopper_face", "two_men", "right_two")
TIMESTEPS = (50, 300)

Seen = tuple[DiffusionStep, LossReport]


def load_examples(folder: Path, resolution: int) -> list[tuple[Example, str]]:
    """The pictures `SHOWN` of the demo's training set, framed as in training, with their captions."""
    rows = open_rows(None, folder=str(folder), cache=str(folder.parent / "cache"))
    columns = Columns(conditioning=None, mask="mask", boxes="face_boxes")
    training_set = TrainingSet(rows, columns, resolution=resolution)
    texts = list(rows["text"])
    shown = [window.text for window in WINDOWS if window.name in SHOWN]
    return [(training_set.look(texts.index(text)), text) for text in shown]


@torch.no_grad()
def measure(
    pipeline: Any, controlnet: Any, stack: LossStack, examples: Sequence[tuple[Example, str]]
) -> tuple[dict[str, float], list[Seen]]:
    """Every loss on fixed noise, and the last timestep's steps with their reports.

    Args:
        pipeline: a `StableDiffusionPipeline`.
        controlnet: a `ControlNetModel`, or None for the U-Net alone.
        stack: the losses.
        examples: pictures and captions.

    Returns:
        Mean of each loss over pictures and timesteps, by name; a step and its report for each picture.
    """
    totals: dict[str, list[float]] = {}
    seen: list[Seen] = []
    for timestep in TIMESTEPS:
        steps = [fixed_step(pipeline, controlnet, stack, e, text, timestep, i) for i, (e, text) in enumerate(examples)]
        seen = [(step, stack(step)) for step in steps]
        for _, report in seen:
            for name, value in report.logs().items():
                if value is not None and "/" not in name:
                    totals.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in totals.items()}, seen


def fixed_step(
    pipeline: Any, controlnet: Any, stack: LossStack, example: Example, text: str, timestep: int, seed: int
) -> DiffusionStep:
    """One picture at a timestep, with noise that depends on `seed` alone."""
    pixel_values = example.pixel_values[None]
    latents = pipeline.vae.encode(pixel_values).latent_dist.mode() * pipeline.vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    timesteps = torch.tensor([timestep])
    alpha, sigma = (c.view(-1, 1, 1, 1) for c in stack.schedule.coefficients(timesteps))
    noisy = alpha * latents + sigma * noise
    tokens = pipeline.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
    hidden = pipeline.text_encoder(tokens)[0]
    residuals: dict[str, Any] = {}
    if controlnet is not None:
        down, middle = controlnet(noisy, timesteps, hidden, torch.zeros_like(pixel_values), return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    model_pred = pipeline.unet(noisy, timesteps, hidden, **residuals).sample
    return DiffusionStep(
        latents=latents,
        noise=noise,
        noisy_latents=noisy,
        timesteps=timesteps,
        model_pred=model_pred,
        target=noise,
        base_loss=F.mse_loss(model_pred, noise),
        pixel_values=pixel_values,
        person_mask=example.person_mask[None] if example.person_mask is not None else None,  # type: ignore[arg-type]
        face_boxes=[example.face_boxes] if example.face_boxes is not None else None,  # type: ignore[arg-type]
    )


@torch.no_grad()
def before_and_after(
    stack: LossStack, pictures: Sequence[Tensor], before: Sequence[Seen], after: Sequence[Seen]
) -> Image.Image:
    """One row a picture: the photograph, x_t, x̂0 of the U-Net alone, and x̂0 with the trained ControlNet."""

    def decode(step: DiffusionStep, latents: Tensor) -> DiffusionStep:
        return stack.pictures.of(replace(step, pred_latents=latents))

    rows, captions = [], []
    for picture, (one, report_one), (two, report_two) in zip(pictures, before, after, strict=True):
        first = decode(one, stack.schedule.pred_latents(one))
        second = decode(two, stack.schedule.pred_latents(two))
        noisy = decode(one, one.noisy_latents)
        columns = (picture[None], noisy.pred_images, first.pred_images, second.pred_images)
        rows.append([as_bytes(images)[0] for images in columns])
        captions.append(_caption(one, report_one, report_two))
    return arrange(("photograph", "x_t", "x0 estimate before", "x0 estimate after"), rows, captions)


def _caption(step: DiffusionStep, before: LossReport, after: LossReport) -> str:
    parts = [f"t = {step.timesteps.item():g}"]
    for name, term in before.terms.items():
        parts.append(f"{name}: {term.raw[0].item():.3f} -> {after.terms[name].raw[0].item():.3f}")
    return "     ".join(parts)
