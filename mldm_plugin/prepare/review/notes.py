"""What a review has decided so far, kept in the training set's folder as `.review/review.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from mldm_plugin.errors import DataError
from mldm_plugin.records.files import write_text

FOLDER = ".review"  # hidden, or `datasets` would take what lies in it for pictures
FILE = "review.json"
VERSION = 1
ACCEPTED, THROWN_OUT = "accepted", "thrown out"


@dataclass
class Note:
    """Of one picture.

    Args:
        decision: `accepted`, `thrown out`, or None where nothing is decided.
        original: its row before the review changed it; None where it is unchanged.
        row: a thrown-out picture's row, which is no longer in metadata.jsonl; None for others.
        place: a thrown-out row's place among all rows, from 0.
        faces: for each face box the place of its face in the original row, None for a new face; None where no box was
            changed.
    """

    decision: str | None = None
    original: str | None = None
    row: str | None = None
    place: int | None = None
    faces: list[int | None] | None = None

    @property
    def thrown_out(self) -> bool:
        return self.row is not None


def read(folder: Path) -> dict[str, Note]:
    """The notes by the pictures' names; empty before the first.

    Raises:
        DataError: the file is not what a review writes.
    """
    path = folder / FOLDER / FILE
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["version"] != VERSION:
            raise ValueError(f"version {stored['version']}, expected {VERSION}")
        return {name: _checked(Note(**note)) for name, note in stored["pictures"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not what a review writes ({error}): mend it, or move it away.") from error


def thrown_out_files(folder: Path) -> set[Path]:
    """The pictures and masks that no row names any more because their picture was thrown out."""
    found = set()
    for name, note in read(folder).items():
        if note.row is not None:
            row = json.loads(note.row)
            top = Path(name.removesuffix(row["file_name"]))
            named = [value for column, value in row.items() if column.endswith("file_name")]
            found |= {folder / top / value for value in named if isinstance(value, str)}
    return found


def _checked(note: Note) -> Note:
    texts = (note.decision, note.original, note.row)
    if not all(text is None or isinstance(text, str) for text in texts) or note.decision not in (
        None,
        ACCEPTED,
        THROWN_OUT,
    ):
        raise ValueError(f"a picture's note is {asdict(note)}")
    if not (note.faces is None or isinstance(note.faces, list)):
        raise ValueError(f"a picture's faces are {note.faces!r}")
    if note.thrown_out and not (isinstance(note.place, int) and note.place >= 0):
        raise ValueError(f"a thrown-out picture has the place {note.place!r}")
    return note


def write(folder: Path, notes: Mapping[str, Note]) -> None:
    """All notes, in the place of those before: the file is whole at any time."""
    told = {name: {k: v for k, v in asdict(note).items() if v is not None} for name, note in notes.items()}
    content = {"version": VERSION, "pictures": {name: note for name, note in told.items() if note}}
    (folder / FOLDER).mkdir(exist_ok=True)
    write_text(folder / FOLDER / FILE, json.dumps(content, indent=0, ensure_ascii=False) + "\n")
