"""What the documents say of the studies is what docs/evidence.json holds."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
ALL = json.loads((ROOT / "docs" / "evidence.json").read_text(encoding="utf-8"))
STUDY = ALL["gpu"]
PEOPLE = ("P009", "P010")
NOTHING = ("not shown", "no difference is shown")
IN_ONE_STEP = ("one_step_face", "one_step_lpips_person", "one_step_lpips_outside")
CLAIMS = {(one["hypothesis"], one["metric"]): one for one in STUDY["claims"]}


def said(page, pattern):
    """The numbers that a pattern's groups catch in a page, its line breaks aside."""
    text = re.sub(r"\s+", " ", (ROOT / page).read_text(encoding="utf-8"))
    found = re.search(pattern, text)
    assert found, f"{page} does not say {pattern}"
    return [float(number) for number in found.groups()]


def curve(quantity, arm):
    """Ratio to the plain loss at each timestep, of the means over seeds."""
    one, plain = (np.mean(STUDY["arms"][a]["curves"][quantity], axis=0) for a in (arm, "plain"))
    return one / plain


def test_the_readmes_table_is_that_of_the_study_of_likeness():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = {"plain": "plain loss", "plain_same_time": "plain loss, same time"}
    for arm, words in (*named.items(), ("masked_ldm", "with the two losses (Masked LDM)")):
        steps = (
            ALL["P009"]["equal_time"][arm]["steps"] if arm == "plain_same_time" else ALL["P009"]["settings"]["steps"]
        )
        values = [
            [ALL[who]["arms"][arm]["metrics"][m]["mean"] for who in PEOPLE] for m in ("identity", "one_step_face")
        ]
        cells = [", ".join(f"{value:.3f}".lstrip("0") for value in of_both) for of_both in values]
        assert f"| {words} | {steps} | {cells[0]} | {cells[1]} |" in readme


def test_what_is_said_of_likeness_holds():
    """In every training, at equal steps and at equal time; eight intervals, seven corrected; copying of the second."""
    for who in PEOPLE:
        seeds = {arm: ALL[who]["arms"][arm]["metrics"]["identity"]["seeds"] for arm in ALL[who]["arms"]}
        assert min(seeds["masked_ldm"]) > max(*seeds["plain"], *seeds["plain_same_time"])
        assert {len(of_arm) for of_arm in seeds.values()} == {5}
    claims = [one for who in PEOPLE for one in ALL[who]["claims"] if one["metric"] != "copying"]
    assert len(claims) == 8
    assert all(one["low"] > 0 if one["predicted"] == "larger" else one["high"] < 0 for one in claims)
    assert sum(one["verdict"] == "shown" for one in claims) == 7
    refuted = {(who, one["metric"]) for who in PEOPLE for one in ALL[who]["claims"] if one["refuted"]}
    assert refuted == {("P010", "copying")}
    seconds = ALL["P009"]["equal_time"]["plain_same_time"]["seconds_a_step"]
    assert said("docs/evidence.md", r"and ([\d.]+) times the time of a step\. Of") == [
        round(seconds[0] / seconds[1], 1)
    ]


def test_the_readme_says_how_much_nearer_faces_are():
    claim = CLAIMS["G3", "one_step_face"]
    shares = [-100 * claim[key] / claim["against_mean"] for key in ("value", "high", "low")]
    pattern = r"estimates ([\d.]+) % nearer \(95 %: ([\d.]+) to ([\d.]+) %\)"
    assert said("README.md", pattern) == [round(share, 1) for share in shares]


def test_what_is_called_shown_is_shown_and_nothing_else_is():
    shown = {(one["arm"], one["metric"]) for one in STUDY["claims"] if one["verdict"] != "not shown"}
    assert shown == {("t400", "one_step_face"), ("t400", "one_step_lpips_person")}
    assert all(CLAIMS[h, m]["verdict"] == "shown" for h in ("G3", "G4") for _, m in shown)


def test_the_page_says_where_the_curves_are_lowest():
    pattern = r"face distance falls by up to ([\d.]+) % and LPIPS on people by up to ([\d.]+) %"
    curves = [curve(quantity, "t400") for quantity in ("one_step_face", "one_step_lpips_person")]
    gated = [number for number, t in enumerate(STUDY["timesteps"]) if t <= 400]
    assert said("docs/evidence.md", pattern) == [round(100 * (1 - one[gated].min()), 1) for one in curves]
    pattern = r"error of ε rises by up to ([\d.]+) %"
    assert said("docs/evidence.md", pattern) == [round(100 * (curve("one_step_error", "t400").max() - 1), 1)]


@pytest.mark.parametrize("quantity", ["one_step_lpips_outside", "one_step_blur_person"])
def test_nothing_is_taken_from_the_background_and_people_keep_more_detail(quantity):
    seeds = [np.mean(STUDY["arms"][arm]["curves"][quantity], axis=1) for arm in ("t400", "plain")]
    assert max(seeds[0]) < min(seeds[1])


def test_the_longer_plain_training_had_more_time():
    pattern = r"took 600 steps of ([\d.]+) s, (\d+) s; `t400` 200 of ([\d.]+), (\d+) s; `t100` (\d+) s"
    each = {arm: np.mean(times) for arm, times in STUDY["seconds_a_step"].items()}
    steps = STUDY["settings"]["steps"]
    expected = [round(each["plain_3x"], 2), round(3 * steps * each["plain_3x"]), round(each["t400"], 2)]
    expected += [round(steps * each["t400"]), round(steps * each["t100"])]
    assert said("docs/evidence.md", pattern) == expected
    assert 3 * each["plain_3x"] > max(each["t100"], each["t400"])
    assert said("docs/evidence.md", r"([\d.]+) times the time of a step here") == [
        round(each["t400"] / each["plain"], 2)
    ]


EVERY = ALL["evidence"]["arms"]


def of_seeds(arm, metric):
    """Differences to the plain loss by seed, as shares of its mean."""
    plain = np.array(EVERY["plain"]["metrics"][metric]["seeds"])
    return (np.array(EVERY[arm]["metrics"][metric]["seeds"]) - plain) / plain.mean()


def test_which_claims_of_every_arm_are_shown_and_which_refuted():
    claims = ALL["evidence"]["claims"]
    assert len(claims) == 26
    told = {(c["hypothesis"], c["metric"]): c["verdict"] for c in claims if c["verdict"] not in NOTHING}
    assert told == {
        ("H3", "one_step_blur_person"): "the opposite is shown",
        ("H4", "one_step_face"): "shown",
        ("H4", "one_step_lpips_outside"): "the opposite is shown",
    }
    assert {(c["hypothesis"], c["metric"]) for c in claims if c["refuted"]} == {
        key for key, verdict in told.items() if "opposite" in verdict
    }
    sizes = {c["metric"]: c["detectable"] / c["against_mean"] for c in claims if c["hypothesis"] == "H1"}
    pattern = r"could have seen ([\d.]+) % of the face distance and ([\d.]+) % of LPIPS on people at equal steps"
    wanted = [round(100 * sizes[m], 1) for m in ("one_step_face", "one_step_lpips_person")]
    assert said("docs/evidence.md", pattern) == wanted
    assert len(EVERY) == 12
    trainings = sum(len(of_arm["metrics"]["one_step_face"]["seeds"]) for arm, of_arm in EVERY.items() if arm != "base")
    assert trainings == 55


@pytest.mark.parametrize("arm", ["t400", "additive", "face_0.75"])
def test_what_is_said_of_arms_without_a_claim(arm):
    """Each number, and that all seeds agree, at equal time, too."""
    metrics = ("one_step_face", "one_step_lpips_person", "one_step_lpips_outside", "one_step_error")
    shares = [of_seeds(arm, metric) for metric in metrics]
    assert all((share > 0).all() or (share < 0).all() for share in shares)
    number = r"([\d.]+) %"
    pattern = rf"`{re.escape(arm)}`[^:]*: face distance −{number}, LPIPS on people −{number}, elsewhere −{number}, "
    found = said("docs/evidence.md", pattern + rf"error of ε \+{number}")
    assert found == [round(100 * abs(share.mean()), 1) for share in shares]


def test_what_is_said_of_the_rest_without_a_claim():
    """One arm whose pictures of people all seeds agree on, masked_mse, and the plain loss for longer."""
    of_people = {arm for arm in EVERY if arm not in ("plain", "base") and agree(of_seeds(arm, "kd_alexnet_person"))}
    assert of_people == {"face_0.75"}
    [share] = said("docs/evidence.md", r"kernel distance of people that is (\d+) % lower")
    assert share == round(-100 * of_seeds("face_0.75", "kd_alexnet_person").mean())
    errors = [of_seeds("masked_mse", metric) for metric in ("one_step_error_person", "one_step_error")]
    assert all(map(agree, errors))
    pattern = r"error of ε \*on people\* −([\d.]+) %, of whole pictures \+([\d.]+) %"
    assert said("docs/evidence.md", pattern) == [round(100 * abs(e.mean()), 1) for e in errors]
    longer = [of_seeds("plain_t400", metric) for metric in ("one_step_face", "one_step_lpips_person")]
    assert not agree(longer[0])
    found = said("docs/evidence.md", r"face distance \+([\d.]+) %, LPIPS on people \+([\d.]+) %, with no sign")
    assert found == [round(100 * e.mean(), 1) for e in longer]
    ratio = np.mean([of_seeds("additive", m).mean() / of_seeds("t400", m).mean() for m in IN_ONE_STEP])
    assert 0.7 < ratio < 0.8  # three quarters
    assert 0.3 < of_seeds("additive", "one_step_error").mean() / of_seeds("t400", "one_step_error").mean() < 0.37


def agree(shares):
    """Whether all seeds have the same sign."""
    return (shares > 0).all() or (shares < 0).all()
