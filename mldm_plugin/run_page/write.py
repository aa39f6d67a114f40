"""Writing the page of a run: once, at its end, or again and again while it trains."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mldm_plugin.announce import announce
from mldm_plugin.doctor.report import Answer, examine
from mldm_plugin.doctor.run import Run, find_run
from mldm_plugin.errors import MldmError
from mldm_plugin.page.document import Design, document
from mldm_plugin.records.files import write_text
from mldm_plugin.records.metrics import FILE_NAME as METRICS
from mldm_plugin.run_page.album import Album
from mldm_plugin.run_page.content import content

NAME = "report.html"
DESIGN = Design(
    folder="run_page/page",
    style="run.css",
    scripts=("plots", "film", "losses", "validation", "heard", "layers", "about", "run"),
    first="verdict",
    instead="The numbers are in metrics.jsonl of the run.",
)


def page_of(
    run: Run, name: str, answer: Answer | None = None, again: int | None = None, album: Album | None = None
) -> str:
    """The page of a run as HTML; `album` has the photographs that an earlier page of it showed.

    Raises:
        MldmError: a file of the run that cannot be read, or is not what it should be.
    """
    answer = examine(run) if answer is None else answer
    return document(DESIGN, f"{name} · mldm report", content(run, answer, name, again, album))


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


def leave_page(folder: Path, records: Path | None = None) -> None:
    """Write the page of a run that has ended, from its records and weights alone: its pictures are not looked at again.

    A page that cannot be written costs a line, never a run.

    Args:
        folder: of what was trained, which may hold several files of weights; the page is then of the records alone.
        records: where they lie, if not in `folder`; the page is written beside them.
    """
    try:
        run, answer = _ended(folder, records)
        out = where(folder, run)
        put(page_of(run, name_of(folder), answer), out)
    except Exception as error:  # whatever it is, the run is trained and saved
        again = f"mldm report {records or folder} tries again"
        announce(f"warning: the page of the run was not written ({error}); {again}.")
    else:
        announce(f"the run's page: {out}")


def _ended(folder: Path, records: Path | None) -> tuple[Run, Answer]:
    """Of the records alone, where they lie elsewhere and what `folder` holds is not one file that is known."""
    try:
        run = find_run(folder)
        run = run if records is None else replace(run, records=records)
        return run, examine(run, pictures=False)
    except MldmError:
        if records is None:
            raise
        run = find_run(records)
        return run, examine(run, pictures=False)


def watch(
    what: Path, out: Path | None, base: str | None, data: Path | None, seconds: int, tell: Callable[[Path], None]
) -> None:
    """Write the page again whenever there is more to show, until Ctrl-C; then once more, as one that stays as it is.

    Looks at the training set once.

    Args:
        tell: is called with where the page is, when it is there.

    Raises:
        MldmError: as `write_page`, of the first time; later a file may be half written, and is read the next time.
    """
    run = find_run(what, base, data)
    out, answer = where(what, run) if out is None else out, examine(run)
    pictures, of_data, album = answer.data, answer.of_data, Album(run.arguments)
    seen = _state(run)
    put(page_of(run, name_of(what), answer, again=seconds, album=album), out)
    tell(out)
    try:
        while True:
            time.sleep(seconds)
            with suppress(MldmError, OSError):
                run = find_run(what, base, data)
                if (now := _state(run)) != seen:
                    answer = examine(run, pictures=False).beside(pictures, of_data)
                    put(page_of(run, name_of(what), answer, again=seconds, album=album), out)
                    seen = now
    except KeyboardInterrupt:
        with suppress(MldmError, OSError):
            run = find_run(what, base, data)
            answer = examine(run, pictures=False).beside(pictures, of_data)
        put(page_of(run, name_of(what), answer, album=album), out)


def _state(run: Run) -> object:
    """What changes when there is more to show."""
    files = [run.weights, None if run.records is None else run.records / METRICS]
    return [None if file is None else (str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]


def put(page: str, out: Path) -> None:
    """Raises MldmError where it cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, page)
    except OSError as error:
        raise MldmError(f"--out {out} cannot be written ({error}): name another file.") from error
