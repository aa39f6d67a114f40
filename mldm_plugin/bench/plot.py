"""The steps of a run as bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mldm_plugin.bench.candidates import OURS
from mldm_plugin.bench.report import EXPECTED_AT, Section, number
from mldm_plugin.errors import MldmError
from mldm_plugin.requirements import pip_install

_COLOURS = {True: ("#d1495b", "#edae9a"), False: ("#5b7a99", "#b8c7d6")}  # ours, others; T = 100, T = 400


def plot_steps(sections: Sequence[Section], title: str, path: Path) -> None:
    """A PNG with one panel for each batch size and precision: the mean step of each candidate, with its spread.

    Args:
        sections: of a run that measured or counted steps.
        title: above all.
        path: appears whole or not at all.

    Raises:
        MldmError: matplotlib is not installed, or the run has no steps.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MldmError(f"--plot needs matplotlib ({error}): {pip_install('matplotlib')}") from error
    sections = [s for s in sections if s.subject == "step"]
    if not sections:
        raise MldmError("--plot shows steps, and none were measured: add --subject step.")
    figure = Figure(figsize=(9, 0.9 + 3.1 * len(sections)), layout="constrained")
    FigureCanvasAgg(figure)
    for place, section in enumerate(sections, start=1):
        _panel(figure.add_subplot(len(sections), 1, place), section)
    figure.suptitle(title)
    unfinished = path.with_name(f".{path.name}.partial")
    figure.savefig(unfinished, format="png", dpi=110)
    unfinished.replace(path)


def _panel(axes: Any, section: Section) -> None:
    unit, factor = ("ms", 1e3) if section.timed else ("TFLOP", 1.0)
    height = 0.38
    for place, candidate in enumerate(section.candidates):
        for i, limit in enumerate(EXPECTED_AT):
            if (mean := candidate.mean(section.batch, limit, timed=section.timed)) is None:
                continue
            x, y, spread = mean * factor, place + (i - 0.5) * height, mean * factor * candidate.spread
            axes.barh(y, x, height * 0.95, color=_COLOURS[candidate.name.startswith(OURS)][i])
            if section.timed:
                axes.errorbar(x, y, xerr=spread, color="black", capsize=2, lw=1)
            axes.annotate(number(x), (x + spread, y), xytext=(3, 0), textcoords="offset points", va="center", size=8)
    axes.set_yticks(range(len(section.candidates)), [candidate.name for candidate in section.candidates])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(f"{unit} a step; upper bar T = {EXPECTED_AT[0]}, lower bar T = {EXPECTED_AT[1]}")
    axes.set_title(f"{section.resolution}², batch {section.batch}, {section.dtype}", loc="left", size=10)
    axes.spines[["top", "right"]].set_visible(False)
