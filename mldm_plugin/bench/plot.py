"""The steps of a run as bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mldm_plugin.bench.candidates import OURS
from mldm_plugin.bench.record import Record, Section
from mldm_plugin.bench.rows import EXPECTED_AT
from mldm_plugin.bench.tables import number_text
from mldm_plugin.errors import MldmError

_COLOURS = {True: ("#d1495b", "#edae9a"), False: ("#5b7a99", "#b8c7d6")}  # ours, others; T = 100, T = 400


def plot_steps(record: Record, path: Path) -> None:
    """A PNG with one panel for each batch size and precision: the mean step of each candidate, with its quartiles.

    Args:
        record: a run that measured or counted steps.
        path: appears whole or not at all.

    Raises:
        MldmError: matplotlib is not installed, or the run has no steps.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MldmError(f"--plot needs matplotlib ({error}): pip install 'mldm-plugin[demo]'.") from error
    sections = [s for s in record.sections if s.subject == "step"]
    if not sections:
        raise MldmError("--plot shows steps, and none were measured: add --subject step.")
    figure = Figure(figsize=(9, 0.9 + 3.1 * len(sections)), layout="constrained")
    FigureCanvasAgg(figure)
    for number, section in enumerate(sections):
        _panel(figure.add_subplot(len(sections), 1, number + 1), section)
    figure.suptitle(f"mldm bench --size {record.size}: mean step under uniform timesteps")
    unfinished = path.with_name(f".{path.name}.partial")
    figure.savefig(unfinished, format="png", dpi=110)
    unfinished.replace(path)


def _panel(axes: Any, section: Section) -> None:
    timed = section.unit == "seconds"
    unit, factor = ("ms", 1e3) if timed else ("TFLOP", 1.0)
    height = 0.38
    for place, row in enumerate(section.rows):
        for number, limit in enumerate(EXPECTED_AT):
            if (cost := row.expected(section.batch, limit)) is None:
                continue
            y = place + (number - 0.5) * height
            colour = _COLOURS[row.candidate.startswith(OURS)][number]
            low, middle, high = (factor * v for v in (cost.low, cost.median, cost.high))
            axes.barh(y, middle, height * 0.95, color=colour)
            if timed:
                axes.errorbar(middle, y, xerr=[[middle - low], [high - middle]], color="black", capsize=2, lw=1)
            axes.annotate(
                number_text(middle), (high, y), xytext=(3, 0), textcoords="offset points", va="center", size=8
            )
    axes.set_yticks(range(len(section.rows)), [row.candidate for row in section.rows])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(f"{unit} a step; upper bar T = {EXPECTED_AT[0]}, lower bar T = {EXPECTED_AT[1]}")
    axes.set_title(f"{section.resolution}², batch {section.batch}, {section.dtype}", loc="left", size=10)
    axes.spines[["top", "right"]].set_visible(False)
