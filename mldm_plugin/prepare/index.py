"""The list of sources on disk, so that a data set of any length needs the same memory."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mldm_plugin.errors import DataError
from mldm_plugin.prepare.source import Source


class Index:
    """Sources by their place, 0 to len − 1, and the facts that hold for all of them.

    Args:
        path: of a file that `Index.write` wrote.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @staticmethod
    def write(path: Path, facts: Mapping[str, Any], sources: Iterable[Source]) -> None:
        """Write all sources; the file appears whole or not at all.

        Raises:
            DataError: there are none, or two would have the same name in the output.
        """
        partial = path.with_name(f"{path.name}.partial")
        with scratch(partial) as database:
            database.execute("CREATE TABLE sources (place INTEGER PRIMARY KEY, name TEXT UNIQUE, source TEXT)")
            database.execute("CREATE TABLE facts (facts TEXT)")
            database.execute("INSERT INTO facts VALUES (?)", (json.dumps(dict(facts)),))
            count = 0
            for count, source in enumerate(sources, 1):
                _insert(database, count - 1, source)
            if not count:
                raise DataError("there is no picture to convert: see the counts above, or name another folder.")
        partial.replace(path)

    def __len__(self) -> int:
        with opened(self._path) as database:
            return database.execute("SELECT count(*) FROM sources").fetchone()[0]

    def facts(self) -> dict[str, Any]:
        """What `write` was given."""
        with opened(self._path) as database:
            return json.loads(database.execute("SELECT facts FROM facts").fetchone()[0])

    def part(self, start: int, stop: int) -> list[Source]:
        """The sources from place `start` up to `stop`, which is left out."""
        query = "SELECT source FROM sources WHERE place >= ? AND place < ? ORDER BY place"
        with opened(self._path) as database:
            return [Source(**json.loads(row)) for (row,) in database.execute(query, (start, stop))]


def _insert(database: sqlite3.Connection, place: int, source: Source) -> None:
    name = f"{source.split}/{source.name}"
    try:
        database.execute("INSERT INTO sources VALUES (?, ?, ?)", (place, name, json.dumps(vars(source))))
    except sqlite3.IntegrityError:
        raise DataError(
            f"two pictures would both be called {source.name!r}, the second is {source.path}: rename one of them "
            "(names count without their suffix)."
        ) from None


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[sqlite3.Connection]:
    """A new database that is being filled; what an interrupted run left under its name is thrown away."""
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        database.execute("BEGIN")
        yield database
        database.execute("COMMIT")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A finished database, which nobody changes any more: read without locks, which network disks may lack."""
    with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
        yield database
