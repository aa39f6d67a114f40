"""The figures of an evaluation for papers, as PNG and SVG."""

from __future__ import annotations

import io
import logging
import math
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from mldm_plugin.evaluation.thumbnails import Boxes, around, gallery_cases, largest_first
from mldm_plugin.records.files import write_changed
from mldm_plugin.requirements import pip_install

log = logging.getLogger(__name__)

SUFFIXES: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}}  # undated: the same results, the same file
DPI = 300
# The report's colours and marks: told apart by the colour-blind, and in grey by shape.
COLOURS = ("#6a7080", "#0a6cb4", "#d0520c", "#0b8563", "#a3458f", "#946800", "#2a9bd6", "#5b3a29")
MARKERS = ("o", "s", "D", "^", "v", ">", "<", "h")
COLUMNS = 6  # prompts of the gallery's figure; chosen: the width of a page
INCHES, AROUND = 7.0, 0.6  # width of a page's text, height of legend and axis title
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "text.parse_math": False,  # a dollar in a prompt begins no formula
    "svg.fonttype": "none",
    "svg.hashsalt": "mldm",
}


def write_figures(results: dict[str, Any], out: Path) -> list[str]:
    """Write figures/NAME.png and .svg of what there is to draw; where matplotlib is absent, say so and go on.

    Returns:
        the names.
    """
    try:
        import matplotlib
    except ImportError:
        log.info(f"figures/ is not written, it needs matplotlib: {pip_install('matplotlib')}")
        return []
    folder, written = out / "figures", []
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw(results, out)
            if figure is not None:
                _save(figure, folder / name, tuple(SUFFIXES))
                written.append(name)
    return written


def _save(figure: Any, path: Path, suffixes: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of a prompt's letters, which the font may not have
        figure.draw_without_rendering()  # the layout is found once, not for each file
        figure.set_layout_engine("none")
        for suffix in suffixes:
            stream = io.BytesIO()
            figure.savefig(stream, format=suffix, dpi=DPI, metadata=SUFFIXES[suffix])
            write_changed(path.with_name(f"{path.name}.{suffix}"), stream.getvalue())


def differences(results: dict[str, Any], out: Path) -> Any:
    """Each metric's difference to the first model with its interval, on a scale of its own."""
    names = _names(results)
    metrics = [m for m in results["metrics"] if any(_there(m["differences"].get(name)) for name in names[1:])]
    if not metrics:
        return None
    figure, grid = _figure(len(metrics), 1, 0.3 + 0.16 * len(names[1:]))
    for axes, metric in zip(grid[:, 0], metrics, strict=True):
        axes.axvline(0, color="#1a1c20", linewidth=0.6)
        for k, name in enumerate(names[1:], 1):
            _whisker(axes, metric["differences"].get(name), -k, k, name)
        axes.set(yticks=[], ylim=(-len(names) + 0.2, -0.2))
        axes.spines["left"].set_visible(False)
        axes.set_ylabel(_titled(metric), rotation=0, ha="right", va="center")
    grid[-1, 0].set_xlabel(f"difference to {names[0]}, 95 % interval")
    _legend(grid[0, 0])
    return figure


def curves(results: dict[str, Any], out: Path) -> Any:
    """The one-step quantities over t, and beneath each the difference to the first model."""
    names, found = _names(results), results["curves"]
    if not found:
        return None
    figure, grid = _figure(2, len(found), 1.5, sharex=True)
    for column, curve in enumerate(found):
        for axes, lines in zip(grid[:, column], (curve["models"], curve["differences"]), strict=True):
            for k, name in enumerate(names):
                _line(axes, curve["t"], lines.get(name) or [], k, name)
        grid[1, column].axhline(0, color="#1a1c20", linewidth=0.6)
        grid[1, column].set(xlabel="t", xlim=(0, 1000), xticks=[0, 1000])
        grid[0, column].set_title(_wrapped(curve["title"], 90 // len(found)))
    grid[1, 0].set_ylabel(f"difference to {names[0]}")
    _legend(grid[0, 0])
    return figure


def distributions(results: dict[str, Any], out: Path) -> Any:
    """A dot for each prompt by metric and model, and the mean with its interval."""
    names = _names(results)
    metrics = [m for m in results["metrics"] if m["kind"] == "picture" and m["values"]]
    if not metrics:
        return None
    columns = min(len(metrics), 3)
    rows = -(-len(metrics) // columns)
    figure, grid = _figure(rows, columns, 0.5 + 0.3 * len(names))
    for axes in grid.flat[len(metrics) :]:
        axes.set_axis_off()
    for axes, metric in zip(grid.flat, metrics, strict=False):
        for k, name in enumerate(names):
            dots = [(v, -k - 0.15 - 0.3 * (i * 0.618 % 1)) for i, v in enumerate(metric["values"].get(name) or ())]
            some = [(v, y) for v, y in dots if v is not None]
            colour = COLOURS[k % len(COLOURS)]
            axes.plot([v for v, _ in some], [y for _, y in some], ".", color=colour, markersize=2.5, alpha=0.5, mew=0)
            _whisker(axes, metric["models"].get(name), -k, k, name)
        axes.set(yticks=[], ylim=(-len(names) + 0.4, 0.5))
        axes.spines["left"].set_visible(False)
        axes.set_title(_titled(metric))
    _legend(grid[0, 0])
    return figure


def gallery(results: dict[str, Any], out: Path) -> Any:
    """Models down, prompts across; each column from the same noise, the photographs above where there are some."""
    return _rows_of_pictures(results, lambda path, faces: _picture(out / path))


def faces(results: dict[str, Any], out: Path) -> Any:
    """As `gallery`, of each picture's largest face, enlarged; where none was found, or looked for, that is said."""

    def largest(path: str, boxes: Boxes | None) -> Image.Image | str | None:
        if not boxes:
            return "not looked\nfor" if boxes is None else "no face\nfound"
        picture = _picture(out / path)
        return picture and picture.crop(around(largest_first(boxes)[0], picture.size))

    known = (results.get("faces") or {}).values()
    found = any(boxes for of_model in known for boxes in of_model.values())
    return _rows_of_pictures(results, largest) if found else None


def _rows_of_pictures(results: dict[str, Any], look: Callable[[str, Boxes | None], Image.Image | str | None]) -> Any:
    """A row for each model, a column for each of `COLUMNS` prompts, of the picture or the words that `look` makes of a
    path and the face boxes, None where nobody has looked for any."""
    photographs = {key: (one["path"], one.get("faces")) for key, one in _photographs(results).items()}
    rows = {"photograph": photographs} if photographs else {}
    for name in _names(results):
        boxes = (results.get("faces") or {}).get(name) or {}
        rows[name] = {key: (path, boxes.get(key)) for key, path in (results["pictures"].get(name) or {}).items()}
    keys = [key for key in gallery_cases(results) if any(key in of_row for of_row in rows.values())]
    keys = [keys[i * len(keys) // COLUMNS] for i in range(COLUMNS)] if len(keys) > COLUMNS else keys
    if not keys:
        return None
    side = INCHES / COLUMNS
    figure, grid = _figure(len(rows), len(keys), side, side * len(keys), layout="compressed")  # no gaps between rows
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    texts = {case["key"]: case["text"] or case["key"] for case in results["cases"]}
    for axes_of_row, (name, of_row) in zip(grid, rows.items(), strict=True):
        for axes, key in zip(axes_of_row, keys, strict=True):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            seen = look(*of_row[key]) if key in of_row else None
            if isinstance(seen, str):
                axes.text(0.5, 0.5, seen, ha="center", va="center", transform=axes.transAxes, fontsize=6)
            elif seen is not None:
                axes.imshow(seen, interpolation="none")
        axes_of_row[0].set_ylabel(name.replace("_", " "))
    for axes, key in zip(grid[-1], keys, strict=True):
        axes.set_xlabel(_wrapped(texts[key], 27), fontsize=5)
    return figure


def _photographs(results: dict[str, Any]) -> dict[str, Any]:
    return results.get("photographs_of_cases") or {}


FIGURES: dict[str, Callable[[dict[str, Any], Path], Any]] = {
    "differences": differences,
    "curves": curves,
    "distributions": distributions,
    "gallery": gallery,
    "faces": faces,
}


def _figure(
    rows: int, columns: int, height: float, width: float = INCHES, layout: Any = "constrained", **options: Any
) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure((width, height * rows + AROUND), layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _names(results: dict[str, Any]) -> list[str]:
    return [model["name"] for model in results["models"]]


def _titled(metric: dict[str, Any]) -> str:
    return _wrapped(f"{metric['title']} {'↓' if metric['better'] == 'smaller' else '↑'}")


def _wrapped(text: str, width: int = 30, lines: int = 3) -> str:
    return "\n".join(textwrap.wrap(_words(text), width, max_lines=lines, placeholder=" …"))


def _words(text: str) -> str:
    """What can be written into a file, whatever a prompt holds."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _there(estimate: dict[str, Any] | None) -> bool:
    return estimate is not None and estimate["value"] is not None


def _whisker(axes: Any, estimate: dict[str, Any] | None, y: float, k: int, name: str) -> None:
    if estimate is None or estimate["value"] is None:
        return
    colour = COLOURS[k % len(COLOURS)]
    if estimate["low"] is not None and estimate["high"] is not None:
        axes.plot([estimate["low"], estimate["high"]], [y, y], color=colour, linewidth=1, solid_capstyle="butt")
    marker = MARKERS[k % len(MARKERS)]
    axes.plot(
        [estimate["value"]], [y], marker, color=colour, markersize=4, markeredgecolor="white", mew=0.5, label=name
    )


def _line(axes: Any, t: list[int], estimates: list[dict[str, Any] | None], k: int, name: str) -> None:
    if not any(_there(one) for one in estimates):
        return
    nan = float("nan")
    ends = [
        [nan if one is None or one[end] is None else one[end] for one in estimates] for end in ("value", "low", "high")
    ]
    colour = COLOURS[k % len(COLOURS)]
    axes.plot(t, ends[0], color=colour, linewidth=1, marker=MARKERS[k % len(MARKERS)], markersize=2.5, label=name)
    axes.fill_between(t, ends[1], ends[2], color=colour, alpha=0.15, linewidth=0)


def _or_nan(estimate: dict[str, Any] | None, end: str) -> float:
    return math.nan if estimate is None or estimate[end] is None else estimate[end]


def _legend(axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)


def _picture(path: Path) -> Image.Image | None:
    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
