"""Min-SNR-γ weighting of the plain diffusion loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from mldm_plugin import hookimpl


class MinSNR:
    """Weight min(SNR, γ)/SNR on the squared error of ε.

    Args:
        gamma: the SNR above which weights stop growing, > 0; 5 in the paper.

    Source: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", section 3.4. With the
    engine's conversion it is min(SNR, γ)/(SNR + 1) on v, as in diffusers' `--snr_gamma`.

    >>> MinSNR(gamma=5.0)(torch.tensor([0.0, 2.5, 10.0]))
    tensor([1.0000, 1.0000, 0.5000])
    """

    def __init__(self, *, gamma: Annotated[float, Field(gt=0)] = 5.0) -> None:
        self.gamma = gamma

    def __call__(self, snr: Tensor) -> Tensor:
        """Factor on each image's squared error of ε, (N,), for `snr` (N,) ≥ 0; 1 at SNR 0."""
        return torch.clamp(self.gamma / snr, max=1.0)


@hookimpl
def register_base_weightings(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("min_snr", MinSNR)
