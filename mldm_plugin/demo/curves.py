"""The curves of a run, from its metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """One dictionary a step."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def plot_curves(metrics: list[dict[str, Any]], measured: list[tuple[int, dict[str, float]]], path: Path) -> None:
    """One plot a loss: each training step as a dot, and a line through its values on fixed noise.

    A step's loss jumps with its timestep, so the dots hardly show a trend; the line, on the same pictures and the
    same noise each time, does.

    Args:
        metrics: as `read_metrics` gives them.
        measured: after how many steps, and the mean of each loss there.
        path: the PNG to write; it appears whole or not at all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [n for n in metrics[0] if n not in ("step", "lr") and "/" not in n]
    figure = Figure(figsize=(4.6 * len(names), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(names):
        points = [(row["step"], row[name]) for row in metrics if row.get(name) is not None]
        axes = figure.add_subplot(1, len(names), number + 1)
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.plot([p[0] for p in points], [p[1] for p in points], ".", alpha=0.25, color="tab:blue")
        axes.set_ylim(bottom=0)
        own = axes.twinx()
        own.plot([m[0] for m in measured], [m[1].get(name, float("nan")) for m in measured], "o-", color="tab:red")
        own.tick_params(axis="y", colors="tab:red")
    figure.suptitle("dots, left scale: training steps, each at its own timesteps; line, right scale: fixed noise")
    unfinished = path.with_suffix(".tmp")
    figure.savefig(unfinished, format="png", dpi=110)
    unfinished.replace(path)
