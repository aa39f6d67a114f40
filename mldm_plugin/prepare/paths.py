"""File names that others wrote: they must not lead out of the folder they are for."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath


def fault_of(file_name: object, folder: Path) -> str | None:
    """What is wrong with a file name below `folder` (a resolved path); None for one that stays inside.

    A name may hold folders; it may not be absolute, go up, or pass through a link that leads out.
    """
    if not isinstance(file_name, str) or not file_name.strip("/ "):
        return f"is {file_name!r}, expected the name of a file"
    if "\0" in file_name or "\n" in file_name or not PurePosixPath(file_name).name:
        return f"is {file_name!r}, which no file can be called"
    if readable(file_name) != file_name:
        return f"is {file_name!r}, which is not UTF-8: rename the file"
    absolute = PurePosixPath(file_name).is_absolute() or PureWindowsPath(file_name).drive
    if absolute or ".." in PureWindowsPath(file_name).parts:
        return f"is {file_name!r}, which leaves the folder {folder}"
    if not (folder / file_name).resolve().is_relative_to(folder):
        return f"is {file_name!r}, a link that leaves the folder {folder}"
    return None


def readable(name: str) -> str:
    """The name with question marks for what cannot be written as UTF-8."""
    return name.encode("utf-8", "replace").decode("utf-8")
