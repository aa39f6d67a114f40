"""Whether 21 points can be a hand's: the lengths of bones, the width of the palm, the bends of joints."""

from __future__ import annotations

import torch
from torch import Tensor

from mldm_plugin.errors import DataError

# Of each finger, the thumb first: wrist to base, three bones outwards, and the base to that of the next finger (the
# thumb's from its root to the index finger's base, the little finger's back to the thumb's root).
ACROSS = ((1, 5), (5, 9), (9, 13), (13, 17), (17, 1))
BONES = tuple((*zip((0, *range(b, b + 3)), range(b, b + 4), strict=True), ACROSS[b // 4]) for b in range(1, 21, 4))
PALM = ((0, 5), (0, 9), (0, 13), (0, 17))
# 65 hands of openpeople's P001 to P007, as `Hand.world` has them: `python docs/hands_and_pose.py statistics`.
MEAN = (
    (0.46, 0.34, 0.36, 0.28, 0.75),
    (1.11, 0.24, 0.31, 0.28, 0.22),
    (1.03, 0.29, 0.30, 0.33, 0.21),
    (0.99, 0.21, 0.28, 0.27, 0.26),
    (0.86, 0.17, 0.23, 0.20, 0.75),
)
SPREAD = (
    (0.07, 0.03, 0.04, 0.04, 0.03),
    (0.07, 0.04, 0.05, 0.04, 0.04),
    (0.01, 0.06, 0.05, 0.05, 0.05),
    (0.02, 0.08, 0.04, 0.05, 0.05),
    (0.06, 0.06, 0.03, 0.03, 0.10),
)
# Whole fingers of 51 people differ by 6 to 11 % (Chatzıoglou et al., Anat Cell Biol 57(2), 2024); those of seven people
# may by chance differ by less.
LEAST = 0.1
# Degrees: how far a joint bends. American Academy of Orthopaedic Surgeons, "Joint Motion": base, middle and end of a
# finger 90, 100 and 90; of the thumb 70 (root), 50 and 80. Chosen: 20 more are one spread.
LIMITS = ((70.0, 50.0, 80.0), *((90.0, 100.0, 90.0),) * 4)
BEND = 20.0


def hand_shape_distance(points: Tensor) -> Tensor:
    """How far a hand's worst finger is from real hands', in spreads of theirs.

    d = maxᶠ √( (Σₖ ((lᶠₖ - μᶠₖ) / σᶠₖ)² + Σⱼ (max(0, θᶠⱼ - Θᶠⱼ) / 20°)²) / 5 )

    lᶠₖ are the five lengths of finger f in units of the palm, the mean distance of the wrist to the four fingers; μ and
    σ are those of real hands; θᶠⱼ are the bends of its three joints and Θᶠⱼ how far these go.

    Args:
        points: (..., 21, 3), `Hand.world`, in any unit; gradients flow.

    Returns:
        (...), at least 0. Of real hands about 1, of points that are spoilt 2 and more. The network itself believes in
        hands, so of a spoilt picture its points tell less: docs/hands_and_pose.md.

    Raises:
        DataError: other than 21 points of three numbers.
    """
    if points.shape[-2:] != (21, 3):
        raise DataError(f"points: expected (..., 21, 3), got {tuple(points.shape)}; take `Hand.world`.")
    mean, spread = (torch.tensor(numbers).to(points) for numbers in (MEAN, SPREAD))
    spread = (spread**2 + (LEAST * mean) ** 2).sqrt()
    off = ((lengths(points) - mean) / spread).square().sum(-1)
    over = ((bends(points) - torch.tensor(LIMITS).to(points)).clamp(min=0) / BEND).square().sum(-1)
    return ((off + over) / 5).clamp(min=1e-12).sqrt().amax(-1)


def lengths(points: Tensor) -> Tensor:
    """(..., 5, 5): BONES' lengths in units of the palm, of points (..., 21, 3)."""
    palm = _ways(points, PALM).norm(dim=-1).mean(-1)
    return _ways(points, BONES).norm(dim=-1) / palm.clamp(min=1e-6)[..., None, None]


def bends(points: Tensor) -> Tensor:
    """(..., 5, 3): degrees by which each finger's three joints bend, from the palm outwards; 0 is straight."""
    bones = _ways(points, BONES)[..., :4, :]
    before, after = bones[..., :-1, :], bones[..., 1:, :]
    across = torch.linalg.cross(before, after).square().sum(-1).clamp(min=1e-18).sqrt()
    return torch.atan2(across, (before * after).sum(-1)).rad2deg()


def _ways(points: Tensor, pairs: object) -> Tensor:
    """From the first to the second point of each pair, (..., *pairs, 3)."""
    index = torch.as_tensor(pairs, device=points.device)
    return points[..., index[..., 1], :] - points[..., index[..., 0], :]
