"""Means, differences and their intervals over cases and training seeds.

Values are arrays (R, C): R runs of a model (training seeds), C cases, the repetitions of a case averaged. NaN stands
for a case in which nothing was asked; which cases those are does not depend on the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

DRAWS = 10_000  # of the bootstrap, so that the interval's ends move by about a hundredth of its width
LEVEL = 0.95
GROUPS = 20  # of the jackknife
EXACT = 12  # cases up to which all 2ⁿ flips of signs are looked at
POWER = 0.8


@dataclass(frozen=True)
class Estimate:
    """A value with its interval.

    Args:
        value: the estimate.
        low, high: ends of the 95 % interval; NaN where there is too little to say.
        p: two-sided, of the value being 0.
        error: its standard error.
        cases: how many it is of.
        effect: the mean difference in units of the cases' standard deviation (Cohen's d_z); NaN where not defined.
        least_p: the smallest p that so many cases can have, whatever their values; 0 where nothing bounds it.
    """

    value: float
    low: float
    high: float
    p: float = math.nan
    error: float = math.nan
    effect: float = math.nan
    cases: int = 0
    least_p: float = 0.0

    @property
    def holds_zero(self) -> bool:
        """Whether nothing can be said of the sign."""
        return not (self.low > 0 or self.high < 0)


def mean(values: Array, seed: int = 0) -> Estimate:
    """The mean over runs and cases, (R, C), with a bootstrap interval over cases, and over runs where many."""
    return _estimate(values[:, ~np.isnan(values).any(0)], None, seed)


def paired_difference(one: Array, other: Array, seed: int = 0, *, same_seeds: bool = False) -> Estimate:
    """The mean of `one` − `other`, (R, C) and (S, C), case by case: the same cases are drawn for both.

    Args:
        one, other: values.
        seed: of the bootstrap.
        same_seeds: whether run r of both was trained from the same seed, on the same batches, so that runs are paired.
    """
    known = ~(np.isnan(one).any(0) | np.isnan(other).any(0))
    cases, flips = int(known.sum()), len(one) == len(other) == 1
    found = _estimate(one[:, known], other[:, known], seed, same_seeds)
    return replace(found, cases=cases, least_p=least_p(cases) if flips else 0.0)


def unpaired_difference(one: Array, other: Array, seed: int = 0) -> Estimate:
    """The difference of the means of two independent sets of cases, (R, C) and (S, D), by Welch's t."""
    a, b = (values[:, ~np.isnan(values).any(0)].mean(0) for values in (one, other))
    if min(len(a), len(b)) < 2:
        return Estimate(_mean(a) - _mean(b), math.nan, math.nan)
    errors = [a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)]
    spread = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    return _by_t(a.mean() - b.mean(), errors, [len(a) - 1, len(b) - 1], spread)


def set_difference(
    statistic: Callable[[int, Sequence[int]], float] | None,
    other: Callable[[int, Sequence[int]], float] | None,
    runs: tuple[int, int],
    cases: int,
    *,
    same_seeds: bool = False,
) -> Estimate:
    """The difference of two statistics of sets of cases, or one statistic alone, by a jackknife over groups of cases.

    A bootstrap would draw some cases twice, and a picture that is there twice is nearer to itself than any other is;
    the jackknife leaves groups of cases out instead, the same ones for both models.

    Args:
        statistic: (run, cases) → its value on those cases.
        other: the same of the first model; None for the statistic's own interval.
        runs: how many runs each has.
        cases: how many cases there are.
        same_seeds: see `paired_difference`.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 11, with groups.
    """

    def value(left: Sequence[int]) -> tuple[list[float], list[float]]:
        ours = [statistic(run, left) for run in range(runs[0])] if statistic else []
        theirs = [other(run, left) for run in range(runs[1])] if other else []
        return ours, theirs

    def gap(pair: tuple[list[float], list[float]]) -> float:
        return _mean(pair[0]) - (_mean(pair[1]) if pair[1] else 0.0)

    every = list(range(cases))
    whole = value(every)
    groups = min(GROUPS, cases)
    if groups < 4:
        return Estimate(gap(whole), math.nan, math.nan, cases=cases)
    order = np.random.default_rng(0).permutation(cases)
    parts = [set(order[g::groups].tolist()) for g in range(groups)]
    without = np.array([gap(value([c for c in every if c not in part])) for part in parts])
    if not np.isfinite(without).all():
        return Estimate(gap(whole), math.nan, math.nan, cases=cases)
    over_cases = (groups - 1) / groups * float(((without - without.mean()) ** 2).sum())
    errors, freedom = [over_cases], [float(groups - 1)]
    _add_runs(whole, errors, freedom, same_seeds)
    return replace(_by_t(gap(whole), errors, freedom, math.nan), cases=cases)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method; NaN stays and does not count.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(p * (len(order) - rank), 1.0))
        corrected[i] = largest
    return corrected


def needed(estimate: Estimate, cases: int, tests: int = 1) -> int | None:
    """How many cases would show a true difference of this size in 80 % of evaluations, one of `tests` at 5 % together.

    N = n ((z₁₋ₐ + z₀.₈) · error / |difference|)², a = .025/tests, Cohen's formula, the error falling as 1/√n. None for
    no difference.
    """
    if not estimate.error > 0 or estimate.value == 0:
        return None
    z = float(stats.norm.ppf(1 - (1 - LEVEL) / 2 / tests) + stats.norm.ppf(POWER))
    return math.ceil(cases * (z * estimate.error / abs(estimate.value)) ** 2)


def least_p(cases: int) -> float:
    """The smallest p that flips of the signs of so many cases can give, see `paired_difference`.

    >>> least_p(2), least_p(6)
    (0.5, 0.03125)
    """
    return min(2.0 ** (1 - cases), 1.0) if cases <= EXACT else 1 / (DRAWS + 1)


def fewest(tests: int = 1) -> int:
    """Cases with which a difference can be shown at all: p of n cases, by all flips of signs, is at least 2¹⁻ⁿ.

    >>> fewest(), fewest(10)
    (6, 9)
    """
    return math.ceil(1 + math.log2(tests / (1 - LEVEL)))


def in_words(effect: float) -> str:
    """Cohen's words for a difference in standard deviations (Statistical Power Analysis, 1988: .2, .5, .8)."""
    size = abs(effect)
    if math.isnan(size):
        return ""
    return "negligible" if size < 0.2 else "small" if size < 0.5 else "medium" if size < 0.8 else "large"


def _estimate(one: Array, other: Array | None, seed: int, same_seeds: bool = False) -> Estimate:
    runs, cases = one.shape
    if cases == 0 or not np.isfinite(one).all() or not (other is None or np.isfinite(other).all()):
        return Estimate(math.nan, math.nan, math.nan)
    of_cases = one.mean(0) - (0 if other is None else other.mean(0))
    value = float(of_cases.mean())
    spread = float(of_cases.std(ddof=1)) if cases > 1 else math.nan
    effect = value / spread if spread > 0 else math.nan
    if cases < 2:
        return Estimate(value, math.nan, math.nan)
    if runs > 1 or (other is not None and len(other) > 1):
        errors, freedom = [spread**2 / cases], [cases - 1.0]
        of_runs = (one.mean(1).tolist(), [] if other is None else other.mean(1).tolist())
        _add_runs(of_runs, errors, freedom, same_seeds)
        return _by_t(value, errors, freedom, spread)
    low, high = np.quantile(_bootstrap_means(of_cases, seed), _expanded(cases))
    p = math.nan if other is None else _sign_flips(of_cases, seed)
    return Estimate(value, float(low), float(high), p, spread / math.sqrt(cases), effect)


def _sign_flips(gaps: Array, seed: int) -> float:
    """Two-sided p of a mean of 0, were each gap as likely to be its negative; exact for few cases.

    Source: Fisher, "The Design of Experiments", 1935, section 21.
    """
    if len(gaps) <= EXACT:
        signs = 1 - 2.0 * ((np.arange(2 ** len(gaps))[:, None] >> np.arange(len(gaps))) & 1)
        sums = np.abs(signs @ gaps)
        return float((sums >= abs(gaps.sum()) - 1e-12 * np.abs(gaps).sum()).mean())
    generator = np.random.default_rng(seed)
    drawn = [np.abs(generator.choice((-1.0, 1.0), (100, len(gaps))) @ gaps) for _ in range(DRAWS // 100)]
    return (1 + int((np.concatenate(drawn) >= abs(gaps.sum()) - 1e-9 * np.abs(gaps).sum()).sum())) / (DRAWS + 1)


def _bootstrap_means(values: Array, seed: int) -> Array:
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=(100, len(values)))].mean(1) for _ in range(DRAWS // 100)]
    return np.concatenate(means)


def _expanded(n: int) -> tuple[float, float]:
    """The quantiles of the bootstrap that hold the level for few cases.

    Source: Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, section 3.3 (expanded percentile).
    """
    reach = math.sqrt(n / (n - 1)) * float(stats.t.ppf(0.5 + LEVEL / 2, n - 1))
    low = float(stats.norm.cdf(-reach))
    return low, 1 - low


def _add_runs(
    of_runs: tuple[Sequence[float], Sequence[float]], errors: list[float], freedom: list[float], same_seeds: bool
) -> None:
    """Add the variance that training seeds bring, for each model with more than one run, or of their differences."""
    if same_seeds:
        of_runs = [a - b for a, b in zip(*of_runs, strict=True)], []
    for values in of_runs:
        if len(values) > 1:
            errors.append(float(np.var(values, ddof=1)) / len(values))
            freedom.append(len(values) - 1.0)


def _by_t(value: float, errors: Sequence[float], freedom: Sequence[float], spread: float) -> Estimate:
    """Student's t with Welch's and Satterthwaite's degrees of freedom for a sum of variances."""
    variance = sum(errors)
    effect = value / spread if spread > 0 else math.nan
    if variance == 0 and value == 0:
        return Estimate(0.0, 0.0, 0.0, 1.0, 0.0, effect)
    if not (math.isfinite(value) and math.isfinite(variance) and variance > 0):
        return Estimate(value, math.nan, math.nan)  # no spread to judge by
    degrees = variance**2 / sum(e**2 / f for e, f in zip(errors, freedom, strict=True))
    error = math.sqrt(variance)
    reach = float(stats.t.ppf(0.5 + LEVEL / 2, degrees)) * error
    p = 2 * float(stats.t.sf(abs(value) / error, degrees))
    return Estimate(value, value - reach, value + reach, p, error, effect)


def _mean(values: Sequence[float] | Array) -> float:
    return float(np.mean(values)) if len(values) else math.nan
