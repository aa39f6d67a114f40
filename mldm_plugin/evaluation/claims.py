"""Folders that hold what was made in one way only."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from mldm_plugin.errors import DataError
from mldm_plugin.records.files import write_text

log = logging.getLogger(__name__)

MARK = "made.json"  # how what lies beside it was made
OURS = (".png", ".jsonl")


def claim(folder: Path, how: dict[str, Any]) -> Path:
    """The folder, empty or with what was made in just this way; what was made in another way is removed.

    Raises:
        DataError: the folder holds something that was not made here.
    """
    mark, how = folder / MARK, json.loads(json.dumps(how, default=str))
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == how:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    files = [file for file in folder.iterdir() if file.is_file() and MARK not in file.name]
    if files and not mark.is_file():
        raise DataError(f"{folder} holds something that no evaluation made; choose another --out.")
    if files:
        log.warning(f"{folder}: what it holds was made by another model, data or settings; made anew.")
    for file in files:
        if file.suffix in OURS:
            file.unlink()
    write_text(mark, json.dumps(how))
    return folder


def stamp(folder: Path | None) -> str | None:
    """How many files a folder has, and a digest of their names, sizes and times, so that a change is noticed without
    reading them."""
    if folder is None:
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    states = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    told = json.dumps([[name, state.st_size, state.st_mtime_ns] for name, state in states])
    return f"{len(files)} files {hashlib.sha256(told.encode()).hexdigest()[:16]}"
