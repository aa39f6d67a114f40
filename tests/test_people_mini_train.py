"""people-mini's training: resumable to the number, budgets, and a pipeline that diffusers reads."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import lpips
import pytest
import torch
from accelerate import Accelerator
from click.testing import CliRunner
from PIL import Image

from mldm_plugin.errors import DataError
from mldm_plugin.people_mini.__main__ import main
from mldm_plugin.people_mini.archive import write_archive
from mldm_plugin.people_mini.loop import Plan, Training
from mldm_plugin.people_mini.networks import PEOPLE_MINI, build_networks, count_parameters
from mldm_plugin.people_mini.perceptual import STAGES, WIDTHS, ThreeStages
from mldm_plugin.people_mini.record import Record, Sample
from mldm_plugin.people_mini.settings import settings_of

ROW = {
    "kind": "man",
    "skin": "fair",
    "hair": "short",
    "hair_colour": "red",
    "expression": "smile",
    "gaze": "camera",
    "eye_colour": "blue",
    "glasses": "none",
    "beard": "none",
    "hat": "cap",
    "pose": "portrait",
    "top": "shirt",
    "top_colour": "blue",
    "pattern": "plain",
    "bottom": "unseen",
    "bottom_colour": "unseen",
    "scene": "park",
    "view": "bust",
}


class Line:
    """A straight line is learned; the batch is drawn from the generator alone."""

    def draw(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"x": torch.randn(4, 3, generator=generator)}

    def loss(self, module: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return (module(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().mean()


def trained(folder: Path, steps: int, until: int | None = None, **plan: Any) -> Training:
    """A training of `steps` steps, of which those before `until` are done."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 1)
    training = Training(module, Plan("net", 0.05, steps, warmup=3, ema=0.9, **plan), Line(), Accelerator(), folder)
    if until is not None:
        training.finished = lambda: training.progress.step >= until  # type: ignore[method-assign]
    training.run()
    return training


def test_passes_that_are_made_for_a_graph_are_no_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured on a GPU they go through batch norm, whose averages an interrupted training would add to twice."""

    def captured(passes: Any, batch: Any) -> Any:
        passes(batch)
        return passes

    monkeypatch.setattr("mldm_plugin.people_mini.loop.captured", captured)
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
    training = Training(module, Plan("net", 0.05, 3), Line(), Accelerator(), tmp_path)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    training._capture()
    assert all(value.equal(before[name]) for name, value in module.state_dict().items())
    training._passes(training.objective.draw(training.generator))
    assert not module[0].running_mean.equal(before["0.running_mean"])


def test_an_interrupted_training_goes_on_where_it_was(tmp_path: Path) -> None:
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
    whole = trained(tmp_path / "whole", 50)
    trained(tmp_path / "halves", 50, until=23)
    halves = trained(tmp_path / "halves", 50)
    assert halves.progress.step == whole.progress.step == 50
    for a, b in zip(whole.weights + whole.averages, halves.weights + halves.averages, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(whole.weights[0], whole.averages[0])
    assert whole.progress.losses[-1][2] < whole.progress.losses[0][2]


def test_the_budget_may_be_minutes(tmp_path: Path) -> None:
    plan = Plan("net", 1.0, steps=100, minutes=2, warmup=10)
    assert plan.progress(50, 0.0) == 0.5
    assert plan.progress(50, 90.0) == 0.75
    assert plan.rate_at(0, 0.0) == pytest.approx(0.1)
    assert plan.rate_at(20, 0.5) == pytest.approx(0.01 + 0.99 / 2)
    assert plan.rate_at(20, 1.0) == pytest.approx(0.01)
    assert trained(tmp_path, 10**9, minutes=0.003).progress.seconds >= 0.18


def test_sheets_are_made_now_and_then(tmp_path: Path) -> None:
    seen = []
    module = torch.nn.Linear(3, 1)
    plan = Plan("net", 0.1, 7, sheet_every=3)
    Training(module, plan, Line(), Accelerator(), tmp_path, lambda net, step: seen.append(step)).run()
    assert seen == [3, 6]


def test_a_stage_without_a_budget_is_refused() -> None:
    with pytest.raises(DataError, match="--minutes or --steps"):
        settings_of({"vae_minutes": 1.0, "vae_steps": None, "minutes": None, "steps": None})


def test_what_ships_stays_small() -> None:
    assert 2 * sum(count_parameters(network) for network in build_networks(PEOPLE_MINI).values()) < 38_000_000


def test_three_stages_are_lpips_without_the_last_two() -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips 0.1.4 calls torchvision's deprecated `pretrained=`
        model: Any = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    own = {"features." + name.split(".", 1)[1]: value for name, value in model.net.state_dict().items()}
    numbers = [n for stage in STAGES for n in stage]
    state = {f"features.{n}.{key}": own[f"features.{n}.{key}"] for n in numbers for key in ("weight", "bias")}
    state |= {f"lin{i}": model.lins[i].model[-1].weight for i in range(len(WIDTHS))}
    a, b = torch.rand(2, 2, 3, 32, 32).mul(2).sub(1).unbind()
    with torch.no_grad():
        _, layers = model(a, b, retPerLayer=True)
    network = ThreeStages(state)
    assert float(network(a, b)) == pytest.approx(float(sum(layer.mean() for layer in layers[:3])), rel=1e-4)
    assert float(network(a, a)) == 0
    a.requires_grad_()
    network(a, b).backward()
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()


def command(folder: Path, archive: Path, *more: str) -> list[str]:
    budget = ["--vae-steps", "2", "--steps", "2", "--vae-batch", "2", "--batch", "2", "--scale", "0.02"]
    return ["train", str(archive), "--out", str(folder), "--size", "thin", "--no-lpips", *budget, *more]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pictures to show: a sheet of all captions takes a minute on a CPU."""
    from mldm_plugin.people_mini import showing, train

    monkeypatch.setattr(showing, "SHEET_CAPTIONS", showing.SHEET_CAPTIONS[:8])
    monkeypatch.setattr(showing, "STEPS", 2)
    monkeypatch.setattr(train, "SHOWN", 16)


def test_the_command_trains_and_diffusers_reads_what_it_writes(tmp_path: Path, small: None) -> None:
    from diffusers import StableDiffusionPipeline

    drawn = [Sample(Record(f"drawn/{i:07d}", i, attributes=ROW), Image.new("RGB", (128, 128))) for i in range(3)]
    row = Record("photo/P001/x", person="P001", texts=["studio_portrait", ""], face=[100.0, 90.0, 160.0, 170.0])
    write_archive(tmp_path / "a.zip", [*drawn, Sample(row, Image.new("RGB", (300, 300), (200, 180, 160)))], 80)
    (tmp_path / "more").mkdir()
    later = [Sample(Record(f"drawn/{i:07d}", i, attributes=ROW), Image.new("RGB", (128, 128))) for i in range(10, 12)]
    write_archive(tmp_path / "more" / "1.zip", later)
    arguments = command(tmp_path / "run", tmp_path / "a.zip", "--more", str(tmp_path / "more"))
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    assert log["drawings"] == 5
    assert log["steps"] == {"autoencoder": 2, "denoiser": 2}
    assert set(log["psnr"]) == {"drawings", "photographs"}
    for name in ("curves.png", "reconstructions.png", "sheets/sheet_000002.png"):
        assert (tmp_path / "run" / name).stat().st_size > 1000

    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "run" / "pipeline", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.vae.config.scaling_factor == pytest.approx(log["scaling_factor"])
    made = pipeline("photo of alvora", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert made.size == (128, 128)
