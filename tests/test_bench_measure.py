"""The mean step; candidates that take turns, where what goes wrong in one stays with it; the ratios that follow."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mldm_plugin.bench.candidates import CACHED, EVERYTHING, MEASURED, OURS, PLAIN
from mldm_plugin.bench.goals import GOALS, judge
from mldm_plugin.bench.measure import Candidate, gated_numbers, mean_cost, measure

CPU = torch.device("cpu")


def test_the_mean_step_by_hand():
    # p = 0.101; (1-p)² · 10 + 2p(1-p) · 14 + p² · 20 = 8.08201 + 2.542372 + 0.20402
    assert mean_cost({0: 10, 1: 14, 2: 20}, 2, 100, "each image") == pytest.approx(10.828402)
    assert mean_cost({0: 10, 2: 20}, 2, 100, "whole batch") == pytest.approx(0.899 * 10 + 0.101 * 20)
    assert mean_cost({1: 7}, 8, 100, "none") == 7


def test_between_measured_numbers_it_is_a_straight_line():
    measured = {0: 1.0, 1: 2.0, 2: 3.0, 4: 5.0, 8: 9.0}
    assert mean_cost(measured, 8, 400, "each image") == pytest.approx(1 + 8 * 0.401)


@given(st.lists(st.floats(0, 100), min_size=4, max_size=4), st.integers(0, 999))
def test_it_is_the_mean_over_all_batches(costs, max_timestep):
    p = (max_timestep + 1) / 1000
    by_hand = sum(
        p ** sum(batch) * (1 - p) ** (3 - sum(batch)) * costs[sum(batch)]
        for batch in itertools.product((0, 1), repeat=3)
    )
    assert mean_cost(dict(enumerate(costs)), 3, max_timestep, "each image") == pytest.approx(by_hand)


def test_what_is_missing_is_not_made_up():
    assert mean_cost({0: 1.0}, 4, 100, "each image") is None
    assert mean_cost({4: 1.0}, 4, 100, "whole batch") is None
    assert mean_cost({}, 4, 100, "none") is None


@pytest.mark.parametrize(
    ("n", "gate", "expected"),
    [(8, "each image", [0, 1, 2, 4, 8]), (2, "each image", [0, 1, 2]), (1, "whole batch", [0, 1]), (4, "none", [1])],
)
def test_gated_numbers(n, gate, expected):
    assert gated_numbers(n, gate) == expected


def noting(log, names="abc"):
    return [Candidate(name, "none", {1: lambda name=name: log.append(name)}) for name in names]


def test_they_take_turns_and_another_begins_each_round():
    log = []
    measured = noting(log)
    assert measure(measured, 3, CPU, "test")
    assert ["".join(log[i : i + 3]) for i in (0, 3, 6, 9)] == ["abc", "abc", "bca", "cab"]  # the first is weighed
    assert all(len(candidate.seconds[1]) == 3 for candidate in measured)


def test_memory_and_operations_are_those_of_one_run():
    a, b = torch.randn(100, 50), torch.randn(50, 80)
    product = Candidate("product", "none", {1: lambda: a @ b})
    measure([product], 1, CPU, "test")
    assert product.most_bytes == 100 * 80 * 4
    assert product.tflop[1] == pytest.approx(2 * 100 * 50 * 80 / 1e12)


def test_ctrl_c_leaves_what_there_is():
    log = []

    def interrupted():
        log.append("c")
        if len(log) == 6:  # once to weigh, once in the first round, then in the second
            raise KeyboardInterrupt

    measured = [*noting(log, "ab"), Candidate("c", "none", {1: interrupted})]
    assert not measure(measured, 5, CPU, "test")
    assert [candidate.mean(1, 100) is not None for candidate in measured] == [True, True, False]


def test_out_of_memory_is_a_fault_of_one_number_of_images():
    log = []

    def too_large():
        log.append("large")
        raise torch.OutOfMemoryError

    large = Candidate("large", "each image", {0: lambda: None, 1: too_large})
    measured = [*noting(log, "a"), large]
    assert measure(measured, 2, CPU, "test")
    assert large.faults == {1: "out of memory"}
    assert log.count("large") == 1
    assert set(large.cost()) == {0}
    assert len(measured[0].seconds[1]) == 2


def test_the_spread_is_that_of_the_least_steady():
    candidate = Candidate("x", "each image", seconds={0: [1, 2, 3, 4, 5], 1: [7, 7]})
    assert candidate.spread == pytest.approx((4 - 2) / (2 * 3))
    assert candidate.cost() == {0: 3, 1: 7}
    assert Candidate("x", "none").spread == 0


def timed(name, gate, by_gated):
    return Candidate(name, gate, seconds={k: [s] for k, s in by_gated.items()}, tflop=dict.fromkeys(by_gated, 1.0))


def test_each_goal_holds_or_does_not():
    n = 8
    found = [
        timed(PLAIN, "none", {1: 1.0}),
        timed(OURS, "each image", {0: 1.0, n: 3.0}),  # 1 + 2 · 0.101 = 1.202 at T = 100, 1.802 at T = 400
        timed(OURS + CACHED, "each image", {0: 0.8, n: 2.8}),  # 1.002
        timed(EVERYTHING, "none", {1: 3.0}),  # 2.496
        timed(MEASURED, "each image", {n: 5.0}),  # 2 longer than ours with all gated, and a part of it with fewer
    ]
    closed = [timed(PLAIN, "none", {0: 0.001}), timed(OURS, "none", {0: 0.005})]
    goals = judge("step", found, n, timed=True, closed=closed, every=10)
    rare = [2 * p / (1 - (1 - p) ** n) / (10 * mean) for p, mean in ((0.101, 1.202), (0.401, 1.802))]
    assert [g.figure for g in goals] == pytest.approx([1.002, 1.202, 1.802, 3 / 1.202, 0.004, *rare])
    assert [g.holds for g in goals] == [False, True, False, True, True, False, False]
    assert [g.counted for g in goals] == pytest.approx([1.0, 1.0, 1.0, 1.0, None, None, None])


def test_a_goal_without_figures_is_open():
    assert [g.holds for g in judge("step", [], 8, timed=True)] == [None] * 7
    ours, all_ = (Candidate(name, "none", peak_bytes={1: size}) for name, size in ((OURS, 1), (EVERYTHING, 4)))
    assert [g.holds for n in (8, 4) for g in judge("pixels", [ours, all_], n, timed=True)] == [True, None]


def test_goals_are_told_apart_by_their_names():
    assert len({goal.name for goal in GOALS}) == len(GOALS)
