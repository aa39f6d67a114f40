"""Two processes (gloo, CPU) train as one."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest
from conftest import PROCESSES, command

# Each process writes the weights it ends with, and which of its images were gated in which step.
WATCHER = """
import atexit, json, os
from pathlib import Path
import torch
from mldm_plugin import hookimpl
from mldm_plugin.training import loop
folder, gates = Path(__file__).parent, []
rank = os.environ["RANK"]

class Brightness:
    needs = frozenset({"person_mask"})
    def __call__(self, step):
        return step.pred_latents.square().flatten(1).mean(dim=1)

@hookimpl
def register_losses(register):
    register("brightness", Brightness)

@hookimpl
def after_loss(step, report):
    gates.append(report.terms["brightness"].gated)

original = loop.finish
def finish(run, stopped):
    weights = torch.cat([p.detach().flatten() for p in run.networks.trainable()])
    torch.save(weights, folder / f"weights-{rank}.pt")
    (folder / f"gates-{rank}.json").write_text(json.dumps(gates))
    original(run, stopped)
loop.finish = finish
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_rank(argv: list[str], rank: int, port: int, output: Path) -> None:
    """What torchrun starts as process `rank` of two."""
    import torch

    from mldm_plugin.training.controlnet import main

    torch.set_num_threads(1)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    sys.exit(main(argv))


def launch(argv: list[str], folder: Path) -> tuple[list[int | None], list[str]]:
    """Exit statuses and outputs of both processes."""
    port, outputs = free_port(), [folder / f"output-{rank}.txt" for rank in (0, 1)]
    processes = [PROCESSES.Process(target=run_rank, args=(argv, rank, port, outputs[rank])) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    return [p.exitcode for p in processes], [o.read_text() for o in outputs]


@pytest.fixture(scope="module")
def flags(tmp_path_factory, tiny_pipeline):
    folder = tmp_path_factory.mktemp("watcher")
    (folder / "watcher.py").write_text(WATCHER)
    (folder / "own.yaml").write_text("losses:\n  brightness: {weight: 0.5, max_timestep: 500}\n")
    return ["--loss-plugin", folder / "watcher.py", "--preset", folder / "own.yaml", "--train_batch_size", 1]


def test_unequal_gating_ends_with_equal_weights_and_resumes(flags, tiny_pipeline, make_data, tmp_path):
    """Half of the pictures show nobody, so one process often has a gated image and the other none."""
    import torch

    rows = {i: {"mask_file_name": None, "face_boxes": []} for i in (1, 2, 4, 6)}
    data = make_data(tmp_path / "data", 7, rows=rows, captions=["a person", "somebody"])
    watched = flags[1].parent
    flags = [*flags, "--max_train_steps", 6, "--checkpointing_steps", 3, "--gradient_accumulation_steps", 2]
    statuses, outputs = launch(command(tmp_path / "run", tiny_pipeline, data, *flags), tmp_path)
    assert statuses == [0, 0], outputs
    one, other = (torch.load(watched / f"weights-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one.equal(other)
    gates = [json.loads((watched / f"gates-{rank}.json").read_text()) for rank in (0, 1)]
    assert gates[0] != gates[1]
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(r["brightness/gated"] for r in log) == sum(map(sum, gates)) > 0
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoint-3").glob("position_*")) == [
        "position_0.pt",
        "position_1.pt",
    ]

    flags += ["--resume_from_checkpoint", "checkpoint-3"]
    statuses, outputs = launch(command(tmp_path / "run", tiny_pipeline, data, *flags), tmp_path)
    assert statuses == [0, 0], outputs
    resumed = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert resumed == log
    assert torch.load(watched / "weights-1.pt", weights_only=True).equal(one)


def test_an_error_of_one_process_is_one_line(flags, tiny_pipeline, make_data, tmp_path):
    """Row 1 is looked over by the second process; the first reports it."""
    data = make_data(tmp_path / "data", 3, rows={1: {"face_boxes": [[9, 9, 3, 3]]}})
    statuses, outputs = launch(command(tmp_path / "run", tiny_pipeline, data, *flags), tmp_path)
    assert statuses == [1, 1]
    assert not any("Traceback" in output for output in outputs)
    (line,) = [x for output in outputs for x in output.splitlines() if x.startswith("error: ")]
    assert line in outputs[0]
    assert "1.png" in line
    assert "reversed" in line
    assert not (tmp_path / "run").exists()
