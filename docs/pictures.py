"""The drawn pictures of the documentation: `python docs/pictures.py` writes them into docs/images.

Their figures are read from where they are told: the cost of a step from docs/performance.md, the mix from the preset.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mldm_plugin.preset import load_preset

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
COLOURS = ("#4c72b0", "#dd8452", "#bbbbbb")
ROW = re.compile(r"^\| (plain|with|decode)([^|]*)\| \**([\d.]+)\** \([\d.]+\) \| \**([\d.]+)\** \([\d.]+\) \|$", re.M)


def cost_rows() -> list[tuple[str, float, float]]:
    """Name of a step, and its operations against a plain step at T = 100 and at T = 400."""
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    return [((a + b).strip(), float(at_100), float(at_400)) for a, b, at_100, at_400 in ROW.findall(text)]


def cost_of_a_step(path: Path) -> None:
    """Bars of the operations of a step, a plain one being 1."""
    rows = cost_rows()[::-1]
    figure, axes = plt.subplots(figsize=(7.5, 2.8), layout="constrained")
    for offset, index, label in ((0.2, 1, "T = 100"), (-0.2, 2, "T = 400")):
        places = [i + offset for i in range(len(rows))]
        bars = axes.barh(places, [row[index] for row in rows], 0.38, label=label, color=COLOURS[index - 1])
        axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_xlabel("operations of a step, a plain one being 1")
    axes.set_xlim(0, 3)
    _save(figure, axes, path)


def mix_by_timestep(path: Path) -> None:
    """Areas: the weight of each loss of preset `mldm` by timestep, for a picture with a person and a face."""
    losses = load_preset("mldm").losses
    gate = next(iter(losses.values())).max_timestep or 999
    weights = [loss.weight for loss in losses.values()]
    inside, outside = [*weights, 1 - sum(weights)], [0.0] * len(weights) + [1.0]
    times = (0, gate, gate, 400)
    figure, axes = plt.subplots(figsize=(7.5, 2.4), layout="constrained")
    shares = [(a, a, b, b) for a, b in zip(inside, outside, strict=True)]
    axes.stackplot(times, shares, labels=[*losses, "plain loss"], colors=COLOURS)
    axes.set_xticks((0, gate, 200, 300, 400))
    axes.set_xlim(0, 400)
    axes.set_ylim(0, 1)
    axes.set_xlabel("timestep t, up to 999")
    axes.set_ylabel("share of the loss")
    _save(figure, axes, path)


def _save(figure: plt.Figure, axes: plt.Axes, path: Path) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    plt.close(figure)


PICTURES = {"cost_of_a_step.png": cost_of_a_step, "mix_by_timestep.png": mix_by_timestep}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        draw(IMAGES / name)
