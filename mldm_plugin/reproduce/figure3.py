"""Figure 3 of the Masked LDM paper: one-step clean estimates beside the photograph, with what the losses see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from mldm_plugin.evaluation.cases import open_photographs
from mldm_plugin.evaluation.judges import choose_judges
from mldm_plugin.evaluation.models import load_pipeline, parse_models
from mldm_plugin.evaluation.one_step import Estimated, OneStep
from mldm_plugin.evaluation.predicting import Asker
from mldm_plugin.reproduce.run import claim
from mldm_plugin.reproduce.scales import Mini, Paper

TIMESTEPS = (50, 100, 200, 400, 600, 800)
INCHES, DPI = 1.05, 200  # of a picture; of the figure
ROWS = 4


@dataclass(frozen=True)
class Figure3:
    """The figure of a scale's model and data."""

    scale: Mini | Paper

    def run(self) -> Path:
        """Draw it; returns the file.

        Raises:
            MldmError: the folder holds something else, or a command fails.
        """
        claim(self.scale, "figure3")
        held_out = self.scale.data()[-1]
        if not held_out.made.is_file():
            held_out.call()
        out = self.scale.out / "figure3.png"
        return draw_figure(held_out.made.parent, self.scale.model, self.scale.resolution, ROWS, out)

    def plan(self) -> str:
        """Its commands, for a reader."""
        return f"{self.scale.data()[-1]}\n# then one step of {self.scale.model} at t = {', '.join(map(str, TIMESTEPS))}"


def draw_figure(data: Path, model: str, resolution: int, rows: int, out: Path) -> Path:
    """A row for each photograph: itself, its people and faces, the VAE's floor, and x̂₀ at six timesteps.

    Args:
        data: image folder with captions, masks and face boxes.
        model: a pipeline, a folder or a name on the Hub.
        resolution: side of the pictures.
        rows: photographs; those with the largest faces are taken.
        out: the file, PNG.

    Raises:
        MldmError: the model does not load, or the folder cannot be read.
    """
    [parsed] = parse_models([f"model={model}"], None)
    photographs = open_photographs(data, resolution)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = load_pipeline(parsed.runs[0], device, torch.float32)
    one_step, ask = OneStep(pipeline.vae, pipeline.scheduler, choose_judges([]), device), Asker(pipeline)
    by_face = sorted(range(len(photographs)), key=lambda row: -_face_area(photographs.look(row)))
    shown = []
    for row in tqdm(by_face[:rows], desc="figure3", unit="photograph"):
        example = photographs.look(row)
        made = one_step.estimates(ask, example, photographs.captions[row], f"{row:05d}", TIMESTEPS)
        shown.append((example, [one_step.floor(example), *made]))
    return draw(shown, out)


def _face_area(example: Any) -> float:
    boxes = example.face_boxes
    return 0.0 if boxes is None or not len(boxes) else float(((boxes[:, 2:] - boxes[:, :2]).prod(1)).max())


def draw(rows: list[tuple[Any, list[Estimated]]], out: Path) -> Path:
    """One line a photograph, with the floor of the VAE and the estimates at `TIMESTEPS`; the file that was written."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    titles = ("photograph", "people, faces", "VAE's floor", *(f"t = {t}" for t in TIMESTEPS))
    size = (INCHES * len(titles), (INCHES + 0.34) * len(rows) + 0.2)
    figure, grid = plt.subplots(len(rows), len(titles), figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=8)
    for line, (example, estimates) in zip(grid, rows, strict=True):
        picture = _pixels(example.pixel_values)
        line[0].imshow(picture)
        people = 1.0 if example.person_mask is None else (example.person_mask[0] > 0).numpy()[..., None] * 1.0
        line[1].imshow(np.clip(picture * (0.25 + 0.75 * people) + 0.6 * (1 - people), 0, 1))
        for x0, y0, x1, y1 in [] if example.face_boxes is None else example.face_boxes.tolist():
            line[1].add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="#0a6cb4", linewidth=1))
        for axes, estimate in zip(line[2:], estimates, strict=True):
            axes.imshow(_pixels(estimate.picture[0]))
            axes.set_xlabel(_words(estimate.values), fontsize=6.5)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=DPI)
    plt.close(figure)
    return out


def _pixels(picture: torch.Tensor) -> NDArray[np.float32]:
    """(3, H, W) in [-1, 1] as (H, W, 3) in [0, 1]."""
    return ((picture.float().cpu() + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()


def _words(values: dict[str, float | None]) -> str:
    named = (("LPIPS", "one_step_lpips_person"), ("face", "one_step_face"))
    return "\n".join(f"{word} {values[name]:.3f}" for word, name in named if values[name] is not None)
