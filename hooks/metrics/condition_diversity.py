"""condition_diversity: how different the pictures are that are drawn from one condition."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from mldm_plugin import hookimpl
from mldm_plugin.perceptual.lpips_network import LPIPSNetwork
from mldm_plugin.perceptual.unit_difference import unit_normalise, weighted_square


class ConditionDiversity:
    """LPIPS between the pictures of one case, the mean over all pairs of its repetitions.

    Args:
        network: the trunk of LPIPS. The paper does not say which.
        weights: `pretrained`, or `random` (seeded), for tests.

    Raises:
        WeightsError: weights that cannot be had.

    Source: "Conditioning Diffusion Models via Attributes and Semantic Masks for Face Generation", section 4: LPIPS
    among 10 samples for each feature combination, by a stochastic sampler.
    """

    title = "LPIPS among pictures of one case"
    better = "larger"
    asks = "several pictures of each case: --repetitions 10"

    def __init__(
        self, *, network: Literal["vgg", "alex"] = "alex", weights: Literal["pretrained", "random"] = "pretrained"
    ) -> None:
        self.lpips = LPIPSNetwork(network, weights)
        self.networks = self.lpips.networks

    def __call__(self, picture: Any) -> float | None:
        """The mean ≥ 0 for the first picture of a case; None for the others, and for one that stands alone."""
        repetitions = picture.repetitions
        if picture.repetition or len(repetitions) < 2:
            return None
        raw = [self.lpips.features(one.image[None]) for one in repetitions]
        found = [self._between(a, b) for a, b in itertools.combinations(raw, 2)]
        return sum(found) / len(found)

    def _between(self, one: list[Tensor], other: list[Tensor]) -> float:
        """LPIPS of two pictures by their features."""
        weights = self.lpips.channel_weights(one[0])
        return sum(
            float(weighted_square(a, unit_normalise(b), w).mean()) for a, b, w in zip(one, other, weights, strict=True)
        )


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("condition_diversity", ConditionDiversity)
