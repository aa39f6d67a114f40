"""The curves of a run, from its metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """One dictionary a step."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def plot_curves(metrics: list[dict[str, Any]], path: Path, window: int = 15) -> None:
    """One plot a loss: each step as a dot, the running mean of `window` of its values as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [n for n in metrics[0] if n not in ("step", "lr") and not n.endswith(("_gated", "_nonfinite"))]
    figure = Figure(figsize=(4.2 * len(names), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(names):
        points = [(row["step"], row[name]) for row in metrics if row.get(name) is not None]
        axes = figure.add_subplot(1, len(names), number + 1)
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if not points:
            continue
        steps, values = (np.array(v, dtype=float) for v in zip(*points, strict=True))
        axes.plot(steps, values, ".", markersize=3, alpha=0.4, color="tab:blue")
        width = min(window, len(values))
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        axes.plot(steps[width - 1 :], smooth, color="tab:red", label=f"mean of {width}")
        axes.legend()
        axes.set_ylim(bottom=0)
    unfinished = path.with_suffix(".tmp")
    figure.savefig(unfinished, format="png", dpi=110)
    unfinished.replace(path)
