"""A package of npm, got by npm itself, so that registry, proxy, certificates and passwords are the user's own."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

from mldm_plugin.errors import WeightsError

SECONDS = 300  # chosen: 28 MB at 100 KB/s; npm alone would try for a quarter of an hour behind a silent firewall


def pack(name: str, version: str, archive: str, folder: Path) -> Path:
    """Let npm put the .tgz of a package, called `archive`, into `folder`. It is not installed, and no script is run.

    Raises:
        WeightsError: npm is not here, or cannot get it; what npm says is told in one line.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise WeightsError("npm is not here; install Node.js, which brings it")
    command = [npm, "pack", "--ignore-scripts", "--json", "--pack-destination", ".", f"{name}@{version}"]
    try:
        told = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WeightsError(f"npm has brought no {archive} in {SECONDS} seconds") from None
    if told.returncode or not (folder / archive).is_file():
        raise WeightsError(f"npm brings no {archive}: {_reason(told.stdout) or _reason(told.stderr)}")
    return folder / archive


def _reason(printed: str) -> str:
    """What npm gives as the reason; else the first line that it printed."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        printed = str(json.loads(printed)["error"]["summary"])
    return printed.strip().partition("\n")[0]
