"""The picture of a report: how far each layer moved, and what pictures and masks look like."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mldm_plugin.doctor.layers import Changes, Layer, printable
from mldm_plugin.doctor.weights import percent
from mldm_plugin.errors import MldmError
from mldm_plugin.prepare.check import Report, contact_sheet
from mldm_plugin.records.panels import save_panel

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
WIDE, TALL, LEFT, TOP, FOOT = 1576, 240, 70, 30, 40  # of the chart and what stands around its bars, in pixels
SHOWN = 12  # rows of the training set, chosen: four lines, seen at one glance
_BAR, _STILL, _BAND = "#4a7fd0", "#dd3333", "#f3f3f3"
_BLOCK = re.compile(r"([a-z]+_blocks?)(?:[._](\d+))?")


def draw(changes: Changes | None, data: Report | None) -> Image.Image | None:
    """The chart above the contact sheet, or whichever there is; None where there is neither."""
    pictures = []
    if changes is not None and (layers := changes.layers or changes.zero):
        pictures.append(chart(layers, changes.what))
    if data is not None and data.shown:
        step = -(-len(data.shown) // SHOWN)
        pictures.append(contact_sheet(data.shown[::step]))
    if not pictures:
        return None
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def save(picture: Image.Image, path: Path) -> None:
    """Raises MldmError where it cannot be written."""
    try:
        save_panel(picture, path)
    except OSError as error:
        raise MldmError(f"--out {path} cannot be written ({error}): name another file.") from error


def chart(layers: Sequence[Layer], what: str) -> Image.Image:
    """A bar for each layer, on a scale of powers of ten; those that have not moved are red, from top to bottom."""
    shares = all(layer.share is not None for layer in layers)
    values = [(layer.share or 0.0) if shares else layer.moved for layer in layers]
    moved = [value for value in values if value > 0 and math.isfinite(value)]
    high = math.ceil(math.log10(max(moved, default=1.0)))
    low = min(math.floor(math.log10(min(moved, default=1.0))), high - 1)
    image = Image.new("RGB", (WIDE, TOP + TALL + FOOT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=12)
    title = "change of each layer" + (", part of its base" if shares else ", norm")
    draw.text((LEFT, 8), f"{what}: {title}; red: has not moved", fill="black", font=font)
    wide = (WIDE - LEFT - 10) / len(layers)
    _blocks(draw, font, layers, wide)
    for power in range(low, high + 1):
        y = TOP + TALL * (high - power) / (high - low)
        draw.line((LEFT, y, WIDE - 10, y), fill="#cccccc")
        label = percent(10.0**power) if shares else f"1e{power:+d}"
        draw.text((LEFT - 6, y), label, fill="#666666", font=font, anchor="rm")
    for place, value in enumerate(values):
        x = LEFT + place * wide
        still = value == 0
        top = TOP if still else TOP + TALL * (high - math.log10(value)) / (high - low)
        right = max(x + wide - (2 if wide > 4 else 1), x)
        draw.rectangle((x, top, right, TOP + TALL), fill=_STILL if still else _BAR)
    return image


def _blocks(draw: ImageDraw.ImageDraw, font: Font, layers: Sequence[Layer], wide: float) -> None:
    """Bands behind the layers of one block, with its name where there is room."""
    start = 0
    for number, (block, group) in enumerate(groupby(layers, lambda layer: block_of(layer.name))):
        count = len(list(group))
        left, right = LEFT + start * wide, LEFT + (start + count) * wide
        if number % 2:
            draw.rectangle((left, TOP, right - 1, TOP + TALL + FOOT), fill=_BAND)
        if draw.textlength(block, font=font) <= right - left:
            draw.text((left + 2, TOP + TALL + 6 + 15 * (number % 2)), block, fill="#444444", font=font)
        start += count


def block_of(layer: str) -> str:
    """The block that a layer's name tells, in diffusers' names or kohya's.

    >>> block_of("unet.up_blocks.1.attentions.0.to_q"), block_of("lora_unet_mid_block_attentions_0_to_q")
    ('up_blocks 1', 'mid_block')
    """
    found = _BLOCK.search(layer.replace("lora_unet_", ""))
    return " ".join(filter(None, found.groups())) if found else printable(layer.split(".")[0][:20])
