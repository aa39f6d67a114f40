"""attribute_accuracy: whether a face has the attributes that it was drawn from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mldm_plugin import hookimpl
from mldm_plugin.conditions.celeba import ATTRIBUTES
from mldm_plugin.conditions.judges import AttributeJudge, at_side, attribute_accuracy, attributes_seen, read_judge
from mldm_plugin.errors import DataError


class AttributeAccuracy:
    """Share of the attributes that a picture was drawn from which a classifier of real faces sees in it.

    Attributes that are the same in all held-out photographs do not count: of them nothing can be learnt. All forty
    vary in CelebA-HQ; of drawn portraits eighteen.

    Args:
        judges: folder of `mldm faces judges`.

    Raises:
        DataError: no judge in it.

    Source: "Conditioning Diffusion Models via Attributes and Semantic Masks for Face Generation", section 4.2: 90.53 %
    of its samples, 90.85 % of real faces.
    """

    title = "attributes that are as asked"
    better = "larger"

    def __init__(self, *, judges: Path) -> None:
        self.judge, self.side, words = read_judge(AttributeJudge, judges)
        self.networks = (words,)

    def features(self, picture: Any) -> Tensor:
        """(1, 80): what is seen, then what was wanted, zeros and ones; (0, 80) without attributes."""
        wanted = picture.conditions.get("attributes")
        if wanted is None:
            return torch.zeros(0, 2 * len(ATTRIBUTES))
        if len(wanted) != len(ATTRIBUTES):
            raise DataError(f"the condition has {len(wanted)} attributes, the judge knows CelebA's {len(ATTRIBUTES)}.")
        seen = attributes_seen(self.judge, at_side(picture.image[None], self.side))
        return torch.cat([seen.float(), wanted[None].float()], 1)

    def distance(self, made: Tensor, real: Tensor) -> float:
        """The share of `made` (n, 80) that is as asked, of the attributes that vary in `real` (m, 80).

        Raises:
            DataError: no picture with attributes, or none of them varies.
        """
        seen, wanted, numbers = self._read(made, real)
        return attribute_accuracy(seen, wanted, numbers)

    def parts(self, made: Tensor, real: Tensor) -> dict[str, float]:
        """The share of pictures that are as asked, of each attribute that varies."""
        seen, wanted, numbers = self._read(made, real)
        return {ATTRIBUTES[number].replace("_", " "): attribute_accuracy(seen, wanted, [number]) for number in numbers}

    def _read(self, made: Tensor, real: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        if not len(made) or not len(real):
            raise DataError("no case has attributes: compare models that draw from them, on --data with that column.")
        means = real[:, len(ATTRIBUTES) :].mean(0).tolist()
        numbers = [number for number, share in enumerate(means) if 0 < share < 1]
        if not numbers:
            raise DataError(f"the {len(real)} photographs of --data have the same attributes: give more of them.")
        seen, wanted = made.split(len(ATTRIBUTES), dim=1)
        return seen, wanted, numbers


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("attribute_accuracy", AttributeAccuracy)
