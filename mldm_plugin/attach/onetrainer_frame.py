"""The frame of a picture as it goes through OneTrainer's pipeline, its cache and its batch: ten numbers.

The map from picture to source, x = a u + b v + c, y = d u + e v + f; then width and height of the source and of the
picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mldm_plugin.attach.frame import Frame, invert
from mldm_plugin.errors import DataError

FRAME, PICTURE = "mldm_frame", "mldm_picture"  # in OneTrainer's batch
_WHOLE = 0.999  # of a pixel: less, and rotation has mixed it with nothing
_BORDER = 3  # pixels; bilinear filters reach no further
_FEWEST = 16  # pixels to read a map of six numbers from
_TURNED = 1e-3  # sine of an angle that is none


def read_grid(grid: Tensor) -> list[float]:
    """The map from picture to source that a picture of coordinates (3, h, w) shows: a, b, c, d, e, f.

    By least squares, in which what interpolation adds to single pixels averages out. Its border is left out, where
    resizing has fewer neighbours to mix, and what rotation has filled with nothing.

    Raises:
        DataError: too little of the source is left.
    """
    whole = grid[2] > _WHOLE
    for axis in (0, 1):
        if grid.shape[1 + axis] > 4 * _BORDER:
            for edge in (slice(_BORDER), slice(-_BORDER, None)):
                whole[edge if axis == 0 else (slice(None), edge)] = False
    rows, columns = whole.nonzero(as_tuple=True)
    if len(rows) < _FEWEST:
        raise DataError("OneTrainer has cut nearly all of a picture away: widen its crop.")
    places = torch.stack([columns + 0.5, rows + 0.5, torch.ones_like(rows, dtype=torch.float32)], dim=1).double()
    found = torch.linalg.lstsq(places.cpu(), grid[:2, rows, columns].T.double().cpu()).solution
    return found.T.flatten().tolist()


def frame_of(path: str, numbers: list[float]) -> Frame:
    """The frame of a picture, from the ten numbers in the batch: see `read_grid`."""
    a, b, c, d, e, f, *sizes = numbers
    source_width, source_height, width, height = map(round, sizes)
    known = Frame(path, (source_width, source_height), (source_width, source_height))
    if max(abs(b), abs(d)) > _TURNED * max(abs(a), abs(e)):
        return known.lose("a rotation by OneTrainer")
    return known.then(invert((a, 0.0, c, 0.0, e, f)), (width, height))
