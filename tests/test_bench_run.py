"""`mldm bench`, from the command line to its tables, its JSON and its picture."""

import json
import re
import subprocess
import sys

import pytest
import torch
from bench_sizes import SMALL
from click.testing import CliRunner
from PIL import Image

from mldm_plugin.bench import candidates, sizes, workload
from mldm_plugin.bench import run as bench_run
from mldm_plugin.bench.count import Counts
from mldm_plugin.bench.strategies import WithPlugin
from mldm_plugin.cli.bench import bench
from mldm_plugin.errors import CheckError, PresetError

RUN = ("--subject", "step", "--batch", 1, "--rounds", 1)


class Named:
    """Names without networks: nothing is run."""

    def __init__(self, plugins, face_crop):
        pass

    def on(self, people):
        names = ("SPATIAL", "PACKAGE", "FEATURES", "LITERAL", "DISTANCE", "LITERAL_DISTANCE", "FACE")
        return {getattr(candidates, name): (None, []) for name in names}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(sizes.SIZES, "tiny", SMALL)


@pytest.fixture
def quick(small, monkeypatch):
    """Without what comes before the first candidate runs: counting, start-up, comparing."""
    counts = Counts(1.0, 2.0, 5.0, {"masked_lpips": 0.5, "face": 0.0})
    monkeypatch.setattr(bench_run, "count", lambda *_: counts)
    monkeypatch.setattr(bench_run, "start_up", lambda *_: None)
    monkeypatch.setattr(candidates, "LossesAlone", Named)
    monkeypatch.setattr(bench_run.agreement, "compare_strategies", lambda *_: [])
    monkeypatch.setattr(bench_run.agreement, "compare_losses", lambda *_: [])


def invoke(*arguments):
    return CliRunner().invoke(bench, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of whole steps: its output, its JSON and its picture."""
    folder = tmp_path_factory.mktemp("bench")
    state = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sizes.SIZES, "tiny", SMALL)
        patch.setattr(workload, "CHECKED_STEPS", 1)
        result = invoke(*RUN, "--json", folder / "run.json", "--plot", folder / "run.png")
    assert result.exception is None, result.output
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(p.name for p in folder.iterdir()) == ["run.json", "run.png"]
    return result.output, json.loads((folder / "run.json").read_text()), folder / "run.png"


def test_every_candidate_is_in_the_tables(finished):
    output, record, _ = finished
    for section in record["sections"]:
        for case in section["cases"]:
            assert re.search(f"^  {re.escape(case['candidate'])} ", output, re.MULTILINE)
    assert "compared before timing: values at most" in output
    assert re.search(r"time of with the plugin, latents cached / plain step, T = 100 +[\d.]+ +[\d.]+ +<= 0\.95", output)
    assert max(map(len, output.splitlines())) <= 130


def test_the_json_holds_every_sample(finished):
    _, record, _ = finished
    assert record["format"] == 1
    assert record["command"].startswith("mldm")
    assert not record["interrupted"]
    assert record["versions"]["torch"] == torch.__version__
    assert record["device"]["type"] in ("cpu", "cuda")
    assert record["device"]["name"]
    assert record["threads"] == torch.get_num_threads()
    assert record["preset"]["losses"]["face"]["weights"] == "random"
    assert set(record["tflop_per_image"]) == {"encode", "network", "decode", "losses"}
    (section,) = record["sections"]
    assert (section["subject"], section["batch"], section["dtype"], section["resolution"]) == ("step", 1, "float32", 32)
    assert {(e["candidate"], e["max_timestep"]) for e in section["expected"]} >= {
        ("plain step", 100),
        ("plain step", 400),
    }
    assert all(a["held_to"] == 1e-4 >= a["value"] for a in section["agreement"])
    for case in section["cases"]:
        assert len(case["seconds"]) == 1
        assert case["low"] == case["median"] == case["high"] == case["seconds"][0] > 0
        assert case["peak_bytes"] > 0
        assert case["tflop"] > 0
        assert case["fault"] is None


def test_each_gated_image_costs_what_was_counted(finished):
    """The whole step as it ran against the parts, each counted without running."""
    _, record, _ = finished
    parts = record["tflop_per_image"]
    pixels = parts["decode"] + sum(parts["losses"].values())
    plain = parts["encode"] + parts["network"]
    expected = {
        ("plain step", None): plain,
        ("plain step, latents cached", None): parts["network"],
        ("with the plugin", 0): plain,
        ("with the plugin", 1): plain + pixels,
        ("with the plugin, latents cached", 0): parts["network"],
        ("with the plugin, latents cached", 1): parts["network"] + pixels,
        ("decode everything, then mask", None): plain + pixels,
        ("whole-batch gate, one t", 0): plain,
        ("whole-batch gate, one t", 1): plain + pixels,
    }
    (step,) = record["sections"]
    came = {(c["candidate"], c["gated"]): c["tflop"] for c in step["cases"]}
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
    counted = {r["text"]: r["counted"] for r in section["ratios"]}
    expected = 1 + 0.401 * gated / (parts["encode"] + parts["network"])
    assert counted["time of with the plugin / plain step, T = 400"] == pytest.approx(expected)
    assert (section["unit"], section["batch"]) == ("TFLOP", 8)
    assert all(r["measured"] is None and r["counted"] > 0 for r in section["ratios"])
    assert (tmp_path / "c.png").stat().st_size > 0


def test_what_cannot_be_counted_is_refused(small):
    result = invoke("--count", "--set", "decode=region")
    assert isinstance(result.exception, PresetError)
    assert "leave --count out" in str(result.exception)


def test_a_disagreement_ends_the_run_before_anything_is_timed(small, monkeypatch):
    monkeypatch.setattr(bench_run, "count", lambda *_: None)
    monkeypatch.setattr(bench_run.tables, "counts_text", lambda _: "")
    monkeypatch.setattr(bench_run, "start_up", lambda *_: None)
    right = WithPlugin.__call__
    monkeypatch.setattr(WithPlugin, "__call__", lambda self, step: right(self, step) * 1.01)
    result = invoke("--rounds", 1, "--subject", "pixels")
    assert isinstance(result.exception, CheckError)
    assert "k=0" not in result.output


def test_tables_and_ratios_of_all_subjects(quick, monkeypatch, tmp_path):
    """Times that are known: everything takes 2 s, what belongs to the plugin 1 s and a quarter of the memory."""

    def known(cases, rounds, device, title):
        for case in cases:
            ours = case.candidate.startswith(("with the plugin", "masked_lpips", "features, distance"))
            case.seconds, case.peak_bytes = ([1.0, 1.0] if ours else [2.0, 2.0]), (1 if ours else 4) << 20
        return True

    monkeypatch.setattr(bench_run, "measure", known)
    result = invoke("--batch", 1, "--json", tmp_path / "all.json")
    assert result.exception is None, result.output
    sections = json.loads((tmp_path / "all.json").read_text())["sections"]
    assert [s["subject"] for s in sections] == ["step", "pixels", "losses"]
    ratios = {r["text"]: (r["measured"], r["reached"]) for s in sections for r in s["ratios"]}
    assert ratios["time of with the plugin / plain step, T = 400"] == (0.5, True)
    assert ratios["time of decode everything, then mask / with the plugin, T = 100"] == (2, True)
    assert ratios["peak memory of masked_lpips spatial / lpips spatial x mask"] == (0.25, True)
    assert ratios["time of upsample, then mask, alone / features, distance alone"] == (2, False)
    assert ratios["(with the plugin - without, gate closed) / plain step"] == (-0.5, True)
    for section in sections:
        for case in section["cases"]:
            assert re.search(f"^  {re.escape(case['candidate'])} ", result.output, re.MULTILINE)
    assert re.search(r"^  plain step +(- +)+±0% +2000 +1\.00", result.output, re.MULTILINE)
    assert re.search(r"^  masked_lpips spatial +1000 +±0% +1 ", result.output, re.MULTILINE)


def test_ctrl_c_shows_what_there_is(quick, monkeypatch, tmp_path):
    calls = []

    def interrupted(cases, rounds, device, title):
        calls.append(title)
        cases[0].seconds.append(1.0)
        return False

    monkeypatch.setattr(bench_run, "measure", interrupted)
    result = invoke("--subject", "losses", "--batch", 1, "--batch", 2, "--json", tmp_path / "part.json")
    assert result.exit_code == 130
    assert len(calls) == 1
    assert "stopped by Ctrl-C" in result.output
    assert json.loads((tmp_path / "part.json").read_text())["interrupted"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--resolution", 40), "multiple of 32"), (("--count", "--subject", "losses"), "leave --subject out")],
)
def test_usage(arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_help_needs_no_torch():
    program = (
        "import sys\nfrom click.testing import CliRunner\nfrom mldm_plugin.cli.bench import bench\n"
        "assert CliRunner().invoke(bench, ['--help']).exit_code == 0\n"
        "assert not {'torch', 'diffusers', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
