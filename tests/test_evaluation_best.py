"""The best of several evaluated steps, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mldm_plugin.evaluation.best import TITLES, best_of

N = 16


def values(**changes) -> dict:
    return {name: [1.0] * N for name in TITLES} | changes


def around(mean: float, spread: float = 0.01) -> list[float]:
    return (mean + spread * np.random.default_rng(0).standard_normal(N)).tolist()


def test_faces_decide_and_a_clear_difference_is_shown():
    steps = {s: values(one_step_face=around(m, 0.01 + s / 1e5)) for s, m in ((0, 0.9), (100, 0.3), (200, 0.5))}
    best = best_of(steps)
    assert (best.criterion, best.step, best.last, best.shown) == ("one_step_face", 100, 200, True)
    assert best.difference.value == pytest.approx(-0.2, abs=0.01)
    assert best.p == pytest.approx(2 / 10001)  # no flip of signs of 10 000 reached it; two steps could have been better
    assert "step 100 is the best by face distance" in best.in_words()
    assert "; better than the last, step 200: -0.2" in best.in_words()


def test_the_best_of_many_has_to_be_clearer():
    """The same difference, found among two steps and among two hundred."""
    random = np.random.default_rng(1)
    last = around(0.5)
    good = [value - 0.01 + 0.015 * random.standard_normal() for value in last]
    few = best_of({1: values(one_step_face=good), 2: values(one_step_face=last)})
    others = {step: values(one_step_face=[0.6] * N) for step in range(10, 210)}
    many = best_of({1: values(one_step_face=good), **others, 300: values(one_step_face=last)})
    assert few.shown
    assert many.step == few.step == 1
    assert many.difference == few.difference
    assert not many.shown
    assert "not shown to be better" in many.in_words()


@pytest.mark.parametrize(
    ("faces", "people", "criterion"),
    [(N // 2, N, "one_step_face"), (N // 2 - 1, N, "one_step_lpips_person"), (0, 7, "one_step_error")],
)
def test_what_decides_is_what_half_of_the_photographs_have(faces, people, criterion):
    def there(n: int) -> list:
        return [1.0] * n + [None] * (N - n)

    assert best_of({1: values(one_step_face=there(faces), one_step_lpips_person=there(people))}).criterion == criterion


def test_what_is_not_finite_is_never_the_best():
    broken = [0.0] * (N - 1) + [math.nan]
    steps = {1: values(one_step_face=around(0.5)), 2: values(one_step_face=broken)}
    assert best_of(steps).step == 1
    assert best_of(steps).in_words().endswith("step 2, the last, was not finite")
    assert not best_of(steps).shown
    assert best_of({1: {name: [math.nan] * N for name in TITLES}}) is None
    assert best_of({}) is None


def test_the_network_before_training_may_be_the_best():
    best = best_of({0: values(one_step_face=around(0.1)), 5: values(one_step_face=around(0.4))})
    assert best.in_words().startswith("the network before training is the best by face distance of x̂₀")
