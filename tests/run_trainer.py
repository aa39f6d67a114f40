"""Running the trainers: command lines, processes of their own, and what a run leaves."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

# Processes of their own, to be killed or to train in pairs, without the seconds that the imports take.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["mldm_plugin.training.controlnet", "mldm_plugin.training.text_to_image_lora"])

CONTROLNET, LORA = "controlnet", "text_to_image_lora"
WEIGHTS = {CONTROLNET: "diffusion_pytorch_model.safetensors", LORA: "pytorch_lora_weights.safetensors"}
PATIENCE = 200


def command(output: Path, pipeline: Path, data: Path, *flags: Any) -> list[str]:
    """A command line of the trainer, with what the tests have in common unless `flags` say otherwise."""
    given = [str(f) for f in flags]
    common = {
        "--pretrained_model_name_or_path": pipeline,
        "--train_data_dir": data,
        "--output_dir": output,
        "--resolution": 64,
        "--seed": 3,
        "--report_to": "none",
        "--train_batch_size": 2,
        "--max_train_steps": 2,
    }
    return [str(x) for flag, value in common.items() if flag not in given for x in (flag, value)] + given


def forget_accelerate() -> None:
    """accelerate keeps its state in singletons, and logging its handlers; each run of the trainer starts anew."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
    logging.getLogger().setLevel(logging.WARNING)


def run_here(main: Callable[[list[str]], int], argv: list[str], *, cpu: bool = True) -> int:
    """The exit status of a trainer that runs in this process, offline, on the CPU unless `cpu` is false."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("ACCELERATE_USE_CPU", str(cpu).lower())
        torch.set_num_threads(1)
        forget_accelerate()
        try:
            return main(argv)
        finally:
            torch.set_num_threads(threads)
            forget_accelerate()


def records(folder: Path) -> list[dict[str, Any]]:
    """What a run logged, a dict for each optimizer step."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """What a run trained."""
    (file,) = (folder / name for name in WEIGHTS.values() if (folder / name).exists())
    return load_file(file)


def same_weights(a: Path, b: Path) -> bool:
    """To the bit."""
    one, other = weights_of(a), weights_of(b)
    return one.keys() == other.keys() and all(one[k].equal(other[k]) for k in one)


def train_and_die(trainer: str, argv: list[str], step: int | None, during: str | None) -> None:
    """Train in this process; SIGKILL it as soon as `step` is logged, or before a file whose path holds `during` gets
    its name for the `step`-th time."""
    from mldm_plugin.records.metrics import MetricsFile

    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers, as in a run from the shell
    write, replace, named = MetricsFile.write, Path.replace, []

    def write_and_die(self: Any, record: Mapping[str, Any]) -> None:
        write(self, record)
        if record["step"] == step and during is None:
            os.kill(os.getpid(), signal.SIGKILL)

    def replace_or_die(self: Path, target: Path) -> Path:
        if during is not None and during in str(self):
            named.append(target)
            if len(named) == step:
                os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    MetricsFile.write = write_and_die  # type: ignore[method-assign]
    Path.replace = replace_or_die  # type: ignore[method-assign,assignment]
    sys.exit(import_module(f"mldm_plugin.training.{trainer}").main(argv))


def start(argv: list[str], step: int | None = None, *, during: str | None = None, trainer: str = CONTROLNET) -> Any:
    """The exit status of a run in a process of its own, which is killed as `train_and_die` says."""
    process = PROCESSES.Process(target=train_and_die, args=(trainer, argv, step, during))
    process.start()
    process.join(PATIENCE)
    return process.exitcode


def run_script(script: Path, argv: list[str], output: Path) -> None:
    """Run a script by itself in this process, on the CPU and offline."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no", "HF_HUB_OFFLINE": "1"}
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers, as in a run from the shell
    sys.argv = [str(script), *argv]
    runpy.run_path(str(script), run_name="__main__")


def start_script(script: Path, argv: list[str], output: Path) -> Any:
    """The exit status of a script in a process of its own; what it prints is in `output`."""
    process = PROCESSES.Process(target=run_script, args=(script, argv, output))
    process.start()
    process.join(PATIENCE)
    return process.exitcode


def run_rank(argv: list[str], rank: int, port: int, output: Path) -> None:
    """What torchrun starts as process `rank` of two."""
    from mldm_plugin.training.controlnet import main

    torch.set_num_threads(1)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    sys.exit(main(argv))


def launch(argv: list[str], folder: Path) -> tuple[list[int | None], list[str]]:
    """Train a ControlNet in two processes (gloo): exit statuses and outputs of both."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    outputs = [folder / f"output-{rank}.txt" for rank in (0, 1)]
    processes = [PROCESSES.Process(target=run_rank, args=(argv, rank, port, outputs[rank])) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    return [p.exitcode for p in processes], [o.read_text() for o in outputs]
