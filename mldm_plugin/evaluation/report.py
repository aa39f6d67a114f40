"""The page that shows what an evaluation found: one file, which asks nobody for anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mldm_plugin.evaluation.conclusion import conclude
from mldm_plugin.evaluation.digits import decimals
from mldm_plugin.evaluation.figures import write_figures
from mldm_plugin.evaluation.latex import as_tex
from mldm_plugin.evaluation.thumbnails import embed
from mldm_plugin.page.document import Design, document, short
from mldm_plugin.records.files import write_text

DESIGN = Design(
    folder="evaluation/page",
    style="report.css",
    scripts=("core", "head", "table", "lightbox", "gallery", "extremes", "curves", "parts", "spread", "method", "page"),
    first="summary",
    instead="The numbers are in table.md, metrics.csv and metrics.json beside it.",
    more='<dialog class="lightbox" id="lightbox" aria-label="One prompt, all models"></dialog>\n',
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
    """The report as one HTML file."""
    names = " · ".join(model["name"] for model in results["models"])
    return document(DESIGN, f"{names} · mldm evaluate", for_page(results, embedded))


def for_page(results: dict[str, Any], embedded: dict[str, Any]) -> dict[str, Any]:
    """What the page's script reads: the results with their digits cut, and the pictures."""
    metrics = [{**metric, "decimals": decimals(metric)} for metric in results["metrics"]]
    told = {**results, "metrics": metrics, "conclusion": conclude(results), "faces": None, "hands": None}
    return {**short(told), "embedded": embedded}
