"""The likeness to a person, learnt as the demo and the notebook do, in seconds."""

from dataclasses import dataclass, replace
from typing import Any

from mldm_plugin.reproduce.scales import Person


@dataclass(frozen=True)
class Quick(Person):
    """Trained on one picture a step, drawn in two steps, once."""

    noises: int = 1
    sampler_steps: int = 2

    def training(self, arm: Any, seed: int, steps: int | None) -> Any:
        whole = super().training(arm, seed, steps)
        return replace(whole, flags=(*whole.flags, "--train_batch_size", "1"))
