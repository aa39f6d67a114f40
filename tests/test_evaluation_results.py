"""What metrics.json says of a metric: verdicts after correction, how many cases are needed, what is too few."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mldm_plugin.evaluation import statistics
from mldm_plugin.evaluation.cases import Case
from mldm_plugin.evaluation.cautions import _hints, _small_sets, _too_few
from mldm_plugin.evaluation.measuring import Metrics
from mldm_plugin.evaluation.models import Model, Run
from mldm_plugin.evaluation.results import Measured, _rows
from mldm_plugin.evaluation.statistics import Estimate, fewest, least_p, paired_difference, set_difference

TRIALS = 200
TWO = [Model("plain", [Run("a", "pictures")]), Model("mldm", [Run("b", "pictures")])]


def measured(name, gap, cases=50, **more):
    """A metric of two models with a difference."""
    given = {"title": name, "better": "larger", "kind": "picture", "networks": (), **more}
    values = {model.name: np.zeros((1, cases)) for model in TWO}
    estimates = {model.name: Estimate(0, -1, 1) for model in TWO}
    return Measured(name, values=values, estimates=estimates, differences={"mldm": gap}, **given)


def gap(p, cases=50):
    """A difference of 1 whose interval leaves out 0."""
    return Estimate(1, 0.1, 1.9, p, 0.45, 0.3, cases)


def test_a_verdict_needs_holms_correction_too():
    """Of p .01, .02 and .04 Holm leaves .03, .04 and .04; of .04 alone in three with .3 and .5 it leaves .12."""
    shown = _rows([measured(str(p), gap(p)) for p in (0.04, 0.01, 0.02)], TWO)
    found = [row["differences"]["mldm"] for row in shown]
    assert [one["p_holm"] for one in found] == pytest.approx([0.04, 0.03, 0.04])
    assert {one["verdict"] for one in found} == {"better"}
    hidden = _rows([measured(str(p), gap(p)) for p in (0.3, 0.04, 0.5)], TWO)[1]["differences"]["mldm"]
    assert hidden["p_holm"] == pytest.approx(0.12)
    assert (hidden["p"], hidden["verdict"]) == (0.04, "not shown")
    assert hidden["needed"] > 50


def compared(kind, cases, least=None):
    """A metric of a kind, paired, whose p is bounded by the number of its cases."""
    least = least_p(cases) if least is None else least
    return measured(f"{kind}{cases}", Estimate(1, 0, 2, 0.5, 1, 1, cases, least), cases, kind=kind)


def test_prompts_and_photographs_are_counted_by_themselves():
    """Ten metrics need 9 cases. Without prompts (--checkpoints) nobody speaks of prompts."""
    pictures, once = [compared("picture", 12)] * 8, [compared("one_step", 2)] * 2
    [(strong, reason)] = _too_few(pictures + once)
    assert strong == "Too few photographs to show any difference."
    assert reason.startswith("The smallest p-value of 2 is 0.5; of 10 metrics one must be below 0.005.")
    assert "Look in one step at 9 or more" in reason
    assert reason.endswith("corrected as if these metrics were not there.")
    assert _too_few([compared("picture", 8)] * 6 + once) == _too_few(once * 4), "six metrics need 8, and eight do, too"
    [(_, reason)] = _too_few([compared("picture", 7)] * 6)
    assert "of 6 metrics one must be below 0.0083. Draw 8" in reason
    assert "as if" not in reason
    assert [strong.split()[2] for strong, _ in _too_few([compared("picture", 5), *once])] == ["prompts", "photographs"]
    assert _too_few([compared("one_step", 40)]) == []
    assert _too_few([compared("picture", 2, least=0.0)]) == [], "with training seeds p has no such bound"
    assert _too_few([measured("a", Estimate(1, 0, 2, cases=2), kind="set")]) == []


def test_sets_are_small_by_what_was_found_in_pictures():
    """Of 300 pictures with 90 and 40 faces a distance of faces that asks for 50 has too few."""
    faces = Measured("kd", "KD of faces", "smaller", "set", (), {}, {}, {}, {"plain": 90, "mldm": 40})
    metrics = Metrics({"kd": SimpleNamespace(least=50)})
    assert _small_sets(metrics, [faces])[0][1].startswith("There are fewer than wanted for KD of faces (40 of 50).")
    assert _small_sets(Metrics({"kd": SimpleNamespace(least=40)}), [faces]) == []
    assert _small_sets(Metrics({"kd": SimpleNamespace()}), [faces]) == []


def test_a_controlnet_that_saw_black_hints_is_named():
    def told(hint, row=0):
        seen = SimpleNamespace(look=lambda row: SimpleNamespace(conditioning_pixel_values=hint))
        pose = Model("pose", [Run("nowhere", "controlnet", "base")])
        return _hints(SimpleNamespace(photographs=seen, cases=[Case("0", "a man", 1, row=row)], models=[*TWO, pose]))

    assert told(torch.ones(3, 8, 8)) == []
    for [(strong, reason)] in (told(None), told(torch.ones(3, 8, 8), row=None)):
        assert strong == "pose drew from black hints."
        assert "--data" in reason


def test_a_distance_of_sets_says_how_many_prompts_would_show_it():
    """The jackknife is over prompts, and its t has no smallest p: no number of prompts is asked for by itself."""
    noise = np.random.default_rng(1).normal(0, 1, 20)
    values = (noise - noise.mean()) / noise.std(ddof=1) + 0.2
    gap = set_difference(lambda _, some: values[some].mean(), lambda _, some: 0.0, (1, 1), 20)
    [row] = _rows([Measured("d", "d", "larger", "set", (), {}, {"plain": gap}, {"mldm": gap}, {"plain": 38})], TWO)
    assert row["cases"] == 20
    assert row["rows"] == {"plain": 38}
    assert row["differences"]["mldm"]["needed"] == pytest.approx((2.8016 / 0.2) ** 2, abs=1)
    sure = Estimate(1, -0.1, 2.1, 0.06, 1e-9, cases=1, least_p=0.5)
    ten = [measured(str(k), sure, 1) for k in range(10)]
    assert _rows(ten, TWO)[0]["differences"]["mldm"]["needed"] == fewest(10) == 9


def test_the_smallest_p_is_that_of_the_clearest_difference():
    for cases in (2, 5, 6, 12, 13):
        clear = paired_difference(np.arange(1.0, cases + 1)[None], np.zeros((1, cases)))
        assert clear.p == pytest.approx(clear.least_p) if cases < 13 else clear.p > clear.least_p
    assert paired_difference(np.ones((2, 5)), np.zeros((2, 5))).least_p == 0


def test_what_can_never_be_shown_costs_the_others_nothing():
    """Five cases have p ≥ 1/16: with six such metrics beside it a p of .03 is still corrected for one metric alone."""
    dead = [measured(str(k), Estimate(1, 0.1, 2, 1 / 16, 1, 1, 5, least_p(5)), 5) for k in range(6)]
    rows = _rows([measured("alive", gap(0.03)), *dead], TWO)
    alive, *others = (row["differences"]["mldm"] for row in rows)
    assert (alive["p_holm"], alive["verdict"]) == (0.03, "better")
    assert all(np.isnan(one["p_holm"]) and one["verdict"] == "not shown" for one in others)
    able = [measured(str(k), Estimate(1, 0.1, 2, 1 / 16, 1, 1, 6, least_p(6)), 6) for k in range(6)]
    assert _rows([measured("alive", gap(0.03)), *able], TWO)[0]["differences"]["mldm"]["verdict"] == "not shown"


def test_who_is_left_out_does_not_depend_on_what_was_measured(monkeypatch):
    """Of models that differ by noise alone some metric is called better or worse in 5 % of evaluations at most."""
    monkeypatch.setattr(statistics, "DRAWS", 200)  # of the intervals; so few cases have all their flips
    generator, alarms, left_out = np.random.default_rng(11), 0, set()
    for _ in range(TRIALS):
        arrays = [generator.gamma(1, 1, (2, 1, cases)) for cases in (7, 8, 9, 10, 2, 3, 4, 5)]
        gaps = [paired_difference(*pair) for pair in arrays]
        rows = _rows([measured(str(k), one, one.cases) for k, one in enumerate(gaps)], TWO)
        found = [row["differences"]["mldm"] for row in rows]
        alarms += any(one["verdict"] != "not shown" for one in found)
        left_out.add(tuple(bool(np.isnan(one["p_holm"])) for one in found))
    assert left_out == {(False,) * 4 + (True,) * 4}
    assert alarms / TRIALS <= 0.08
