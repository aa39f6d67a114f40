"""The page that shows what an evaluation found."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_report(results: dict[str, Any], out: Path) -> None:
    pass
