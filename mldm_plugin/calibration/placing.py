"""Another photograph, moved so that its face, or else its person, lies where the first one's does.

Two photographs differ first of all in where people stand, which any loss sees at any noise level. What a loss has to
tell apart is who and what is there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mldm_plugin.data.batch import Example

Box = tuple[float, float, float, float]


def places_of(example: Example) -> dict[str, Box]:
    """What a photograph can be placed by: `face`, its largest face, and `person`, the box around its largest mask."""
    boxes, mask, found = example.face_boxes, example.person_mask, {}
    if boxes is not None and len(boxes):
        x0, y0, x1, y1 = boxes[(boxes[:, 2:] - boxes[:, :2]).prod(dim=1).argmax()].tolist()
        found["face"] = (x0, y0, x1, y1)
    if mask is not None and bool(mask.any()):
        areas = torch.bincount(mask.flatten().long())
        areas[0] = 0
        rows, columns = (mask[0] == areas.argmax()).nonzero(as_tuple=True)
        found["person"] = (
            float(columns.min()),
            float(rows.min()),
            float(columns.max() + 1),
            float(rows.max() + 1),
        )
    return found


def placed(picture: Tensor, source: Box, target: Box) -> Tensor:
    """`picture` scaled and moved, so that the middle of `source` lies on that of `target` and their areas agree.

    Args:
        picture: (3, H, W); what lies outside it is its mirror image.
        source, target: x0, y0, x1, y1 in its pixels, each with an area.

    Returns:
        (3, H, W).

    >>> picture = torch.arange(16.0).view(1, 4, 4).expand(3, 4, 4)
    >>> placed(picture, (0, 0, 2, 2), (1, 1, 3, 3))[0, 1:3, 1:3]  # what was in the corner is in the middle
    tensor([[0., 1.],
            [4., 5.]])
    """
    height, width = picture.shape[-2:]
    scale = (_area(source) / _area(target)) ** 0.5  # of the picture's pixels, for one of the result's
    (sx, sy), (tx, ty) = _middle(source), _middle(target)
    # In grid_sample's coordinates, −1 and 1 at the outer edges: x_source = sx + scale (x − tx).
    theta = torch.tensor(
        [
            [scale, 0.0, 2 * (sx + scale * (width / 2 - tx)) / width - 1],
            [0.0, scale, 2 * (sy + scale * (height / 2 - ty)) / height - 1],
        ]
    )
    if scale > 1:  # else it would take single pixels of what it makes small
        smaller = [max(round(side / scale), 1) for side in (height, width)]
        picture = F.interpolate(picture[None], smaller, mode="bilinear", antialias=True)[0]
    grid = F.affine_grid(theta[None], [1, 3, height, width], align_corners=False).to(picture)
    return F.grid_sample(picture[None], grid, padding_mode="reflection", align_corners=False)[0]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _middle(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
