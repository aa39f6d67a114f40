"""What a run ran on, how fast, and in how much memory."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from mldm_plugin.records.files import write_text
from mldm_plugin.requirements import OURS, installed

FILE_NAME = "machine.json"
SECONDS = 10.0  # between two writings, but for the last. Chosen: whoever watches a run sees it
LAST = 1000  # steps that the median is of. Chosen: what a run is like now, in a list that does not grow
PACKAGES = (OURS, "torch", "diffusers", "accelerate", "transformers", "peft")


class MachineFile:
    """`machine.json`: a list with one entry for each time that the run was started, of its first process.

    Each entry has `began`, `from_step`, `steps`, `seconds` (between the optimizer steps: with loading, panels,
    validation and checkpoints), `median` (of a step, of the last thousand), `memory` (bytes at most, `ram` and `gpu`),
    `processes`, `machine` and `versions`.

    Args:
        folder: of the run.
        step: optimizer steps that are done; entries of later ones are those of a run that was taken up before its end.
            None where nobody knows it: then all that is there is kept.
        processes: that train together.
        clock: seconds of any beginning.
    """

    def __init__(
        self, folder: Path, step: int | None, processes: int = 1, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._path, self._clock = folder / FILE_NAME, clock
        self._earlier = [one for one in read_machine(folder) if step is None or one.get("from_step", 0) < step]
        self._entry: dict[str, Any] = {
            "began": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "from_step": step or 0,
            "processes": processes,
            "machine": machine(),
            "versions": versions(),
        }
        self._steps, self._seconds = 0, 0.0
        self._last: deque[float] = deque(maxlen=LAST)
        self._at = self._written = clock()

    def add_step(self) -> None:
        """An optimizer step is done; it has waited for the device."""
        now = self._clock()
        self._steps += 1
        self._seconds += now - self._at
        self._last.append(now - self._at)
        self._at = now
        if now - self._written >= SECONDS:
            self.write()

    def write(self) -> None:
        """The file as it is now."""
        self._written = self._clock()
        measured = {"steps": self._steps, "seconds": self._seconds, "memory": memory()}
        measured["median"] = statistics.median(self._last) if self._last else None
        write_text(self._path, json.dumps([*self._earlier, {**self._entry, **measured}], indent=2) + "\n")


def read_machine(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run's file; none where it is not there or is not what it should be."""
    try:
        found = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        return [one for one in found if isinstance(one, dict) and isinstance(one.get("from_step"), int)]
    except (OSError, ValueError, TypeError, RecursionError):
        return []


def machine() -> dict[str, Any]:
    """The system, its processor and its GPUs. Not its name, which is nobody's business."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(count)],
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that a run rests on; torch says itself what it is built for."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    found |= {package: installed(package) for package in PACKAGES} | {"torch": str(torch.__version__)}
    return {name: version for name, version in found.items() if version is not None}


def memory() -> dict[str, int | None]:
    """The most that this process had at once, in bytes: resident, and of GPU memory in tensors. Waits for nothing."""
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None
    try:
        import resource
    except ImportError:  # Windows
        return {"ram": None, "gpu": gpu}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"ram": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "gpu": gpu}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
