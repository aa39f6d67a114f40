"""What docs/estimates.md says of the clean estimates is what docs/estimates.json holds."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from mldm_plugin.engine.direct import part_of_error
from mldm_plugin.evaluation.one_step import training_schedule
from mldm_plugin.people_mini import PIPELINE

DOCS = Path(__file__).parent.parent / "docs"
FOUND = json.loads((DOCS / "estimates.json").read_text(encoding="utf-8"))
BY_T = FOUND["by_t"]
PAGE = (DOCS / "estimates.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("estimates", DOCS / "estimates.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def said(pattern):
    """The numbers that a pattern's groups catch in the page, its line breaks aside."""
    found = re.search(pattern, re.sub(r"\s+", " ", PAGE))
    assert found, f"docs/estimates.md does not say {pattern}"
    return [float(number) for number in found.groups()]


def ratios(name):
    """Of the distance to the sampled picture beside one answer's, at each t."""
    return [at[name]["lpips"] / at["one_step"]["lpips"] for at in BY_T.values()]


def test_the_table_is_that_of_the_measurements(script):
    [written] = re.findall(r"<!-- table -->\n(.*?)<!-- end -->", PAGE, re.S)
    assert written.strip() == script.table(FOUND)
    assert list(BY_T) == [str(t) for t in script.TIMESTEPS]
    assert FOUND["pictures"] == 12
    assert "twelve drawings" in PAGE


def test_what_is_said_of_one_answer_and_of_more():
    assert said(r"as good as sampling: (\.\d+)\.") == [round(BY_T["100"]["one_step"]["lpips"], 3)]
    lost = r"has lost (\.\d+) octaves of detail .* loses (\.\d+); at 800, (\.\d+) and ([\d.]+\d)\."
    numbers = said(rf"At 400 it is (\.\d+) apart and {lost}")
    at_400, at_800 = BY_T["400"], BY_T["800"]
    measured = [at_400["one_step"]["lpips"], at_400["one_step"]["blur"], at_400["sampled"]["blur"]]
    measured += [at_800["one_step"]["lpips"], at_800["one_step"]["blur"]]
    assert numbers == pytest.approx(measured, abs=0.006)
    assert "distance down to a third or less, four to a tenth or less, at every t" in " ".join(PAGE.split())
    assert max(ratios("ddim-2")) < 1 / 3
    assert max(ratios("ddim-4")) < 1 / 10


def test_what_is_said_of_the_noise_that_is_known(script):
    schedule = training_schedule(DDPMScheduler.from_pretrained(PIPELINE, subfolder="scheduler"))
    t = torch.tensor(script.TIMESTEPS)
    (alpha, sigma), (alpha_after, sigma_after) = (schedule.coefficients(at) for at in (t, t - 40))
    parts = part_of_error(alpha.flatten(), sigma.flatten(), alpha_after.flatten(), sigma_after.flatten())
    ends = [parts.min().item(), parts.max().item()]
    assert said(r"with ρ from (\.\d+) to (\.\d+) at these t") == pytest.approx(ends, abs=0.006)
    assert said(r"keeps the detail, \+(\.\d+) at t = 400") == [round(BY_T["400"]["direct-40"]["blur"], 2)]
    further = [of > 1 for of in ratios("direct-40")]
    assert further == [True, True, True, True, False], "up to t = 600"
    assert round(ratios("direct-40")[0]) == 8
    assert "further from the sampled picture than one answer is up to t = 600, eight times as far at 100" in PAGE
