"""Holding a review: one at a time in a folder, until the command is interrupted."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from mldm_plugin.errors import DataError
from mldm_plugin.page.server import serve
from mldm_plugin.prepare.review import notes
from mldm_plugin.prepare.review.folder import Review, tops_of
from mldm_plugin.prepare.review.server import ReviewServer


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Review]:
    """The review of a folder, which nobody else holds meanwhile.

    Raises:
        DataError: somebody does, or the folder cannot be reviewed.
    """
    tops_of(folder)
    try:
        (folder / notes.FOLDER).mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error}): a review needs to.") from error
    lock = FileLock(folder / notes.FOLDER / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise DataError(f"{folder} is being reviewed already: end that command, or use its page.") from None
    try:
        yield Review(folder)
    finally:
        lock.release()


def hold_review(folder: Path, port: int, opens_browser: bool) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        DataError: the folder cannot be reviewed, or the port is taken.
    """
    with opened(folder) as review:
        lines = (told(review), "Ctrl-C ends; all is saved as you go.")
        serve(lambda: ReviewServer(review, port), port, lines, opens_browser)
        sys.stdout.write(f"\n{told(review)}\n")


def finish_review(folder: Path) -> str:
    """Drop the originals; returns what there was of the review.

    Raises:
        DataError: the folder cannot be reviewed, or not be written.
    """
    with opened(folder) as review:
        said = told(review)
        try:
            review.finish()
        except OSError as error:
            raise DataError(
                f"{folder} cannot be written ({error}): masks, boxes and decisions are as they were; make room, and "
                "give the same command again."
            ) from error
    return f"{said}\nmasks and boxes stay as they are now; thrown-out pictures can still be brought back"


def told(review: Review) -> str:
    counts = review.counts()
    said = [f"{counts['looked at']} of {len(review)} looked at"]
    said += [f"{counts[what]} {what}" for what in (notes.ACCEPTED, notes.THROWN_OUT, "changed") if counts[what]]
    return f"{review.folder.name}: {', '.join(said)}"
