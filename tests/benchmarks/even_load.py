"""How long processes wait for the one that decodes most, with uniform and with stratified timesteps; simulated.

    python tests/benchmarks/even_load.py

A rank's step takes `--plain` for each of its images and `--gated` for each one that is decoded; the step of all ends
with the slowest rank. `images` are those of a rank between two optimizer steps. `uniform` and `stratified` are the mean
step over what it would be without any waiting, `floor`; 1 is none.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldm_plugin.bench.report import aligned
from mldm_plugin.training.timesteps import stratified

LEVELS = 1000
RANKS, IMAGES, GATES = (2, 8, 64), (1, 2, 4, 8), (100, 400)
# Counted operations of SD 1.5 at 512 px, an image: a ControlNet step with U-Net and VAE encoder 3.38 TFLOP, what the
# losses add to it 5.56 TFLOP.
GATED = 5.56 / 3.38
Table = Callable[[int], NDArray[np.int64]]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", type=float, default=1.0, help="cost of an image")
    parser.add_argument("--gated", type=float, default=GATED, help="what decoding one costs more")
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    rows = simulate(args.plain, args.gated, args.steps)
    cells = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    print(aligned([list(rows[0]), *cells]))  # noqa: T201


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


if __name__ == "__main__":
    main()
