"""The drawn pictures of the documentation: `python docs/pictures.py` writes them into docs/images.

Their figures are read from where they are told: the cost of a step from docs/performance.md, the mix and the gate from
the preset, how much noise is drawn from diffusers' schedulers, memory from docs/plan_sdxl.json, which
`mldm plan --family sdxl --train lora --vram 24 --json` printed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling
from matplotlib.ticker import FuncFormatter
from PIL import Image

from mldm_plugin.engine.schedule import stable_diffusion_snr
from mldm_plugin.prepare.synthetic.portrait import draw_portrait
from mldm_plugin.preset import load_preset

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
COLOURS = ("#4c72b0", "#dd8452", "#bbbbbb")
ROW = re.compile(r"^\| (plain|with|decode)([^|]*)\| \**([\d.]+)\** \([\d.]+\) \| \**([\d.]+)\** \([\d.]+\) \|$", re.M)


def cost_rows() -> list[tuple[str, float, float]]:
    """Name of a step, and its operations against a plain step at T = 100 and at T = 400."""
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    found = [(re.sub(r"\[(.*?)\]\(.*?\)|`", r"\1", a + b), *figures) for a, b, *figures in ROW.findall(text)]
    return [(name.replace("`", "").strip(), float(at_100), float(at_400)) for name, at_100, at_400 in found]


def cost_of_a_step(path: Path) -> None:
    """Bars of the operations of a step, a plain one being 1."""
    rows = cost_rows()[::-1]
    figure, axes = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    for offset, index, label in ((0.2, 1, "T = 100"), (-0.2, 2, "T = 400")):
        places = [i + offset for i in range(len(rows))]
        bars = axes.barh(places, [row[index] for row in rows], 0.38, label=label, color=COLOURS[index - 1])
        axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_xlabel("operations of a step, a plain one being 1")
    axes.set_xlim(0, 3.4)
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


def snr_drawn(sampling: str, shift: float) -> np.ndarray:
    """Equally likely signal-to-noise ratios of a script of diffusers that trains by flow matching.

    Args:
        sampling: its --weighting_scheme; `none` draws evenly.
        shift: of the model's scheduler.
    """
    torch.manual_seed(0)
    sigmas = FlowMatchEulerDiscreteScheduler(shift=shift).sigmas
    options = {"logit_mean": 0.0, "logit_std": 1.0, "mode_scale": 1.29}
    drawn = compute_density_for_timestep_sampling(sampling, batch_size=200_000, **options)
    sigma = sigmas[(drawn * 1000).long()].double().numpy()
    return np.square((1 - sigma) / sigma)


def gates(path: Path) -> None:
    """How much noise each family's training draws, and where T = 100 opens the losses; above, what it looks like."""
    opens = stable_diffusion_snr()[load_preset("mldm").losses["face"].max_timestep or 999].item()
    families = {
        "SD 1.5, SDXL: t drawn evenly": stable_diffusion_snr().double().numpy(),
        "Flux, as diffusers' script: σ drawn evenly": snr_drawn("none", 1.0),
        "SD 3, as our presets: σ drawn evenly, shifted by 3": snr_drawn("none", 3.0),
        "SD 3, as diffusers' script: logit-normal, shifted by 3": snr_drawn("logit_normal", 3.0),
    }
    shown = (200.0, 60.0, 20.0, opens, 3.0, 1.0, 0.3, 0.1)
    figure = plt.figure(figsize=(7.5, 6), layout="constrained")
    rows = figure.subfigures(2, 1, height_ratios=(1, 3))
    picture = draw_portrait(np.random.default_rng(np.random.SeedSequence([21, 3])), 128).pixels / 127.5 - 1
    noise = np.random.default_rng(0).normal(size=picture.shape)
    for axes, snr in zip(rows[0].subplots(1, len(shown)), shown, strict=True):
        noisy = (snr**0.5 * picture + noise) / (1 + snr) ** 0.5
        axes.imshow(np.clip((noisy + 1) / 2, 0, 1))
        axes.set_title(f"{snr:.3g}", fontsize=9, color=COLOURS[0] if snr >= opens else "black")
        axes.axis("off")
    edges = opens * 1.25 ** np.arange(-44, 26)  # the outermost bars hold all beyond them
    for axes, (name, snr) in zip(rows[1].subplots(len(families), 1, sharex=True), families.items(), strict=True):
        counts, _ = np.histogram(np.clip(snr, edges[0], edges[-1]), edges)
        colours = np.where(np.arange(-44, 25) >= 0, COLOURS[0], COLOURS[2])
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colours)
        axes.set_xscale("log")
        axes.set_xlim(edges[-1], edges[0])
        axes.set_yticks([])
        axes.set_title(f"{name}; {np.mean(snr >= opens):.1%} of the pictures", loc="left", fontsize=9)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(f"signal-to-noise ratio; blue: T = 100, which opens the losses at {opens:.3g} and above")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    with Image.open(path) as whole:
        few = whole.convert("RGB").quantize(96)  # noise in all colours takes a quarter of a megabyte
    few.save(path, optimize=True)


def memory_of_sdxl(path: Path) -> None:
    """Bars: what a LoRA of SDXL takes at 1024² with gradient checkpointing, by batch and way of decoding."""
    plan = json.loads((DOCS / "plan_sdxl.json").read_text(encoding="utf-8"))
    rows = [one for one in plan["settings"] if one["gradient_checkpointing"] and one["batch"] <= 8]
    batches = sorted({one["batch"] for one in rows})
    whole, checkpointed = (
        {one["batch"]: one for one in rows if one["decode"] == how} for how in ("whole", "checkpointed")
    )
    bars = {
        "with the losses": [whole[batch]["gb"] for batch in batches],
        "with the losses, decode_checkpointing": [checkpointed[batch]["gb"] for batch in batches],
        "the plain loss": [whole[batch]["without_pixels_gb"] for batch in batches],
    }
    figure, axes = plt.subplots(figsize=(7.5, 2.8), layout="constrained")
    for offset, (name, values), colour in zip((-0.27, 0, 0.27), bars.items(), COLOURS, strict=True):
        drawn = axes.bar([i + offset for i in range(len(batches))], values, 0.25, label=name, color=colour)
        axes.bar_label(drawn, fmt="%.0f", padding=2, fontsize=8)
    axes.axhline(plan["vram_gb"], color="black", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xticks(range(len(batches)), [f"batch {batch}" for batch in batches])
    axes.set_ylabel("GB of memory")
    _save(figure, axes, path)


def _save(figure: plt.Figure, axes: plt.Axes, path: Path) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    plt.close(figure)


PICTURES = {
    "cost_of_a_step.png": cost_of_a_step,
    "mix_by_timestep.png": mix_by_timestep,
    "gates.png": gates,
    "memory_of_sdxl.png": memory_of_sdxl,
}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        draw(IMAGES / name)
