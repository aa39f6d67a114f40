"""Silhouettes: the mask of each person, and its forms in COCO's files."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

SHORTEST_POLYGON = 6  # numbers; COCO takes two for a box


def visible_masks(shares: np.ndarray) -> np.ndarray:
    """Which item each pixel belongs to: bool (items, H, W), no two true at one pixel.

    A pixel is an item's where the item covers at least half of it; of two that share it evenly the front one's.
    """
    masks = shares >= 0.5
    for i in range(len(masks) - 1):
        masks[i] &= ~masks[i + 1 :].any(0)
    return masks


def box_of(mask: np.ndarray) -> list[float]:
    """x, y, width and height of the pixels that are set."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return [float(x), float(y), float(columns[-1] + 1 - x), float(rows[-1] + 1 - y)]


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run lengths: counts down the columns, beginning with those outside."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths, as text."""
    made = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": made["counts"].decode("ascii")}


def polygons(mask: np.ndarray) -> list[list[float]] | None:
    """Polygons that pycocotools fills to exactly this mask, or None where there are none, as with holes."""
    traced = _traced(mask)
    if not traced or min(len(p) for p in traced) <= SHORTEST_POLYGON:
        return None
    height, width = mask.shape
    filled = coco_mask.merge(coco_mask.frPyObjects(traced, height, width))
    same = filled["counts"].decode("ascii") == compressed(mask)["counts"]
    return traced if same else None


def _traced(mask: np.ndarray) -> list[list[float]]:
    """The outlines along the pixels' borders, corners only, walked with the inside at the right hand."""
    padded = np.pad(mask, 1)
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def edges(inside: np.ndarray, outside: np.ndarray, start: tuple[int, int], end: tuple[int, int]) -> None:
        ys, xs = np.nonzero(inside & ~outside)
        for y, x in zip(ys.tolist(), xs.tolist(), strict=True):
            following.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))

    middle = padded[1:-1, 1:-1]
    edges(middle, padded[:-2, 1:-1], (0, 0), (1, 0))
    edges(middle, padded[1:-1, 2:], (1, 0), (1, 1))
    edges(middle, padded[2:, 1:-1], (1, 1), (0, 1))
    edges(middle, padded[1:-1, :-2], (0, 1), (0, 0))
    outlines = []
    while following:
        start = next(iter(following))
        outlines.append(_walk(following, start))
    return outlines


def _walk(following: dict[tuple[int, int], list[tuple[int, int]]], start: tuple[int, int]) -> list[float]:
    """One closed outline; its edges are taken out of `following`."""
    here, heading, corners = start, (0, 0), []
    while here in following:
        choices = following[here]
        # Where two pixels touch at a corner alone, turn right and stay with the same pixel.
        turn_right = (here[0] - heading[1], here[1] + heading[0])
        chosen = turn_right if turn_right in choices else choices[0]
        choices.remove(chosen)
        if not choices:
            del following[here]
        now = (chosen[0] - here[0], chosen[1] - here[1])
        if now != heading:
            corners += [float(here[0]), float(here[1])]
        here, heading = chosen, now
    return corners
