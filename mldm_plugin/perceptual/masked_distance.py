"""Sums over masked pixels of bilinearly upsampled feature maps, without upsampling them.

Bilinear upsampling U is linear and separable, U = U_y ⊗ U_x, so instead of bringing (C, h, w) features to H×W
pixels the mask is brought to the features. Both identities here are exact.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_sum(maps: Tensor, mask: Tensor) -> Tensor:
    """Σ_p M_p (U s)_p for each image and mask, as Σ_q (Uᵀ M)_q s_q.

    Args:
        maps: s, (n, 1, h, w), h ≤ H and w ≤ W; gradients flow.
        mask: M, (n, K, H, W), weights of the pixels, K masks an image.

    Returns:
        (n, K).

    >>> s, m = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[0.0, 1.0, 1.0, 0.0]]]])
    >>> masked_sum(s, m)  # the map upsampled to four pixels is 1, 1.5, 2.5, 3
    tensor([[4.]])
    """
    upsample_y, upsample_x = _upsampling(maps, mask)
    weights = upsample_y.mT @ mask @ upsample_x
    return (weights * maps).sum(dim=(-2, -1))


def masked_squared_norm(difference: Tensor, mask: Tensor) -> Tensor:
    """Σ_c Σ_p M_p² (U d_c)_p² for each image and mask, as Σ_δ Σ_q A_δ(q) Σ_c d_c(q) d_c(q+δ).

    Bilinear interpolation mixes neighbours only, so δ runs over the 3×3 neighbourhood; A depends on the mask
    alone and A_δ(q) = A_{−δ}(q+δ), so five of the nine offsets suffice.

    Args:
        difference: d, (n, C, h, w), h ≤ H and w ≤ W; gradients flow.
        mask: M, (n, K, H, W).

    Returns:
        (n, K), never negative but for rounding.

    >>> d, m = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[0.0, 1.0, 1.0, 0.0]]]])
    >>> masked_squared_norm(d, m)  # 1.5² + 2.5²
    tensor([[8.5000]])
    """
    upsample_y, upsample_x = _upsampling(difference, mask)
    squared = mask**2
    if difference.shape[-2:] == mask.shape[-2:]:  # U is the identity
        return torch.einsum("nkhw,nhw->nk", squared, (difference**2).sum(dim=1))
    total = torch.zeros(mask.shape[:2], dtype=difference.dtype, device=difference.device)
    for dy, dx, times in ((0, 0, 1), (0, 1, 2), (1, 0, 2), (1, 1, 2), (1, -1, 2)):
        pair_y, pair_x = _neighbour_products(upsample_y, dy), _neighbour_products(upsample_x, dx)
        weights = pair_y.mT @ squared @ pair_x
        products = _neighbour_products(difference, dy, dx).sum(dim=1)
        total = total + times * torch.einsum("nkhw,nhw->nk", weights, products)
    return total


def _neighbour_products(values: Tensor, *offset: int) -> Tensor:
    """values(q) · values(q+δ) over the last axes, one per offset of 1, 0 or −1; 0 where q+δ is outside."""
    result = values
    if not any(offset):
        return values * values
    shifted = values
    for axis, step in zip(range(-len(offset), 0), offset, strict=True):
        if step == 0:
            continue
        size = values.shape[axis]
        ahead = shifted.narrow(axis, max(step, 0), size - 1)
        pad = [0, 0] * (-axis - 1) + ([0, 1] if step > 0 else [1, 0])
        shifted = F.pad(ahead, pad)
    return result * shifted


def _upsampling(maps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    (height, width), (h, w) = mask.shape[-2:], maps.shape[-2:]
    return (
        interpolation_matrix(height, h, maps.dtype, maps.device),
        interpolation_matrix(width, w, maps.dtype, maps.device),
    )


@functools.lru_cache(maxsize=64)
def interpolation_matrix(size: int, source: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix (size, source) of linear upsampling with align_corners=False, by upsampling the unit vectors."""
    unit = torch.eye(source, dtype=torch.float64)[None]
    return F.interpolate(unit, size=size, mode="linear", align_corners=False)[0].T.to(device, dtype)
