"""A figure: lines of pictures, with words before each line and under each picture."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mldm_plugin.records.files import write_changed

TILE = 224  # pixels of a picture on the sheet, about: small ones are enlarged by whole numbers
GAP, BETWEEN, MARGIN = 6, 26, 18  # of neighbours, of groups of lines, around all
SIZE = 20  # of the words, in pixels
PAPER, INK, FAINT = "white", "black", "#555555"


@dataclass(frozen=True)
class Cell:
    """A picture and what stands under it; without a picture a place that stays empty.

    Args:
        exact: whether its pixels are labels, which must not be smoothed.
    """

    picture: Image.Image | None = None
    said: str = ""
    exact: bool = False


@dataclass(frozen=True)
class Line:
    """Pictures beside each other.

    Args:
        title: what they have in common.
        begins: whether a new group begins with it.
    """

    title: str
    cells: Sequence[Cell]
    begins: bool = False


def write_sheet(lines: Sequence[Line], path: Path) -> None:
    """Write the figure as PNG."""
    pictures = [cell.picture for line in lines for cell in line.cells if cell.picture is not None]
    side = max(max(picture.size) for picture in pictures)
    tile = side * max(round(TILE / side), 1)
    font = ImageFont.load_default(size=SIZE)
    titles = [_wrapped(line.title, font, 2 * tile // 3) for line in lines]
    left = MARGIN + max(round(_width(title, font)) for title in titles) + MARGIN
    words = [[_wrapped(cell.said, font, tile) for cell in line.cells] for line in lines]
    below = [max((_height(text) for text in texts), default=0) for texts in words]
    tops, bottom = [], MARGIN
    for number, line in enumerate(lines):
        bottom += BETWEEN if line.begins and number else 0
        tops.append(bottom)
        bottom += tile + below[number] + GAP
    columns = max(len(line.cells) for line in lines)
    sheet = Image.new("RGB", (left + columns * (tile + GAP) - GAP + MARGIN, bottom - GAP + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for line, title, texts, top in zip(lines, titles, words, tops, strict=True):
        draw.multiline_text((left - MARGIN, top + tile // 2), title, INK, font, anchor="rm", align="right")
        for column, (cell, text) in enumerate(zip(line.cells, texts, strict=True)):
            x = left + column * (tile + GAP)
            if cell.picture is not None:
                how = Image.Resampling.NEAREST if cell.exact else Image.Resampling.LANCZOS
                sheet.paste(cell.picture.convert("RGB").resize((tile, tile), how), (x, top))
            draw.multiline_text((x + tile // 2, top + tile + 2), text, FAINT, font, anchor="ma", align="center")
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_changed(path, stream.getvalue())


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """In lines of at most this width, where its words allow it."""
    characters = max(int(width / font.getlength("n")), 8)
    return "\n".join(textwrap.wrap(text, characters, break_long_words=False))


def _width(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> float:
    return max((font.getlength(line) for line in text.split("\n")), default=0)


def _height(text: str) -> int:
    return (SIZE + 6) * len(text.split("\n")) if text else 0
