"""The page that shows what an evaluation found: one file, which asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from mldm_plugin.evaluation.conclusion import conclude
from mldm_plugin.evaluation.digits import DIGITS, decimals
from mldm_plugin.evaluation.figures import write_figures
from mldm_plugin.evaluation.latex import as_tex
from mldm_plugin.evaluation.thumbnails import embed
from mldm_plugin.records.files import write_text

SCRIPTS = (
    "core",
    "hints",
    "scales",
    "head",
    "table",
    "lightbox",
    "gallery",
    "extremes",
    "curves",
    "parts",
    "spread",
    "method",
    "page",
)


def write_report(results: dict[str, Any], out: Path) -> None:
    """Write report.html, table.tex and figures/.

    Args:
        results: what metrics.json holds.
        out: the folder of the evaluation, from which the paths of pictures are seen.
    """
    write_text(out / "report.html", page(results, embed(results, out)))
    write_text(out / "table.tex", as_tex(results))
    write_figures(results, out)


def page(results: dict[str, Any], embedded: dict[str, Any]) -> str:
    """The report as one HTML file.

    Whatever a prompt or a name says stays text: the page makes it with the DOM's text nodes alone, and its policy
    lets no script run but its own, by digest.
    """
    style = _asset("report.css")
    script = "'use strict';\n" + "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    parts = {
        "title": html.escape(" · ".join(model["name"] for model in results["models"])),
        "style": style,
        "script": script,
        "style_digest": _digest(style),
        "script_digest": _digest(script),
        "data": as_json(for_page(results, embedded)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("report.html"))


def for_page(results: dict[str, Any], embedded: dict[str, Any]) -> dict[str, Any]:
    """What the page's script reads: the results with their digits cut, and the pictures."""
    metrics = [{**metric, "decimals": decimals(metric)} for metric in results["metrics"]]
    told = {**results, "metrics": metrics, "conclusion": conclude(results), "faces": None, "hands": None}
    return {**_short(told), "embedded": embedded}


def as_json(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or begins another."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(inner) for inner in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _asset(name: str) -> str:
    return (resources.files("mldm_plugin.evaluation") / "page" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
