"""T and λ of a loss, from what it said of its own photographs and of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mldm_plugin.evaluation.statistics import LEVEL

Numbers = NDArray[np.float64]
# Signal to noise. Chosen: of a photograph whose difference is the mean one, under noise that is normal, one estimate in
# 44 is nearer to the other photograph.
LEAST = 2.0
SHARE = 0.1  # of the gradient; as what a loss is told to be raised to where it is not heard (engine/heard.py)


@dataclass(frozen=True)
class Telling:
    """One loss over P photographs, T timesteps and D draws of noise. NaN where a photograph has nothing for it.

    Args:
        own: of the clean estimate against its own photograph, (P, T, D).
        other: of the same estimate against another photograph, (P, T, D).
        floor: of the photograph encoded and decoded, (P,).
        gradient, plain: lengths of its gradient at the network's output, unweighted but balanced if it is to be, and of
            the plain loss's, (P, T).
    """

    own: Numbers
    other: Numbers
    floor: Numbers
    gradient: Numbers
    plain: Numbers

    @property
    def photographs(self) -> int:
        """That had what the loss looks at, and another to be told from."""
        return len(_kept(self.other - self.own))

    def signal(self) -> Numbers:
        """(T,) of each t, how far the other photograph is beyond the own, in spreads over noise.

        With d the difference other − own of photograph i and draw k, it is mean_ik d / √(mean_i var_k d). NaN where
        the difference is the same for all noise and 0: the loss does not look at the photograph.
        """
        apart = _kept(self.other - self.own)
        spread = np.sqrt(apart.var(axis=2, ddof=1).mean(axis=0))
        mean = apart.mean(axis=(0, 2))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(mean / spread)

    def tells(self) -> NDArray[np.bool_]:
        """(T,) whether the signal is `LEAST` or more, and the mean of d over photographs is above 0 with 95 %.

        The second keeps a few photographs, or a few draws, from telling by chance what is not there. Two at least.
        """
        apart = _kept(self.other - self.own).mean(axis=2)
        if len(apart) < 2:
            return np.zeros(apart.shape[1], bool)
        error = apart.std(axis=0, ddof=1) / len(apart) ** 0.5
        low = apart.mean(axis=0) - stats.t.ppf((1 + LEVEL) / 2, len(apart) - 1) * error
        return (np.nan_to_num(self.signal(), nan=0.0, posinf=np.inf) >= LEAST) & (low > 0)

    def right(self) -> Numbers:
        """(T,) the part of all estimates that is nearer to its own photograph."""
        return np.asarray((_kept(self.other - self.own) > 0).mean(axis=(0, 2)))

    def means(self) -> tuple[Numbers, Numbers]:
        """(T,) of the distance to the own photograph, and to the other."""
        return _kept(self.own).mean(axis=(0, 2)), _kept(self.other).mean(axis=(0, 2))

    def mean_floor(self) -> float:
        floor = self.floor[np.isfinite(self.floor)]
        return float(floor.mean()) if len(floor) else float("nan")


def max_timestep(tells: Sequence[bool] | NDArray[np.bool_], timesteps: Sequence[int]) -> int | None:
    """The largest of the timesteps up to which a loss tells photographs apart all along; None where not at the first.

    >>> max_timestep([True, True, False, True], [20, 100, 400, 900])
    100
    """
    enough = np.asarray(tells, bool)
    number = len(enough) if enough.all() else int(enough.argmin())
    return int(timesteps[number - 1]) if number else None


def weight(telling: Telling, timesteps: Sequence[int], limit: int, additive: bool, share: float = SHARE) -> float:
    """λ with which the loss, alone beside the plain one, has this share of the gradient at t ≤ T.

    With G and H the mean lengths of its own and the plain loss's gradient over uniform t up to T,
    λG / (λG + κH) = a, where κ is 1 − λ in the convex mix and 1 in the additive: λ = aH / ((1 − a)G + aH), or
    λ = aH / ((1 − a)G). NaN where it has no gradient.
    """
    gradient, plain = (over_uniform(_kept(x).mean(axis=0), timesteps, limit) for x in (telling.gradient, telling.plain))
    if not gradient > 0:
        return float("nan")
    wanted = share * plain
    return wanted / ((1 - share) * gradient + (0 if additive else wanted))


def over_uniform(values: Numbers, timesteps: Sequence[int], limit: int) -> float:
    """The mean over uniform t from 0 to `limit` of what is known at some timesteps and lies on lines between.

    >>> round(over_uniform(np.array([1.0, 3.0, 100.0]), [0, 100, 900], 100), 6)
    2.0
    """
    places = np.arange(limit + 1)
    return float(np.interp(places, timesteps, values).mean())


def as_json(value: Any) -> Any:
    """Lists of numbers; None for what is not finite."""
    if isinstance(value, np.ndarray):
        return [as_json(one) for one in value]
    return float(value) if np.isfinite(value) else None


def _kept(values: Numbers) -> Numbers:
    """The photographs of which all is known."""
    return values[np.isfinite(values).reshape(len(values), -1).all(axis=1)]
