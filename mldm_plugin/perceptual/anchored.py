"""What a detector with one anchor after the other says, as boxes with points, each thing once.

MediaPipe's detectors look at each cell of a few grids; a cell has anchors of one size, and of each the network gives
a score, a box and some points, from the cell's centre.

Source: Liu et al., "SSD: Single Shot MultiBox Detector"; Bazarevsky et al., "BlazeFace", section "Post-processing", for
the weighted suppression; MediaPipe's SsdAnchorsCalculator, TensorsToDetectionsCalculator, NonMaxSuppressionCalculator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mldm_plugin.perceptual.tflite_graph import frozen_graph
from mldm_plugin.perceptual.turned_squares import around, cut_out, to_picture

ANCHORS_A_CELL = 2  # of each entry in `strides`: aspect ratio 1, and MediaPipe's interpolated one
OVERLAP = 0.3  # min_suppression_threshold


@dataclass(frozen=True)
class Detector:
    """One of MediaPipe's detectors.

    Args:
        weights: its entry in the table of weights.
        size: side of the picture it takes.
        strides: pixels between the cells of each of its grids.
        lowest: value of black in its input; white is 1.
    """

    weights: str
    size: int
    strides: tuple[int, ...]
    lowest: float

    def __call__(self, image: Tensor, square: Tensor | None = None, threshold: float = 0.5) -> Tensor:
        """What is found in a picture.

        Args:
            image: (3, H, W) RGB in [-1, 1].
            square: the part (4,) of it that is looked at; None is all of it.
            threshold: the lowest score.

        Returns:
            (K, 5 + 2P) on the CPU without gradient, best first: score, x0, y0, x1, y1, and P points x, y in pixels.
        """
        squares = around(*image.shape[1:]) if square is None else square[None]
        with torch.no_grad():
            picture = cut_out((image + 1) / 2, squares, self.size, outside="zeros")
            given = picture * (1 - self.lowest) + self.lowest
            raw, logits = frozen_graph(self.weights, (0, 1))(given)
        found = suppressed(decoded(raw[0].cpu(), logits[0, :, 0].cpu(), self, threshold))
        corners = found[:, 1:].unflatten(1, (-1, 2))
        placed = to_picture(squares.expand(len(found), -1), corners)
        return torch.cat([found[:, :1], placed.flatten(1)], dim=1)


def anchors(size: int, strides: Sequence[int]) -> Tensor:
    """The cells' centres (A, 2) in [0, 1], grid by grid, and of equal strides anchor by anchor in each cell."""
    centres = []
    for stride in sorted(set(strides)):
        cells = -(-size // stride)
        at = (torch.arange(cells) + 0.5) / cells
        grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=2).view(-1, 1, 2)
        centres.append(grid.expand(-1, ANCHORS_A_CELL * strides.count(stride), 2).reshape(-1, 2))
    return torch.cat(centres)


def decoded(raw: Tensor, logits: Tensor, detector: Detector, threshold: float) -> Tensor:
    """(K, 5 + 2P), as in `Detector`, in fractions of the input, from `raw` (A, 4 + 2P) and `logits` (A,)."""
    scores = logits.clamp(-100, 100).sigmoid()
    kept = scores >= threshold
    centres = anchors(detector.size, detector.strides)[kept]
    raw = raw[kept] / detector.size
    middle, half = raw[:, :2] + centres, raw[:, 2:4] / 2
    points = (raw[:, 4:].unflatten(1, (-1, 2)) + centres[:, None]).flatten(1)
    return torch.cat([scores[kept, None], middle - half, middle + half, points], dim=1)


def suppressed(found: Tensor) -> Tensor:
    """Each thing once, (K, 5 + 2P) → (M, 5 + 2P), best first.

    What overlaps the best one is averaged with it, weighted by score; the average keeps the best one's score.
    """
    rest, kept = found[found[:, 0].argsort(descending=True, stable=True)], []
    while len(rest):
        same = overlap(rest[0, 1:5], rest[:, 1:5]) > OVERLAP
        same[0] = True  # also where its box has no area
        weights = rest[same, :1]
        mean = (rest[same, 1:] * weights).sum(0) / weights.sum()
        kept.append(torch.cat([rest[0, :1], mean]))
        rest = rest[~same]
    return torch.stack(kept) if kept else found[:0]


def overlap(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of a box (4,) and boxes (K, 4), (K,)."""
    corner, end = torch.maximum(box[:2], boxes[:, :2]), torch.minimum(box[2:], boxes[:, 2:])
    common = (end - corner).clamp(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    own = (box[2:] - box[:2]).clamp(min=0).prod()
    return common / (own + areas - common).clamp(min=1e-12)
