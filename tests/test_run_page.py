"""The page of a run: what it tells, of which files, and what a browser makes of it."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from browser import browser, needs_browser
from click.testing import CliRunner
from PIL import Image

from mldm_plugin.cli import main
from mldm_plugin.doctor.run import Run, find_run
from mldm_plugin.engine.heard import Tally
from mldm_plugin.run_page import film as films
from mldm_plugin.run_page import write
from mldm_plugin.run_page.curves import POINTS, by_range, curve, names_of
from mldm_plugin.run_page.film import film
from mldm_plugin.run_page.heard import heard, tally_of
from mldm_plugin.run_page.machine import speed_of
from mldm_plugin.run_page.told import command_of
from mldm_plugin.training.command_line import TRAINERS, make_parser

NASTY = "</script><img src=x onerror=alert(1)><!--\u2028"
PROOF = """Start-up proof (convex mix): gradient of each loss at the network output
  loss                  weight     T      value  |gradient|  verdict
  masked_lpips             0.2   999    0.08222      0.0462  reaches the network; alexnet
  decode(clean latents) resembles the picture: mean absolute error 0.038 of 2
"""


@pytest.fixture(scope="module")
def finished(train_lora, random_preset, tmp_path_factory):
    """A finished run with losses on people, panels and measured gradients."""
    run = tmp_path_factory.mktemp("runs") / "run"
    flags = ["--loss-plugin", "mldm", "--preset", random_preset, "--panel_steps", 1, "--learning_rate", 0.01]
    assert train_lora(run, *flags) == 0
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(finished, tmp_path / "run")


def report(*words):
    result = CliRunner().invoke(main, ["report", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def page_of(run, *words):
    assert report(run, *words)[0] == 0
    return (run / "report.html").read_text(encoding="utf-8")


def told(html):
    return json.loads(re.search(r'id="results">(.*?)</script>', html, re.DOTALL)[1])


def test_the_page_tells_what_the_run_was(run, tiny_data):
    html = page_of(run)
    page = told(html)
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert page["verdict"].startswith("The LoRA does something.")
    assert page["steps"]["done"] == len(steps)
    assert dict(page["settings"])["on"] == str(tiny_data)
    assert page["proof"]["rows"][0][0] == "masked_lpips"
    assert page["proof"]["rows"][0][-1].startswith("reaches the network")
    assert len(page["proof"]["notes"]) == 2
    settings = dict(page["settings"])
    assert re.fullmatch(r"[\d.]+ s a step, the median; .* for 2 steps with all between them", settings["speed"])
    assert re.fullmatch(r"[\d.]+ GB of RAM at most, of the first process", settings["memory"])
    assert "no GPU" in page["machine"]["machine"]
    assert f"torch {torch.__version__}" in page["machine"]["versions"]
    curves = {one["name"]: one for one in page["curves"]}
    assert curves.keys() >= {"loss", "ldm", "lr", "masked_lpips"}
    assert curves["loss"]["mean"] == pytest.approx([step["loss"] for step in steps], rel=1e-5)
    assert [frame["step"] for frame in page["film"]["frames"]] == list(range(1, len(steps) + 1))
    assert page["heard"][0]["reached"]["pictures"] == sum(s.get("masked_lpips/pictures", 0) for s in steps) > 0
    assert sum(v["measured"] for v in page["heard"][0]["ranges"].values()) > 0
    assert page["data"]["counts"]["rows"] > 0
    assert not (run / "crops.json").exists(), "its crops are random: what they lose is another face each time"
    assert page["data"]["tiles"]
    assert page["layers"]["bars"]
    assert "--panel_steps 1" in page["command"]
    assert page["command"].splitlines()[0].endswith("train_text_to_image_lora.py \\")
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert not re.search(r"(src|href)=[\"'](?!#)", html)


def test_a_run_leaves_its_page_behind(finished):
    page = told((finished / "report.html").read_text(encoding="utf-8"))
    assert page["verdict"].startswith("The LoRA does something.")
    assert page["data"] is None, "which would take a while"
    assert page["again"] is None


def test_a_page_that_cannot_be_written_is_a_line(run, capsys):
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    write.leave_page(run)
    assert "the page of the run was not written" in capsys.readouterr().err
    (run / "arguments.json").write_text("{")
    write.leave_page(run)
    assert f"mldm report {run} tries again" in capsys.readouterr().err


def test_a_page_that_is_watched_follows_the_run(run, monkeypatch):
    out, seen, waited = run / "report.html", [], []

    def more_steps():
        line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({**line, "step": 50}) + "\n")

    def half_of_the_weights():
        weights = run / "pytorch_lora_weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])

    meanwhile = iter([lambda: None, more_steps, half_of_the_weights])

    def sleep(seconds):
        waited.append(seconds)
        seen.append((told(out.read_text(encoding="utf-8")), out.stat().st_mtime_ns))
        happens = next(meanwhile, None)
        if happens is None:
            raise KeyboardInterrupt
        happens()

    monkeypatch.setattr(write.time, "sleep", sleep)
    assert report(run, "--watch", 7)[0] == 0
    (first, at), (second, again_at), (third, _), (fourth, _) = seen
    assert waited == [7, 7, 7, 7]
    assert first["again"] == 7
    assert at == again_at, "nothing had changed"
    assert second["steps"]["done"] < third["steps"]["done"] == fourth["steps"]["done"] == 50
    assert third["data"] == first["data"]
    last = told(out.read_text(encoding="utf-8"))
    assert last["again"] is None
    assert last["steps"]["done"] == 50


def test_what_came_since_the_last_look_is_on_the_page_that_stays(run, monkeypatch):
    def sleep(_):
        line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({**line, "step": 70}) + "\n")
        raise KeyboardInterrupt

    monkeypatch.setattr(write.time, "sleep", sleep)
    assert report(run, "--watch", 7)[0] == 0
    last = told((run / "report.html").read_text(encoding="utf-8"))
    assert (last["again"], last["steps"]["done"]) == (None, 70)
    assert last["data"] is not None


def test_the_page_goes_where_it_is_asked_to(run, tmp_path):
    status, output = report(run, "--out", tmp_path / "far" / "page.html")
    assert status == 0
    assert str(tmp_path / "far" / "page.html") in output
    assert (tmp_path / "far" / "page.html").is_file()
    (tmp_path / "file").write_text("")
    status, output = report(run, "--out", tmp_path / "file" / "page.html")
    assert status == 1
    assert "name another file" in output
    assert report(tmp_path / "nowhere")[0] == 1


def test_a_start_that_did_no_step_and_numbers_that_no_float_holds_do_not_tell_the_speed(tmp_path):
    done = {"from_step": 0, "steps": 2_000_000, "seconds": 40, "median": 2.0, "memory": {"ram": 10**400}}
    entries = [done, {"from_step": 2_000_000, "steps": 0, "seconds": 0.5, "median": None}]
    (tmp_path / "machine.json").write_text(json.dumps(entries))
    [(name, speed)] = speed_of(Run(None, None, tmp_path, {}, None, None))
    assert name == "speed"
    assert speed == "2 s a step, the median; 40 s for 2000000 steps with all between them, in 2 starts"


def test_a_file_by_itself_is_told_nothing_of_the_folder_one_is_in(run, tmp_path, monkeypatch):
    """Whose preset and proof may be another run's."""
    (tmp_path / "alone").mkdir()
    file = shutil.copy(run / "pytorch_lora_weights.safetensors", tmp_path / "alone" / "lora.safetensors")
    monkeypatch.chdir(run)
    assert report(file)[0] == 0
    page = told((tmp_path / "alone" / "report.html").read_text(encoding="utf-8"))
    assert page["proof"] is None
    assert not {"preset", "losses"} & dict(page["settings"]).keys()


def test_a_run_of_which_little_is_left(run):
    for name in ("arguments.json", "preset.yaml", "proof.txt", "machine.json"):
        (run / name).unlink()
    shutil.rmtree(run / "panels")
    (run / "pytorch_lora_weights.safetensors").unlink()
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    page = told(page_of(run))
    assert page["layers"] is page["command"] is page["proof"] is page["data"] is None
    assert page["film"] == {"frames": [], "panels": 0}
    assert page["curves"]
    (run / "metrics.jsonl").write_text("")
    page = told(page_of(run))
    assert page["wrong"]
    assert page["curves"] == page["heard"] == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"pictures": 5, "losing_a_face": 2}', 2),
        ("{", None),
        ("[2]", None),
        ("{}", None),
        ('{"pictures": 5}', None),
        ('{"pictures": 5, "losing_a_face": true}', None),
        ('{"pictures": 5, "losing_a_face": -1}', None),
        ('{"pictures": 5, "losing_a_face": 6}', None),
        ('{"pictures": 1e999, "losing_a_face": 1}', None),
        (None, None),
    ],
)
def test_what_the_crop_costs_is_told_where_the_run_has_said_it(run, text, shown):
    if text is None:
        (run / "crops.json").unlink(missing_ok=True)
    else:
        (run / "crops.json").write_text(text)
    counts = told(page_of(run))["data"]["counts"]
    assert counts.get("of 5 trained on lose a face to the crop") == shown
    assert (shown is None) == (not any("to the crop" in what for what in counts))


def test_an_attached_run_keeps_its_page_with_its_records(run):
    (run / "mldm").mkdir()
    for name in ("metrics.jsonl", "preset.yaml", "panels", "proof.txt", "machine.json"):
        (run / name).rename(run / "mldm" / name)
    (run / "arguments.json").unlink()
    assert report(run)[0] == 0
    page = told((run / "mldm" / "report.html").read_text(encoding="utf-8"))
    assert page["film"]["frames"]
    assert page["heard"]
    assert page["command"] is None


@pytest.mark.parametrize("kind", TRAINERS)
def test_the_command_gives_every_flag_back_zeros_and_repeated_ones_too(kind):
    """A run's arguments through its page's command and the trainer's own parser."""
    given = {"pretrained_model_name_or_path": "a model", "train_data_dir": "it's", "seed": 0, "adam_weight_decay": 0}
    given |= {"max_grad_norm": 0, "scale_lr": True, "color_jitter": [0, 0.1, 0, 0.5], "report_to": "all"}
    given |= {"preset": "mldm", "loss_plugin": ["mldm", "own.py"], "set": ["target=image", "losses.face.weight=0"]}
    given |= {"condition": ["attributes", "semantic_mask"], "panel_steps": 0}
    given |= {"condition_option": ["attributes.hidden=8", "semantic_mask.channels=[8, 8]"]}
    flags = kind(**given).model_dump()
    command = command_of(Run(None, None, None, {**json.loads(json.dumps(flags)), "num_processes": 2}, None, None))
    processes, script, *words = shlex.split(command.replace("\\\n", ""))[3:]  # as a shell reads it
    assert (processes, script) == ("2", kind.script)
    assert kind(**vars(make_parser(kind).parse_args(words))).model_dump() == flags


def test_a_line_that_does_not_say_its_step_is_at_its_place(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"loss": 0.5}\n{"loss": 0.5, "step": null}\n')
    curves = {one["name"]: one for one in told(page_of(run))["curves"]}
    assert curves["loss"]["step"] == [1, 2, 3, 4]


NO_STEPS = ["{", "[1, 2]", '"x"', '{"step": "two"}', '{"step": 9, "loss": {}}', "[" * 5000, "\x00", "null", ""]


def test_lines_that_are_no_steps_are_passed_over(run):
    before = told(page_of(run))
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(f"{line}\n" for line in NO_STEPS)
    assert told(page_of(run))["curves"] == before["curves"]


def test_numbers_that_are_not_finite_are_holes(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "loss": NaN, "ldm": Infinity, "lr": null}\n')
    page = told(page_of(run))
    assert page["curves"][0]["mean"][-1] is None
    assert any("NaN or infinite" in one["text"] for one in page["said"])


def test_what_strangers_wrote_stays_text(run, make_data, tmp_path):
    data = make_data(tmp_path / "data")
    rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({**row, "text": NASTY}) + "\n" for row in rows)
    (data / "metadata.jsonl").write_text(text)
    (run / "proof.txt").write_text(PROOF.replace("alexnet", NASTY))
    html = page_of(run, "--data", data)
    assert html.count("<script") == html.count("</script>") == 2
    assert "<img" not in html
    assert told(html)["data"]["tiles"][0]["caption"] == NASTY


def test_panels_that_cannot_be_read_are_left_out(run):
    panel = sorted((run / "panels").iterdir())[0]
    panel.write_bytes(b"no picture")
    (run / "panels" / "step-x.png").write_bytes(b"")
    found = film(run)
    assert found["panels"] == len(found["frames"]) + 1


def test_a_film_is_bounded(tmp_path, monkeypatch):
    (tmp_path / "panels").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for step in range(100, 10_100, 100):
        Image.fromarray(noise).save(tmp_path / "panels" / f"step-{step}.png")
    found = film(tmp_path)
    steps = [frame["step"] for frame in found["frames"]]
    assert (len(steps), steps[0], steps[-1], found["panels"]) == (films.FRAMES, 100, 10_000, 100)
    monkeypatch.setattr(films, "LARGEST", 5 * len(found["frames"][0]["src"]))
    assert len(film(tmp_path)["frames"]) == 5


# Numbers


def test_many_steps_are_thinned_to_means_with_their_extremes():
    steps = [{"step": k + 1, "loss": float(k % 2)} for k in range(100_000)]
    line = curve(steps, "loss")
    assert line["thinned"]
    assert len(line["step"]) == POINTS
    assert set(line["low"]) == {0.0}
    assert set(line["high"]) == {1.0}
    assert line["mean"] == pytest.approx([0.5] * POINTS)
    assert line["smooth"] == pytest.approx([0.5] * POINTS, abs=1e-3)


def test_each_picture_counts_the_same_in_a_loss_that_reaches_some():
    steps = [{"step": 1, "face": 1.0, "face/gated": 3}, {"step": 2, "face": 5.0, "face/gated": 1}]
    steps += [{"step": 3, "face": None, "face/gated": 0}]
    steps = [steps[k % 3] | {"step": k} for k in range(1200)]
    line = curve(steps, "face", "face/gated")
    assert line["mean"][10] == pytest.approx((3 * 1 + 1 * 5) / 4)
    assert line["smooth"][200] == pytest.approx(2.0, abs=0.05)
    assert names_of(steps) == ["face"]


def test_a_loss_by_range_has_points_where_it_was_logged():
    steps = [{"step": k, "face/gated": 1} | ({"face/t0-99": 0.5 + k} if k % 10 == 0 else {}) for k in range(1, 51)]
    found = by_range(steps, "face")
    assert found.keys() == {"t0-99"}
    assert found["t0-99"]["step"] == [10, 20, 30, 40, 50]
    assert found["t0-99"]["mean"] == [10.5, 20.5, 30.5, 40.5, 50.5]


def test_what_was_measured_is_put_together_again():
    """From the lines alone comes what the run itself held, and so the same warnings."""
    first = Tally("face", [[4.0] + [0.0] * 4, *([[x] + [0.0] * 4 for x in (0.02, 10.0, 9.0, -2.0, 1.0)])], [9, 5, 0])
    second = Tally(
        "face", [[2.0, 1.0] + [0.0] * 3, *([[x, x] + [0.0] * 3 for x in (0.01, 4.0, 3.0, -1.0, 1.0)])], [3, 1, 2]
    )
    steps = [{"step": 1, **first.logs()}, {"step": 2}, {"step": 4, **second.logs()}]
    again = tally_of("face", steps)
    first.add(second)
    assert again.reached == first.reached == [12, 6, 2]
    assert np.allclose(again.sums[:5], first.sums[:5])
    (told_of,) = heard(["face"], steps, {"combine": "additive", "losses": {"face": {"weight": 0.5}}})
    assert any("raise its weight" in text for text in told_of["said"])
    assert any("pull apart at t 0-99" in text for text in told_of["said"])
    assert told_of["share"]["t0-99"]["step"] == [1, 4]


# In a browser


@needs_browser
def test_the_page_in_a_browser(run, tmp_path):
    (run / "proof.txt").write_text(PROOF.replace("alexnet", NASTY))
    page_of(run)
    with browser(tmp_path / "profile") as page:
        page.size(1280, 900)
        page.open((run / "report.html").as_uri())
        page.until("document.documentElement.dataset.drawn && document.querySelectorAll('#losses .trend').length")
        assert page.value("document.querySelectorAll('img[src=x]').length") == 0
        sections = page.value("[...document.querySelectorAll('section')].map((one) => one.id)")
        assert sections == ["findings", "panels", "losses", "heard", "proof", "data", "layers", "repeat"]
        step, picture = "document.querySelector('.film-step').value", "document.querySelector('.film img').src"
        last, drawn = page.value(step), page.value(picture)
        page.value("document.querySelector('.film').focus()")
        page.key("ArrowLeft")
        assert page.value(step) != last
        assert page.value(picture) != drawn
        page.key("ArrowRight")
        assert page.value(step) == last
        page.value("document.querySelector('#losses .chart').focus()")
        page.key("ArrowRight")
        assert "step 1" in page.value("document.getElementById('hint').textContent")
        wide = (
            "((nodes) => [...nodes].filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.textContent))"
        )
        for width in (390, 1280):
            page.size(width, 800, dark=True, mobile=width < 500)
            page.until(f"innerWidth === {width}")
            assert page.value("document.documentElement.scrollWidth") <= width
            assert page.value(f"{wide}(document.querySelectorAll('.bars small'))") == [], "cut off"
        assert page.value("[...document.querySelectorAll('img')].every((one) => one.complete && one.naturalWidth)")
        assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 25)"
        assert page.errors == []


@needs_browser
def test_all_parts_fit_into_the_bar_bars_begin_at_one_place_and_axes_can_be_read(run, tmp_path):
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) | {
        "step": 3,
        "ldm/t0-99": 0.5,
        "masked_lpips/pictures": 3,
    }
    for range_, share in (("t0-99", 0.024), ("t100-199", 0.08), ("t400-699", 0.131)):
        measured = {"measured": 1, "gradient": share, "plain": 1, "cosine": 0, "share": share}
        line |= {f"masked_lpips/{name}/{range_}": value for name, value in measured.items()}
    lines = [{**json.loads(before), "lr": 0.001} for before in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (*lines, {**line, "lr": 0.001})))
    (run / "evaluation.json").write_text("{")
    page_of(run)
    with browser(tmp_path / "profile") as page:
        page.size(1280, 900)
        page.open((run / "report.html").as_uri())
        page.until("document.documentElement.dataset.drawn")
        assert page.value("document.querySelectorAll('.links a').length") == 10
        assert page.value(
            "document.querySelector('.links').scrollWidth <= document.querySelector('.links').clientWidth"
        )
        edges = "[...document.querySelectorAll('.share-of')].map((one) => Math.round(one.getBoundingClientRect().left))"
        assert len(page.value(edges)) >= 3
        assert len(set(page.value(edges))) == 1
        page.until("document.querySelectorAll('#losses .trend').length === 4")
        marks = "[...one.querySelectorAll('text[text-anchor=end]')].map((mark) => mark.textContent)"
        axes = page.value(f"[...document.querySelectorAll('#losses .chart')].map((one) => {marks})")
        assert all(len(set(marks)) == len(marks) > 1 for marks in axes), "no two marks of an axis read alike"
        assert "1.02e−3" in axes[-1]
        assert page.errors == []


@needs_browser
def test_a_page_that_is_watched_stays_where_it_was(run, tmp_path):
    (tmp_path / "page.html").write_text(write.page_of(find_run(run), "run", again=1), encoding="utf-8")
    with browser(tmp_path / "profile") as page:
        page.size(1280, 700)
        page.open((tmp_path / "page.html").as_uri())
        page.until("document.documentElement.dataset.drawn")
        page.value("window.before = true; scrollTo({ top: 600, behavior: 'instant' })")
        page.until("!window.before && document.documentElement?.dataset.drawn && Math.abs(scrollY - 600) < 3")
        assert page.errors == []
