"""Files that are there whole or not at all."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file, in the place of another if there is one."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write the bytes of a file, in the place of another if there is one.

    Where the disk is full the file is as it was, and nothing is left beside it.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_changed(path: Path, content: bytes) -> None:
    """Write a file, unless it already holds just this: then it is left as it is, with its time."""
    if not (path.is_file() and path.read_bytes() == content):
        write_bytes(path, content)
