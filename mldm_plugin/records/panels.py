"""A picture of one training step: what the losses saw, as in Figure 3 of the Masked LDM paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mldm_plugin.data.drawing import draw_annotation
from mldm_plugin.decode.decoder import Decoder
from mldm_plugin.engine.report import LossReport
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.step import DiffusionStep

# Plain letters: the font that Pillow carries has no combining marks, arrows or multiplication sign.
_TITLES = ("picture", "people and faces", "x_t", "x0 estimate")
_MARGIN, _GAP, _LINE = 8, 4, 18
_LEAST_WIDTH = 128  # smaller pictures are enlarged by a whole number, so that titles and captions fit


def draw_panel(
    stack: LossStack, step: DiffusionStep, report: LossReport, decoder: Decoder | None = None, max_rows: int = 4
) -> Image.Image:
    """One row an image: the picture, its annotation, decode(z_t), decode(ẑ₀), with t and every term's value.

    Args:
        stack: for its decoder and noise schedule.
        step: the step that `stack` was given.
        report: what it returned.
        decoder: where `stack` has none.
        max_rows: images shown.

    Returns:
        An RGB picture. No gradients are computed and no random numbers drawn. The estimate of several answers is asked
        for anew, of the network as it is now.
    """
    step = step.select(range(min(max_rows, len(step))))
    decoder = stack.decoder or decoder
    if decoder is None:
        raise ValueError("panels need a decoder: give LossStack a VAE and a loss of positive weight.")
    with torch.no_grad():
        estimate = stack.schedule.pred_latents(step)
    with torch.no_grad(), stack.pictures.in_its_precision(step):
        pictures = step.pixel_values
        if pictures is None:
            pictures = decoder(step.latents.float())
        columns = [
            as_bytes(pictures),
            [annotated(as_bytes(pictures)[i], step, i) for i in range(len(step))],
            as_bytes(decoder(step.noisy_latents.float())),
            as_bytes(decoder(estimate)),
        ]
    rows = [[column[i] for column in columns] for i in range(len(step))]
    return arrange(_TITLES, rows, [caption_of(step, report, i) for i in range(len(step))])


def save_panel(image: Image.Image, path: Path) -> None:
    """Write a panel as PNG; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    image.save(unfinished, format="PNG")
    unfinished.replace(path)


def as_bytes(images: Tensor) -> list[Tensor]:
    """Pictures (N, 3, H, W) in about [-1, 1] as N of uint8 (3, H, W), on the CPU."""
    return list(((images.float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))


def annotated(picture: Tensor, step: DiffusionStep, row: int) -> Tensor:
    given = (step.person_mask, step.face_boxes, step.keypoints)
    return draw_annotation(picture, *(None if of_all is None else of_all[row].cpu() for of_all in given))


def caption_of(step: DiffusionStep, report: LossReport, row: int) -> str:
    t = step.timesteps[row].item()
    parts = [f"t = {t:g}"]
    for name, term in report.terms.items():
        value = f"{term.raw[row].item():.3f} x {term.weight[row].item():g}" if term.gate[row] else "not applied"
        parts.append(f"{name}: {value}")
    return "     ".join(parts)


def arrange(titles: Sequence[str], rows: Sequence[Sequence[Tensor]], captions: Sequence[str]) -> Image.Image:
    """A sheet of pictures, all uint8 (3, H, W): a title over each column, a caption under each row."""
    scale = -(-_LEAST_WIDTH // rows[0][0].shape[-1])
    height, width = (side * scale for side in rows[0][0].shape[-2:])
    font = ImageFont.load_default(size=13)
    n_columns = len(titles)
    sheet_width = 2 * _MARGIN + n_columns * width + (n_columns - 1) * _GAP
    sheet = Image.new("RGB", (sheet_width, 2 * _MARGIN + _LINE + len(rows) * (height + _LINE + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((_MARGIN + column * (width + _GAP), _MARGIN), title, fill="black", font=font)
    for i, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        top = _MARGIN + _LINE + i * (height + _LINE + _GAP)
        for column, picture in enumerate(row):
            tile = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(tile, (_MARGIN + column * (width + _GAP), top))
        draw.text((_MARGIN, top + height + 1), caption, fill="black", font=font)
    return sheet
