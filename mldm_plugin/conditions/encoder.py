"""What every condition encoder is: a column of the training set, read, checked, and made into tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn


class ConditionEncoder(nn.Module, ABC):
    """Values of a condition as tokens for cross-attention. Registered by `register_condition_encoders`.

    The constructor takes `width`, the size of a token, and options of its own by name, which a preset or a flag gives.
    It does not see a picture without the condition: a token of its own is learnt for "absent", outside of it.

    Class attributes:
        column: of the training set, by default; its values go to `read`.
        is_label_map: whether a value is a picture of labels, which is cut, resized and mirrored with its picture.

    Attributes:
        tokens: how many tokens it makes of a value, L.
    """

    column: ClassVar[str]
    is_label_map: ClassVar[bool] = False
    tokens: int

    @abstractmethod
    def read(self, value: Any) -> Tensor:
        """A value of the column as a tensor, without a batch dimension; a label map is uint8 (1, H, W) already.

        Raises:
            DataError: it cannot be used. The message says what was expected and what came; the picture is named by
                the caller.
        """

    @abstractmethod
    def forward(self, values: Tensor) -> Tensor:
        """Tokens (N, L, width) of values (N, …) as `read` gives them."""

    def mirrored(self, value: Tensor) -> Tensor:
        """A value after its picture was mirrored; a label map is mirrored already, but its labels' sides are not."""
        return value
