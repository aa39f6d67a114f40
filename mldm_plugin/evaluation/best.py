"""Which step of a run is the best, by photographs that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mldm_plugin.evaluation.quantities import QUANTITIES
from mldm_plugin.evaluation.statistics import LEVEL, Array, Estimate, paired_difference

# What decides, where at least half of the photographs have it (chosen: fewer would decide by chance); else the error.
DECIDES = ("one_step_face", "one_step_lpips_person", "one_step_error")
TITLES = {quantity.name: quantity.title for quantity in QUANTITIES}

K = TypeVar("K", int, str)
Values = Mapping[str, Sequence[float | None]]  # quantity → its value on each photograph, in the same order everywhere


@dataclass(frozen=True)
class Best(Generic[K]):
    """The best of some evaluated steps.

    Args:
        by: quantity → the step where its mean is least; without those that no photograph has.
        criterion: the quantity that decides.
        step: the best by it.
        last: the last step that was evaluated.
        means: step → the mean of the criterion, NaN where it was not finite.
        difference: best minus last, paired by photograph; None where they are the same step.
        p: of that difference, times the number of steps that could have been the best (Bonferroni): the best of
            many looks better than it is.
        photographs: how many the criterion has.
    """

    by: dict[str, K]
    criterion: str
    step: K
    last: K
    means: dict[K, float]
    difference: Estimate | None
    p: float
    photographs: int

    @property
    def shown(self) -> bool:
        """Whether the best is shown to be better than the last."""
        return self.difference is not None and self.difference.high < 0 and self.p < 1 - LEVEL

    def in_words(self) -> str:
        """A line for people."""
        title, value = TITLES[self.criterion], self.means[self.step]
        if self.difference is None:
            return f"{_name(self.step)}, the last, is the best by {title} ({value:.3g})"
        gap = self.difference
        said = f"{_name(self.step)} is the best by {title} ({value:.3g})"
        if math.isnan(gap.value):
            return f"{said}; {_name(self.last)}, the last, was not finite"
        interval = "" if math.isnan(gap.low) else f" ({gap.low:+.2g} to {gap.high:+.2g}, p {self.p:.2g})"
        verdict = "better than" if self.shown else "not shown to be better than"
        return (
            f"{said}; {verdict} the last, {_name(self.last)}: {gap.value:+.2g}{interval} on {self.photographs} pictures"
        )


def best_of(steps: Mapping[K, Values]) -> Best[K] | None:
    """The best of `steps`, in their order; None where nothing is finite.

    Args:
        steps: of each step the values of each quantity on the same photographs. What is None in every step was not
            asked for (no face, nobody); a step that lacks what others have was not finite, and is not the best.
    """
    if not steps:
        return None
    arrays = {name: {step: _array(values[name]) for step, values in steps.items()} for name in TITLES}
    means = {name: _means(of_steps) for name, of_steps in arrays.items()}
    by = {name: _least(of_steps) for name, of_steps in means.items()}
    criterion = next((name for name in DECIDES if 2 * _asked(arrays[name]).sum() >= len(_asked(arrays[name]))), "")
    last = list(steps)[-1]
    step = by.get(criterion)
    if step is None:
        return None
    finite = sum(not math.isnan(mean) for mean in means[criterion].values())
    difference, p = None, math.nan
    if step != last:
        one, other = (arrays[criterion][which][None, _asked(arrays[criterion])] for which in (step, last))
        broken = math.isnan(means[criterion][last])
        difference = Estimate(math.nan, math.nan, math.nan) if broken else paired_difference(one, other)
        p = min(1.0, difference.p * max(finite - 1, 1))
    photographs = int(_asked(arrays[criterion]).sum())
    found = {name: which for name, which in by.items() if which is not None}
    return Best(found, criterion, step, last, means[criterion], difference, p, photographs)


def _name(step: int | str) -> str:
    return step if isinstance(step, str) else f"step {step}" if step else "the network before training"


def _array(values: Sequence[float | None]) -> Array:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _asked(of_steps: Mapping[K, Array]) -> NDArray[np.bool_]:
    """Which photographs have the quantity, (P,) bool."""
    finite: NDArray[np.bool_] = np.isfinite(np.stack(list(of_steps.values())))
    return np.asarray(finite.any(axis=0))


def _means(of_steps: Mapping[K, Array]) -> dict[K, float]:
    asked = _asked(of_steps)
    return {
        step: float(array[asked].mean()) if asked.any() and np.isfinite(array[asked]).all() else math.nan
        for step, array in of_steps.items()
    }


def _least(means: Mapping[K, float]) -> K | None:
    finite = {step: mean for step, mean in means.items() if not math.isnan(mean)}
    return min(finite, key=lambda step: finite[step]) if finite else None
