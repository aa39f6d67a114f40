"""The errors a user can cause. Each says what was expected, what came and what to do next.

The command line turns them into one line and exit status 1; any other traceback is a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class MldmError(Exception):
    """Something the user can mend."""


class PresetError(MldmError):
    """A preset that is unknown or does not validate; all its faults are named at once."""


class PluginError(MldmError):
    """A loss plugin that cannot be found, imported or registered."""


class DataError(MldmError):
    """A picture, mask or box that cannot be used."""


class WeightsError(MldmError):
    """Network weights that are missing or not what they should be."""


class LossError(MldmError):
    """A loss that returns the wrong shape, or whose gradient does not reach the network output."""


class CheckError(MldmError):
    """A start-up check that failed: training would not do what the preset says."""


class NonFiniteLossError(MldmError):
    """A term gave NaN or infinity in too many steps in a row; `report` is that of the last of them."""

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


class RunFolderError(MldmError):
    """An output folder that belongs to another run, or cannot be resumed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A phrase naming the known names closest to `name`, for the end of an error message."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "known: " + (", ".join(known) if known else "none") + "."
