"""How long processes wait for the one that decodes most, with uniform and with stratified timesteps.

    python tests/benchmarks/even_load.py                    simulated: many ranks, steps of the given cost
    python tests/benchmarks/even_load.py --measure          measured: two processes train on this machine's CPU

A rank's step takes `--plain` for each of its images and `--gated` for each one that is decoded; the step of all ends
with the slowest rank. `images` are those of a rank between two optimizer steps. `uniform` and `stratified` are the mean
step over what it would be without any waiting, `floor`; 1 is none.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))

from mldm_plugin.training.timesteps import stratified

LEVELS = 1000
RANKS, IMAGES, GATES = (2, 8, 64), (1, 2, 4, 8), (100, 400)
# Counted operations of SD 1.5 at 512 px, an image: a ControlNet step with U-Net and VAE encoder 3.38 TFLOP, what the
# losses add to it 5.56 TFLOP.
GATED = 5.56 / 3.38
SAMPLINGS = ("uniform", "stratified")
Table = Callable[[int], NDArray[np.int64]]

# Writes the time at which each step's losses were done.
WATCH = """
import os, time
from pathlib import Path
from mldm_plugin import hookimpl

@hookimpl
def after_loss(step, report):
    with (Path(os.environ["EVEN_LOAD"]) / f"times-{os.environ['RANK']}").open("a") as file:
        file.write(f"{time.perf_counter()} {sum(report.terms['masked_lpips'].gate)}\\n")
"""


def main() -> None:
    """Print a table, or with --json its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", type=float, default=1.0, help="cost of an image")
    parser.add_argument("--gated", type=float, default=GATED, help="what decoding one costs more")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--batch", type=int, default=4, help="images a process and step, for --measure")
    parser.add_argument("--gate", type=int, default=499, help="T, for --measure")
    parser.add_argument("--rounds", type=int, default=5, help="of --measure")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = measure(args) if args.measure else simulate(args.plain, args.gated, args.steps)
    if args.json:
        print(json.dumps(rows, indent=1))  # noqa: T201
        return
    print(" ".join(f"{name:>{max(len(name), 9)}}" for name in rows[0]))  # noqa: T201
    for row in rows:
        cells = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
        print(" ".join(f"{cell:>{max(len(name), 9)}}" for name, cell in zip(row, cells, strict=True)))  # noqa: T201


def simulate(plain: float, gated: float, steps: int) -> list[dict[str, Any]]:
    """One row for each T, number of ranks and batch."""
    rows: list[dict[str, Any]] = []
    for gate in GATES:
        share = (gate + 1) / LEVELS
        for ranks in RANKS:
            for images in IMAGES:
                floor = images * (plain + share * gated)
                row: dict[str, Any] = {"T": gate, "ranks": ranks, "images": images, "floor": floor}
                for name, table in draws(ranks, images).items():
                    busiest = [int((table(step) <= gate).sum(axis=1).max()) for step in range(steps)]
                    row[name] = (images * plain + statistics.mean(busiest) * gated) / floor
                rows.append(row | {"ratio": row["stratified"] / row["uniform"]})
    return rows


def draws(ranks: int, images: int) -> dict[str, Table]:
    """For each sampling, from the number of a step to the timesteps of all ranks, (ranks, images)."""
    random = np.random.default_rng(0)
    return {
        "uniform": lambda step: random.integers(LEVELS, size=(ranks, images)),
        "stratified": lambda step: stratified(ranks, images, LEVELS, (0, step)),
    }


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Two processes train a tiny pipeline; samplings take turns.

    Without --seed: with it every process draws the same uniform timesteps, as in diffusers' scripts.
    """
    from conftest import write_data

    from mldm_plugin.demo.pipeline import build_tiny_pipeline

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_tiny_pipeline(folder / "model")
        write_data(folder / "data", 32)
        (folder / "watch.py").write_text(WATCH)
        gate = f"max_timestep: {args.gate}"
        preset = f"losses:\n  masked_lpips: {{weight: 0.2, {gate}, weights: random}}\nchecks: {{picture: warn}}\n"
        (folder / "preset.yaml").write_text(preset)
        found: dict[str, list[Any]] = {sampling: [] for sampling in SAMPLINGS}
        for round_ in range(args.rounds):
            for sampling in SAMPLINGS:
                found[sampling].append(run_pair(folder, f"{sampling}-{round_}", sampling, args.batch))
    return [summary(sampling, rounds) for sampling, rounds in found.items()]


def summary(sampling: str, rounds: list[tuple[float, float, float]]) -> dict[str, Any]:
    """Medians over rounds of the seconds a step, and how many images are gated on both ranks and on the busier."""
    seconds, gated, busier = (statistics.median(values) for values in zip(*rounds, strict=True))
    low, high = min(r[0] for r in rounds), max(r[0] for r in rounds)
    return {
        "sampling": sampling,
        "s/step": seconds,
        "least": low,
        "most": high,
        "gated": float(gated),
        "busier": float(busier),
    }


def run_pair(folder: Path, name: str, sampling: str, batch: int) -> tuple[float, float, float]:
    """Mean seconds a step, images gated a step, and on the busier process, of one run of two processes."""
    out = folder / name
    out.mkdir()
    flags = {
        "pretrained_model_name_or_path": folder / "model",
        "train_data_dir": folder / "data",
        "output_dir": out / "run",
        "loss-plugin": "mldm",
        "preset": folder / "preset.yaml",
        "resolution": 64,
        "train_batch_size": batch,
        "max_train_steps": 40,
        "panel_steps": 0,
        "report_to": "none",
        "timestep_sampling": sampling,
    }
    argv = [str(x) for flag, value in flags.items() for x in (f"--{flag}", value)]
    argv += ["--loss-plugin", str(folder / "watch.py")]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "EVEN_LOAD": str(out)}
    program = [sys.executable, "-m", "mldm_plugin.training.controlnet", *argv]
    pair = [
        subprocess.Popen(program, env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE)
        for rank in "01"
    ]
    for process in pair:
        error = process.communicate()[1]
        if process.returncode:
            sys.exit(error.decode()[-2000:])
    times, gated = np.stack([np.loadtxt(out / f"times-{rank}") for rank in "01"]).transpose(2, 0, 1)
    skipped = 5  # the first steps allocate, and check themselves
    steps = times.shape[1] - 1 - skipped
    seconds = (times[0, -1] - times[0, skipped]) / steps
    return float(seconds), float(gated.sum(axis=0).mean()), float(gated.max(axis=0).mean())


if __name__ == "__main__":
    main()
