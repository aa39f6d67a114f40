"""Reading a training set again, whichever way it is stored: row by row, in parts that other processes can read.

A part never holds more than some pictures in memory. Nothing in a file is trusted: names may not leave the folder.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from mldm_plugin.errors import DataError
from mldm_plugin.prepare.paths import fault_of

LINES = 64  # of metadata.jsonl in a part, chosen: some seconds of work
SPLITS = ("", "train", "validation", "test")
PICTURES = ("image", "mask", "conditioning_image", "parts")


@dataclass(frozen=True)
class Row:
    """A row as it is stored.

    Args:
        name: how a report names it.
        columns: all but the pictures.
        pictures: their contents by column; None where the row says that there is none.
        faults: what keeps it from being read: column and reason.
        files: the names of its files, where it is stored in files.
    """

    name: str
    columns: dict[str, Any]
    pictures: dict[str, bytes | None]
    faults: tuple[tuple[str, str], ...] = ()
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """Some rows of a training set: `count` of them from place `first` on, to be read from byte `start` of `path`."""

    path: Path
    first: int
    count: int
    start: int = 0

    def rows(self) -> Iterator[Row]:
        """Read them.

        Raises:
            DataError: the file cannot be read at all.
        """
        readers = {".jsonl": _imagefolder, ".parquet": _parquet, ".tar": _tar}
        try:
            yield from readers[self.path.suffix](self)
        except (OSError, ValueError, tarfile.TarError) as error:  # pyarrow's are ValueErrors
            raise DataError(f"{self.path} cannot be read ({error}).") from error


def listed_rows(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Each row of metadata.jsonl, here or in the folders of splits, with the folder that its names are relative to.

    Raises:
        DataError: a line that is no row, or a file name that leaves the folder.
    """
    found = []
    for file in [file for split in SPLITS if (file := folder / split / "metadata.jsonl").is_file()]:
        top = file.parent.resolve()
        lines = file.read_text(encoding="utf-8").split("\n")  # a caption may hold other ends of lines
        for number, line in [(number, line) for number, line in enumerate(lines, 1) if line.strip()]:
            try:
                row = json.loads(line)
                more = [value for key, value in row.items() if key.endswith("_file_name") and value]
                names = [row["file_name"], *more]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{file}, line {number}: expected an object with a file_name ({error!r}).") from error
            if reason := next((reason for name in names if (reason := fault_of(name, top))), None):
                raise DataError(f"{file}, line {number}: a file name {reason}.")
            found.append((top, row))
    return found


def listed_pictures(folder: Path) -> list[Path]:
    """The pictures of those rows, in the order of their names; none where no metadata.jsonl is."""
    return sorted(top / row["file_name"] for top, row in listed_rows(folder))


def parts(folder: Path) -> list[Part]:
    """All rows of the training set in `folder`.

    Raises:
        DataError: it is none.
    """
    found: list[Part] = []
    for path in sorted([*folder.rglob("metadata.jsonl"), *folder.rglob("*.parquet"), *folder.rglob("*.tar")]):
        first = sum(part.count for part in found)
        try:
            found += [Part(path, first + before, count, start) for before, count, start in _places(path)]
        except (OSError, ValueError, tarfile.TarError) as error:
            raise DataError(f"{path} cannot be read ({error}): make it anew.") from error
    if not found:
        raise DataError(f"{folder} is no training set: expected metadata.jsonl with pictures, or parquet or tar files.")
    return found


def _places(path: Path) -> Iterator[tuple[int, int, int]]:
    """Rows before, rows in, and first byte of each part of a file."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        yield 0, parquet.read_metadata(path).num_rows, 0
    elif path.suffix == ".tar":
        with tarfile.open(path) as tar:
            yield 0, sum(name.endswith(".json") for name in tar.getnames()), 0
    else:
        with path.open("rb") as stream:
            before = start = number = 0
            while line := stream.readline():
                number += bool(line.strip())
                if number - before == LINES:
                    yield before, LINES, start
                    before, start = number, stream.tell()
            if number > before:
                yield before, number - before, start


def _imagefolder(part: Part) -> Iterator[Row]:
    folder = part.path.parent.resolve()
    with part.path.open("rb") as stream:
        stream.seek(part.start)
        read = 0
        while read < part.count:
            line = stream.readline()
            if line.strip():
                read += 1
                yield row_of_line(line, folder, part.first + read)


def row_of_line(line: bytes, folder: Path, number: int) -> Row:
    try:
        columns = json.loads(line)
        name = str(columns["file_name"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return Row(f"row {number}", {}, {}, (("file_name", f"the line is no object with a file name: {error!r}"),))
    faults: list[tuple[str, str]] = []
    pictures: dict[str, bytes | None] = {}
    files: list[str] = []
    for column in [c for c in columns if c == "file_name" or c.endswith("_file_name")]:
        kind = "image" if column == "file_name" else column.removesuffix("_file_name")
        file_name = columns.pop(column)
        pictures[kind] = None
        if file_name is None:
            continue
        if reason := fault_of(file_name, folder):
            faults.append((kind, f"its name {reason}"))
        else:
            files.append(file_name)
            try:
                pictures[kind] = (folder / file_name).read_bytes()
            except OSError as error:
                faults.append((kind, f"there is no file {file_name} ({error.strerror})"))
    return Row(name, columns, pictures, tuple(faults), tuple(files))


def _parquet(part: Part) -> Iterator[Row]:
    from pyarrow import parquet

    number = part.first
    for batch in parquet.ParquetFile(part.path).iter_batches(batch_size=8):
        for columns in batch.to_pylist():
            number += 1
            inside = {name: columns.pop(name) for name in PICTURES if name in columns}
            faults = [
                (name, f"holds {type(p).__name__}") for name, p in inside.items() if not isinstance(p, dict | NoneType)
            ]
            sound = {name: picture or {} for name, picture in inside.items() if isinstance(picture, dict | NoneType)}
            name = sound.get("image", {}).get("path") or f"row {number} of {part.path.name}"
            pictures = {name: picture.get("bytes") for name, picture in sound.items()}
            yield Row(name, {k: v for k, v in columns.items() if v is not None}, pictures, tuple(faults))


def _tar(part: Part) -> Iterator[Row]:
    """Members with the same name up to the first dot of their last part are one row."""
    key, members = "", dict[str, bytes]()
    with tarfile.open(part.path) as tar:
        for entry in tar:
            folders, _, last = entry.name.rpartition("/")
            stem, _, suffix = last.partition(".")
            content = tar.extractfile(entry)
            if content is None:
                continue
            if members and key != f"{folders}/{stem}":
                yield _row_of_members(key, members, part)
                members = {}
            key = f"{folders}/{stem}"
            members[suffix] = content.read()
    if members:
        yield _row_of_members(key, members, part)


def _row_of_members(key: str, members: dict[str, bytes], part: Part) -> Row:
    name = f"{key.lstrip('/')} of {part.path.name}"
    try:
        columns = dict(json.loads(members.get("json", b"")))
    except (ValueError, TypeError, RecursionError) as error:
        return Row(name, {}, {}, (("json", f"is no JSON: {error}"),))
    pictures: dict[str, bytes | None] = {
        "image": next((members[s] for s in ("jpg", "png", "webp") if s in members), None)
    }
    pictures |= {c: members[f"{c}.png"] for c in PICTURES if f"{c}.png" in members}
    return Row(name, columns, pictures)
