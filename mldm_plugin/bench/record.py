"""A run of the benchmark as one JSON file: all that is needed to compare it with another."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import shlex
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from mldm_plugin.bench.agreement import Agreement
from mldm_plugin.bench.count import Counts
from mldm_plugin.bench.goals import Goal
from mldm_plugin.bench.measure import Case, Quartiles
from mldm_plugin.bench.rows import EXPECTED_AT, Row
from mldm_plugin.errors import MldmError
from mldm_plugin.records.files import write_text

_PACKAGES = ("mldm-plugin", "torchvision", "diffusers", "lpips", "numpy")


@dataclass
class Section:
    """One table: a subject at one batch size and precision.

    Args:
        unit: of the costs, `seconds` or `TFLOP`.
    """

    subject: str
    batch: int
    dtype: str
    resolution: int
    unit: str
    rows: list[Row]
    cases: list[Case] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "batch": self.batch,
            "dtype": self.dtype,
            "resolution": self.resolution,
            "unit": self.unit,
            "cases": [_case(c) for c in self.cases],
            "expected": [
                {"candidate": row.candidate, "max_timestep": limit, "tflop": row.expected_tflop(self.batch, limit)}
                | _quartiles(row.expected(self.batch, limit))
                for row in self.rows
                if self.subject != "losses"
                for limit in EXPECTED_AT
            ],
            "ratios": [asdict(g) | {"reached": g.reached} for g in self.goals],
            "agreement": [asdict(a) for a in self.agreements],
        }


@dataclass
class Record:
    """A run: its sections, and what it ran on.

    Args:
        preset: as it was resolved.
        counts: operations of the parts of a step; None where they cannot be counted.
        interrupted: Ctrl-C ended it early.
    """

    size: str
    preset: dict[str, Any]
    device: torch.device
    counts: Counts | None = None
    sections: list[Section] = field(default_factory=list)
    interrupted: bool = False

    def write(self, path: Path) -> None:
        """The JSON file, whole or not at all.

        Raises:
            MldmError: it cannot be written.
        """
        content = {
            "format": 1,
            "command": shlex.join(["mldm", *sys.argv[1:]]),
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "interrupted": self.interrupted,
            "size": self.size,
            "preset": self.preset,
            **surroundings(self.device),
            "tflop_per_image": None if self.counts is None else asdict(self.counts),
            "sections": [s.as_json() for s in self.sections],
        }
        try:
            write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            raise MldmError(
                f"{path} cannot be written: {error.strerror}. Name a file in a folder that exists."
            ) from error


def surroundings(device: torch.device) -> dict[str, Any]:
    """Versions, device and the switches that change speed."""
    cuda = device.type == "cuda"
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
        | {package: _version(package) for package in _PACKAGES},
        "device": {
            "type": device.type,
            "name": torch.cuda.get_device_name(device) if cuda else _processor(),
            "memory_bytes": torch.cuda.get_device_properties(device).total_memory if cuda else None,
        },
        "threads": torch.get_num_threads(),
        "tf32": {
            "convolutions": torch.backends.cudnn.allow_tf32,
            "matrix_products": torch.get_float32_matmul_precision() != "highest",
        },
    }


def _processor() -> str:
    """Linux keeps the name of the processor in a file, and `platform` does not look there."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _case(case: Case) -> dict[str, Any]:
    return {
        "candidate": case.candidate,
        "gate": case.gate,
        "gated": case.gated if case.gate != "none" else None,
        "seconds": case.seconds,
        **_quartiles(Quartiles.of(case.seconds)),
        "peak_bytes": case.peak_bytes,
        "tflop": case.tflop,
        "fault": case.fault,
    }


def _quartiles(quartiles: Quartiles | None) -> dict[str, float | None]:
    return {"low": None, "median": None, "high": None} if quartiles is None else asdict(quartiles)
