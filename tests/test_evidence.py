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


OBJECTIONS = json.loads((ROOT / "docs" / "evidence_objections.json").read_text(encoding="utf-8"))
OBJECTED = OBJECTIONS["one_step"]


def percent(found, *keys):
    """A difference and the ends of its interval as shares of what it is a difference to, to a tenth of a percent."""
    return [round(100 * found[key] / found["against_mean"], 1) for key in keys or ("value", "low", "high")]


def test_where_the_gain_lies_is_what_was_measured():
    """Below and above the gate, on two cores and on the GPU."""
    number, below = r"[−-]?([\d.]+)", np.array(STUDY["timesteps"]) <= 400
    gated = OBJECTED["gated"]["t400 - plain"]
    shares, seeds = [], []
    for quantity in ("one_step_face", "one_step_lpips_person"):
        one, plain = (np.array(STUDY["arms"][arm]["curves"][quantity]) for arm in ("t400", "plain"))
        gap = (one - plain).mean(0)
        shares += [round(100 * gap[~below].sum() / gap.sum()), round(100 * gated[quantity]["share_above"])]
        of_seeds = 100 * (plain - one)[:, below].mean(1) / plain[:, below].mean()
        seeds += [round(of_seeds.min(), 1), round(of_seeds.max(), 1)]
        assert percent(gated[quantity]["below"]) == [-1.1, -1.5, -0.6]
    pattern = (
        rf"there {number} % of its gain lies at t > 400, where no loss looked, here {number} %, and of LPIPS on people"
    )
    assert said("docs/evidence.md", pattern + rf" {number} and {number} %") == shares
    pattern = (
        rf"either is −1\.1 % here \(95 %: 0\.6 to 1\.5\), there {number} to {number} and {number} to {number} % by seed"
    )
    assert said("docs/evidence.md", pattern) == seeds
    assert round(5 * OBJECTED["gated"]["t400 - t100"]["one_step_blur_person"]["share_above"]) == 4  # four fifths
    ends = percent(OBJECTED["gated"]["face_0.75 - face_0"]["one_step_lpips_outside"]["below"], "low", "high")
    assert said("docs/evidence.md", rf"that is not shown \(−{number} to \+{number} %\)") == [-ends[0], ends[1]]
    ratio = [
        OBJECTED["gated"]["additive - plain"][q]["below"]["value"] / gated[q]["below"]["value"] for q in IN_ONE_STEP
    ]
    assert round(10 * np.mean(ratio)) == 6  # six tenths


def test_what_smaller_weights_bring_and_what_pictures_say_by_chance():
    third = np.mean([of_seeds("face_0", m).mean() / of_seeds("t400", m).mean() for m in IN_ONE_STEP])
    assert 0.3 < third < 0.4
    cost = of_seeds("face_0", "one_step_error").mean() / of_seeds("t400", "one_step_error").mean()
    assert said("docs/evidence.md", r"a third of the gain for (\d+) % of the cost") == [round(100 * cost)]
    kinds = ("attributes", "kd_faceres", "kd_alexnet_person", "face_found", "pose_found", "detail", "slope")
    arms = [arm for arm in EVERY if arm not in ("plain", "base")]
    assert sum(agree(of_seeds(arm, kind)) for arm in arms for kind in kinds) == 9
    assert len(arms) * len(kinds) // 16 == 4  # by chance
    assert percent(OBJECTED["masked_mse_attributes"]) == [2.8, -0.3, 5.8]
    assert max(arms, key=lambda arm: of_seeds(arm, "attributes").mean()) == "masked_mse"
    mean = EVERY["plain"]["metrics"]["kd_alexnet_person"]["mean"]
    ends = [round(-100 * OBJECTED["face_0.75_people"][end] / mean) for end in ("high", "low")]
    assert said("docs/evidence.md", r"13 % lower \(95 %: (\d+) to (\d+), uncorrected\)") == ends


def test_what_could_be_seen_is_told_at_worst():
    """With the degrees of freedom that the intervals have it is half to four fifths of what is told."""
    from scipy import optimize, stats

    shares = []
    for claim in (one for name in ("evidence", *PEOPLE) for one in ALL[name]["claims"]):
        reach = (claim["high"] - claim["value"]) / claim["error"]
        own = optimize.brentq(lambda freedom, reach=reach: stats.t.ppf(0.975, freedom) - reach, 1.5, 1e4)
        told = [stats.t.ppf(1 - 0.025 / 38, freedom) + stats.t.ppf(0.8, freedom) for freedom in (own, 4)]
        assert told[1] * claim["error"] == pytest.approx(claim["detectable"], rel=1e-3)
        shares.append(told[0] / told[1])
    assert min(shares) == pytest.approx(0.5, abs=0.05)
    assert max(shares) == pytest.approx(0.8, abs=0.05)


def test_the_family_of_all_claims():
    """With the GPU study's twenty, two of the second person's claims are not shown."""
    from mldm_plugin.evaluation.statistics import holm

    claims = [c for name in ("evidence", "P009", "P010", "gpu") for c in ALL[name]["claims"]]
    changed = [
        (claim["metric"], claim["against"], round(p, 3))
        for claim, p in zip(claims, holm([c["p"] for c in claims]), strict=True)
        if claim["p_holm"] < 0.05 <= p
    ]
    assert sorted(changed) == [("copying", "plain", 0.054), ("identity", "plain_same_time", 0.058)]


def test_the_answers_to_a_sceptic_of_drawings_are_what_was_measured():
    page, number = "docs/evidence.md", r"[+−]?([\d.]+)"
    base = OBJECTED["against_base"]
    wanted = [percent(base["plain"][f"one_step_{q}"]) for q in ("face", "lpips_person", "error")]
    assert wanted == [[-0.1, -0.4, 0.2], [-0.3, -0.5, -0.1], [0.3, 0.2, 0.4]]
    assert [percent(base["t400"][q], "value")[0] for q in base["t400"]] == [-1.8, -2.5, 1.5]
    elsewhere = OBJECTED["error_elsewhere"]
    pattern = rf"elsewhere it is {number} % \({number} to {number}\) higher with `t400`, {number} % with `additive`, "
    others = [percent(elsewhere[arm], "value")[0] for arm in ("additive", "face_0.75", "masked_mse")]
    pattern += rf"{number} % with `face_0.75`, {number} % with `masked_mse`"
    assert said(page, pattern) == [*percent(elsewhere["t400"]), *others]
    pattern = (
        rf"faces of two drawings are {number} apart .*? are {number} from their own drawing's, and {number} at t = 20"
    )
    curve = np.mean(EVERY["plain"]["curves"]["one_step_face"], axis=0)
    assert STUDY["timesteps"][0] == 20
    assert said(page, pattern) == [
        round(value, 2) for value in (OBJECTED["distance_of_two_drawings_faces"], curve.mean(), curve[0])
    ]
    assert said(page, rf"correlate with those of `plain` at {number} or more") == [
        round(OBJECTED["least_correlation_of_plain_losses"], 3)
    ]
    assert said(page, r"by its pose: (\d+) of 40") == [round(OBJECTED["people_found"])]


@pytest.mark.parametrize(
    ("who", "shares", "margins", "nearest"),
    [
        ("P009", (49, 65), ((0.061, 0.030, 0.093), (0.020, -0.008, 0.049)), (9, 16, 38)),
        ("P010", (19, 41), ((0.135, 0.110, 0.160), (0.064, 0.020, 0.108)), (32, 79, 74)),
    ],
)
def test_the_answers_to_a_sceptic_of_likeness_are_what_was_measured(who, shares, margins, nearest):
    text, found = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8"), OBJECTIONS["faces"][who]
    pairs = [f"masked_ldm - {arm}" for arm in ("plain", "plain_same_time")]
    assert [round(100 * found["others"][pair]["value"] / found["own"][pair]["value"]) for pair in pairs] == list(shares)
    assert f"{shares[0]} and {shares[1]} % " in text
    for pair, margin in zip(pairs, margins, strict=True):
        assert [round(found["nearer_than_others"][pair][key], 3) for key in ("value", "low", "high")] == list(margin)
        assert "{:+.3f} ({:+.3f} to {:+.3f})".format(*margin).replace("-", "−") in text
    arms = ("plain", "plain_same_time", "masked_ldm")
    assert [round(100 * found["nearest_is_own"]["arms"][arm]) for arm in arms] == list(nearest)
    assert "{}, {} and {} % of the".format(*nearest) in text
    assert [found["nearest_is_own"][pair]["low"] > 0 for pair in pairs] == [True, False]
    told = [f"{found[kind][pair]['value']:+.3f}" for kind in ("kept_back", "own") for pair in pairs]
    assert "{} and {} beside {} and {}".format(*told) in text
    last = [np.array(found["of_the_whole_picture"][pair]) for pair in pairs]
    assert all((gap < 0).all() for gap in last)
    assert "by {:.3f} and {:.3f}".format(*(-gap.mean() for gap in last)) in text
    assert found["copying_of_kept_back"] > max(ALL[who]["arms"][arm]["metrics"]["copying"]["mean"] for arm in arms)
    assert f"{found['copying_of_kept_back']:.2f}" in text


def test_pictures_without_a_face():
    found = [OBJECTIONS["faces"][who]["faces_not_found"] for who in PEOPLE]
    arms = ("plain", "plain_same_time", "masked_ldm")
    pattern = r"They are (\d+), (\d+) and (\d+) of 90 of the first person, none of the second"
    assert said("docs/evidence.md", pattern) == [found[0][arm] for arm in arms]
    assert not any(found[1].values())


def test_what_is_said_of_gradients_holds():
    """Seven times as hard at t = 400, a third at t = 20, and none against the plain loss."""
    found = ALL["gradients"]
    face = dict(zip(found["timesteps"], found["losses"]["face"]["ratio"], strict=True))
    assert round(0.5 * face[400]) == 7
    assert 0.5 * face[20] == pytest.approx(1 / 3, abs=0.05)
    assert min(cosine for of_loss in found["losses"].values() for cosine in of_loss["cosine"]) > 0


def test_what_sharpening_and_guidance_do_for_the_judges():
    found, number = OBJECTIONS["sharpened"], r"[+−]?([\d.]+)"

    def share(variant, quantity, *keys):
        return [abs(one) for one in percent(found[variant][quantity]["all"], *keys)]

    pair = ("one_step_face", "one_step_lpips_person")
    pattern = (
        rf"gives {number} % \({number} to {number}\) of face distance and {number} % \({number} to {number}\) of LPIPS"
    )
    assert said("docs/evidence.md", pattern) == [
        one for quantity in pair for one in share("sharpened 0.5", quantity, "value", "low", "high")
    ]
    pattern = rf"on the same \({number} and {number} %\), while the Laplacian of people gets {number} % farther"
    wanted = [share("t400", quantity, "value")[0] for quantity in pair]
    assert said("docs/evidence.md", pattern) == [*wanted, *share("sharpened 0.5", "laplacian", "value")]
    detail = [-found[variant]["one_step_blur_person"]["all"]["value"] for variant in ("sharpened 0.1", "t400")]
    pattern = rf"\({number} octaves beside {number}\) gains less, {number} and {number} %"
    weaker = [share("sharpened 0.1", quantity, "value")[0] for quantity in pair]
    assert said("docs/evidence.md", pattern) == [*(round(one, 2) for one in detail), *weaker]
    assert percent(found["t400"]["laplacian"]["all"], "low", "high") == [-0.6, 0.4]
    pattern = rf"untrained model {number} % \({number} to {number}\) of face distance, {number} % of LPIPS"
    assert said("docs/evidence.md", pattern) == [
        *share("guided", "one_step_face", "value", "low", "high"),
        *share("guided", "one_step_lpips_person", "value"),
    ]
    low, high = (found["guided"]["one_step_face"]["all"][end] for end in ("low", "high"))
    assert low < 0 < high


def test_what_is_said_of_single_losses_holds():
    study = ALL["losses"]
    assert [one["verdict"] for one in study["claims"]] == ["not shown"] * 4
    share = lambda one, key: -100 * one[key] / one["against_mean"]  # noqa: E731
    moved = [share(one, "value") for one in study["claims"]]
    seen = [-share(one, "detectable") for one in study["claims"]]
    low, high, least, most = said("docs/evidence.md", r"by (\.\d) to (\.\d) %, and less than (\.\d) to (\.\d) %")
    assert [round(min(moved), 1), round(max(moved), 1)] == [low, high]
    assert [round(min(seen), 1), round(max(seen), 1)] == [least, most]
    for arm, metric in (("identity", "one_step_face"), ("masked_mse", "one_step_error_person")):
        seeds = (study["arms"][of]["metrics"][metric]["seeds"] for of in (arm, "plain"))
        assert all(one < other for one, other in zip(*seeds, strict=True)), arm
    leaving_out_zero = [one["arm"] for one in study["claims"] if one["high"] < 0]
    assert leaving_out_zero == ["masked_mse"]
    for one in study["claims"][:3]:
        page = f"docs/losses/{one['arm']}.md"
        value, low = said(page, r"by ([\d.]+) % \(95 %: −([\d.]+) to [+−][\d.]+\), which")
        assert [round(share(one, "value"), 1), round(share(one, "low"), 1)] == [value, low]
