"""Cutting all faces of a batch of pictures out, with gradient to the pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

# VGGFace2, "Pre-processing": the detector's box "is then extended by a factor 0.3 to include the whole head".
BOX_EXTENSION = 0.3


def square_boxes(boxes: Tensor, extension: float = BOX_EXTENSION) -> Tensor:
    """Squares around the centres of `boxes`, (K, 4) x0, y0, x1, y1, of side max(w, h)·(1 + extension).

    A square holds the whole of its box, forehead and chin of a tall one too. It may reach out of the picture.
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True) * (1 + extension) / 2
    return torch.cat([centre - half, centre + half], dim=1)


def largest(boxes: Tensor, count: int | None) -> Tensor:
    """The `count` boxes of greatest area in `boxes`, (K, 4), greatest first; all of them for None."""
    if count is None or len(boxes) <= count:
        return boxes
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return boxes[area.argsort(descending=True, stable=True)[:count]]


def crop_faces(
    images: Tensor, boxes: Sequence[Tensor], size: int, extension: float = BOX_EXTENSION
) -> tuple[Tensor, Tensor]:
    """Every face of every image as a square picture, in one batch.

    RoIAlign makes the crops rather than grid sampling: when a face is shrunk it averages all pixels under a
    bin, so that no pixel of a large face is without gradient, and it takes the faces of many images in one
    call. Outside the picture its border pixels are repeated, so that no edge appears that no face has.

    Args:
        images: (N, 3, H, W), any range, gradients flow.
        boxes: N tensors (K_i, 4) of pixel x0, y0, x1, y1 inside the picture (`clip_boxes`), K_i may be 0.
        size: side S of the crops in pixels.
        extension: how much longer the square's side is than the box's longer side.

    Returns:
        crops (K, 3, S, S), K = ΣK_i, in the order of images and boxes; the index (K,) of each crop's image.

    Source: VGGFace2 for the extension; He et al., "Mask R-CNN", section 3, for RoIAlign.
    """
    counts = torch.tensor([len(b) for b in boxes], dtype=torch.long)
    index = torch.repeat_interleave(torch.arange(len(boxes)), counts)
    if not len(index):
        return images[:0, :, :1, :1].expand(0, -1, size, size), index.to(images.device)
    squares = square_boxes(torch.cat([b.detach().to("cpu", torch.float64) for b in boxes]), extension)
    height, width = images.shape[-2:]
    beyond = torch.cat([-squares[:, :2], squares[:, 2:] - torch.tensor([width, height])]).max()
    pad = max(0, math.ceil(float(beyond))) + 1  # one more for the neighbour that bilinear reading wants
    padded = F.pad(images, (pad, pad, pad, pad), mode="replicate")
    rois = torch.cat([index[:, None].double(), squares + pad], dim=1).to(images.device, images.dtype)
    crops = roi_align(padded, rois, output_size=size, spatial_scale=1.0, sampling_ratio=-1, aligned=True)
    return crops, index.to(images.device)
