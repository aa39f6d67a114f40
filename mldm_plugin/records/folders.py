"""Writing a whole folder at once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mldm_plugin.errors import DataError


@contextmanager
def replaced_folder(folder: Path, marker: str) -> Iterator[Path]:
    """A scratch folder that takes the place of `folder` when the block ends without an error.

    Args:
        folder: the folder to write; an earlier one is replaced if it is empty or holds `marker`.
        marker: a file that every folder of this kind holds.

    Raises:
        DataError: `folder` is a file, or holds something else, which is not ours to delete.
    """
    folder = folder.absolute()
    known = folder.is_dir() and ((folder / marker).is_file() or not any(folder.iterdir()))
    if folder.exists() and not known:
        raise DataError(
            f"expected {folder} to be new, empty or an earlier one (with {marker}), "
            "but it holds something else; choose another folder."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        made, old = Path(scratch) / "new", Path(scratch) / "old"
        made.mkdir()
        yield made
        shutil.copymode(folder.parent, made)
        if folder.exists():
            folder.replace(old)
        made.replace(folder)
