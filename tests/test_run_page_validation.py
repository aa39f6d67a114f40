"""Validation on the page of a run: whether it got better, by t, and the photographs that changed most."""

import base64
import hashlib
import io
import json
import re
import shutil

import numpy as np
import pytest
from browser import browser, needs_browser
from click.testing import CliRunner
from PIL import Image

from mldm_plugin.cli import main
from mldm_plugin.data import load
from mldm_plugin.evaluation.quantities import QUANTITIES
from mldm_plugin.run_page import album as albums
from mldm_plugin.run_page import write
from mldm_plugin.run_page.album import SIDE, Album
from mldm_plugin.run_page.validation import UNREAD, validation_of
from mldm_plugin.training.evaluation_file import EvaluationFile

TIMESTEPS = [20, 60, 100, 600, 900]
ROWS = [0, 1, 2, 3, 4, 6, 7, 8]
FIRST = [0.5, 0.4, 0.45, 0.3, 0.6, 0.7, 0.5, 0.2]
CHANGE = [-0.30, -0.10, -0.12, -0.20, 0.02, -0.15, 0.0, -0.25]  # of the last; the middle is half way
FACES = [True, True, False, False, True, False, True, True]


def evaluation(step, part):
    """All quantities alike; faces are in some photographs alone, blur in none."""
    values = [first + part * change for first, change in zip(FIRST, CHANGE, strict=True)]
    at_t = [t / 1000 - part * t / 2000 for t in TIMESTEPS]
    found = {"values": {}, "by_timestep": {}}
    for quantity in QUANTITIES:
        found["values"][quantity.name], found["by_timestep"][quantity.name] = list(values), list(at_t)
    found["values"]["one_step_face"] = [v if face else None for v, face in zip(values, FACES, strict=True)]
    found["values"]["one_step_blur_person"] = [None] * len(ROWS)
    found["by_timestep"]["one_step_blur_person"] = [None] * len(TIMESTEPS)
    return step, found


@pytest.fixture(scope="module")
def data(make_data, tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("photographs") / "people", 9)


def rows_of(data):
    return [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]


@pytest.fixture
def run(data, tmp_path):
    """The records of a run, with an evaluation before it, in its middle and at its end."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {k}, "loss": 0.5}}\n' for k in (1, 2, 3, 4)))
    about = {"data": str(data), "split": "train", "photographs": ROWS, "resolution": 64, "timesteps": TIMESTEPS}
    about["digests"] = [
        hashlib.sha256((data / rows_of(data)[row]["file_name"]).read_bytes()).hexdigest() for row in ROWS
    ]
    file = EvaluationFile(folder, about)
    for step, part in ((0, 0.0), (2, 0.5), (4, 1.0)):
        file.add(*evaluation(step, part))
    return folder


def changed(run, **more):
    stored = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps({**stored, **more}))


def told(run):
    return validation_of(run, Album({}))


def by_name(found):
    return {one["name"]: one for one in found["quantities"]}


def test_whether_it_got_better_by_hand(run):
    found = told(run)
    assert found["steps"] == [0, 2, 4]
    assert found["photographs"] == 8
    error, face = by_name(found)["one_step_error"], by_name(found)["one_step_face"]
    whole, change = np.mean(FIRST), np.mean(CHANGE)
    assert error["all"]["value"] == pytest.approx([whole, whole + change / 2, whole + change])
    assert error["all"]["mean"] == error["all"]["smooth"] == pytest.approx([0, change / 2, change])
    assert error["gap"]["value"] == pytest.approx(change)
    assert error["gap"]["low"] < change < error["gap"]["high"] < 0
    assert error["gap"]["verdict"] == "better"
    assert face["photographs"] == 5
    assert face["all"]["value"][0] == pytest.approx(np.mean([0.5, 0.4, 0.6, 0.5, 0.2]))
    assert face["gap"]["verdict"] == "too few", "five photographs cannot show it: two signs of 32 are as extreme"
    assert "one_step_blur_person" not in by_name(found), "no photograph has it"
    assert found["best"].startswith("step 4, the last, is the best by face distance")


def test_what_got_worse_is_called_so(run):
    stored = json.loads((run / "evaluation.json").read_text())
    stored["steps"]["4"]["values"]["one_step_error"] = [value + 0.1 + value / 10 for value in FIRST]
    changed(run, **stored)
    error = by_name(told(run))["one_step_error"]
    assert (error["gap"]["verdict"], error["gap"]["low"] > 0) == ("worse", True)
    assert (error["better"], [row for row, *_ in error["worse"]]) == ([], [6, 4, 7])


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ([-0.3, -0.3, -0.3, -0.3, -0.3, -0.3, 0.02, 0.02], True),
        ([-0.03, -0.15, 0.02, -0.56, -0.41, 0.03, 0.01, -0.45], False),  # p 0.10, -0.40 to -0.01
        ([0.2, -0.16, -0.13, -0.1, -0.22, -0.57, -0.24, -0.19], False),  # p 0.047, -0.36 to +0.003
    ],
)
def test_a_change_is_shown_by_its_interval_and_its_p(run, change, shown):
    stored = json.loads((run / "evaluation.json").read_text())
    for sign, verdict in ((1, "better"), (-1, "worse")):
        values = [first + sign * x for first, x in zip(FIRST, change, strict=True)]
        stored["steps"]["4"]["values"]["one_step_error"] = values
        changed(run, **stored)
        assert by_name(told(run))["one_step_error"]["gap"]["verdict"] == (verdict if shown else "not shown")


def test_steps_are_in_the_order_of_numbers(run):
    stored = json.loads((run / "evaluation.json").read_text())
    changed(run, steps={"0": stored["steps"]["0"], "10": stored["steps"]["4"], "4": stored["steps"]["2"]})
    found = told(run)
    assert found["steps"] == [0, 4, 10]
    assert by_name(found)["one_step_error"]["gap"]["value"] == pytest.approx(np.mean(CHANGE)), "the last is step 10"


def test_lines_by_range_of_t_are_means_of_its_timesteps(run):
    ranges = by_name(told(run))["one_step_error"]["ranges"]
    assert list(ranges) == ["t0-99", "t100-199", "t400-699", "t700-999"]
    assert ranges["t0-99"]["value"] == pytest.approx([0.04, 0.03, 0.02])
    assert ranges["t0-99"]["mean"] == pytest.approx([0, -0.01, -0.02])
    assert ranges["t700-999"]["value"] == pytest.approx([0.9, 0.675, 0.45])


def test_the_photographs_that_changed_most_are_shown_as_they_were_framed(run, data):
    found = told(run)
    error, face = by_name(found)["one_step_error"], by_name(found)["one_step_face"]
    assert [row for row, *_ in error["better"]] == [0, 8, 3]
    assert error["better"][0] == (0, 0.5, pytest.approx(0.2))
    assert [row for row, *_ in error["worse"]] == [4], "that which did not change is neither"
    assert [row for row, *_ in face["better"]] == [0, 8, 1], "row 3 has no face"
    assert set(found["pictures"]) == {"0", "1", "3", "4", "8"}
    rows = rows_of(data)
    middles = {row: middle_of(data / rows[row]["file_name"]) for row in ROWS}
    for row, picture in found["pictures"].items():
        assert picture["name"] == rows[int(row)]["file_name"]
        with Image.open(io.BytesIO(base64.b64decode(picture["src"]))) as opened:
            small = np.asarray(opened.convert("L"), dtype=float)  # colours are thinned in a JPEG
        far = {other: np.abs(small - middle).mean() for other, middle in middles.items()}
        own = far.pop(int(row))
        assert own < 0.6 * min(far.values()), "noise, and a JPEG of it"


def middle_of(file):
    """The largest square in the middle of a picture, with 64 pixels a side."""
    with Image.open(file) as opened:
        width, height = opened.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        middle = opened.convert("L").crop((left, top, left + side, top + side))
    return np.asarray(middle.resize((64, 64), Image.Resampling.BILINEAR), dtype=float)


def test_photographs_are_small_on_the_page(run):
    changed(run, resolution=512)
    for picture in told(run)["pictures"].values():
        with Image.open(io.BytesIO(base64.b64decode(picture["src"]))) as opened:
            assert opened.size == (SIDE, SIDE)


def test_photographs_that_are_not_here_are_named_by_their_rows(run, data, tmp_path):
    for more in ({"data": str(tmp_path / "away")}, {"data": str(data), "split": "test"}):
        changed(run, **more)
        found = told(run)
        assert found["pictures"] == {}
        assert [row for row, *_ in by_name(found)["one_step_error"]["better"]] == [0, 8, 3]
    changed(run, split="train", photographs=[90, *ROWS[1:]])
    assert set(told(run)["pictures"]) == {"1", "3", "4", "8"}


def test_photographs_that_are_others_now_are_not_shown_in_their_place(run, data, tmp_path):
    """A file that was added moves the rows of all that come after it; another may have been drawn anew, or broken."""
    people = shutil.copytree(data, tmp_path / "people")
    rows, before = rows_of(people), told(run)["pictures"]
    shutil.copy(people / rows[5]["file_name"], people / "000.png")
    changed(run, data=str(people))
    new = dict.fromkeys(rows[0]) | {"file_name": "000.png", "text": "new"}
    (people / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (new, *rows)))
    assert told(run)["pictures"] == {}, "row 0 is 000.png, row 1 was row 0"
    (people / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (people / "000.png").unlink()
    assert told(run)["pictures"] == before
    shutil.copy(people / rows[5]["file_name"], people / rows[3]["file_name"])
    (people / rows[4]["file_name"]).write_bytes(b"no picture")
    assert told(run)["pictures"] == {row: before[row] for row in ("0", "1", "8")}


def test_a_page_that_is_written_again_reads_no_photograph_twice(run, monkeypatch):
    album, read, really = Album({}), [], load.open_held_out
    monkeypatch.setattr(load, "open_held_out", lambda *asked: read.append(asked) or really(*asked))
    first = validation_of(run, album)
    assert validation_of(run, album) == first
    assert len(read) == 1
    assert first["pictures"]


def test_one_look_and_looks_that_were_not_finite(run):
    stored = json.loads((run / "evaluation.json").read_text())
    changed(run, steps={"0": stored["steps"]["0"]})
    one = by_name(told(run))["one_step_error"]
    assert (one["gap"], one["better"], one["worse"]) == (None, [], [])
    stored["steps"]["4"]["values"]["one_step_error"][0] = None
    stored["steps"]["2"]["by_timestep"]["one_step_error"] = [None] * 5
    changed(run, **stored)
    error = by_name(told(run))["one_step_error"]
    assert error["all"]["value"][-1] is None, "a mean of the others would be of other photographs"
    assert error["ranges"]["t0-99"]["mean"] == [0, None, pytest.approx(-0.02)]
    assert [row for row, *_ in error["better"]] == [8, 3, 6]
    assert error["gap"] == {"value": None, "low": None, "high": None, "verdict": "not finite"}, "it is not better"


def test_a_mean_is_of_the_same_timesteps_and_a_change_is_since_the_first_look(run):
    stored = json.loads((run / "evaluation.json").read_text())
    stored["steps"]["2"]["by_timestep"]["one_step_error"][1] = None  # at t = 60
    stored["steps"]["0"]["values"]["one_step_face"][0] = None
    changed(run, **stored)
    error, face = by_name(told(run))["one_step_error"], by_name(told(run))["one_step_face"]
    assert error["ranges"]["t0-99"]["value"] == [pytest.approx(0.04), None, pytest.approx(0.02)]
    assert error["ranges"]["t100-199"]["value"][1] == pytest.approx(0.075)
    assert face["all"]["mean"] == [None, None, None], "the second look is not what it changed since"
    assert face["all"]["value"][1:] == [pytest.approx(0.377), pytest.approx(0.314)]


def test_numbers_whose_sum_no_float_holds_are_not_finite(run):
    stored = json.loads((run / "evaluation.json").read_text())
    stored["steps"]["4"]["values"]["one_step_error"] = [1.7e308] * 8
    changed(run, **stored)
    assert json.dumps(told(run), allow_nan=False)
    assert by_name(told(run))["one_step_error"]["gap"]["verdict"] == "not finite"


@pytest.mark.parametrize(
    "more",
    [
        {"photographs": [0]},
        {"photographs": [0] * 8},
        {"photographs": None},
        {"digests": ["a"]},
        {"digests": None},
        {"timesteps": [20]},
        {"steps": {"zero": {}}},
        {"steps": {"0": {"values": {}}}},
        {"steps": []},
        {"resolution": None},
    ],
)
def test_what_no_trainer_wrote_is_said_not_to_be_shown(run, more):
    changed(run, **more)
    assert told(run) == {"unread": UNREAD}


@pytest.mark.parametrize("text", ["[" * 5000, "", "null", '{"photographs": [0'])
def test_half_a_file_is_said_not_to_be_shown(run, text):
    (run / "evaluation.json").write_text(text)
    assert told(run) == {"unread": UNREAD}


def test_nothing_is_shown_where_nothing_was_evaluated(run):
    changed(run, steps={})  # as a run leaves it that begins anew
    assert told(run) is None
    (run / "evaluation.json").unlink()
    assert told(run) is None
    assert validation_of(None, Album({})) is None


def page_of(run):
    result = CliRunner().invoke(main, ["report", str(run)])
    assert result.exit_code == 0, result.output
    return (run / "report.html").read_text(encoding="utf-8")


def test_it_is_on_the_page_and_names_stay_text(run, monkeypatch):
    monkeypatch.setattr(albums, "_within", lambda name, data: "</script><img src=x onerror=alert(1)>")
    html = page_of(run)
    page = json.loads(re.search(r'id="results">(.*?)</script>', html, re.DOTALL)[1])
    assert page["validation"]["steps"] == [0, 2, 4]
    assert len(page["validation"]["pictures"]) == 5
    assert "<img" not in html


def test_a_page_that_is_watched_keeps_its_album(run, monkeypatch):
    seen = []

    def sleep(_):
        seen.append(json.loads(re.search(r'id="results">(.*?)</script>', (run / "report.html").read_text())[1]))
        if len(seen) > 1:
            raise KeyboardInterrupt
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 5, "loss": 0.5}\n')
        changed(run, split="nowhere")  # of which nothing can be read

    monkeypatch.setattr(write.time, "sleep", sleep)
    assert CliRunner().invoke(main, ["report", str(run), "--watch", "1"]).exit_code == 0
    assert seen[0]["validation"]["pictures"]
    assert seen[1]["validation"]["pictures"] == {}
    assert seen[1]["validation"]["steps"] == [0, 2, 4]


@needs_browser
def test_validation_in_a_browser(run, tmp_path):
    page_of(run)
    with browser(tmp_path / "profile") as page:
        page.size(1280, 900)
        page.open((run / "report.html").as_uri())
        page.until("document.documentElement.dataset.drawn && document.querySelectorAll('#validation .trend').length")
        sections = page.value("[...document.querySelectorAll('section')].map((one) => one.id)")
        assert sections[:2] == ["findings", "validation"]
        assert page.value("document.querySelectorAll('#validation .chart').length") == 5
        assert page.value("document.querySelectorAll('#validation .chart .zero').length") == 5
        assert page.value("[...document.querySelectorAll('#validation .pill')].map((one) => one.textContent)") == [
            *["better"] * 4,
            "too few to tell",
        ]
        page.value("document.querySelector('#validation .chart').focus()")
        for _ in range(3):
            page.key("ArrowRight")
        read = page.value("document.getElementById('hint').textContent")
        assert "step 4" in read
        assert "all t0.319 (−0.138)" in read
        assert page.value("document.querySelectorAll('#validation img').length") == 20
        assert page.value("[...document.querySelectorAll('#validation img')].every((one) => one.alt)")
        for width in (390, 1280):
            page.size(width, 800, dark=True, mobile=width < 500)
            page.until(f"innerWidth === {width}")
            assert page.value("document.documentElement.scrollWidth") <= width
        assert page.errors == []


NASTY = "<img src=x onerror=document.title='broken'>.png"


@needs_browser
def test_a_file_with_markup_in_its_name_is_text_in_a_browser(run, data, tmp_path):
    people = shutil.copytree(data, tmp_path / "people")
    rows = rows_of(people)
    (people / rows[0]["file_name"]).rename(people / NASTY)
    rows[0]["file_name"] = NASTY
    (people / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changed(run, data=str(people))
    page_of(run)
    with browser(tmp_path / "profile") as page:
        page.open((run / "report.html").as_uri())
        page.until("document.documentElement.dataset.drawn")
        assert page.value("document.querySelectorAll('[onerror]').length") == 0
        assert page.value("document.title").endswith("mldm report")
        named = "[...document.querySelectorAll('#validation .file')].filter((one) => one.textContent === {0})"
        assert page.value(f"{named.format(json.dumps(NASTY))}.length") == 5, "of all five it improved most"
        assert page.errors == []


def words(run, page):
    """Of the part of the page, as a reader sees it."""
    page_of(run)
    page.open((run / "report.html").as_uri())
    page.until("document.documentElement.dataset.drawn")
    assert page.errors == []
    return page.value("document.getElementById('validation').innerText")


@needs_browser
def test_odd_evaluations_in_a_browser(run, tmp_path):
    text = (run / "evaluation.json").read_text()

    def with_(change):
        stored = json.loads(text)
        change(stored["steps"])
        changed(run, **stored)
        return words(run, page)

    with browser(tmp_path / "profile") as page:
        once = with_(lambda steps: [steps.pop(step) for step in "24"])
        assert "looked at once, before training" in once
        assert "A second look will tell" in once
        assert page.value("document.querySelectorAll('#validation .chart, #validation img').length") == 0
        broken = with_(lambda steps: steps["4"]["values"]["one_step_error"].__setitem__(0, None))
        assert broken.split("\n").count("not finite") == 1
        assert "0.456 → –" in broken
        with_(lambda steps: steps["4"]["values"].update(one_step_error=[0.1 + value for value in FIRST]))
        pills = page.value(
            "[...document.querySelectorAll('#validation .pill')].map((one) => [one.className, one.innerText])"
        )
        assert pills[:2] == [["pill worse", "worse"], ["pill better", "better"]]
        assert (
            page.value("document.querySelector('#validation .gap').innerText")
            == "0.456 → 0.556, +0.10 (+0.10 to +0.10)"
        )
        nothing = with_(lambda steps: [found["values"].update(none_of(found)) for found in steps.values()])
        assert nothing.endswith("Nothing that was measured was finite.")
        changed(run, **{**json.loads(text), "data": str(tmp_path / "away")})
        away = words(run, page)
        assert "Those that are not on this machine, or no longer as they were, are named by their rows." in away
        assert "row 4\n0.600 → 0.620" in away
        (run / "evaluation.json").write_text(text[:-9])
        assert UNREAD in words(run, page)


def none_of(found):
    return {name: [None] * len(ROWS) for name in found["values"]}
