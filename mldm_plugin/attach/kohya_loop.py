"""The training step of kohya's scripts: collected from the methods that it is spread over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Notes:
    """What the methods of a trainer class had in their variables when they returned."""

    def __init__(self) -> None:
        self.factor: float | None = None  # that latents are multiplied by
        self._variables: dict[str, Any] = {}

    def add(self, variables: Mapping[str, Any]) -> None:
        """Keep the variables of a method until the loss comes by; those of a validation step are left."""
        if variables.get("is_train") is not False:
            self._variables.update(variables)

    def take(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The variables of the training loop and all that was noted for this step, which is forgotten here."""
        noted, self._variables = self._variables, {}
        return {**variables, **noted}
