"""From what a step costs with k gated images to what it costs on average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

# Who decides whether an image is decoded: each image's timestep, one timestep for the whole batch, or nobody, because
# the cost is the same for all.
Gate = Literal["each image", "whole batch", "none"]
TIMESTEPS = 1000  # of Stable Diffusion, from which a trainer draws uniformly


def expected_cost(by_gated: Mapping[int, float], n: int, max_timestep: int, gate: Gate) -> float | None:
    """The mean cost of a step when timesteps are uniform.

    With p = (T+1)/1000 the probability that t ≤ T, the number k of gated images is binomial, so for a gate by image
    the mean is Σ_k C(N,k) p^k (1−p)^(N−k) cost(k), with costs between measured k on a straight line. For one timestep
    a batch it is (1−p) cost(0) + p cost(N).

    Args:
        by_gated: k → cost; k = 0 and N must be there unless `gate` is none.
        n: images in the batch, N.
        max_timestep: T.
        gate: see above.

    Returns:
        In the units of the costs; None if a k is missing.

    >>> expected_cost({0: 1.0, 2: 3.0}, 2, 499, "each image")  # 1/4 · 1 + 1/2 · 2 + 1/4 · 3
    2.0
    >>> expected_cost({0: 1.0, 2: 3.0}, 2, 249, "whole batch")  # 3/4 · 1 + 1/4 · 3
    1.5
    """
    if gate == "none":
        return next(iter(by_gated.values()), None)
    if 0 not in by_gated or n not in by_gated:
        return None
    p = (max_timestep + 1) / TIMESTEPS
    if gate == "whole batch":
        return (1 - p) * by_gated[0] + p * by_gated[n]
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) * _between(by_gated, k) for k in range(n + 1))


def measured_gates(n: int, gate: Gate) -> list[int]:
    """The numbers k of gated images that are measured: 0, 1, 2, 4 and N where there are so many."""
    if gate == "none":
        return [min(1, n)]
    if gate == "whole batch":
        return [0, n]
    return sorted({k for k in (0, 1, 2, 4, n) if k <= n})


def _between(by_gated: Mapping[int, float], k: int) -> float:
    below = max(m for m in by_gated if m <= k)
    above = min(m for m in by_gated if m >= k)
    share = 0.0 if above == below else (k - below) / (above - below)
    return (1 - share) * by_gated[below] + share * by_gated[above]
