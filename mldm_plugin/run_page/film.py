"""A run's panels as the frames of a film that fits into a page."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = "panels"
FRAMES = 40  # chosen: more is no better seen
WIDTH = 1100  # pixels of a frame; chosen: the width of the page
LARGEST = 3_000_000  # bytes of all frames together; chosen, so that a page can be sent to a friend
_NAME = re.compile(r"step-(\d+)\.png")


def film(records: Path) -> dict[str, Any]:
    """Frames, evenly over the run with its first and last, and how many panels there are."""
    named = ((_NAME.fullmatch(path.name), path) for path in (records / FOLDER).glob("*.png"))
    panels = sorted((int(match[1]), path) for match, path in named if match)
    number = min(len(panels), FRAMES)
    while True:
        frames = [frame for k in _evenly(len(panels), number) if (frame := _frame(*panels[k]))]
        if sum(len(frame["src"]) for frame in frames) <= LARGEST or number <= 2:
            return {"frames": frames, "panels": len(panels)}
        number = max(number // 2, 2)


def _evenly(whole: int, number: int) -> list[int]:
    """
    >>> _evenly(10, 4), _evenly(1, 1), _evenly(0, 0)
    ([0, 3, 6, 9], [0], [])
    """
    return [round(k * (whole - 1) / max(number - 1, 1)) for k in range(number)]


def _frame(step: int, path: Path) -> dict[str, Any] | None:
    """None where it cannot be read: a page is made of what there is."""
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    picture.thumbnail((WIDTH, 4 * WIDTH), Image.Resampling.LANCZOS)
    return {"step": step, "src": jpeg(picture), "width": picture.width, "height": picture.height}


def jpeg(picture: Image.Image) -> str:
    """In base64."""
    kept = io.BytesIO()
    picture.save(kept, format="JPEG", quality=82, optimize=True)
    return base64.b64encode(kept.getvalue()).decode("ascii")
