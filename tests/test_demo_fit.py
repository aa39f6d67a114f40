"""Rebuilding the demo's weights: resumable to the number, interruptible, and loadable afterwards."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from mldm_plugin.demo import fit as fit_module
from mldm_plugin.demo.fit import Plan, fit, picture_loss, random_crops
from mldm_plugin.demo.photos import WINDOWS
from mldm_plugin.demo.pipeline import TINY, build_networks, load_fitted

PLAN = Plan("net", steps=6, learning_rate=0.1, ema=0.9, warmup=2)


def network() -> nn.Module:
    made = nn.Linear(3, 1)
    nn.init.constant_(made.weight, 0.5)
    nn.init.zeros_(made.bias)
    return made


def objective(net: Any, step: int, generator: torch.Generator) -> torch.Tensor:
    x = torch.randn(4, 3, generator=generator)
    return (net(x) - x.sum(1, keepdim=True)).square().mean()


def stopping_at(stop: int, number: int) -> Any:
    def wrapped(net: Any, step: int, generator: torch.Generator) -> torch.Tensor:
        if step == stop:
            os.kill(os.getpid(), number)
        return objective(net, step, generator)

    return wrapped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stop", [0, 3])
def test_an_interrupted_fit_goes_on_where_it_was(tmp_path: Path, number: int, stop: int) -> None:
    handler = signal.getsignal(number)
    for part in ("whole", "halves"):
        (tmp_path / part).mkdir()
    whole = fit(network(), PLAN, objective, tmp_path / "whole")
    with pytest.raises(click.Abort):
        fit(network(), PLAN, stopping_at(stop, number), tmp_path / "halves")
    assert signal.getsignal(number) is handler
    assert torch.load(tmp_path / "halves" / "net.state.pt", weights_only=True)["step"] == stop + 1
    halves = fit(network(), PLAN, objective, tmp_path / "halves")
    assert torch.equal(whole.weight, halves.weight)
    assert torch.equal(whole.bias, halves.bias)


def test_the_average_trails_the_weights(tmp_path: Path) -> None:
    last = network()
    average = fit(last, PLAN, objective, tmp_path)
    assert average is not last
    assert not torch.equal(average.weight, last.weight)
    assert fit(last, Plan("plain", 2, 0.1), objective, tmp_path) is last


def test_state_is_saved_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "SAVE_SECONDS", 0.0)
    seen = []

    def watch(net: Any, step: int, generator: torch.Generator) -> torch.Tensor:
        seen.append((tmp_path / "net.state.pt").is_file())
        return objective(net, step, generator)

    fit(network(), PLAN, watch, tmp_path)
    assert seen == [False] + [True] * 5


def test_rate_warms_up_and_falls() -> None:
    plan = Plan("net", steps=100, learning_rate=1.0, warmup=10)
    rates = [plan.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == max(rates[8:12])
    assert rates[100] == pytest.approx(0.02)


def test_picture_loss_is_zero_for_equal_pictures_and_sees_colour_and_edges() -> None:
    grey = torch.zeros(1, 3, 16, 16)
    assert picture_loss(grey, grey) == 0
    # A flat offset of 0.1: L1 0.1, means 10 * 0.01, no differences.
    assert picture_loss(grey + 0.1, grey) == pytest.approx(0.2, abs=1e-6)
    stripes = grey.clone()
    stripes[..., ::2] = 0.1
    assert picture_loss(stripes, grey) > 0.05 + 0.5 * 0.1


def test_random_crops_are_drawn_from_the_generator_alone() -> None:
    pictures = [torch.rand(2, 3, 20, 20), torch.rand(2, 3, 24, 24)]
    before = torch.random.get_rng_state()
    first, second = (random_crops(pictures, 5, 16, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.shape == (5, 3, 16, 16)
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_command_writes_weights_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "FITTED", TINY)
    monkeypatch.setattr(fit_module, "WINDOWS", WINDOWS[:2])
    monkeypatch.setattr(fit_module, "RESOLUTION", 64)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    command = ["--out", str(tmp_path), "--vae-steps", "1", "--unet-steps", "2"]
    result = CliRunner().invoke(fit_module.main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "the fitted weights are in" in result.output
    networks = build_networks(TINY)
    fresh = {name: [p.clone() for p in net.parameters()] for name, net in networks.items()}
    for name, net in networks.items():
        load_fitted(name, net, tmp_path / f"{name}.safetensors")
        changed = max((a - b).abs().max() for a, b in zip(fresh[name], net.parameters(), strict=True))
        assert changed > 0 if name == "text_encoder" else changed > 1e-5
    assert networks["vae"].config.scaling_factor != 0.18215


def test_an_interrupted_command_ends_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(plan: Plan) -> Any:
        return stopping_at(0, signal.SIGTERM)

    monkeypatch.setattr(fit_module, "build_networks", lambda size, seed: {"vae": network()})
    monkeypatch.setattr(fit_module, "vae_objective", stop)
    result = CliRunner().invoke(fit_module.main, ["--out", str(tmp_path), "--only", "vae"])
    assert result.exit_code == 1
    assert "the same command goes on from there" in result.output
