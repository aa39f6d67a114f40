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
