"""`mldm bench`, from the command line to its tables, its JSON and its picture."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench_sizes import SMALL
from click.testing import CliRunner
from PIL import Image

from mldm_plugin.bench import run as bench_run
from mldm_plugin.bench import sizes
from mldm_plugin.bench.candidates import ANSWERS, MEASURED, OURS, PLAIN
from mldm_plugin.bench.count import count
from mldm_plugin.bench.goals import GOALS
from mldm_plugin.bench.host import random_preset
from mldm_plugin.cli import main
from mldm_plugin.plugins import load_plugins

PERFORMANCE = Path(__file__).parent.parent / "docs" / "performance_details.md"


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(sizes.SIZES, "tiny", SMALL)


def invoke(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of whole steps: its output, its JSON and its picture."""
    folder = tmp_path_factory.mktemp("bench")
    state = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sizes.SIZES, "tiny", SMALL)
        files = ["--json", folder / "run.json", "--plot", folder / "run.png"]
        result = invoke("--subject", "step", "--batch", 1, "--rounds", 1, *files)
    assert result.exception is None, result.output
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(p.name for p in folder.iterdir()) == ["run.json", "run.png"]
    return result.output, json.loads((folder / "run.json").read_text()), folder / "run.png"


def test_every_candidate_is_in_the_tables(finished):
    output, record, _ = finished
    for candidate in record["sections"][0]["candidates"]:
        assert re.search(f"^  {re.escape(candidate['name'])} ", output, re.MULTILINE)
    assert "compared before timing: values at most" in output
    assert re.search(r"time of with the plugin, latents cached / plain step, T = 100 +[\d.]+ +[\d.]+  <= 0\.95", output)
    assert max(map(len, output.splitlines())) <= 130


def test_the_json_holds_every_sample(finished):
    _, record, _ = finished
    assert record["format"] == 2
    assert record["command"].startswith("mldm")
    assert not record["interrupted"]
    assert record["versions"]["torch"] == torch.__version__
    assert record["device"]["type"] in ("cpu", "cuda")
    assert record["device"]["name"]
    assert record["preset"]["losses"]["face"]["weights"] == "random"
    assert all(d["held_to"] == 1e-4 >= d["value"] for d in record["differences"])
    (section,) = record["sections"]
    assert (section["subject"], section["batch"], section["dtype"], section["resolution"]) == ("step", 1, "float32", 32)
    for candidate in section["candidates"]:
        assert candidate["faults"] == {}
        assert candidate["mean"].keys() == {"100", "400"}
        for k, samples in candidate["seconds"].items():
            assert len(samples) == 1
            assert samples[0] > 0
            assert candidate["peak_bytes"][k] > 0
            assert candidate["tflop"][k] > 0


def test_each_goal_has_a_name_a_limit_a_figure_and_whether_it_holds(finished):
    _, record, _ = finished
    assert [goal["name"] for goal in record["goals"]] == [goal.name for goal in GOALS if goal.subject == "step"]
    for goal in record["goals"]:
        assert (goal["subject"], goal["batch"], goal["dtype"]) == ("step", 1, "float32")
        reached = goal["figure"] <= goal["limit"] if goal["relation"] == "<=" else goal["figure"] >= goal["limit"]
        assert goal["holds"] is reached


def test_each_gated_image_costs_what_is_counted(finished):
    """The whole step as it ran against the parts, each counted without running."""
    _, record, _ = finished
    plugins = load_plugins(())
    counts = count(SMALL, 32, random_preset("mldm", (), plugins), plugins)
    expected = {(c.name, str(k)): tflop for c in counts.candidates(1) for k, tflop in c.tflop.items()}
    (step,) = record["sections"]
    came = {(c["name"], k): tflop for c in step["candidates"] for k, tflop in c["tflop"].items()}
    measured = came.pop((MEASURED, "1"))  # the second half of a decode twice more, and the last third of each loss
    gated = expected[OURS, "1"] - expected[PLAIN, "1"]
    assert gated / 3 < measured - came[OURS, "1"] < gated
    assert counts.network < counts.answer < 3 * counts.network  # forward twice, and backward through to its question
    for answers, name in ANSWERS.items():
        further = came[name, "1"] - came[OURS, "1"]
        assert further == pytest.approx((answers - 1) * counts.answer, rel=0.02)
        assert came[name, "0"] == pytest.approx(expected[PLAIN, "1"], rel=0.02)
    assert came.keys() == expected.keys()
    for key, tflop in expected.items():
        assert came[key] == pytest.approx(tflop, rel=0.02), key


def test_the_picture_is_one(finished):
    with Image.open(finished[2]) as picture:
        assert picture.size[0] > 800
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_counting_runs_nothing_and_tiny_has_the_proportions_of_stable_diffusion(monkeypatch, tmp_path):
    """Those of `--size sd15 --count`; VGG16's 15.35 billion multiplications at 224² are torchvision's."""
    monkeypatch.setattr(bench_run, "measure", None)
    result = invoke("--count", "--batch", 8, "--json", tmp_path / "c.json", "--plot", tmp_path / "c.png")
    assert result.exception is None, result.output
    assert "nothing is run" in result.output
    record = json.loads((tmp_path / "c.json").read_text())
    parts = record["tflop_per_image"]
    vgg = parts["losses"]["masked_lpips"]
    assert vgg == pytest.approx(3 * 2 * 15.35e9 * (32 / 224) ** 2 / 1e12, rel=0.03)
    shares = [part / parts["encode"] for part in (parts["network"], parts["decode"], vgg)]
    assert shares == pytest.approx([2.33 / 1.117, 5.08 / 1.117, 0.481 / 1.117], rel=0.15)
    gated = parts["decode"] + sum(parts["losses"].values())
    (section,) = record["sections"]
    assert (section["unit"], section["batch"]) == ("TFLOP", 8)
    goals = {goal["name"]: goal for goal in record["goals"]}
    expected = 1 + 0.401 * gated / (parts["encode"] + parts["network"])
    assert goals["time of with the plugin / plain step, T = 400"]["figure"] == pytest.approx(expected)
    assert (tmp_path / "c.png").stat().st_size > 0


def test_what_cannot_be_counted_is_refused(small):
    result = invoke("--count", "--set", "precision=bfloat16")
    assert result.exit_code == 1
    assert "leave --count out" in result.output


def test_all_subjects_of_several_batches_in_one_precision_start_up_once(small, monkeypatch, tmp_path):
    """Times that are known: everything takes 2 s, what belongs to the plugin 1 s and a quarter of the memory."""
    started = []

    def known(found, rounds, device, title):
        for c in found:
            ours = c.name.startswith(("with the plugin", "masked_lpips", "features, distance"))
            c.seconds, c.peak_bytes = (
                {k: [1.0 if ours else 2.0] for k in c.runs},
                dict.fromkeys(c.runs, 1 if ours else 4),
            )
        return True

    monkeypatch.setattr(bench_run, "measure", known)
    monkeypatch.setattr(bench_run, "start_up", lambda *_: started.append(1))
    monkeypatch.setattr(bench_run.compare, "compare_ways", lambda *_: [])
    monkeypatch.setattr(bench_run.compare, "compare_losses", lambda *_: [])
    result = invoke("--batch", "1,2", "--dtype", "float32", "--json", tmp_path / "all.json")
    assert result.exception is None, result.output
    assert len(started) == 1
    record = json.loads((tmp_path / "all.json").read_text())
    subjects = [("step", 1), ("pixels", 1), ("step", 2), ("pixels", 2), ("losses", 1), ("losses", 2)]
    assert [(s["subject"], s["batch"]) for s in record["sections"]] == subjects
    goals = {g["name"]: (g["figure"], g["holds"]) for g in record["goals"] if g["batch"] == 2}
    assert goals["time of with the plugin / plain step, T = 400"] == (0.5, True)
    assert goals["time of decode everything, then mask / with the plugin, T = 100"] == (2, True)
    assert goals["peak memory of masked_lpips spatial / lpips spatial x mask"] == (0.25, True)
    assert goals["time of upsample, then mask, alone / features, distance alone"] == (2, False)


def test_ctrl_c_writes_what_there_is(small, monkeypatch, tmp_path):
    calls = []

    def interrupted(found, rounds, device, title):
        calls.append(title)
        found[0].seconds[1] = [1.0]
        return False

    monkeypatch.setattr(bench_run, "measure", interrupted)
    monkeypatch.setattr(bench_run.compare, "compare_losses", lambda *_: [])
    result = invoke("--subject", "losses", "--batch", 1, "--batch", 2, "--json", tmp_path / "part.json")
    assert result.exit_code == 130
    assert len(calls) == 1
    assert "stopped by Ctrl-C" in result.output
    assert json.loads((tmp_path / "part.json").read_text())["interrupted"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--resolution", 40), "multiple of 32"),
        (("--count", "--subject", "losses"), "leave --subject out"),
        (("--batch", "1,x"), "1,x is not a list of whole numbers"),
    ],
)
def test_usage(arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_the_documentation_lists_the_goals():
    listed = PERFORMANCE.read_text(encoding="utf-8")
    for goal in GOALS:
        assert f"| {goal.name} | {goal.relation} {goal.limit:.3g} |" in listed


def test_help_needs_no_torch():
    program = (
        "import sys\nfrom click.testing import CliRunner\nfrom mldm_plugin.cli.bench import bench\n"
        "assert CliRunner().invoke(bench, ['--help']).exit_code == 0\n"
        "assert not {'torch', 'diffusers', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
