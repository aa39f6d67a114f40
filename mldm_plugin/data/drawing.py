"""A picture with what its annotation says drawn on it: people in colours, their keypoints, yellow face boxes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_keypoints, draw_segmentation_masks

_COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45"]
# Which of a person's keypoints are joined: "skeleton" of COCO's person_keypoints annotations, counted from 0.
_SKELETON = [(15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9)]
_SKELETON += [(8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)]
_FINE = 128  # pixels of width for each pixel of a line


def draw_annotation(
    picture: Tensor, mask: Tensor | None, boxes: Tensor | None, keypoints: Tensor | None = None
) -> Tensor:
    """The k-th person has the same colour in each picture.

    Args:
        picture: uint8 (3, H, W).
        mask: labels (1, H, W).
        boxes: (K, 4) pixels.
        keypoints: (P, 17, 3) x, y, v in pixels.

    Returns:
        A new picture of the same kind.
    """
    line = max(1, picture.shape[-1] // _FINE)
    if mask is not None:
        people = [k for k in mask.unique().tolist() if k > 0]
        if people:
            masks = torch.cat([mask == k for k in people])
            colours = [_COLOURS[(k - 1) % len(_COLOURS)] for k in people]
            picture = draw_segmentation_masks(picture, masks, alpha=0.45, colors=colours)
    for k, person in enumerate([] if keypoints is None else keypoints):
        points, labelled = person[None, :, :2], person[None, :, 2] > 0
        colour = _COLOURS[k % len(_COLOURS)]
        picture = draw_keypoints(picture, points, _SKELETON, colour, line, width=line, visibility=labelled)
    if boxes is not None and len(boxes):
        picture = draw_bounding_boxes(picture, boxes, colors="yellow", width=line)
    return picture
