"""The second derivative of a picture's luma, by which sharpness is measured."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # of R, G and B, ITU-R BT.601


def luma(pictures: Tensor) -> Tensor:
    """(N, 1, H, W) of pictures (N, 3, H, W)."""
    return (pictures * torch.tensor(LUMA).view(1, 3, 1, 1).to(pictures)).sum(1, keepdim=True)


def laplacian(pictures: Tensor) -> Tensor:
    """∂²/∂x² + ∂²/∂y² of the luma by five points, (N, 1, H − 2, W − 2), in units of the pictures.

    Source: Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", 2000; its variance is
    their measure of sharpness.
    """
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).view(1, 1, 3, 3)
    return F.conv2d(luma(pictures), kernel.to(pictures))
