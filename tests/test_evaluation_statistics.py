"""Intervals hold what they promise, corrections are the textbook's, and nothing is claimed where little is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mldm_plugin.evaluation import statistics
from mldm_plugin.evaluation.statistics import (
    Estimate,
    holm,
    in_words,
    mean,
    needed,
    paired_difference,
    set_difference,
    unpaired_difference,
)

TRIALS = 200


def row(*values):
    return np.array([values], dtype=float)


def covers(estimate, truth=0.0):
    return estimate.low <= truth <= estimate.high


def test_a_mean_and_its_interval_are_near_students():
    values = np.random.default_rng(0).normal(3, 2, (1, 60))
    found, wanted = mean(values), stats.t.interval(0.95, 59, values.mean(), values.std(ddof=1) / 60**0.5)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(wanted, abs=0.06)


def test_a_paired_difference_takes_out_what_the_cases_have_in_common():
    generator = np.random.default_rng(1)
    hard = generator.normal(0, 10, 40)
    one, other = (hard + generator.normal(shift, 0.1, 40) for shift in (0.5, 0))
    paired, unpaired = (f(one[None], other[None]) for f in (paired_difference, unpaired_difference))
    assert paired.low > 0.4
    assert paired.high < 0.6
    assert paired.p < 0.001
    assert paired.effect > 3
    assert unpaired.holds_zero


def test_the_sign_flips_of_few_cases_are_all_looked_at():
    """Of the 2³ flips of (1, 2, 3) two are as far from 0 as their sum; no test of three cases can say less."""
    assert paired_difference(row(1, 2, 3), row(0, 0, 0)).p == pytest.approx(2 / 8)
    assert paired_difference(row(1, 2, -3), row(0, 0, 0)).p == 1


def test_many_cases_agree_with_the_t_test():
    gaps = np.random.default_rng(2).normal(0.25, 1, 80)
    found = paired_difference(gaps[None], np.zeros((1, 80)))
    assert found.p == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue, abs=0.01)


@pytest.mark.parametrize("cases", [8, 100])
def test_equal_models_are_seldom_told_apart(cases):
    """Two models that differ by noise alone: 5 % of false alarms, within what 200 trials can tell."""
    generator = np.random.default_rng(3)
    draws = [generator.gamma(2, 1, (3, 1, cases)) for _ in range(TRIALS)]
    hard, one, other = zip(*draws, strict=True)
    paired = [paired_difference(h + a, h + b) for h, a, b in zip(hard, one, other, strict=True)]
    unpaired = [unpaired_difference(a, b) for a, b in zip(one, other, strict=True)]
    for found in (paired, unpaired):
        assert np.mean([not covers(estimate) for estimate in found]) <= 0.08
        assert np.mean([estimate.p < 0.05 for estimate in found]) <= 0.08


def test_training_seeds_widen_an_interval():
    """Three seeds a model that differ among themselves: cases alone would be sure of a difference that is none."""
    generator = np.random.default_rng(4)
    alarms = {"seeds": 0, "cases": 0}
    for _ in range(TRIALS):
        one, other = (generator.normal(0, 1, (3, 1)) + generator.normal(0, 1, (3, 50)) for _ in range(2))
        alarms["seeds"] += not covers(paired_difference(one, other))
        alarms["cases"] += not covers(paired_difference(one.mean(0)[None], other.mean(0)[None]))
    assert alarms["seeds"] / TRIALS <= 0.08 < alarms["cases"] / TRIALS


@pytest.mark.parametrize("of_sets", [False, True])
def test_runs_of_the_same_seeds_are_paired(of_sets):
    """Seeds move both models alike: pairing finds the difference that is there, and is seldom wrong where none is."""
    generator = np.random.default_rng(9)

    def compare(shift, paired):
        seeds, hard = generator.normal(0, 1, (5, 1)), generator.normal(0, 1, (1, 40))
        one, other = (
            seeds + hard + generator.normal(m, 0.1, (5, 1)) + generator.normal(0, 0.1, (5, 40)) for m in (shift, 0)
        )
        if of_sets:
            return set_difference(of_means(one), of_means(other), (5, 5), 40, same_seeds=paired)
        return paired_difference(one, other, same_seeds=paired)

    found = {paired: sum(not covers(compare(0.5, paired)) for _ in range(40)) for paired in (False, True)}
    assert found[True] >= 38
    assert found[False] <= 10
    alarms = sum(not covers(compare(0, True)) for _ in range(TRIALS))
    assert alarms / TRIALS <= 0.08


def of_means(values):
    """The mean as if it were a statistic of sets."""
    return lambda run, cases: float(values[run, list(cases)].mean())


def test_the_jackknife_of_a_mean_is_the_standard_error():
    values = np.random.default_rng(5).normal(1, 1, (1, 20))  # as many groups as cases
    found = set_difference(of_means(values), None, (1, 0), 20)
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std(ddof=1) / 20**0.5)


def test_sets_of_equal_models_are_seldom_told_apart():
    generator = np.random.default_rng(6)
    alarms = 0
    for _ in range(TRIALS):
        one, other = generator.normal(0, 1, (2, 1, 60))
        alarms += not covers(set_difference(of_means(one), of_means(other), (1, 1), 60))
    assert alarms / TRIALS <= 0.08


def test_sets_of_disjoint_cases_are_seldom_told_apart():
    """Two folders whose pictures have different names: the groups that are left out hold some of both."""
    generator = np.random.default_rng(8)

    def of_some(values, there):
        return lambda run, cases: float(values[[c for c in cases if c in there]].mean())

    alarms = 0
    for _ in range(TRIALS):
        values, order = generator.normal(0, 1, 61), generator.permutation(61).tolist()
        halves = [of_some(values, set(part)) for part in (order[:30], order[30:])]
        alarms += not covers(set_difference(*halves, (1, 1), 61))
    assert alarms / TRIALS <= 0.08


@pytest.mark.parametrize("difference", [paired_difference, unpaired_difference])
def test_cases_in_which_nothing_is_asked_are_left_out(difference):
    found = difference(row(1, 2, math.nan, 4), row(0, 0, 0, math.nan))
    assert found.value == pytest.approx(1.5 if difference is paired_difference else 7 / 3)


@pytest.mark.parametrize("values", [row(), row(1)])
def test_too_few_cases_give_no_interval(values):
    for found in (mean(values), paired_difference(values, values), unpaired_difference(values, values)):
        assert math.isnan(found.low)
        assert found.holds_zero
    assert math.isnan(set_difference(lambda run, cases: 1.0, None, (1, 0), 3).low)


def test_no_spread_is_no_interval_around_nothing():
    found = paired_difference(row(1, 1, 1), row(1, 1, 1))
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.holds_zero


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_makes_a_p_smaller_and_keeps_their_order(p_values):
    corrected = holm(p_values)
    assert all(c >= p for c, p in zip(corrected, p_values, strict=True))
    assert [c for _, c in sorted(zip(p_values, corrected, strict=True))] == sorted(corrected)


def test_holm_leaves_out_what_has_no_p():
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]  # 3 · .01, then 2 · .03, then no less than that
    found = holm([0.01, math.nan, 0.04])
    assert found[0] == 0.02
    assert math.isnan(found[1])
    assert found[2] == 0.04


@settings(max_examples=20, deadline=None)
@given(effect=st.floats(0.1, 1))
def test_the_number_of_cases_needed_is_that_of_the_textbook(effect):
    """n = ((1.96 + .84)/d)² for a paired difference of d standard deviations."""
    estimate = Estimate(effect, 0, 0, error=1 / 50**0.5)
    assert needed(estimate, 50) == math.ceil(round((1.959964 + 0.841621) ** 2 / effect**2, 6))
    assert needed(Estimate(0, 0, 0, error=1), 50) is None
    assert needed(estimate, 50, tests=20) > needed(estimate, 50)


def test_effects_in_words():
    assert [in_words(e) for e in (0.1, -0.3, 0.6, -2, math.nan)] == ["negligible", "small", "medium", "large", ""]


def test_the_same_values_give_the_same_interval():
    values = np.random.default_rng(7).normal(0, 1, (1, 30))
    assert mean(values) == mean(values.copy())
    assert statistics.DRAWS >= 10_000


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows_nothing(bad):
    """Neither in one leave-out of the jackknife nor in one training seed."""
    found = set_difference(lambda run, cases: bad if 3 not in cases else 1.0, None, (1, 0), 20)
    assert math.isnan(found.p)
    assert found.holds_zero
    seeds = paired_difference(np.array([[1.0, 2, 3], [bad, 2, 3]]), np.zeros((2, 3)))
    assert seeds.holds_zero


def test_no_spread_in_two_sets_shows_nothing():
    found = unpaired_difference(row(1, 1), row(2, 2))
    assert found.value == -1
    assert math.isnan(found.p)
    assert found.holds_zero


def test_flips_of_many_cases_know_equal_sums():
    """Four gaps of 170 are tenths and the others 0: of all flips one in eight is as far from 0."""
    gaps = np.zeros((1, 170))
    gaps[0, :4] = (0.1, 0.2, 0.3, 0.4)
    assert paired_difference(gaps, np.zeros((1, 170))).p == pytest.approx(0.125, abs=0.02)
