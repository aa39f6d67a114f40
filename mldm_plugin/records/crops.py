"""How many pictures of a run's training set lose a face to the crop, as its start found it."""

from __future__ import annotations

import json
from pathlib import Path

from mldm_plugin.records.files import write_text

FILE_NAME = "crops.json"


def write_crops(folder: Path, looked_at: int, losing: int) -> None:
    """Of so many pictures `losing` have a face box that is left out, for the crop leaves less than half of it."""
    write_text(folder / FILE_NAME, json.dumps({"pictures": looked_at, "losing_a_face": losing}) + "\n")


def read_crops(folder: Path) -> tuple[int, int] | None:
    """The pictures that lose a face, and of how many; None where the run did not say it."""
    try:
        told = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        losing, looked_at = told["losing_a_face"], told["pictures"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    whole = all(isinstance(found, int) and not isinstance(found, bool) for found in (losing, looked_at))
    return (losing, looked_at) if whole and 0 <= losing <= looked_at < 1 << 53 else None
