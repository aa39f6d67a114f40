"""Fixtures that several test modules share: a tiny pipeline, a tiny data set, and the trainer run on them."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
from attached_scripts import attach_ground, run_attached  # noqa: F401
from hypothesis import HealthCheck, settings
from run_trainer import command, run_here
from tiny_data import write_data, write_pipeline, write_preset

from mldm_plugin.attach import ledger

# What else the machine does is no fault of a test.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than half a minute")
    for which, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(which) == signal.SIG_IGN:  # as nohup leaves it, and processes that are started inherit it
            signal.signal(which, usual)


def pytest_collection_finish() -> None:
    """What the imports made stays: the collector need not look through a million objects again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _nothing_is_followed_afterwards() -> Iterator[None]:
    """A test that attaches in this process leaves numpy, torch and Pillow as they were."""
    before = ledger.installed()
    yield
    if not before:
        ledger.uninstall()


@pytest.fixture(scope="session")
def make_data() -> Callable[..., Path]:
    """`write_data`, for tests that want a data set of their own."""
    return write_data


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "people")


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The architecture and files of Stable Diffusion 1.x, with seeded random weights."""
    return write_pipeline(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def random_preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preset that needs no weight files and opens its gate often; a random VAE resembles nothing."""
    return write_preset(tmp_path_factory.mktemp("preset") / "random.yaml")


@pytest.fixture(scope="session")
def train(tiny_pipeline: Path, tiny_data: Path) -> Callable[..., int]:
    """`train(output, "--flag", value, …)` runs the ControlNet trainer in this process and returns its exit status.

    The tiny pipeline and data set, resolution 64, seed 3 and no tracker are given unless the flags say otherwise.
    """
    from mldm_plugin.training.controlnet import main

    return lambda output, *flags: run_here(main, command(output, tiny_pipeline, tiny_data, *flags))


@pytest.fixture(scope="session")
def train_lora(tiny_pipeline: Path, tiny_data: Path) -> Callable[..., int]:
    """The same for the LoRA trainer."""
    from mldm_plugin.training.text_to_image_lora import main

    return lambda output, *flags: run_here(main, command(output, tiny_pipeline, tiny_data, *flags))


@pytest.fixture
def few_inference_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are sampled in two steps, where the trainers take 20 to 50 as diffusers' scripts do."""
    from mldm_plugin.training.conditional_ldm import ConditionalTrainer
    from mldm_plugin.training.controlnet import ControlNetTrainer
    from mldm_plugin.training.text_to_image_lora import LoraTrainer

    for trainer in (ConditionalTrainer, ControlNetTrainer, LoraTrainer):
        monkeypatch.setattr(trainer, "inference_steps", 2)


@pytest.fixture
def quick_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """One-step estimates at two timesteps instead of ten, and figures of few dots, as any evaluation of this process
    has them."""
    from mldm_plugin.evaluation import figures, one_step, results
    from mldm_plugin.reproduce import study

    monkeypatch.setattr(figures, "DPI", 50)
    for module in (one_step, results, study):
        monkeypatch.setattr(module, "TIMESTEPS", (100, 600))


@pytest.fixture
def the_error(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """`the_error()` is the one line that the user was shown since the last call."""

    def read() -> str:
        err = capfd.readouterr().err
        assert "Traceback" not in err
        (line,) = [x for x in err.splitlines() if x.startswith("mldm: ")]
        return line

    return read


@pytest.fixture
def weights_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of weights, and a hub folder of nobody's."""
    import torch

    folder = tmp_path / "cache"
    monkeypatch.setenv("MLDM_WEIGHTS", str(folder))
    monkeypatch.delenv("MLDM_WEIGHTS_SOURCE", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return folder


@pytest.fixture
def trainer_here(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The trainer that `accelerate launch` would start, in this process, which has made its imports. Returns what was
    started."""
    started: list[list[str]] = []

    def start(training: Any, threads: int, out: IO[bytes]) -> Any:
        out.write(b"")
        assert training.words[0] == "-m"
        started.append(training.words)
        main = import_module(training.words[1]).main
        return SimpleNamespace(returncode=run_here(main, training.words[2:]), poll=lambda: 0)

    monkeypatch.setattr("mldm_plugin.reproduce.commands.Training.start", start)
    monkeypatch.setattr("mldm_plugin.reproduce.run.LOOK", 0.01)
    return started


@pytest.fixture
def commands_here(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands beside the trainings, `mldm` and people-mini's, in this process. Returns what was started."""
    from mldm_plugin.cli import main
    from mldm_plugin.people_mini.__main__ import main as people_mini

    started: list[tuple[str, ...]] = []

    def call(command: Any, processes: int = 1) -> None:
        started.append(command.words)
        program, words = main, command.words[1:]
        if command.words[0] != "mldm":
            assert words[:2] == ("-m", "mldm_plugin.people_mini")
            program, words = people_mini, words[2:]
        with (  # where a process of its own would write
            open(1, "w", closefd=False) as out,
            open(2, "w", closefd=False) as err,
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            status = run_here(lambda argv: program.main(argv, standalone_mode=False) or 0, list(words))
        assert status == 0
        assert command.made.is_file()

    monkeypatch.setattr("mldm_plugin.reproduce.commands.Command.call", call)
    return started
