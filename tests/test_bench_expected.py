"""The mean step, by hand and against counting every batch."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldm_plugin.bench.expected import expected_cost, measured_gates


def test_by_hand():
    # p = 0.101; (1-p)² · 10 + 2p(1-p) · 14 + p² · 20 = 8.08201 + 2.542372 + 0.20402
    assert expected_cost({0: 10, 1: 14, 2: 20}, 2, 100, "each image") == pytest.approx(10.828402)
    assert expected_cost({0: 10, 2: 20}, 2, 100, "whole batch") == pytest.approx(0.899 * 10 + 0.101 * 20)
    assert expected_cost({1: 7}, 8, 100, "none") == 7


def test_between_measured_numbers_it_is_a_straight_line():
    measured = {0: 1.0, 1: 2.0, 2: 3.0, 4: 5.0, 8: 9.0}
    every = {k: 1.0 + k for k in range(9)}
    assert expected_cost(measured, 8, 400, "each image") == pytest.approx(1 + 8 * 0.401)
    assert expected_cost(every, 8, 400, "each image") == pytest.approx(1 + 8 * 0.401)


@given(st.lists(st.floats(0, 100), min_size=4, max_size=4), st.integers(0, 999))
def test_it_is_the_mean_over_all_batches(costs, max_timestep):
    p = (max_timestep + 1) / 1000
    by_hand = sum(
        p ** sum(batch) * (1 - p) ** (3 - sum(batch)) * costs[sum(batch)]
        for batch in itertools.product((0, 1), repeat=3)
    )
    assert expected_cost(dict(enumerate(costs)), 3, max_timestep, "each image") == pytest.approx(by_hand)


def test_what_is_missing_is_not_made_up():
    assert expected_cost({0: 1.0}, 4, 100, "each image") is None
    assert expected_cost({4: 1.0}, 4, 100, "whole batch") is None
    assert expected_cost({}, 4, 100, "none") is None


@pytest.mark.parametrize(
    ("n", "gate", "expected"),
    [(8, "each image", [0, 1, 2, 4, 8]), (2, "each image", [0, 1, 2]), (1, "whole batch", [0, 1]), (4, "none", [1])],
)
def test_measured_gates(n, gate, expected):
    assert measured_gates(n, gate) == expected
