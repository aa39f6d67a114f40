"""What metrics.json says of a metric: verdicts after correction, judges that a loss trained on, how many are needed."""

import numpy as np
import pytest

from mldm_plugin.evaluation.models import Model, Run
from mldm_plugin.evaluation.results import Measured, _rows
from mldm_plugin.evaluation.statistics import Estimate

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
