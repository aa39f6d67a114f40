"""A sheet of pictures: a row for each model, a column for each prompt, in blocks of some columns."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mldm_plugin.records.files import write_changed

SIDE = 256  # pixels of a picture's longer side on the sheet
COLUMNS, MOST = 6, 24  # prompts beside each other, and on a sheet; chosen: a screen's width, and two of its heights
GAP, MARGIN = 4, 12
SIZE, LINES = 15, 3  # of the text, in pixels; of a prompt, at most
PAPER, INK = "white", "black"


def draw_sheet(rows: Mapping[str, Sequence[Path]], prompts: Sequence[str], path: Path) -> None:
    """Write it as PNG.

    Args:
        rows: label → the pictures, one for each prompt, all of one size.
        prompts: that stand above the columns; of more than `MOST` some evenly over all are shown.
        path: of the file.
    """
    shown = [k * len(prompts) // min(len(prompts), MOST) for k in range(min(len(prompts), MOST))]
    columns = min(len(shown), COLUMNS)
    font = ImageFont.load_default(size=SIZE)
    with Image.open(next(iter(rows.values()))[0]) as first:
        scale = SIDE / max(first.size)
        width, height = (round(side * scale) for side in first.size)
    left = MARGIN + round(max(font.getlength(label) for label in rows)) + MARGIN
    texts = {k: _wrapped(prompts[k], width, font) for k in shown}
    head = LINES * (SIZE + 4) + GAP
    block = head + len(rows) * (height + GAP) + MARGIN
    blocks = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    size = (left + columns * (width + GAP) + MARGIN - GAP, MARGIN + len(blocks) * block)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, some in enumerate(blocks):
        top = MARGIN + number * block
        for column, k in enumerate(some):
            text = (left + column * (width + GAP), top + head - GAP)
            draw.multiline_text(text, texts[k], fill=INK, font=font, anchor="ld", spacing=4)
        for row, (label, paths) in enumerate(rows.items()):
            y = top + head + row * (height + GAP)
            draw.text((left - MARGIN, y + height // 2), label, fill=INK, font=font, anchor="rm")
            for column, k in enumerate(some):
                with Image.open(paths[k]) as picture:
                    tile = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
                sheet.paste(tile, (left + column * (width + GAP), y))
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    write_changed(path, stream.getvalue())


def _wrapped(prompt: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """A prompt on few lines, cut where there are more."""
    letter = max(font.getlength(prompt) / max(len(prompt), 1), 1)
    return (
        "\n".join(textwrap.wrap(prompt, max(int((width - 2 * GAP) / letter), 1), max_lines=LINES, placeholder=" …"))
        or " "
    )
