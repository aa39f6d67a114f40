"""The figures of an evaluation for papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_figures(results: dict[str, Any], out: Path) -> None:
    pass
