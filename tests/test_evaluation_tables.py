"""What an evaluation found as text: sentences that claim no more than the verdicts, a table for a terminal."""

import csv
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation_results import difference, estimate, make_results

from mldm_plugin.evaluation.conclusion import conclude, in_a_line
from mldm_plugin.evaluation.results import Measured, _needed, _too_few
from mldm_plugin.evaluation.statistics import paired_difference
from mldm_plugin.evaluation.tables import as_csv, as_markdown, as_text


@pytest.fixture
def results(tmp_path):
    """plain, and mldm, of which nothing is shown."""
    results = make_results(tmp_path, models=("plain", "mldm"))
    for metric in results["metrics"]:
        metric["differences"] = {"mldm": difference(0.05)}
    return results


def test_nothing_is_claimed_where_nothing_is_shown(results):
    [said] = in_a_line(results)
    assert said == "mldm against plain. Nothing is shown to differ (4 metrics)."


def test_what_is_better_and_what_is_worse_is_told_with_its_interval(results):
    likeness, sharp, *_ = results["metrics"]
    likeness |= {"name": "identity", "models": {name: {"value": v, "low": v, "high": v} for name, v in LIKENESS}}
    likeness["differences"]["mldm"] = difference(0.12, 0.025)
    sharp["differences"]["mldm"] = difference(-0.5, 0.1)
    better, worse, rest, once = conclude(results)["mldm"]
    assert better == (
        "Better: faces are nearer to the person (likeness 0.585 against 0.465, difference +0.095 to +0.145)."
    )
    assert worse.startswith("Worse: sharp of it (")
    assert worse.endswith("difference −0.60 to −0.40).".replace("−", "-"))
    assert rest == "Everything else is not shown to differ (2 metrics)."
    assert once == "One training each: another seed may come out otherwise."
    assert in_a_line(results)[0] in as_markdown(results)


def test_an_interval_that_leaves_out_zero_does_not_seem_to_reach_it(results):
    """Intervals of the values are wide, that of the difference is not: 0.164 against 0.164, +0.000 to +0.001."""
    error = results["metrics"][0]
    for name, value in (("plain", 0.16421), ("mldm", 0.16473)):
        error["models"][name] = {"value": value, "low": value - 0.02, "high": value + 0.02}
    error["differences"]["mldm"] = difference(0.0005, 0.0003)
    assert "0.1647 against 0.1642, difference +0.0002 to +0.0008" in conclude(results)["mldm"][0]
    error["differences"]["mldm"] = difference(0.0005, 0.00049999)
    assert "0.16473 against 0.16421, difference +0.00000 to +0.00100" in conclude(results)["mldm"][0]


LIKENESS = [("plain", 0.465), ("mldm", 0.585)]


def test_an_interval_that_leaves_out_zero_is_no_claim_without_its_verdict(results):
    """Holm's correction decides, not the interval alone."""
    results["metrics"][0]["differences"]["mldm"] = {**difference(0.5), "verdict": "not shown"}
    assert in_a_line(results) == ["mldm against plain. Nothing is shown to differ (4 metrics)."]


def test_a_judge_that_the_loss_trained_on_is_said(results):
    results["metrics"][0] |= {"trained_on": {"dlib_resnet": ["mldm"]}}
    results["metrics"][0]["differences"]["mldm"] = difference(0.5)
    assert "its judge is a network that the loss trained on" in conclude(results)["mldm"][0]


def test_many_are_told_by_title_and_several_seeds_need_no_warning(results):
    for metric in results["metrics"]:
        metric["differences"]["mldm"] = difference(0.5)
    results["models"][1]["runs"] *= 2
    [said] = conclude(results)["mldm"]
    assert said.endswith("and 1 more (one step error of it).")
    results["metrics"] = []
    assert conclude(results) == {"mldm": ["Nothing was measured of both."]}


def test_columns_stand_below_each_other_and_no_verdict_is_empty(results):
    results["metrics"][0]["title"] = "a title that is longer than all the others"
    results["metrics"][3] |= {"too_few": True, "cases": 2}
    table, few = as_text(results).rstrip().split("\n\n")
    head, *rows = table.splitlines()
    end = head.index("plain") + len("plain")
    assert len(rows) == 3
    assert all(row[end - 1].isdigit() and row[end] == " " for row in rows)
    assert all(row.endswith("  not shown") for row in rows)
    assert "|" not in table
    assert few == "too few to show anything, 2 photographs: one step error of it"


def test_every_value_stands_with_its_n_and_its_interval(tmp_path):
    """Of sets N is what was found in the pictures, not their number."""
    results = make_results(tmp_path, models=("plain", "mldm"))
    distance = results["metrics"][2] | {"models": {"plain": estimate(0.5), "mldm": estimate(0.7, None)}}
    results["metrics"] = [distance | {"rows": {"plain": 90, "mldm": 40}}, results["metrics"][0]]
    rows = list(csv.DictReader(io.StringIO(as_csv(results))))
    assert [(row["metric"], row["model"], row["cases"], row["n"]) for row in rows] == [
        *(("distance", "plain", "5", "90"), ("distance", "mldm", "5", "40")),
        *(("likeness", "plain", "5", "5"), ("likeness", "mldm", "5", "5")),
    ]
    assert [row["low"] for row in rows[:2]] == ["0.4", ""]
    sets, pictures = as_markdown(results).splitlines()[-2:]
    assert sets.startswith("| distance of it ↑ | 40–90 | 0.5 (0.4 to 0.6) | 0.7 | ")
    assert pictures.startswith("| likeness of it ↑ | 5 | ")


def test_each_model_has_a_table_and_one_alone_has_no_verdicts(tmp_path):
    assert as_text(make_results(tmp_path)).count("95 % interval") == 2
    alone = as_text(make_results(tmp_path, models=("only",)))
    assert re.search(r"likeness of it ↑  +\d\.\d+  \d\.\d+ to \d\.\d+\n", alone)
    assert "not shown" not in alone
    assert len(alone.splitlines()) == 5


@pytest.mark.parametrize(("cases", "too_few"), [(2, True), (5, True), (6, False), (12, False)])
def test_so_few_cases_that_no_difference_could_be_shown(cases, too_few):
    """2¹⁻ⁿ, the smallest p of n cases, lies below .05 from six on; with seeds of training the interval is another."""
    values = {name: np.arange(cases, dtype=float)[None] + k for k, name in enumerate(("plain", "mldm"))}
    gap = paired_difference(values["mldm"] + 1e-3 * values["plain"] ** 2, values["plain"])
    measured = Measured("a", "a", "larger", "one_step", (), values, {}, {"mldm": gap})
    one = [SimpleNamespace(runs=[0])] * 2
    assert _too_few(measured, cases, one) == too_few
    assert not _too_few(measured, cases, [SimpleNamespace(runs=[0, 1])] * 2)
    needed = _needed(gap, 1.0, 10, one)
    assert needed == (9 if cases < 9 else None), "with ten metrics fewer cases never show one"
