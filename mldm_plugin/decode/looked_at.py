"""Where the losses of a step look: the windows that `decode: region` decodes with gradient."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.perceptual.face_crops import square_boxes


def regions_of(step: DiffusionStep, looked_at: Collection[str]) -> list[Tensor]:
    """The rectangles of each image that hold all that is looked at.

    Args:
        step: N images.
        looked_at: `person_mask` for each person of the mask, `face_boxes` for the square around each face that
            `crop_faces` cuts out.

    Returns:
        N float32 tensors (K_i, 4) of pixel x0, y0, x1, y1 on the CPU, also partly outside. A mask on a GPU is waited
        for.
    """
    regions = [torch.zeros(0, 4)] * len(step)
    if "person_mask" in looked_at and step.person_mask is not None:
        regions = [torch.cat([r, _people(m)]) for r, m in zip(regions, step.person_mask.cpu(), strict=True)]
    if "face_boxes" in looked_at and step.face_boxes is not None:
        # One pixel more for the neighbour that bilinear reading wants.
        margin = torch.tensor([-1.0, -1.0, 1.0, 1.0])
        faces = [square_boxes(b.cpu().float()) + margin for b in step.face_boxes]
        regions = [torch.cat([r, f]) for r, f in zip(regions, faces, strict=True)]
    return regions


def _people(mask: Tensor) -> Tensor:
    """(K, 4) boxes of the labels of a map (1, H, W), their last row and column included."""
    labels = mask.unique()
    labels = labels[labels > 0]
    return masks_to_boxes(mask == labels[:, None, None]) + torch.tensor([0.0, 0.0, 1.0, 1.0])
