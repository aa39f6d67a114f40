"""How the threads of one operation wait for each other on a CPU.

OpenMP's threads wait awake unless told otherwise. Beside another busy program each of them then holds a core that the
last one needs: a step of people-mini took eight times as long (docs/performance_details.md). Asleep they cost little.
OpenMP reads the variable when torch is loaded, so this module imports nothing.
"""

from __future__ import annotations

import os

SETTINGS = {"OMP_WAIT_POLICY": "passive"}


def wait_asleep() -> None:
    """For this process and those it starts, unless the user has chosen; to be called before torch is loaded."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
