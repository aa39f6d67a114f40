"""Debiased weighting of the plain diffusion loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from mldm_plugin import hookimpl


class Debiased:
    """Weight 1/√SNR on the squared error of ε, with SNR capped from below and above.

    Args:
        max_snr: SNR above it counts as it, > 0; 1000 keeps the cleanest timesteps in play, as trainers do.
        min_snr: SNR below it counts as it, > 0; bounds the weight where a schedule ends in pure noise. Chosen:
            below the smallest SNR of Stable Diffusion's schedule, 0.0047, so that it changes nothing there.

    Source: Yu et al., "Debias the Training of Diffusion Models", eq. 12. With the engine's conversion it is
    √SNR/(SNR + 1) on v; kohya's scripts use 1/(SNR + 1) there, which is another objective.

    >>> import torch
    >>> Debiased()(torch.tensor([4.0, 1e6]))
    tensor([0.5000, 0.0316])
    """

    def __init__(
        self, *, max_snr: Annotated[float, Field(gt=0)] = 1000.0, min_snr: Annotated[float, Field(gt=0)] = 1e-3
    ) -> None:
        self.max_snr = max_snr
        self.min_snr = min_snr

    def __call__(self, snr: Tensor) -> Tensor:
        """Factor on each image's squared error of ε, (N,), for `snr` (N,) ≥ 0."""
        return snr.clamp(self.min_snr, self.max_snr).rsqrt()


@hookimpl
def register_base_weightings(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("debiased", Debiased)
