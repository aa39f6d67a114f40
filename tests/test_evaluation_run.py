"""An evaluation from the command line to its files: stopped, spread over processes, with models that fail."""

import json
import shutil
import signal
import time
from dataclasses import asdict
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from PIL import Image

from mldm_plugin.errors import DataError, MldmError, PluginError
from mldm_plugin.evaluation import figures
from mldm_plugin.evaluation.evaluate import Asked, Evaluation, Sampling, evaluate
from mldm_plugin.evaluation.sampling import draw
from mldm_plugin.plugins import load_plugins
from mldm_plugin.reproduce.commands import Command

PLUGIN = str(Path(__file__).parent / "brightness.py")
METRICS = ("brightness", "redness")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def few_dots():
    """Figures at 300 dots an inch take as long as all else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 50)
        yield


def asked(out, *models, **options):
    given = {"number": 5, "photographs": 0, "metrics": METRICS, "sampling": Sampling(steps=2, resolution=64)}
    return Asked(models, out, **{**given, **options})


def run(*given, **options):
    return evaluate(asked(*given, **options), load_plugins([PLUGIN]))


def pictures(folder):
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


@pytest.fixture(scope="module")
def other_pipeline(tiny_pipeline, tmp_path_factory):
    """The tiny pipeline with a U-Net that answers otherwise."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("other") / "pipeline"
    shutil.copytree(tiny_pipeline, folder)
    file = next((folder / "unet").glob("*.safetensors"))
    weights = load_file(file)
    weights["conv_out.bias"] += torch.tensor([0.5, 0.1, -0.3, 0.2])
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def done(tiny_pipeline, other_pipeline, tiny_data, tmp_path_factory):
    """The folder of a finished evaluation, and what it returned."""
    out = tmp_path_factory.mktemp("evaluation") / "out"
    models = (f"one={tiny_pipeline}", f"same={tiny_pipeline}", f"other={other_pipeline}")
    return out, run(out, *models, data=tiny_data)


def test_the_same_model_is_the_same_and_another_is_not(done):
    out, results = done
    drawn = {name: pictures(out / "pictures" / name / "0") for name in ("one", "same", "other")}
    assert list(drawn["one"]) == [f"{case['key']}-0.png" for case in results["cases"]]
    assert all(np.array_equal(drawn["one"][n], drawn["same"][n]) for n in drawn["one"])
    (brightness,) = (metric for metric in results["metrics"] if metric["name"] == "brightness")
    same, other = (brightness["differences"][name] for name in ("same", "other"))
    assert same["value"] == same["low"] == same["high"] == 0
    assert same["verdict"] == "not shown"
    gaps = [drawn["other"][n].mean() / 127.5 - drawn["one"][n].mean() / 127.5 for n in drawn["one"]]
    assert other["value"] == pytest.approx(np.mean(gaps), abs=1e-6)
    assert len(set(brightness["values"]["other"])) == 5


def test_what_a_reader_must_know_is_said(done):
    """Two metrics of five prompts: the least p is 1/16, and no difference can be shown."""
    _, results = done
    said = dict(results["warnings"])
    assert "a model trained on these" in said["The photographs may not be held out from training."]
    assert set(said).isdisjoint(dict(results["notes"]))
    said = dict(results["notes"])["Too few prompts to show any difference."]
    assert said.startswith("The smallest p-value of 5 is 0.062; of 2 metrics one must be below 0.025. Draw 7 or more")


def test_sets_are_compared_with_all_photographs(done):
    _, results = done
    (redness,) = (metric for metric in results["metrics"] if metric["name"] == "redness")
    assert redness["kind"] == "set"
    assert redness["differences"]["same"]["value"] == 0
    assert redness["models"]["one"]["value"] > 0
    assert results["photographs"] == 7
    assert redness["cases"] == 5
    assert redness["rows"] == {"one": 5, "same": 5, "other": 5}


def test_the_files_of_a_finished_evaluation(done):
    out, results = done
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(results))
    lines = (out / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 3
    assert "| brightness ↑ |" in (out / "table.md").read_text()
    prompts = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
    assert prompts == results["cases"]


def test_a_finished_evaluation_is_not_made_again(done, tiny_pipeline, other_pipeline, tiny_data):
    out, results = done
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} | {
        path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl") if path.parent != out
    }
    models = (f"one={tiny_pipeline}", f"same={tiny_pipeline}", f"other={other_pipeline}")
    again = run(out, *models, data=tiny_data)
    assert again["metrics"] == results["metrics"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_model_that_was_trained_on_is_drawn_anew(tiny_pipeline, other_pipeline, tmp_path, caplog):
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline, folder)
    data = {"prompts_from": "people", "number": 2, "metrics": ("brightness",)}
    run(tmp_path / "out", f"m={folder}", **data)
    before = pictures(tmp_path / "out" / "pictures" / "m" / "0")
    shutil.rmtree(folder)
    shutil.copytree(other_pipeline, folder)
    results = run(tmp_path / "out", f"m={folder}", **data)
    after = pictures(tmp_path / "out" / "pictures" / "m" / "0")
    assert "made anew" in caplog.text
    assert not any(np.array_equal(before[name], after[name]) for name in before)
    assert results["metrics"][0]["models"]["m"]["value"] == pytest.approx(
        np.mean([p.mean() / 127.5 - 1 for p in after.values()]), abs=1e-6
    )


def test_another_prompt_under_the_same_number_is_drawn_anew_and_others_stay(tiny_pipeline, tmp_path):
    prompts, models = tmp_path / "prompts.txt", (f"m={tiny_pipeline}",)
    prompts.write_text("a man\na woman\n")
    first = run(tmp_path / "out", *models, prompts_from=str(prompts), metrics=("brightness",))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "pictures").rglob("*.png")}
    prompts.write_text("a man\na child\n")
    again = run(tmp_path / "out", *models, prompts_from=str(prompts), metrics=("brightness",))
    values = [results["metrics"][0]["values"]["m"] for results in (first, again)]
    assert values[0][0] == values[1][0]
    assert values[0][1] != values[1][1]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_model_that_fails_is_reported_and_the_rest_goes_on(tiny_pipeline, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model_index.json").write_text("{}")
    data = {"prompts_from": "people", "number": 2}
    models = (f"bad={tmp_path / 'bad'}", f"good={tiny_pipeline}")
    results = run(tmp_path / "out", *models, **data, metrics=("brightness", "broken", "never", "pairs", "redness"))
    assert [model["name"] for model in results["models"]] == ["good"]
    assert "does not load" in results["failed"]["bad"]
    assert [metric["name"] for metric in results["metrics"]] == ["brightness"]
    assert "RuntimeError: no such thing" in results["missing"]["broken"]
    assert results["missing"]["never"] == "nothing to measure: it asks for pictures of unicorns"
    assert "--person" in results["missing"]["pairs"]
    assert "--data" in results["missing"]["redness"]
    with pytest.raises(MldmError, match="no model could be evaluated"):
        run(tmp_path / "none", models[0], **data)


def test_what_cannot_be_is_said_before_anything_is_drawn(tiny_pipeline, tiny_data, tmp_path):
    model, out = f"m={tiny_pipeline}", tmp_path / "out"
    with pytest.raises(PluginError, match="brigthness.*brightness"):
        run(out, model, metrics=("brigthness",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        run(out, model, person=tmp_path / "empty")
    with pytest.raises(DataError, match="lies in --data"):
        run(tiny_data / "out", model, data=tiny_data)
    with pytest.raises(MldmError, match="not photographs"):
        run(out, f"photographs={tiny_pipeline}")
    assert not out.exists()


def test_one_step_is_compared_with_the_first_model_or_with_none(
    tiny_pipeline, tiny_data, quick_evaluation, tmp_path, monkeypatch
):
    from mldm_plugin.evaluation import one_step

    faces, lpips = one_step.FaceFeatures("dlib_resnet", "random"), one_step.LPIPSNetwork("alex", "random")
    monkeypatch.setattr(one_step, "FaceFeatures", lambda name: faces)
    monkeypatch.setattr(one_step, "LPIPSNetwork", lambda name: lpips)
    data = {"data": tiny_data, "number": 2, "photographs": 2, "metrics": ("brightness",)}
    first = run(tmp_path / "out", f"a={tiny_pipeline}", **data)
    (tmp_path / "seen").mkdir()
    for case in first["cases"]:
        Image.new("RGB", (64, 64)).save(tmp_path / "seen" / f"{case['key']}.png")
    models = (f"seen={tmp_path / 'seen'}", f"a={tiny_pipeline}", f"b={tiny_pipeline}")
    results = run(tmp_path / "out", *models, **data)
    (error,) = (metric for metric in results["metrics"] if metric["name"] == "one_step_error")
    assert set(error["models"]) == {"a", "b"}
    assert error["differences"] == {}
    assert all(curve["differences"] == {} for curve in results["curves"])


def test_a_metric_that_gives_no_number_is_left_out_and_named(tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(3):
        Image.new("RGB", (16, 16), (i * 100,) * 3).save(tmp_path / "a" / f"{i}.png")
    plugin = tmp_path / "odd.py"
    text = (Path(__file__).parent / "brightness.py").read_text()
    of_folder = asked(tmp_path / "out", f"a={tmp_path / 'a'}", metrics=("brightness",))
    plugin.write_text(text.replace("return float(picture.image.mean())", "return float('nan')"))
    results = evaluate(of_folder, load_plugins([str(plugin)]))
    assert "it gave nan" in results["missing"]["brightness"]
    plugin.write_text(text.replace('better = "larger"', 'better = "lower"'))
    results = evaluate(of_folder, load_plugins([str(plugin)]))
    assert "expected 'smaller' or 'larger'" in results["missing"]["brightness"]


SPREAD = """
from mldm_plugin import hookimpl

class Spread:
    title, better, alone = "spread", "larger", True

    def features(self, picture):
        return picture.image.mean().view(1, 1)[: int(picture.image.mean() < 0.99)]  # nothing is found in white

    def distance(self, made, real):
        if len(made) < 2:
            raise ValueError("nothing was found")
        return float(made.std())

@hookimpl
def register_metrics(register):
    register("spread", Spread)
"""


def test_a_metric_of_sets_alone_needs_no_photographs_and_a_model_without_faces_takes_it_from_no_other(tmp_path):
    (tmp_path / "spread.py").write_text(SPREAD)
    for name, levels in (("a", range(0, 200, 20)), ("white", [255] * 10), ("b", [*range(0, 90, 10), 255])):
        (tmp_path / name).mkdir()
        for i, level in enumerate(levels):
            Image.new("RGB", (16, 16), (level,) * 3).save(tmp_path / name / f"{i}.png")
    models = [f"{name}={tmp_path / name}" for name in ("a", "white", "b")]
    plugins = load_plugins([str(tmp_path / "spread.py")])
    results = evaluate(asked(tmp_path / "out", *models, metrics=("spread",)), plugins)
    (metric,) = results["metrics"]
    assert set(metric["models"]) == {"a", "b"}
    assert set(metric["differences"]) == {"b"}
    assert metric["differences"]["b"]["value"] < 0
    assert metric["rows"] == {"a": 10, "b": 9}, "what was found, not pictures"
    assert metric["differences"]["b"]["cases"] == 10
    assert "nothing was found" in results["missing"]["spread of white"]
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_prompts_of_an_evaluation_are_drawn_again_under_their_keys(tiny_pipeline, tmp_path):
    first = run(tmp_path / "a", f"a={tiny_pipeline}", prompts_from="people", number=3, metrics=("brightness",))
    lines = (tmp_path / "a" / "prompts.jsonl").read_text().splitlines()
    (tmp_path / "some.jsonl").write_text("\n".join(lines[1:]))
    again = run(
        tmp_path / "b", f"a={tiny_pipeline}", prompts_from=str(tmp_path / "some.jsonl"), metrics=("brightness",)
    )
    assert [case["key"] for case in again["cases"]] == [case["key"] for case in first["cases"]][1:]
    for case in again["cases"]:
        one, other = (tmp_path / x / "pictures" / "a" / "0" / f"{case['key']}-0.png" for x in "ab")
        assert one.read_bytes() == other.read_bytes()


def test_the_prompts_of_an_evaluation_find_their_photographs_in_the_same_data(done, tiny_pipeline, tiny_data, tmp_path):
    out, results = done
    data = {"data": tiny_data, "prompts_from": str(out / "prompts.jsonl"), "number": 9}
    again = Evaluation(asked(tmp_path / "out", f"one={tiny_pipeline}", **data), load_plugins([PLUGIN]))
    assert [asdict(case) for case in again.cases] == results["cases"]
    assert all(case.row is not None for case in again.cases)


def test_an_edited_metric_is_measured_again(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "a" / "0.png")
    plugin, text = tmp_path / "odd.py", (Path(__file__).parent / "brightness.py").read_text()
    found = []
    for word in ("picture.image.mean()", "picture.image.mean() + 100"):
        plugin.write_text(text.replace("picture.image.mean()", word, 1))
        plugins = load_plugins([str(plugin)])
        results = evaluate(asked(tmp_path / "out", f"a={tmp_path / 'a'}", metrics=("brightness",)), plugins)
        found.append(results["metrics"][0]["models"]["a"]["value"])
    assert found == [-1, 99]


def test_an_unreadable_picture_takes_its_model_and_no_other(tmp_path):
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (16, 16), (i * 100,) * 3).save(tmp_path / name / f"{i}.png")
    (tmp_path / "bad" / "1.png").write_bytes(b"no picture")
    (tmp_path / "good" / "._0.png").write_bytes(b"of another system")
    models = [f"{name}={tmp_path / name}" for name in ("good", "bad")]
    results = run(tmp_path / "out", *models, metrics=("brightness",))
    assert [model["name"] for model in results["models"]] == ["good"]
    assert "1.png cannot be read as a picture" in results["failed"]["bad"]


def test_folders_of_pictures_are_paired_by_name_or_not_at_all(tmp_path):
    for name, shift, first in (("a", 0, 0), ("b", 20, 0), ("c", 20, 50)):
        (tmp_path / name).mkdir()
        for i in range(12):
            Image.new("RGB", (16, 16), (20 * (i % 6) + shift,) * 3).save(tmp_path / name / f"{first + i}.png")
    models = [f"{name}={tmp_path / name}" for name in "abc"]
    (metric,) = run(tmp_path / "out", *models, metrics=("brightness",))["metrics"]
    paired, unpaired = metric["differences"]["b"], metric["differences"]["c"]
    assert paired["value"] == pytest.approx(unpaired["value"]) == pytest.approx(20 / 127.5)
    assert paired["verdict"] == "better"
    assert unpaired["high"] - unpaired["low"] > 0.3


def test_a_judge_that_a_run_was_trained_on_is_named_in_its_report(tmp_path):
    """From the preset in a run's folder to what the page warns of; in somebody else's script it lies in mldm/."""
    plugin, text = tmp_path / "judged.py", (Path(__file__).parent / "brightness.py").read_text()
    plugin.write_text(text.replace('asks = "pictures"', 'asks, networks = "pictures", ("vgg16 of ImageNet",)', 1))
    for name in ("plain", "mldm", "attached"):
        (tmp_path / name / "mldm").mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / name / "0.png")
    (tmp_path / "plain" / "preset.yaml").write_text("losses: {face: {weight: 1}}")
    for place in ("mldm/preset.yaml", "attached/mldm/preset.yaml"):
        (tmp_path / place).write_text("losses: {masked_lpips: {weight: 0.1}}")
    models = [f"{name}={tmp_path / name}" for name in ("plain", "mldm", "attached")]
    results = evaluate(asked(tmp_path / "out", *models, metrics=("brightness",)), load_plugins([str(plugin)]))
    assert results["metrics"][0]["trained_on"] == {"vgg16": ["mldm", "attached"]}
    assert '"trained_on":{"vgg16":["mldm","attached"]}' in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_pictures_of_any_size_lie_beside_each_other(tmp_path):
    """Each is measured as it is; the report shows each with its own sides."""
    for name, light in (("a", 0), ("b", 30)):
        (tmp_path / name).mkdir()
        for i, size in enumerate(((16, 16), (300, 20), (40, 90))):
            Image.new("RGB", size, (40 * i + light,) * 3).save(tmp_path / name / f"{i}.png")
    results = run(tmp_path / "out", f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", metrics=("brightness",))
    values = results["metrics"][0]["values"]
    assert values["a"] == pytest.approx([grey / 127.5 - 1 for grey in (0, 40, 80)])
    assert values["b"] == pytest.approx([grey / 127.5 - 1 for grey in (30, 70, 110)])
    html = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert [html.count(f'"ratio":{ratio}') for ratio in ("1.0", "15.0", "0.4444")] == [2, 2, 2]


def test_pictures_that_are_named_after_nothing_are_refused(tmp_path, tiny_data, tiny_pipeline):
    (tmp_path / "seen").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "seen" / "holiday.png")
    with pytest.raises(MldmError, match=r"named after a prompt, as 0000\d_\w+.png"):
        run(tmp_path / "out", f"seen={tmp_path / 'seen'}", data=tiny_data)


def test_training_seeds_are_runs_of_one_model(tiny_pipeline, other_pipeline, tmp_path):
    models = (f"a={tiny_pipeline}", f"b={tiny_pipeline}", f"b={other_pipeline}")
    results = run(tmp_path / "out", *models, prompts_from="people", number=4, metrics=("brightness",))
    assert [len(model["runs"]) for model in results["models"]] == [1, 2]
    drawn = {str(path.relative_to(tmp_path / "out" / "pictures")) for path in (tmp_path / "out").glob("pictures/*/*")}
    assert drawn == {"a/0", "b/0", "b/1"}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_machine_of_more_cores_draws_the_same(tiny_pipeline, tmp_path, monkeypatch, threads):
    """What is drawn is drawn by one thread, and the caller's own number is left."""
    seen = []
    monkeypatch.setattr(
        "mldm_plugin.evaluation.evaluate.draw", lambda *a, **k: (seen.append(torch.get_num_threads()), draw(*a, **k))
    )
    own = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        run(tmp_path / "out", f"a={tiny_pipeline}", prompts_from="people", number=1, metrics=("brightness",))
        assert (seen, torch.get_num_threads()) == ([1], threads)
    finally:
        torch.set_num_threads(own)


# Real processes


def command(out, *flags):
    arguments = ["--loss-plugin", PLUGIN, "--metrics", "brightness,redness", "--steps", "2", "--resolution", "64"]
    return [*arguments, "--prompts", "6", "--repetitions", "2", "--photographs", "0", "--out", str(out), *flags]


def environment():
    return {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def metrics_of(out):
    return json.loads((out / "metrics.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def from_one_process(tiny_pipeline, other_pipeline, tiny_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "out"
    flags = ("--model", f"a={tiny_pipeline}", "--model", f"b={other_pipeline}", "--data", str(tiny_data))
    found = forked.run("-m", "mldm_plugin.cli", "evaluate", *command(out, *flags), env=environment())
    assert found.returncode == 0, found.stderr
    assert "\nbrightness ↑  " in found.stdout
    return out, flags


def test_two_processes_draw_and_find_the_same(from_one_process, tmp_path, monkeypatch):
    """To the bit, whatever the number of threads that the machine offers each."""
    one, flags = from_one_process
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    words = ("mldm", "evaluate", *command(tmp_path / "two", *flags))
    Command(words, tmp_path / "two" / "report.html").over(2).call()
    for name in ("a", "b"):
        drawn, wanted = (pictures(out / "pictures" / name / "0") for out in (tmp_path / "two", one))
        assert list(drawn) == list(wanted)
        assert all(np.array_equal(drawn[n], wanted[n]) for n in wanted)
    assert metrics_of(tmp_path / "two") == metrics_of(one)
    ranks = {path.name for path in (tmp_path / "two" / "measured" / "a" / "0").glob("*.jsonl")}
    assert ranks == {"000.jsonl", "001.jsonl"}, "both processes had their share"


@pytest.mark.timeout(900)  # three processes that draw, on a machine that may be busy
def test_killed_in_any_phase_it_goes_on(from_one_process, tmp_path):
    """Killed while the second model draws and while it is measured: the same pictures and numbers."""
    one, flags = from_one_process
    arguments = ["-m", "mldm_plugin.cli", "evaluate", *command(tmp_path / "out", *flags)]
    kept = []
    for phase in ("pictures/b/0/*.png", "measured/b/0/*.jsonl"):
        process = forked.Forked(*arguments, env=environment())
        while not list((tmp_path / "out").glob(phase)):
            assert process.poll() is None, process.stderr
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it was still at work"
        kept.append({path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("pictures/*/0/*.png")})
    assert len(kept[0]) < len(kept[1]) == 24
    ended = forked.run(*arguments, env=environment())
    assert ended.returncode == 0, ended.stderr
    for before in kept:
        whole = {path: time_ for path, time_ in before.items() if path.parent.parent.name == "a"}
        assert {path: path.stat().st_mtime_ns for path in whole} == whole, "what was drawn is not drawn again"
    for name in ("a", "b"):
        drawn, wanted = (pictures(out / "pictures" / name / "0") for out in (tmp_path / "out", one))
        assert all(np.array_equal(drawn[n], wanted[n]) for n in wanted)
    assert metrics_of(tmp_path / "out") == metrics_of(one)
