"""P2: perception prioritised weighting of the plain diffusion loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from mldm_plugin import hookimpl


class P2:
    """Weight 1/(k + SNR)^γ on the squared error of ε.

    It takes weight from the nearly clean timesteps, where only imperceptible detail is left to learn.

    Args:
        k: stabiliser, > 0; 1 in both papers.
        gamma: strength, ≥ 0; 0.5 in the second paper, 0 is no weighting.

    Source: Choi et al., "Perception Prioritized Training of Diffusion Models", eq. 8; applied to latents in
    "Conditioning Diffusion Models via Attributes and Semantic Masks for Face Generation", eq. 1 to 3. Both define
    it on ε. For v, sample and flow predictions the engine converts it so that the objective is the same one;
    some trainers write 1/(k + SNR)^γ straight onto the error of v instead, which is another objective.

    >>> import torch
    >>> P2(k=1.0, gamma=0.5)(torch.tensor([0.0, 3.0]))
    tensor([1.0000, 0.5000])
    """

    def __init__(self, *, k: Annotated[float, Field(gt=0)] = 1.0, gamma: Annotated[float, Field(ge=0)] = 0.5) -> None:
        self.k = k
        self.gamma = gamma

    def __call__(self, snr: Tensor) -> Tensor:
        """Factor on each image's squared error of ε, (N,), for `snr` (N,) ≥ 0."""
        return (self.k + snr) ** -self.gamma


@hookimpl
def register_base_weightings(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("p2", P2)
