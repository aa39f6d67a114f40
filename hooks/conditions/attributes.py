"""Attributes: yes or no, forty of them in CelebA, as one token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mldm_plugin import ConditionEncoder, hookimpl
from mldm_plugin.conditions.celeba import ATTRIBUTES
from mldm_plugin.errors import DataError, nearest


class AttributesEncoder(ConditionEncoder):
    """An MLP from attributes to one token: 40 → hidden → width.

    Args:
        width: of the token; 512 in the paper.
        names: of the attributes, in order; CelebA's forty by default.
        hidden: width of the layer between; the paper does not say it.

    Source: "Conditioning Diffusion Models via Attributes and Semantic Masks for Face Generation", section 3.3. Yes is
    1 and no is -1 for the first layer, so that a no says as much as a yes.

    Example:
        >>> encoder = AttributesEncoder(8, names=["Smiling", "Male"])
        >>> encoder.read({"Male": True, "Smiling": False})
        tensor([0., 1.])
        >>> encoder(encoder.read([0, 1])[None]).shape
        torch.Size([1, 1, 8])
    """

    column = "attributes"
    tokens = 1

    def __init__(self, width: int, *, names: Sequence[str] = tuple(ATTRIBUTES), hidden: int = 512) -> None:
        super().__init__()
        self.names = list(names)
        self.layers = nn.Sequential(nn.Linear(len(self.names), hidden), nn.SiLU(), nn.Linear(hidden, width))

    def read(self, value: Any) -> Tensor:
        """float32 (K,) of zeros and ones, from a mapping of the names or from so many numbers.

        Raises:
            DataError: another length, an unknown or missing name, or a value that is neither yes nor no.
        """
        if isinstance(value, Mapping):
            self._check_names(value)
            value = [value[name] for name in self.names]
        value = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        if not listed or len(value) != len(self.names):
            came = f"{len(value)} values" if listed else repr(value)
            raise DataError(f"attributes are {came}, expected {len(self.names)}, or a mapping of their names.")
        value = [one.tolist() if isinstance(one, Tensor | np.generic) else one for one in value]
        for name, one in zip(self.names, value, strict=True):
            if not isinstance(one, bool | int | float) or one not in (0, 1):
                raise DataError(f"attribute {name} is {one!r}, expected true or false, 1 or 0 (CelebA's -1 is 0).")
        return torch.tensor([float(one) for one in value])

    def _check_names(self, value: Mapping[Any, Any]) -> None:
        if unknown := [name for name in value if name not in self.names]:
            raise DataError(f"unknown attribute {unknown[0]!r}: {nearest(str(unknown[0]), self.names)}")
        if missing := [name for name in self.names if name not in value]:
            raise DataError(f"attribute {missing[0]} is missing, and {len(missing) - 1} more; give all of them.")

    def forward(self, values: Tensor) -> Tensor:
        """(N, 1, width) of zeros and ones (N, K)."""
        return self.layers(values.to(next(self.parameters()).dtype) * 2 - 1)[:, None]


@hookimpl
def register_condition_encoders(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("attributes", AttributesEncoder)
