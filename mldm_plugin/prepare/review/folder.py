"""A training set under review. What is decided is on disk before the page hears that it is.

    DIR/metadata.jsonl           the rows that are kept, in their order
    DIR/masks/ …                 the masks, as they were painted
    DIR/.review/review.json      decisions, rows of thrown-out pictures, rows as they were before a change
    DIR/.review/originals/ …     masks as they were before the first stroke

Each file is replaced whole. A row is always in one of the two lists or, after a kill between two writes, in both; then
review.json holds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mldm_plugin.errors import DataError
from mldm_plugin.prepare.inspection import Findings, inspect_row
from mldm_plugin.prepare.label_png import label_png
from mldm_plugin.prepare.paths import fault_of
from mldm_plugin.prepare.review import notes
from mldm_plugin.prepare.review.change import with_faces, with_people
from mldm_plugin.prepare.review.notes import ACCEPTED, THROWN_OUT, Note
from mldm_plugin.prepare.stored import Row, row_of_line
from mldm_plugin.records.files import write_bytes, write_text

ORIGINALS = "originals"


@dataclass
class Entry:
    """One picture under review.

    Args:
        name: its file below the folder that is reviewed.
        top: the folder of its metadata.jsonl.
        line: its row as it is written.
        note: what is decided of it.
    """

    name: str
    top: Path
    line: str
    note: Note = field(default_factory=Note)

    def columns(self) -> dict[str, Any]:
        return json.loads(self.line)


class Review:
    """The pictures of an image folder, in the order of its rows, the thrown-out ones at their old places.

    Args:
        folder: with metadata.jsonl, or with splits that have one each.

    Raises:
        DataError: it is no image folder, a row cannot be read, or the notes of an earlier review cannot.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._notes = notes.read(self.folder)
        self._states: dict[Path, tuple[int, int]] = {}
        self.entries = [entry for top in tops_of(self.folder) for entry in self._entries(top)]
        named = Counter(mask for entry in self.entries if (mask := self._mask(entry)) is not None)
        pictures = {self.folder / entry.name for entry in self.entries}
        # A file that is a picture, too, or the mask of several, is not written over for one of them.
        self._not_painted = {path for path, count in named.items() if count > 1 or path in pictures}
        if (self.folder / notes.FOLDER / ORIGINALS).is_dir():
            self._drop_stale_originals()

    def __len__(self) -> int:
        return len(self.entries)

    def counts(self) -> Counter[str]:
        """How many are `accepted`, `thrown out`, `looked at` and `changed`."""
        found = Counter(entry.note.decision for entry in self.entries if entry.note.decision)
        changed = sum(entry.note.original is not None for entry in self.entries)
        return Counter({**found, "looked at": found.total(), "changed": changed})

    def row(self, number: int) -> Row:
        """The row and its pictures' contents, as stored."""
        entry = self.entries[number]
        return row_of_line(entry.line.encode(), entry.top, number + 1)

    def findings(self, number: int) -> Findings:
        """What `mldm data check` would say of it."""
        return inspect_row(self.row(number), shown=False)

    def decide(self, number: int, decision: str | None) -> None:
        """Accept a picture, throw it out, or take a decision back; a thrown-out one comes back to its place."""
        if decision not in (None, ACCEPTED, THROWN_OUT):
            raise DataError(f"decision {decision!r}: expected {ACCEPTED!r}, {THROWN_OUT!r} or null.")
        entry = self.entries[number]
        self._check_unchanged(entry.top)
        with self._or_as_before(entry):
            self._decide(entry, decision)

    def _decide(self, entry: Entry, decision: str | None) -> None:
        """A row goes into the other list before it leaves the one that it is in: it is never in neither."""
        moved = entry.note.thrown_out != (decision == THROWN_OUT)
        entry.note.decision = decision
        if decision == THROWN_OUT:
            entry.note.row, entry.note.place = entry.line, self._place(entry)
        elif moved:
            entry.note.row = entry.note.place = None
            self._write_rows(entry.top)
        self._write_notes()
        if decision == THROWN_OUT and moved:
            self._write_rows(entry.top)

    def paint(self, number: int, labels: np.ndarray) -> None:
        """Store another mask: uint8 (H, W), 0 nobody, k the k-th person; the one before the first is kept.

        Raises:
            DataError: the row has no mask, or the labels have another size than the picture.
        """
        entry, found = self.entries[number], self.findings(number)
        path = self._mask(entry)
        if path is None or not path.is_file() or path in self._not_painted or path.suffix.lower() != ".png":
            raise DataError(f"{entry.name} has no mask that could be painted: a PNG of its own, and no picture.")
        if found.size != labels.shape[::-1]:
            raise DataError(f"the mask is {labels.shape[1]}x{labels.shape[0]}, its picture {found.size}.")
        kept = self._original(path)
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(kept, path.read_bytes())
        with self._or_as_before(entry):
            self._rewrite(entry, with_people(entry.columns(), labels))  # first: it may not name fewer than the mask has
            write_bytes(path, label_png(labels))

    def set_faces(self, number: int, faces: Sequence[Mapping[str, Any]]) -> None:
        """Store other face boxes; `change.with_faces` says how.

        Raises:
            DataError: a box is none, or outside the picture.
        """
        entry, found = self.entries[number], self.findings(number)
        if found.size is None:
            raise DataError(f"{entry.name} cannot be read, so it can have no faces.")
        original = json.loads(entry.note.original or entry.line)
        columns = with_faces(entry.columns(), original, faces, found.size)
        with self._or_as_before(entry):
            self._rewrite(entry, columns, [face.get("was") for face in faces])

    def restore(self, number: int) -> None:
        """The mask and the row as they were before the review."""
        entry = self.entries[number]
        if entry.note.original is None:
            return
        self._check_unchanged(entry.top)
        path = self._mask(entry)
        kept = self._original(path) if path else None
        with self._or_as_before(entry):
            if path and kept and kept.is_file():
                write_bytes(path, kept.read_bytes())
            entry.line, entry.note.original, entry.note.faces = entry.note.original, None, None
            self._store(entry)
        if kept:
            kept.unlink(missing_ok=True)

    def finish(self) -> None:
        """Forget how rows and masks were before: they can no longer be put back. Thrown-out pictures still can."""
        for entry in self.entries:
            entry.note.original = entry.note.faces = None
        self._write_notes()
        originals = self.folder / notes.FOLDER / ORIGINALS
        for path in sorted(originals.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        if originals.is_dir():
            originals.rmdir()

    @contextmanager
    def _or_as_before(self, entry: Entry) -> Iterator[None]:
        """Where the disk is full, the row and its note stay as they were, here and, as far as may be, on disk."""
        line, note = entry.line, replace(entry.note)
        try:
            yield
        except OSError:
            entry.line, entry.note = line, note
            with suppress(OSError):
                self._store(entry)
            raise

    def _drop_stale_originals(self) -> None:
        """What a `finish` that was killed left: of the next stroke it would be taken for the mask before."""
        for entry in self.entries:
            if entry.note.original is None and (mask := self._mask(entry)):
                self._original(mask).unlink(missing_ok=True)

    def _entries(self, top: Path) -> list[Entry]:
        """The rows of one metadata.jsonl and the thrown-out ones; rows that are in both lists leave the former."""
        path = top / "metadata.jsonl"
        self._states[top] = _state(path)
        relative = top.relative_to(self.folder)
        kept, doubled = list[Entry](), False
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                name = (relative / _file_name(line, top, f"{path}, line {number}")).as_posix()
                note = self._notes.get(name, Note())
                doubled |= note.thrown_out
                if not note.thrown_out:
                    kept.append(Entry(name, top, line, note))
        if len({entry.name for entry in kept}) < len(kept):
            raise DataError(f"{path} names a picture twice: remove one of the rows.")
        for name, note in sorted(self._notes.items(), key=lambda item: item[1].place or 0):
            if note.row is not None and note.place is not None and _top_of(name, note.row, self.folder) == top:
                kept.insert(note.place, Entry(name, top, note.row, note))
        if doubled:
            self.entries = kept
            self._write_rows(top)
        return kept

    def _place(self, entry: Entry) -> int:
        return [other.name for other in self.entries if other.top == entry.top].index(entry.name)

    def _mask(self, entry: Entry) -> Path | None:
        """Where its mask lies; None where it has none, or one that may not be touched."""
        name = entry.columns().get("mask_file_name")
        return None if name is None or fault_of(name, entry.top) else entry.top / name

    def _original(self, mask: Path) -> Path:
        return self.folder / notes.FOLDER / ORIGINALS / mask.relative_to(self.folder)

    def _rewrite(self, entry: Entry, columns: Mapping[str, Any], faces: list[int | None] | None = None) -> None:
        self._check_unchanged(entry.top)
        entry.note.faces = entry.note.faces if faces is None else faces
        if entry.note.original is None:
            entry.note.original = entry.line
            self._write_notes()
        entry.line = json.dumps(columns, ensure_ascii=False)
        self._store(entry)

    def _store(self, entry: Entry) -> None:
        if entry.note.thrown_out:
            entry.note.row = entry.line
        else:
            self._write_rows(entry.top)
        self._write_notes()

    def _write_notes(self) -> None:
        notes.write(self.folder, {entry.name: entry.note for entry in self.entries})

    def _write_rows(self, top: Path) -> None:
        kept = [entry.line for entry in self.entries if entry.top == top and not entry.note.thrown_out]
        write_text(top / "metadata.jsonl", "".join(f"{line}\n" for line in kept))
        self._states[top] = _state(top / "metadata.jsonl")

    def _check_unchanged(self, top: Path) -> None:
        """Raise DataError where somebody else wrote the rows since: theirs would be lost."""
        path = top / "metadata.jsonl"
        if not path.is_file() or _state(path) != self._states[top]:
            raise DataError(f"{path} was changed by something else meanwhile: end this review and start it again.")


def tops_of(folder: Path) -> list[Path]:
    """The folders of the metadata.jsonl below a folder.

    Raises:
        DataError: there is none.
    """
    tops = sorted(path.parent for path in folder.rglob("metadata.jsonl"))
    if not tops:
        raise DataError(
            f"{folder} has no metadata.jsonl: name an image folder; a training set in parquet or tar files is made "
            "anew with --format imagefolder."
        )
    return tops


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _file_name(line: str, top: Path, where: str) -> str:
    try:
        name = json.loads(line)["file_name"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: expected an object with a file_name ({error!r}).") from error
    if reason := fault_of(name, top):
        raise DataError(f"{where}: the file name {reason}.")
    return name


def _top_of(name: str, line: str, folder: Path) -> Path:
    """The folder of the metadata.jsonl that a thrown-out row came from."""
    inside = _file_name(line, folder, f"{folder / notes.FOLDER / notes.FILE}, {name}")
    return folder / name.removesuffix(Path(inside).as_posix()).rstrip("/")
