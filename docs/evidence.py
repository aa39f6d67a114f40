"""The study's figures and tables, all made from docs/evidence.json.

python docs/evidence.py collect RUN P009=RUN P010=RUN gpu=RUN    docs/evidence.json, from runs of `mldm reproduce`
python docs/evidence.py figures                                  docs/images/evidence_*.png
python docs/evidence.py pictures P009=RUN P010=RUN               docs/images/evidence_likeness.jpg

`gpu` is what docs/evidence_gpu.py made. The tables of docs/evidence.md are made of the same file by docs/generate.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mldm_plugin.records.files import write_bytes, write_text
from mldm_plugin.reproduce.study import CLAIMS, corrected

DOCS = Path(__file__).parent
FILE = DOCS / "evidence.json"
NAMES = {
    "one_step_face": "face distance of x̂₀",
    "one_step_lpips_person": "LPIPS on people, x̂₀",
    "one_step_lpips_outside": "LPIPS elsewhere, x̂₀",
    "one_step_error": "error of ε",
    "one_step_blur_person": "detail lost by people, x̂₀",
    "kd_faceres": "kernel distance of faces",
    "kd_alexnet_person": "kernel distance of people",
    "attributes": "attributes shown",
    "face_found": "faces found",
    "detail": "detail of pictures",
    "slope": "slope of the spectrum",
    "identity": "likeness",
    "copying": "likeness to the nearest training picture",
}
CLAIMED = {**NAMES, "one_step_error_person": "error of ε on people"}  # too many for the tables of arms
ALONE = ("gpu", "losses")  # studies whose claims are corrected among themselves, as their protocol says
TOGETHER = {"evidence": "evidence", "P009": "likeness", "P010": "likeness"}  # the others: whose claims each has
CURVES = ("one_step_face", "one_step_lpips_person", "one_step_error")
DRAWN = {  # arms in the figure of each study
    "evidence": ("t100", "t400", "additive", "masked_mse", "p2", "released"),
    "gpu": ("t100", "t400", "plain_3x"),
}
WORDS = {"plain": "plain loss", "plain_same_time": "plain loss,\nsame time", "masked_ldm": "Masked LDM"}
COLOURS = ("#0a6cb4", "#d0520c", "#0b8563", "#a3458f", "#946800", "#6a7080")
MARKERS = ("s", "D", "^", "v", ">", "o")


def collect(runs: dict[str, Path]) -> dict[str, Any]:
    """study.json of each run, and how it was made."""
    found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    for name, run in runs.items():
        study = json.loads((run / "report" / "study.json").read_text(encoding="utf-8"))
        study["settings"] = json.loads((run / "reproduce.json").read_text(encoding="utf-8"))
        study["settings"].pop("out")
        equal = run / "equal_time.json"
        study["equal_time"] = json.loads(equal.read_text(encoding="utf-8")) if equal.is_file() else {}
        if (times := run / "seconds_a_step.json").is_file():
            study["seconds_a_step"] = json.loads(times.read_text(encoding="utf-8"))
        results = json.loads((run / "report" / "metrics.json").read_text(encoding="utf-8"))
        study["pictures"], study["versions"] = len(results["cases"]), results["versions"]
        found[name] = study
    together = [claim for name in TOGETHER.keys() & found.keys() for claim in found[name]["claims"]]
    corrected(together, sum(len(CLAIMS[kind]) for name, kind in TOGETHER.items() if name not in found))
    return found


def figures() -> Any:
    """The JSON."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def number(value: float | None, sign: str = "") -> str:
    """Three digits that count."""
    if value is None:
        return "–"
    text = f"{value:{sign}.3g}"
    if "e" in text:
        text = f"{value:{sign}.6f}".rstrip("0")
    return text.replace("-", "−")


def claims_table(study: str) -> str:
    """Each claim with its difference, interval, corrected p-value, and what could have been seen."""
    lines = [
        "| | measured | arms | predicted | difference (95 %) | in % of the second | p, corrected | could be seen | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in figures()[study]["claims"]:
        share = "" if not one["against_mean"] else f"{100 * one['value'] / abs(one['against_mean']):+.1f}"
        gap = f"{number(one['value'], '+')} ({number(one['low'], '+')} to {number(one['high'], '+')})"
        p = "–" if one["p_holm"] is None else f"{one['p_holm']:.2g}"
        said = f"**{one['verdict']}**" if "shown" in one["verdict"] and "no" not in one["verdict"] else one["verdict"]
        cells = [one["hypothesis"], CLAIMED[one["metric"]], f"`{one['arm']}` − `{one['against']}`", one["predicted"]]
        cells += [gap, share.replace("-", "−"), p, number(one["detectable"]), said]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def arms_table(study: str) -> str:
    """Each arm's means over seeds, with the standard deviation over seeds."""
    arms = figures()[study]["arms"]
    metrics = [metric for metric in NAMES if metric in next(iter(arms.values()))["metrics"]]
    lines = ["| arm | " + " | ".join(NAMES[m] for m in metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for arm, found in arms.items():
        cells = []
        for metric in metrics:
            seeds = found["metrics"][metric]["seeds"]
            mean = sum(seeds) / len(seeds)
            spread = (sum((s - mean) ** 2 for s in seeds) / (len(seeds) - 1)) ** 0.5 if len(seeds) > 1 else None
            cells.append(number(mean) + ("" if spread is None else f" ± {number(spread)}"))
        lines.append(f"| `{arm}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def seconds_table(study: str) -> str:
    """Seconds a step of each arm, over seeds, all arms side by side."""
    found = figures()[study]["seconds_a_step"]
    lines = ["| arm | " + " | ".join(f"`{arm}`" for arm in found) + " |", "|---" * (len(found) + 1) + "|"]
    cells = [f"{min(times):.3f} to {max(times):.3f}" for times in found.values()]
    return "\n".join([*lines, "| seconds a step | " + " | ".join(cells) + " |"]) + "\n"


def gradients_table() -> str:
    """Each loss's gradient over the plain loss's, and the cosine of the two, by t."""
    found = figures()["gradients"]
    lines = ["| loss | | " + " | ".join(f"t = {t}" for t in found["timesteps"]) + " |"]
    lines.append("|---" * (len(found["timesteps"]) + 2) + "|")
    for loss, values in found["losses"].items():
        for kind, words in (("ratio", "norm / plain's"), ("cosine", "cosine with plain's")):
            cells = [f"{value:.2f}".replace("-", "−") for value in values[kind]]
            lines.append(f"| `{loss}` | {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw_curves(name: str) -> bytes:
    """One-step quantities over t as ratios to the plain loss's: a thin line for each seed, a thick one for the mean."""
    import io

    import matplotlib.pyplot as plt

    study = figures()[name]
    arms, timesteps = study["arms"], study["timesteps"]
    figure, grid = plt.subplots(1, len(CURVES), figsize=(11, 3.6), layout="constrained")
    for axes, quantity in zip(grid, CURVES, strict=True):
        plain = arms["plain"]["curves"][quantity]
        axes.axhline(1, color="#1a1c20", linewidth=0.8)
        for arm, colour, marker in zip(DRAWN[name], COLOURS, MARKERS, strict=False):
            seeds = [
                [a / b for a, b in zip(one, base, strict=True)]
                for one, base in zip(arms[arm]["curves"][quantity], plain, strict=True)
            ]
            for one in seeds:
                axes.plot(timesteps, one, color=colour, linewidth=0.4, alpha=0.5)
            mean = [sum(at) / len(at) for at in zip(*seeds, strict=True)]
            axes.plot(timesteps, mean, color=colour, marker=marker, markersize=4, linewidth=1.6, label=arm)
        axes.set(title=f"{NAMES[quantity]}, plain = 1", xlabel="t")
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].legend(fontsize=8, frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    plt.close(figure)
    return stream.getvalue()


def draw_seeds(reports: Sequence[Path]) -> bytes:
    """Of each report the first, the middle and the last prompt: the photograph, and every arm's picture from the same
    noise, by each training seed."""
    import io

    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(3, len(reports), figsize=(6.6 * len(reports), 9.8), layout="constrained", sharey=True)
    for report, column in zip(reports, grid.reshape(3, len(reports)).T, strict=True):
        results = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
        cases, arms = results["cases"], {model["name"]: len(model["runs"]) for model in results["models"]}
        arms = dict(sorted(arms.items(), key=lambda arm: not arm[0].startswith("plain")))
        for axes, case in zip(column, (cases[0], cases[len(cases) // 2], cases[-1]), strict=True):
            drawn = montage(report, case["key"], arms, report / results["photographs_of_cases"][case["key"]]["path"])
            side = drawn.shape[0] / len(arms)
            axes.imshow(drawn)
            axes.set_title(case["text"], fontsize=9)
            ticks = ["photograph", *map(str, range(max(arms.values())))]
            axes.set_xticks([side * (n + 0.5) for n in range(len(ticks))], ticks, fontsize=8)
            axes.set_yticks([side * (n + 0.5) for n in range(len(arms))], [WORDS[arm] for arm in arms], fontsize=9)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
    figure.supxlabel("seed of the training", fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="jpg", dpi=110, pil_kwargs={"quality": 86})
    plt.close(figure)
    return stream.getvalue()


def montage(report: Path, key: str, arms: dict[str, int], photograph: Path) -> Any:
    """(H, W, 3) uint8: a row for each arm, a column for each seed, the photograph to the left of all."""
    import numpy as np
    from PIL import Image

    rows = []
    for arm, seeds in arms.items():
        files = [report / "pictures" / arm / str(seed) / f"{key}-0.png" for seed in range(seeds)]
        rows.append(np.concatenate([np.asarray(Image.open(file).convert("RGB")) for file in files], axis=1))
    drawn = np.concatenate(rows)
    side, left = rows[0].shape[0], np.full((drawn.shape[0], rows[0].shape[0], 3), 255, np.uint8)
    top = (drawn.shape[0] - side) // 2
    left[top : top + side] = np.asarray(Image.open(photograph).convert("RGB").resize((side, side)))
    return np.concatenate([left, drawn], axis=1)


def main(words: Sequence[str]) -> None:
    """One of the parts."""
    named = [word.partition("=") for word in words[1:]]
    runs = {name if path else "evidence": Path(path or name) for name, _, path in named}
    if words[:1] == ["collect"]:
        write_text(FILE, json.dumps(collect(runs), indent=1) + "\n")
    elif words[:1] == ["pictures"]:
        write_bytes(DOCS / "images" / "evidence_likeness.jpg", draw_seeds([run / "report" for run in runs.values()]))
    elif words[:1] == ["figures"]:
        for name in DRAWN.keys() & figures().keys():
            write_bytes(DOCS / "images" / f"evidence_{name}.png", draw_curves(name))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
