"""Files that appear whole or not at all, and never in the place of another."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from mldm_plugin.errors import MldmError


def write_new(path: Path, text: str) -> None:
    """Write `text` to a file that does not exist yet; folders above it are made.

    Raises:
        MldmError: the file exists, or cannot be written.
    """
    refuse_existing(path)
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(part).chmod(0o644)  # mkstemp makes it private
        os.link(part, path)  # unlike a rename, fails if somebody made the file meanwhile
    except OSError as error:
        refuse_existing(path)
        raise MldmError(f"{path} cannot be written ({error}): name another place.") from error
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                Path(part).unlink()


def refuse_existing(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise MldmError(f"{path} exists already and is left as it is: name another place, or remove it first.")
