"""What every run tells its user, once."""

from __future__ import annotations

import os
import sys


def announce(text: str) -> None:
    """Write to standard error, on the first process of a run only."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
