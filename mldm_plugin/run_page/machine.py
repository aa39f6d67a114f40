"""What a run ran on, how fast and in how much memory, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mldm_plugin.doctor.run import Run
from mldm_plugin.records.machine import read_machine

_GB = 1e9


def speed_of(run: Run) -> list[tuple[str, str]]:
    """How long a step takes, and how much memory; nothing where the run did not say it."""
    entries = [] if run.records is None else read_machine(run.records)
    if not entries or not (steps := sum(_number(one, "steps") for one in entries)):
        return []
    seconds = sum(_number(one, "seconds") for one in entries)
    median = [_number(one, "median") for one in entries if _number(one, "steps")][-1]  # a start may do no step
    starts = f", in {len(entries)} starts" if len(entries) > 1 else ""
    whole = f"{_seconds(seconds)} for {steps:.0f} steps with all between them{starts}"
    speed = f"{_seconds(median)} a step, the median; {whole}"
    used = {name: max(_number(one.get("memory"), name) for one in entries) for name in ("gpu", "ram")}
    words = {"gpu": "of the GPU in tensors", "ram": "of RAM"}
    said = [f"{value / _GB:.2g} GB {words[name]}" for name, value in used.items() if value]
    memory = [("memory", f"{' and '.join(said)} at most, of the first process")] if said else []
    return [("speed", speed), *memory]


def machine_of(run: Run) -> dict[str, str]:
    """What it ran on, the last time that it was started: the machine, and the versions of what is installed there."""
    entries = [] if run.records is None else read_machine(run.records)
    if not entries:
        return {}
    last = entries[-1]
    machine, versions = last.get("machine"), last.get("versions")
    found = {}
    if isinstance(machine, Mapping):
        gpus = machine.get("gpus")
        named = [str(gpu) for gpu in gpus] if isinstance(gpus, Sequence) else []
        cores = [f"{machine['cores']} cores"] if machine.get("cores") else []
        words = [*(named or ["no GPU"]), str(machine.get("processor", "")), *cores, str(machine.get("system", ""))]
        found["machine"] = " · ".join(filter(None, words))
    if isinstance(versions, Mapping):
        found["versions"] = " · ".join(f"{name} {version}" for name, version in versions.items())
    return found


def _number(entry: Any, name: str) -> float:
    """0 where it is not one, or is one that no float holds."""
    value = entry.get(name) if isinstance(entry, Mapping) else None
    try:
        number = float(value) if isinstance(value, (int, float)) else 0.0
    except OverflowError:
        return 0.0
    return number if math.isfinite(number) else 0.0


def _seconds(seconds: float) -> str:
    """
    >>> _seconds(0.0213), _seconds(75), _seconds(7380)
    ('0.021 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
