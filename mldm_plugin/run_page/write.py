"""Writing the page of a run: once, at its end, or again and again while it trains."""

from __future__ import annotations

from pathlib import Path

from mldm_plugin.doctor.report import Answer, examine
from mldm_plugin.doctor.run import Run, find_run
from mldm_plugin.errors import MldmError
from mldm_plugin.page.document import Design, document
from mldm_plugin.records.files import write_text
from mldm_plugin.run_page.content import content

NAME = "report.html"
DESIGN = Design(
    folder="run_page/page",
    style="run.css",
    scripts=("plots", "film", "losses", "heard", "layers", "about", "run"),
    first="verdict",
    instead="The numbers are in metrics.jsonl of the run.",
)


def page_of(run: Run, name: str, answer: Answer | None = None, again: int | None = None) -> str:
    """The page of a run as HTML.

    Raises:
        MldmError: a file of the run that cannot be read, or is not what it should be.
    """
    answer = examine(run) if answer is None else answer
    return document(DESIGN, f"{name} · mldm report", content(run, answer, name, again))


def where(what: Path, run: Run) -> Path:
    """Where the page goes if nobody says it: into the run's records, else beside what was given."""
    return (run.records or (what if what.is_dir() else what.parent)) / NAME


def name_of(what: Path) -> str:
    """What a run is called: its folder, and above that if its own name says little."""
    path = what.absolute()
    return path.name if path.parent.name in ("", "runs", "out", "output") else f"{path.parent.name}/{path.name}"


def write_page(what: Path, out: Path | None = None, base: str | None = None, data: Path | None = None) -> Path:
    """Look at a run and write its page. Returns where it is.

    Raises:
        MldmError: there is no run, it cannot be read, or the page cannot be written.
    """
    run = find_run(what, base, data)
    out = where(what, run) if out is None else out
    put(page_of(run, name_of(what)), out)
    return out


def put(page: str, out: Path) -> None:
    """Raises MldmError where it cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, page)
    except OSError as error:
        raise MldmError(f"--out {out} cannot be written ({error}): name another file.") from error
