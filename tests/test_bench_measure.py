"""Candidates take turns, and what goes wrong in one stays with it."""

import pytest
import torch

from mldm_plugin.bench.measure import Case, Quartiles, measure
from mldm_plugin.bench.rows import rows_of

CPU = torch.device("cpu")


def cases(log, names="abc"):
    return [Case(name, "none", None, lambda name=name: log.append(name)) for name in names]


def test_they_take_turns_and_another_begins_each_round():
    log = []
    measured = cases(log)
    assert measure(measured, 3, CPU, "test")
    weighed, rounds = log[:3], [log[i : i + 3] for i in (3, 6, 9)]
    assert weighed == list("abc")
    assert rounds == [list("abc"), list("bca"), list("cab")]
    assert all(len(case.seconds) == 3 for case in measured)


def test_memory_and_operations_are_those_of_one_run():
    a, b = torch.randn(100, 50), torch.randn(50, 80)
    case = Case("product", "none", None, lambda: a @ b)
    measure([case], 1, CPU, "test")
    assert case.peak_bytes == 100 * 80 * 4
    assert case.tflop == pytest.approx(2 * 100 * 50 * 80 / 1e12)


def test_ctrl_c_leaves_what_there_is():
    log = []

    def interrupted():
        log.append("c")
        if len(log) == 6:  # once to weigh, once in the first round, then in the second
            raise KeyboardInterrupt

    measured = [*cases(log, "ab"), Case("c", "none", None, interrupted)]
    assert not measure(measured, 5, CPU, "test")
    assert [len(case.seconds) for case in measured] == [1, 1, 0]
    assert [row.expected(1, 100) is not None for row in rows_of(measured)] == [True, True, False]


def test_out_of_memory_is_a_fault_of_one_candidate():
    log = []

    def too_large():
        log.append("large")
        raise torch.OutOfMemoryError

    measured = [*cases(log, "a"), Case("large", "none", None, too_large)]
    assert measure(measured, 2, CPU, "test")
    assert measured[1].fault == "out of memory"
    assert log.count("large") == 1
    assert len(measured[0].seconds) == 2
    assert rows_of(measured)[1].fault == "out of memory"


def test_quartiles():
    assert Quartiles.of([1, 2, 3, 4, 5]) == Quartiles(2, 3, 4)
    assert Quartiles.of([7]) == Quartiles(7, 7, 7)
    assert Quartiles.of([]) is None
