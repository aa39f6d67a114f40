"""A picture with what its annotation says drawn on it in thin lines: whoever judges it has to see what lies beneath."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

# Light colours, for each line has a dark one beside it. Those of the review's page, too.
COLOURS = ["#ff6b81", "#5fe38a", "#7db3ff", "#ffb05c", "#d590ff", "#54e6f2", "#ff8ee6", "#e2f27a"]
_DARK, _FACE = "#141414", "#ffffff"
# Which of a person's keypoints are joined: "skeleton" of COCO's person_keypoints annotations, counted from 0, without
# those of the head, which would lie on the face.
_SKELETON = [
    (15, 13),
    (13, 11),
    (16, 14),
    (14, 12),
    (11, 12),
    (5, 11),
    (6, 12),
    (5, 6),
    (5, 7),
    (6, 8),
    (7, 9),
    (8, 10),
]
_FINE = 512  # pixels of width for each pixel of a line


def draw_annotation(
    picture: Tensor, mask: Tensor | None, boxes: Tensor | None, keypoints: Tensor | None = None
) -> Tensor:
    """Outlines of people, their limbs, and white face boxes. The k-th person has the same colour in each picture.

    Args:
        picture: uint8 (3, H, W).
        mask: labels (1, H, W).
        boxes: (K, 4) pixels.
        keypoints: (P, 17, 3) x, y, v in pixels.

    Returns:
        A new picture of the same kind.
    """
    line = max(1, round(picture.shape[-1] / _FINE))
    drawn = _outlined(picture, mask, line) if mask is not None else picture
    image = Image.fromarray(drawn.permute(1, 2, 0).contiguous().numpy())
    draw = ImageDraw.Draw(image)
    for k, person in enumerate([] if keypoints is None else keypoints.tolist()):
        _draw_limbs(draw, person, COLOURS[k % len(COLOURS)], line)
    for x0, y0, x1, y1 in [] if boxes is None else boxes.round().int().tolist():
        draw.rectangle((x0 - line, y0 - line, x1 + line, y1 + line), outline=_DARK, width=3 * line)
        draw.rectangle((x0, y0, x1, y1), outline=_FACE, width=line)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _outlined(picture: Tensor, mask: Tensor, line: int) -> Tensor:
    """Within each person's edge a line of its colour, along it, outside, a dark one."""
    people = [k for k in mask.unique().tolist() if k > 0]
    picture = picture.clone()
    inside = [mask[0] == k for k in people]
    for person in inside:
        picture[:, _grown(person, line) & ~person] = _rgb(_DARK)
    for k, person in zip(people, inside, strict=True):
        edge = person & _grown(~person, line, beyond=1.0)
        picture[:, edge] = _rgb(COLOURS[(k - 1) % len(COLOURS)])
    return picture


def _grown(region: Tensor, by: int, beyond: float = 0.0) -> Tensor:
    """The region and all pixels within `by` of it, each way; `beyond` is what lies outside of the picture."""
    padded = functional.pad(region[None].float(), (by,) * 4, value=beyond)
    return functional.max_pool2d(padded, 2 * by + 1, stride=1)[0] > 0


def _rgb(colour: str) -> Tensor:
    return torch.tensor([int(colour[k : k + 2], 16) for k in (1, 3, 5)], dtype=torch.uint8)[:, None]


def _draw_limbs(draw: ImageDraw.ImageDraw, person: list[list[float]], colour: str, line: int) -> None:
    limbs = [((*person[a][:2],), (*person[b][:2],)) for a, b in _SKELETON if person[a][2] > 0 and person[b][2] > 0]
    for limb in limbs:
        draw.line(limb, fill=_DARK, width=line + 2)
    for limb in limbs:
        draw.line(limb, fill=colour, width=line)
