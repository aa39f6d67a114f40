"""Where losses tell photographs apart: worked out by hand, with networks that are known, and as a command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from make_step import ddpm, flow, tiny_vae

from mldm_plugin import load_plugins, load_preset
from mldm_plugin.calibration import report
from mldm_plugin.calibration.measure import Calibration
from mldm_plugin.calibration.placing import placed, places_of
from mldm_plugin.calibration.propose import LEAST, Telling, max_timestep, over_uniform, weight
from mldm_plugin.cli import main
from mldm_plugin.data.batch import Example
from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.errors import DataError
from mldm_plugin.evaluation.cases import Photographs
from mldm_plugin.evaluation.notes import Notes
from mldm_plugin.evaluation.one_step import TIMESTEPS

PRESET = """
losses:
  masked_lpips: {weight: 0.2, max_timestep: 100, network: alex, weights: random}
  masked_mse: {weight: 0.2, max_timestep: 100}
checks: {picture: warn}
"""


def telling(own, other, **changes):
    """Of plain lists, photographs × timesteps × draws."""
    own, other = np.array(own, float), np.array(other, float)
    grid = np.ones(own.shape[:2])
    given = {"floor": np.zeros(len(own)), "gradient": grid, "plain": grid, **changes}
    return Telling(own, other, **given)


# What is proposed


def test_signal_to_noise_by_hand():
    # two photographs, one timestep, two draws; other − own is 1, 3 and 5, 7: mean 4, variance 2 in each
    one = telling([[[1.0, 2.0]], [[0.0, 1.0]]], [[[2.0, 5.0]], [[5.0, 8.0]]])
    assert one.signal() == pytest.approx([4 / 2**0.5])
    assert one.right() == pytest.approx([1.0])
    assert telling([[[1.0, 2.0]]], [[[0.0, 3.0]]]).right() == pytest.approx([0.5])


def test_a_photograph_without_a_face_takes_no_part():
    none = [[np.nan, np.nan]]
    one = telling([[[1.0, 2.0]], none], [[[2.0, 5.0]], none], floor=np.array([0.5, np.nan]))
    assert one.photographs == 1
    assert telling([[[1.0, 2.0]]], none, floor=np.array([0.5])).photographs == 0
    assert one.signal() == pytest.approx([2 / 2**0.5])
    assert one.mean_floor() == 0.5


def test_a_loss_that_does_not_look_at_the_photograph_tells_nothing():
    one = telling([[[1.0, 2.0]]], [[[1.0, 2.0]]])
    assert max_timestep(one.tells(), [100]) is None
    proposal = report.propose(one, [100], NoiseSchedule.from_scheduler(ddpm()), additive=False, share=0.1)
    assert proposal == report.Proposal(None, None, None, None)


@pytest.mark.parametrize(
    ("tells", "limit"),
    [([True, True, False], 60), ([True, True, True], 100), ([False, True, True], None), ([True, False, True], 20)],
)
def test_the_limit_is_the_last_that_tells_without_a_gap(tells, limit):
    assert max_timestep(tells, [20, 60, 100]) == limit


@pytest.mark.parametrize(("apart", "wanted"), [(LEAST + 0.5, True), (LEAST - 0.5, False), (np.nan, False)])
def test_a_loss_tells_from_a_signal_of_two_on(apart, wanted):
    """Eight photographs that differ alike, by so many spreads of the noise, of two draws."""
    noise = np.array([-1.0, 1.0]) / 2**0.5  # of variance 1
    one = telling(np.zeros((8, 1, 2)), np.broadcast_to(apart + noise, (8, 1, 2)))
    assert one.tells().tolist() == [wanted]


def test_a_loss_without_noise_tells_what_it_sees():
    assert telling(np.zeros((3, 1, 2)), np.ones((3, 1, 2))).tells().tolist() == [True]
    assert telling(np.ones((3, 1, 2)), np.zeros((3, 1, 2))).tells().tolist() == [False]


def test_a_single_photograph_tells_nothing_for_sure():
    assert telling([[[0.0, 0.1]]], [[[50.0, 50.2]]]).tells().tolist() == [False]


@pytest.mark.parametrize(("photographs", "draws"), [(2, 2), (2, 4), (16, 2)])
def test_nothing_is_told_by_chance(photographs, draws):
    """Of a loss to which both photographs are one: less than the 2.5 % that the interval leaves on that side."""
    dice, times = np.random.default_rng(0), 4000
    other = dice.normal(size=(photographs, times, draws))
    assert telling(np.zeros_like(other), other).tells().mean() < 0.025


@given(st.floats(1e-4, 1e4), st.floats(1e-4, 1e4), st.floats(0.01, 0.99), st.booleans())
def test_the_weight_gives_the_share_that_was_asked_for(gradient, plain, share, additive):
    one = telling([[[1.0, 2.0]] * 2], [[[2.0, 3.0]] * 2])
    one = replace(one, gradient=np.full((1, 2), gradient), plain=np.full((1, 2), plain))
    found = weight(one, [20, 100], 100, additive, share)
    kept = 1 if additive else 1 - found
    assert found * gradient / (found * gradient + kept * plain) == pytest.approx(share)
    assert additive or 0 < found < 1


def test_gradients_count_over_uniform_t():
    assert over_uniform(np.array([2.0, 2.0, 50.0]), [20, 60, 900], 60) == 2.0
    assert over_uniform(np.array([0.0, 100.0]), [0, 100], 100) == pytest.approx(50)


def test_weights_for_which_the_convex_mix_has_no_room_are_told():
    """Each is less than 1 alone; a preset of both would be refused."""
    two = {name: report.Proposal(100, 1.0, 100, weight) for name, weight in (("masked_lpips", 0.6), ("face", 0.5))}
    losses = load_preset("mldm", plugins=load_plugins(["mldm"])).losses
    assert next(report.crowded(two, losses)).startswith("These weights are 1.1 together, more than the 1")
    assert not [*report.crowded({**two, "face": report.Proposal(100, 1.0, 100, 0.3)}, losses)]
    kept = report.Proposal(None, None, None, None)  # then the preset's own 0.5 stays
    assert [*report.crowded({**two, "face": kept}, losses)]


# The other photograph


def test_a_face_is_placed_on_a_face():
    picture = torch.full((3, 40, 40), -1.0)
    picture[:, 4:12, 4:12] = 1.0
    moved = placed(picture, (4, 4, 12, 12), (12, 16, 28, 32))
    assert moved[:, 17:31, 13:27].min() == 1.0
    assert moved[:, 15, :].max() < 0.6
    assert moved[:, 20:30, :11].max() == -1.0


def test_what_is_made_small_is_averaged():
    """Sixteen pixels of noise become one of a quarter of their spread."""
    picture = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    small = placed(picture, (0, 0, 64, 64), (24, 24, 40, 40))[:, 24:40, 24:40]
    assert small.std() < 0.35
    half = torch.ones(3, 64, 64)
    half[:, :, 32:] = -1.0
    assert (
        placed(half, (0, 0, 64, 64), (24, 24, 40, 40))[:, 24:40, 24:30] > 0.99
    ).all()  # in the place it was asked to


@given(st.integers(0, 20), st.integers(0, 20), st.integers(4, 12))
def test_a_photograph_on_its_own_place_is_itself(x, y, side):
    picture = torch.rand(3, 33, 40, generator=torch.Generator().manual_seed(0))
    box = (x, y, x + side, y + side + 1)
    assert torch.allclose(placed(picture, box, box), picture, atol=1e-4)


def test_it_is_placed_by_the_largest_face_and_person():
    mask = torch.zeros(1, 20, 20, dtype=torch.uint8)
    mask[:, 2:5, 3:9], mask[:, 10:18, 5:15] = 1, 2
    example = Example(
        torch.zeros(3, 20, 20), person_mask=mask, face_boxes=torch.tensor([[0.0, 0, 4, 4], [5, 5, 12, 9]])
    )
    assert places_of(example) == {"face": (5, 5, 12, 9), "person": (5, 10, 15, 18)}
    assert places_of(Example(torch.zeros(3, 4, 4))) == {}


# What is measured


def photographs(number=3, size=32):
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(1, size, size, dtype=torch.uint8)
    mask[:, 8:28, 6:24] = 1
    examples = [
        Example(torch.rand(3, size, size, generator=generator) * 2 - 1, person_mask=mask, face_boxes=torch.empty(0, 4))
        for _ in range(number)
    ]
    return Photographs(lambda row: examples[row], [f"person {i}" for i in range(number)], "train")


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "two.yaml"
    path.write_text(PRESET)
    return path


def calibrate(preset, scheduler, error=0.0, timesteps=(60, 400), shown=None, notes=None, asked=None):
    """By a network whose clean estimate is off by `error` times noise of its own, whatever it predicts."""
    plugins = load_plugins(["mldm"])
    one = Calibration(
        load_preset(preset, plugins=plugins), plugins, tiny_vae(), scheduler, draws=2, timesteps=timesteps
    )
    shown = shown or photographs()
    latents = {text: one.encoder.encode(shown.look(i).pixel_values[None])[0] for i, text in enumerate(shown.captions)}

    def predict(noisy, t, caption, example):
        if asked is not None:
            asked.append(caption)
            if len(asked) == 6:
                raise KeyboardInterrupt
        alpha, sigma = (x.view(1, 1, 1, 1) for x in one.schedule.coefficients(torch.tensor([t])))
        off = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(int(1000 * noisy.sum().abs())))
        clean = latents[caption] + error * off
        return one.schedule.target(clean, (noisy - alpha * clean) / sigma, alpha, sigma)

    return one(predict, shown, range(len(shown)), shown, notes=notes)


def test_a_network_that_knows_leaves_the_floor_and_is_never_wrong(preset):
    found = calibrate(preset, ddpm())
    lpips, mse = found["masked_lpips"], found["masked_mse"]
    assert lpips.photographs == mse.photographs == 3
    assert np.allclose(lpips.own, lpips.floor[:, None, None], atol=1e-4)
    assert np.allclose(mse.own, 0, atol=1e-6)
    assert np.allclose(mse.floor, 0)
    assert (mse.right() == 1).all()
    assert (mse.other > 0.01).all()
    assert (lpips.gradient > 0).all()


def test_rows_sorted_by_person_are_told_from_another_person(preset):
    """Two pictures of one, then two of another: no picture beside one that is the same."""
    two = photographs(2)
    rows = (0, 0, 1, 1)
    shown = Photographs(lambda row: two.look(rows[row]), [f"person {row}" for row in range(4)], "train")
    found = calibrate(preset, ddpm(), shown=shown)["masked_mse"]
    assert found.photographs == 4
    assert (found.other > 0.01).all()


def test_pictures_without_a_face_are_not_read_in_search_of_one(preset):
    """Two of six show a face, each is the other's; the rest are placed by their people."""
    six, read, faces = photographs(6), [], (0, 2)
    face = torch.tensor([[8.0, 8.0, 20.0, 22.0]])

    def look(row):
        read.append(row)
        return replace(six.look(row), face_boxes=face) if row in faces else six.look(row)

    shown = Photographs(look, six.captions, "train", lambda row: row in faces)
    found = calibrate(preset, ddpm(), shown=shown)["masked_mse"]
    assert found.photographs == 6
    assert len(read) == 3 * 6, "each once by this test, once as itself, and one beside it"


def test_beside_the_decoded_photograph_there_is_no_floor(preset, tmp_path):
    (tmp_path / "decoded.yaml").write_text(f"{PRESET}target: decoded\n")
    lpips = calibrate(tmp_path / "decoded.yaml", ddpm())["masked_lpips"]
    assert np.allclose(lpips.floor, 0, atol=1e-6)
    assert np.allclose(lpips.own, 0, atol=1e-6)
    assert (lpips.right() == 1).all()


def test_a_network_that_knows_nothing_of_the_photograph_is_told_nothing(preset):
    found = calibrate(preset, ddpm(), error=30.0)["masked_lpips"]
    assert (np.abs(found.signal()) < LEAST).all()


@pytest.mark.parametrize("scheduler", [ddpm("v_prediction"), ddpm("sample"), flow()], ids=["v", "sample", "flow"])
def test_on_another_schedule_the_same_snr_says_the_same(preset, scheduler):
    """The clean estimate of a loss on pictures is what it is, whichever quantity the network predicts."""
    one, other = calibrate(preset, ddpm())["masked_lpips"], calibrate(preset, scheduler)["masked_lpips"]
    assert np.allclose(one.own, other.own, atol=1e-4)
    assert np.allclose(one.other, other.other, atol=1e-4)


def test_the_same_again_to_the_bit(preset):
    one, other = calibrate(preset, ddpm(), error=0.3), calibrate(preset, ddpm(), error=0.3)
    for name in one:
        assert all(np.array_equal(getattr(one[name], x), getattr(other[name], x)) for x in vars(one[name]))


def test_stopped_it_goes_on_at_the_photograph_where_it_was(preset, tmp_path):
    asked = []
    with pytest.raises(KeyboardInterrupt):
        calibrate(preset, ddpm(), error=0.3, notes=Notes(tmp_path), asked=asked)
    found = calibrate(preset, ddpm(), error=0.3, notes=Notes(tmp_path), asked=(again := ["stopped before"] * 6))
    assert set(asked) == {"person 0", "person 1"}
    assert set(again[6:]) == {"person 1", "person 2"}, "the first was measured whole"
    whole = calibrate(preset, ddpm(), error=0.3)
    for name in whole:
        assert all(
            np.array_equal(getattr(whole[name], x), getattr(found[name], x), equal_nan=True) for x in vars(found[name])
        )


@pytest.mark.parametrize(("additive", "wanted"), [(False, 0.1), (True, 0.1 / 0.9)])
def test_a_loss_that_is_balanced_is_given_the_share_itself(additive, wanted, preset, tmp_path):
    """Its factor makes its gradient as long as the plain loss's, whatever it is by itself."""
    (tmp_path / "balanced.yaml").write_text(PRESET.replace("network: alex", "balance: gradient, network: alex"))
    found = calibrate(tmp_path / "balanced.yaml", ddpm(), error=0.3)
    lpips, mse = (weight(found[name], (60, 400), 400, additive, 0.1) for name in ("masked_lpips", "masked_mse"))
    assert lpips == pytest.approx(wanted)
    assert mse != pytest.approx(wanted)


def test_photographs_without_anybody_are_refused(preset):
    plugins = load_plugins(["mldm"])
    one = Calibration(load_preset(preset, plugins=plugins), plugins, tiny_vae(), ddpm(), draws=2)
    nobody = Photographs(lambda row: Example(torch.zeros(3, 32, 32)), ["a", "b"], "train")
    with pytest.raises(DataError, match="no two photographs show a face each"):
        one(lambda *_: None, nobody, [0, 1], nobody)


# The command


def run(*words):
    result = CliRunner().invoke(main, ["calibrate", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_command(tiny_pipeline, tiny_data, preset, tmp_path, caplog):
    words = ["--model", tiny_pipeline, "--data", tiny_data, "--preset", preset, "--resolution", 64]
    words += ["--photographs", 2, "--draws", 2]
    status, told = run(*words, "--out", tmp_path / "one")
    assert status == 0, told
    assert "masked_lpips: 2 photographs; encoded and decoded alone" in told
    assert "held out" not in told + caplog.text, "nothing is trained yet"
    for t in TIMESTEPS:
        assert f"\n  {t:>5} " in told
    written = json.loads((tmp_path / "one" / "calibration.json").read_text())
    assert written["losses"].keys() == {"masked_lpips", "masked_mse"}
    assert len(written["losses"]["masked_lpips"]["signal"]) == len(TIMESTEPS)
    assert (tmp_path / "one" / "calibration.svg").stat().st_size > 5000
    run(*words, "--out", tmp_path / "two")
    for name in ("calibration.json", "calibration.svg", "calibration.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    notes = (tmp_path / "two" / "measured" / "000.jsonl").read_text()
    run(*words, "--out", tmp_path / "two")
    assert (tmp_path / "two" / "measured" / "000.jsonl").read_text() == notes, "nothing is measured twice"
    status, told = run(*words, "--set", "losses.masked_lpips.max_timestep=50", "--draws", 3, "--out", tmp_path / "two")
    assert json.loads((tmp_path / "two" / "calibration.json").read_text()) != written, "of other draws"
    run(*words, "--others", tiny_data, "--out", tmp_path / "two")
    one, same = ((tmp_path / name / "calibration.json").read_bytes() for name in ("one", "two"))
    assert one == same, "a photograph is not its own other"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--preset", "baseline"], "has no loss of positive weight"),
        (["--model", "DATA"], "draws nothing from captions"),
        (["--model", "SEVERAL"], "is 2 models: name one of them"),
        (["--share", "1"], "is not in the range"),
    ],
)
def test_what_cannot_be_calibrated_is_a_line(tiny_pipeline, tiny_data, preset, words, said, tmp_path):
    for name in "ab":
        (tmp_path / name).symlink_to(tiny_pipeline)
    meant = {"DATA": str(tiny_data), "SEVERAL": f"{tmp_path}/[ab]"}
    words = [meant.get(word, word) for word in words]
    status, told = run("--model", tiny_pipeline, "--data", tiny_data, "--preset", preset, *words)
    assert status != 0
    assert said in told
