"""Whether masks sit where the pictures are: the source, cut as the ledger says, against what the script made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from mldm_plugin.attach.frame import IDENTITY, Frame
from mldm_plugin.attach.ledger import frame_of
from mldm_plugin.errors import DataError

# Both pictures are averaged over squares of this many pixels first, so that only the frame is compared, not how
# Pillow's filters round. Correlation, so that changes of colour do not count. Chosen.
_SQUARE, _LEAST_LIKENESS, _FLAT = 4, 0.9, 0.02


@dataclass(frozen=True)
class Placement:
    """How well one picture agrees with its source: mean absolute difference in [-1, 1], and correlation."""

    name: str
    distance: float
    likeness: float


def check_placement(picture: Tensor, frame: Frame, example: Mapping[str, Any], name: str) -> Placement | None:
    """Compare `picture`, (3, h, w) in [-1, 1], with its source, where that can be read again.

    Raises:
        DataError: they are not the same picture in the same frame.
    """
    source = _source(frame, example)
    if source is None:
        return None
    x0, y0, x1, y1 = (round(edge) for edge in frame.visible or (0, 0, *frame.size))
    if x1 <= x0 or y1 <= y0:
        return None  # what was cropped shows nothing of it
    # What was padded has any colour.
    warped, given = (p[:, y0:y1, x0:x1] for p in (frame.warp_picture(source), picture.detach().float().cpu()))
    distance = (warped - given).abs().mean().item()
    likeness = _likeness(warped, given)
    if likeness < _LEAST_LIKENESS:
        raise DataError(
            f"{name}: the picture in the batch is not its source as it was seen to be cropped and flipped (correlation "
            f"{likeness:.2f}, expected at least {_LEAST_LIKENESS:g}), so its mask would lie elsewhere: something "
            "changes it after torchvision's transforms. Use the library form (docs/attach.md)."
        )
    return Placement(name, distance, likeness)


def _source(frame: Frame, example: Mapping[str, Any]) -> PIL.Image.Image | None:
    """The picture that `frame` starts from: among the example's columns, else read again from its file."""
    for value in example.values():
        if isinstance(value, PIL.Image.Image) and value.size == frame.source_size and value.mode in ("RGB", "RGBA"):
            own = frame_of(value)
            if own is not None and own.serial == frame.serial and own.affine == IDENTITY:
                return value
    try:
        with PIL.Image.open(frame.source) as stored:
            return stored.convert("RGB") if stored.size == frame.source_size else None
    except OSError:
        return None


def _likeness(one: Tensor, other: Tensor) -> float:
    """The best correlation of two pictures (3, h, w) by their grey values, or by the largest or least of each pixel's
    colours, which another hue leaves as they are; 1 where one of them is flat and so has no frame to lose."""
    both = torch.stack([one, other])
    square = min(_SQUARE, one.shape[-1], one.shape[-2])
    found = [_correlation(F.avg_pool2d(x, square).flatten(1)) for x in (both.mean(1), both.amax(1), both.amin(1))]
    return 1.0 if found[0] is None else max(value for value in found if value is not None)


def _correlation(pair: Tensor) -> float | None:
    """Of two rows of numbers; None where one of them is flat."""
    if pair.shape[1] < 2 or pair.std(dim=1).min() < _FLAT:
        return None
    return torch.corrcoef(pair)[0, 1].item()
