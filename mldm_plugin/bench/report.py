"""A run of the benchmark as tables, and as one JSON file: all that is needed to compare it with another."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from mldm_plugin.bench.candidates import OURS, PLAIN
from mldm_plugin.bench.compare import Difference
from mldm_plugin.bench.count import Counts
from mldm_plugin.bench.goals import Goal
from mldm_plugin.bench.measure import Candidate, by_name

EXPECTED_AT = (100, 400)  # T of the presets mldm and mldm-t400
NONE = "-"
# Counted as `--size sd15 --count` does, at 512².
REFERENCE = "Stable Diffusion 1.5 at 512²: encode 1.12, network 2.33, decode 5.08, masked_lpips 0.48, face 0.02"
FOOTNOTE = (
    "  spread: half the distance of the quartiles, of the candidate's least steady k. T=…: k is binomial with\n"
    "  p = (T+1)/1000, costs between measured k on a straight line; one t a batch: (1-p) cost(0) + p cost(N).\n"
    "  peak: the most memory beyond what was there before, of any k. GFLOP: counted while running, mean at T=100."
)
_PACKAGES = ("mldm-plugin", "torchvision", "diffusers", "lpips", "numpy")


@dataclass
class Section:
    """One table: a subject at one batch size and precision. `timed`, or else counted."""

    subject: str
    batch: int
    dtype: str
    resolution: int
    timed: bool
    candidates: list[Candidate]
    goals: list[Goal]

    def as_text(self) -> str:
        """Title, costs and goals."""
        title = f"\n{self.subject}: {self.resolution}², batch {self.batch}, {self.dtype}"
        table = loss_table(self.candidates) if self.subject == "losses" else self._by_gated()
        return "\n".join([title, table, goal_table(self.goals)])

    def _by_gated(self) -> str:
        """Costs by number of gated images, and on average at each T, with the ratio to a reference."""
        gated = sorted({k for c in self.candidates if c.gate != "none" for k in c.cost(timed=self.timed)})
        name = PLAIN if self.subject == "step" else OURS
        factor, unit = (1e3, "ms") if self.timed else (1.0, "TFLOP")
        head = ["candidate", *(f"k={k}" for k in gated), *(["spread"] if self.timed else [])]
        head += [word for limit in EXPECTED_AT for word in (f"T={limit}", "ratio")]
        rows = [head + (["peak MiB", "GFLOP"] if self.timed else [])]
        reference = by_name(self.candidates).get(name)
        for c in self.candidates:
            cost = c.cost(timed=self.timed) if c.gate != "none" else {}
            row = [c.name, *(number(cost.get(k), factor) for k in gated)]
            row += [f"±{c.spread:.0%}" if c.cost() else NONE] if self.timed else []
            for limit in EXPECTED_AT:
                mean = c.mean(self.batch, limit, timed=self.timed)
                of = reference.mean(self.batch, limit, timed=self.timed) if reference else None
                row += [number(mean, factor), f"{mean / of:.2f}" if mean and of else NONE]
            if self.timed:
                row += [number(c.most_bytes, 2**-20), number(c.mean(self.batch, EXPECTED_AT[0], timed=False), 1e3)]
            rows.append([*row, *set(c.faults.values())])
        what = f"  {unit} with k of {self.batch} images gated; mean step under uniform timesteps; ratio to {name}\n"
        return what + aligned(rows) + ("\n" + FOOTNOTE if self.timed else "")

    def as_json(self) -> dict[str, Any]:
        about = {"subject": self.subject, "batch": self.batch, "dtype": self.dtype, "resolution": self.resolution}
        return about | {"unit": "s" if self.timed else "TFLOP", "candidates": list(map(self._row, self.candidates))}

    def _row(self, c: Candidate) -> dict[str, Any]:
        """All that is known of a candidate, by number of gated images, and its mean step by T."""
        row = {f.name: getattr(c, f.name) for f in fields(c) if f.name != "runs"}
        if self.subject != "losses":
            row["mean"] = {limit: c.mean(self.batch, limit, timed=self.timed) for limit in EXPECTED_AT}
        return row


def loss_table(candidates: Sequence[Candidate]) -> str:
    """Each loss alone."""
    rows = [["forward and backward", "ms", "spread", "peak MiB", "GFLOP"]]
    for c in candidates:
        spread = f"±{c.spread:.0%}" if c.cost() else NONE
        row = [c.name, number(c.cost().get(1), 1e3), spread, number(c.most_bytes, 2**-20), number(c.tflop.get(1), 1e3)]
        rows.append([*row, *c.faults.values()])
    return aligned(rows)


def goal_table(goals: Sequence[Goal]) -> str:
    """The ratios."""
    rows = [["ratio", "here", "counted", "goal"]]
    for goal in goals:
        verdict = {True: " reached", False: " not reached", None: ""}[goal.holds]
        rows.append(
            [goal.name, number(goal.figure), number(goal.counted), f"{goal.relation} {goal.limit:.3g}{verdict}"]
        )
    return aligned(rows, columns=3)


def counts_text(counts: Counts) -> str:
    """TFLOP an image of each part, beside those of Stable Diffusion 1.5, and both as shares of `encode`."""
    parts = {"encode": counts.encode, "network": counts.network, "decode": counts.decode, **counts.losses}
    unit, name = (1.0, "TFLOP") if counts.decode >= 0.1 else (1e3, "GFLOP")
    listed = ", ".join(f"{part} {value * unit:.3g}" for part, value in parts.items())
    shares = " : ".join(f"{1.117 * value / counts.encode:.2f}" for value in parts.values())
    return f"{name} an image, counted: {listed}\n  in proportion {shares}\n  TFLOP of {REFERENCE}"


def differences_text(differences: Sequence[Difference]) -> str:
    """How far the candidates' results are apart."""
    lines = []
    for held, text in ((True, "compared before timing"), (False, "this preset decodes by other means")):
        if some := [d for d in differences if (d.held_to is not None) == held]:
            value, gradient = max(d.value for d in some), max(d.gradient for d in some)
            lines.append(f"{text}: values at most {value:.1g} apart, gradients {gradient:.1g}")
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]], columns: int | None = None) -> str:
    """Columns two spaces apart, the first to the left; what is beyond them follows as it is."""
    columns = columns or len(rows[0])
    widths = [max(len(row[i]) for row in rows) for i in range(columns)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, columns)), *row[columns:]]
        lines.append("  " + "  ".join(cells))
    return "\n".join(lines)


def number(value: float | None, factor: float = 1) -> str:
    """Three digits, and no fewer than are before the point."""
    if value is None:
        return NONE
    return f"{value * factor:.0f}" if value * factor >= 100 else f"{value * factor:.3g}"


def as_json(
    sections: Sequence[Section], differences: Sequence[Difference], counts: Counts | None, device: torch.device
) -> dict[str, Any]:
    """What came out of a run, and what it ran on."""
    of = [{"subject": s.subject, "batch": s.batch, "dtype": s.dtype} | g.as_json() for s in sections for g in s.goals]
    return {
        "format": 2,
        "command": shlex.join(["mldm", *sys.argv[1:]]),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **surroundings(device),
        "goals": of,
        "differences": [asdict(d) for d in differences],
        "tflop_per_image": None if counts is None else asdict(counts),
        "sections": [s.as_json() for s in sections],
    }


def surroundings(device: torch.device) -> dict[str, Any]:
    """Versions and the machine."""
    cuda = device.type == "cuda"
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
        | {package: _version(package) for package in _PACKAGES},
        "device": {
            "type": device.type,
            "name": torch.cuda.get_device_name(device) if cuda else _processor(),
            "memory_bytes": torch.cuda.get_device_properties(device).total_memory if cuda else None,
        },
        "threads": torch.get_num_threads(),
        "tf32": {
            "convolutions": torch.backends.cudnn.allow_tf32,
            "matrix_products": torch.get_float32_matmul_precision() != "highest",
        },
    }


def _processor() -> str:
    """Linux keeps the name of the processor in a file, and `platform` does not look there."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
