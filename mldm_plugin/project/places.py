"""Paths in run.yaml: relative to its folder, wherever the command is typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FINDERS = ("auto", "maskrcnn", "selfie", "none")  # of `masks:`; anything else is a folder


def beside(folder: Path, name: str) -> str:
    """The path that run.yaml in `folder` means; ~ is the home folder.

    >>> beside(Path("/runs/anna"), "../photos")
    '/runs/anna/../photos'
    """
    return str(folder / Path(name).expanduser())


def beside_if_there(folder: Path, name: str) -> str:
    """As `beside`, for a name that may be one of the Hub: where such a path is there, or it begins as a path does.

    >>> beside_if_there(Path("/runs/anna"), "stable-diffusion-v1-5/stable-diffusion-v1-5")
    'stable-diffusion-v1-5/stable-diffusion-v1-5'
    """
    path = beside(folder, name)
    return path if name.startswith(("./", "../", "~")) or Path(path).exists() else name


def preset_beside(folder: Path, name: str) -> str:
    """A preset's file, or its name."""
    return beside(folder, name) if Path(name).suffix in (".yaml", ".yml") else name


def plugin_beside(folder: Path, name: str) -> str:
    """A plugin's file, or its name."""
    return beside(folder, name) if name.endswith(".py") else name


def program_beside(folder: Path, name: str) -> str:
    """A program's file where the name has a /, else a command that the shell finds."""
    return beside(folder, name) if "/" in name else name


def masks_beside(folder: Path, name: str) -> str:
    """The folder of masks, or who finds them."""
    return name if name in FINDERS else beside(folder, name)


def flag_beside(folder: Path, value: Any) -> Any:
    """A value of `training:`, in which a text with a / that is there as a file or folder is a path."""
    if isinstance(value, list):
        return [flag_beside(folder, one) for one in value]
    return beside_if_there(folder, value) if isinstance(value, str) and "/" in value else value
