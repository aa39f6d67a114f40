"""What the study says of its claims, on measurements made by hand."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import stats
from weights_entries import needs_weights

from mldm_plugin import load_plugins
from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.judges import LOSS_NETWORKS
from mldm_plugin.evaluation.notes import Notes
from mldm_plugin.evaluation.one_step import TIMESTEPS
from mldm_plugin.evaluation.quantities import QUANTITIES
from mldm_plugin.preset import load_preset
from mldm_plugin.reproduce.recipes import RECIPES
from mldm_plugin.reproduce.study import (
    CLAIMS,
    JUDGES,
    OTHER_JUDGES,
    Claim,
    Study,
    corrected,
    is_refuted,
    texture,
    verdict,
)

SEEDS, CASES = 3, 24
SHIFTS = {"plain": 0.0, "better": -0.5, "same": 0.0}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Three arms of three seeds: `better` is nearer to the photographs in one step and in faces, `same` is not."""
    folder, dice = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    hard, seeds = dice.normal(5, 1, (CASES, len(TIMESTEPS))), dice.normal(0, 1, SEEDS)
    real = Notes(folder / "measured" / "photographs")
    for row in range(CASES):
        real.add((f"{row:05d}", 0), {"kd_face@0": dice.normal(0, 1, (1, 8))})
    for arm, shift in SHIFTS.items():
        for seed in range(SEEDS):
            once, drawn = (Notes(folder / kind / arm / str(seed)) for kind in ("one_step", "measured"))
            for row in range(CASES):
                key = (f"{row:05d}", 0)
                values = hard[row] + seeds[seed] + shift + dice.normal(0, 0.1, len(TIMESTEPS))
                named = {f"{q.name}@{t}": v for q in QUANTITIES for t, v in zip(TIMESTEPS, values, strict=True)}
                once.add(key, named | {f"one_step_face@{TIMESTEPS[0]}": None} if row == 0 else named)
                faces = dice.normal(3 + 2 * shift, 1, (1, 8))
                drawn.add(key, {"attributes@1f": float(dice.random() < 0.7), "kd_face@0": faces})
                path = folder / "pictures" / arm / str(seed) / f"{key[0]}-0.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                blurred = ImageFilter.GaussianBlur(2 if arm == "better" else 0)
                noise = dice.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(noise).filter(blurred).save(path)
    results = {
        "models": [{"name": arm, "runs": [0] * SEEDS} for arm in SHIFTS],
        "cases": [{"key": f"{row:05d}"} for row in range(CASES)],
        "sampling": {"repetitions": 1},
        "metrics": [
            *({"name": q.name, "kind": "one_step"} for q in QUANTITIES),
            {"name": "attributes", "kind": "picture"},
            {"name": "kd_face", "kind": "set"},
        ],
    }
    (folder / "metrics.json").write_text(json.dumps(results))
    return folder


def study(report, *claims):
    return Study(report, load_plugins(["mldm_plugin.people_mini.metrics"]), claims)


@needs_weights("dlib_resnet")
def test_what_is_there_is_shown_and_what_is_not_is_not(report):
    claims = (
        Claim("A", "one_step_error", "better", "plain", "smaller"),
        Claim("B", "one_step_error", "better", "plain", "larger"),
        Claim("C", "one_step_error", "same", "plain", "equal"),
        Claim("D", "attributes", "better", "plain", "larger"),
        Claim("E", "kd_face", "better", "plain", "smaller"),
        Claim("F", "detail", "better", "plain", "smaller"),
        Claim("G", "slope", "better", "plain", "smaller"),
    )
    found = json.loads(study(report, *claims).write().read_text())
    said = {one["hypothesis"]: one["verdict"] for one in found["claims"]}
    assert said == {
        **dict.fromkeys("AEFG", "shown"),
        "B": "the opposite is shown",
        "C": "no difference is shown",
        "D": "not shown",
    }
    first = found["claims"][0]
    assert first["value"] == pytest.approx(-0.5, abs=0.05)
    reach = stats.t.ppf(1 - 0.025 / len(claims), 2) + stats.t.ppf(0.8, 2)
    assert first["detectable"] == pytest.approx(first["error"] * reach, rel=1e-4)
    assert [one["hypothesis"] for one in found["claims"] if one["refuted"]] == ["B"]
    assert first["p_holm"] >= first["p"]
    assert set(found["arms"]) == set(SHIFTS)
    assert len(found["arms"]["plain"]["metrics"]["kd_face"]["seeds"]) == SEEDS
    assert np.array(found["arms"]["plain"]["curves"]["one_step_error"]).shape == (SEEDS, len(TIMESTEPS))


def test_claims_of_studies_that_are_not_done_count_as_if_they_showed_nothing():
    """Smallest p times the number of all claims, and a smaller level for what could be seen."""
    bare = {"p": 0.004, "error": 1.0, "freedom": 4, "value": -1.0, "low": -2.0, "high": -0.5}
    bare |= {"predicted": "smaller", "refuted_by": None}
    alone, among = (corrected([dict(bare), {**bare, "p": 0.03}], pending=n) for n in (0, 11))
    assert [one["p_holm"] for one in alone] == pytest.approx([0.008, 0.03])
    assert [one["p_holm"] for one in among] == pytest.approx([13 * 0.004, 12 * 0.03])
    assert [one["verdict"] for one in (*alone, *among)] == ["shown", "shown", "not shown", "not shown"]
    assert among[0]["detectable"] == pytest.approx(stats.t.ppf(1 - 0.025 / 13, 4) + stats.t.ppf(0.8, 4))


def test_seeds_are_paired(report):
    """Seeds move all arms by ±1, ten times what is left when they are paired."""
    found = study(report, Claim("A", "one_step_error", "better", "plain", "smaller")).judge(
        Claim("A", "one_step_error", "better", "plain", "smaller")
    )
    assert found["error"] < 0.05


def test_a_photograph_of_which_nothing_is_known_is_left_out_of_both_arms(report):
    values = study(report).values("one_step_face", "plain")
    assert np.isnan(values[:, 0]).all()
    assert not np.isnan(values[:, 1:]).any()
    gap = study(report).difference("one_step_face", "better", "plain")
    assert gap.cases == CASES - 1
    assert math.isfinite(gap.low)


def test_claims_of_one_step_need_no_drawn_picture(report, tmp_path):
    """As in `mldm reproduce losses`, whose evaluation draws none."""
    shutil.copytree(report / "one_step", tmp_path / "one_step")
    results = json.loads((report / "metrics.json").read_text())
    measured = [metric for metric in results["metrics"] if metric["kind"] == "one_step"]
    (tmp_path / "metrics.json").write_text(json.dumps({**results, "cases": [], "metrics": measured}))
    claim = Claim("L", "one_step_error_person", "better", "plain", "smaller")
    found = json.loads(study(tmp_path, claim).write().read_text())
    [said] = found["claims"]
    assert (said["verdict"], said["cases"], said["freedom"]) == ("shown", CASES, SEEDS - 1)
    assert found["arms"]["plain"]["metrics"].keys() == {quantity.name for quantity in QUANTITIES}


def test_the_claims_of_single_losses_are_the_protocols():
    """One for each loss against the plain loss, in the words of its section."""
    words = {
        "one_step_lpips_person": "has a smaller LPIPS on people (`one_step_lpips_person`)",
        "one_step_face": "a smaller face distance (`one_step_face`)",
        "one_step_error_person": "a smaller error of ε on people (`one_step_error_person`)",
    }
    page = (Path(__file__).parent.parent / "docs" / "evidence_protocol.md").read_text(encoding="utf-8")
    section = " ".join(page.partition("## Single losses")[2].partition("\n## ")[0].split())
    claims = CLAIMS["losses"]
    assert [claim.arm for claim in claims] == [arm.name for arm in RECIPES["losses"].arms[1:]]
    assert {(claim.against, claim.predicted) for claim in claims} == {("plain", "smaller")}
    for claim in claims[:3]:
        assert f"`{claim.arm}` {words[claim.metric]}" in section
    assert "`keypoints` a smaller LPIPS on people" in section
    assert claims[3].metric == "one_step_lpips_person"
    assert f"Holm's correction over the {['', 'one', 'two', 'three', 'four'][len(claims)]}" in section


def test_a_claim_about_what_was_not_measured_is_an_error(report):
    with pytest.raises(MldmError, match="cannot say anything of.*hands_found"):
        study(report, Claim("H", "hands_found", "better", "plain", "larger")).write()


@pytest.mark.parametrize(
    ("low", "high", "predicted", "by", "refuted"),
    [
        (1, 2, "smaller", None, True),
        (-2, -1, "smaller", None, False),
        (-2, -1, "larger", None, True),
        (-1, 1, "larger", None, False),
        (-2, -1, "equal", "smaller", True),
        (1, 2, "equal", "smaller", False),
        (math.nan, math.nan, "smaller", None, False),
    ],
)
def test_what_refutes(low, high, predicted, by, refuted):
    assert is_refuted({"low": low, "high": high, "predicted": predicted, "refuted_by": by}) is refuted


def test_other_judges_than_the_protocols_are_refused(report, tmp_path):
    mark = tmp_path / "one_step" / "plain" / "0" / "made.json"
    mark.parent.mkdir(parents=True)
    mark.write_text(json.dumps({"judges": {"face": "dlib_resnet", "lpips": "alex"}}))
    (tmp_path / "metrics.json").write_text((report / "metrics.json").read_text())
    with pytest.raises(MldmError, match="was judged by.*dlib_resnet.*expected.*faceres"):
        study(tmp_path)


@pytest.mark.parametrize(
    ("low", "high", "p", "predicted", "said"),
    [
        (-2, -1, 0.01, "smaller", "shown"),
        (1, 2, 0.01, "smaller", "the opposite is shown"),
        (-2, -1, 0.06, "smaller", "not shown"),
        (-1, 1, 0.01, "larger", "not shown"),
        (-2, -1, 0.01, "equal", "a difference is shown"),
        (-1, 1, 0.9, "equal", "no difference is shown"),
        (math.nan, math.nan, math.nan, "larger", "not shown"),
    ],
)
def test_verdicts(low, high, p, predicted, said):
    found = {"low": low, "high": high, "value": (low + high) / 2, "p_holm": p, "predicted": predicted}
    assert verdict(found) == said


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_is_about_arms_of_its_recipe(name):
    arms = {arm.name for arm in RECIPES[name].arms}
    assert {arm for claim in CLAIMS[name] for arm in (claim.arm, claim.against)} <= arms


@pytest.mark.parametrize("name", CLAIMS)
def test_no_judge_is_a_network_that_an_arm_was_trained_with(name):
    judges = OTHER_JUDGES.get(name, JUDGES)
    for arm in (arm for arm in RECIPES[name].arms if arm.preset is not None):
        losses = load_preset(arm.preset, arm.sets).losses
        if "masked_lpips" in losses:
            assert losses["masked_lpips"].options.get("network", "vgg") != judges["lpips"]
        for face in losses.keys() & {"face", "identity"}:
            assert losses[face].options.get("network", LOSS_NETWORKS[face]) != judges["face"]


def test_texture_of_noise_and_of_its_blur(tmp_path):
    dice = torch.Generator().manual_seed(0)
    grey = torch.randint(0, 256, (64, 64), generator=dice).byte().numpy()
    Image.fromarray(grey).convert("RGB").save(tmp_path / "noise.png")
    Image.fromarray(grey).filter(ImageFilter.GaussianBlur(1.5)).convert("RGB").save(tmp_path / "blur.png")
    noise, blur = texture(tmp_path / "noise.png"), texture(tmp_path / "blur.png")
    assert blur[0] < noise[0] - 4
    assert abs(noise[1]) < 0.3, "white noise has the same power at every frequency"
    assert blur[1] < noise[1] - 1
