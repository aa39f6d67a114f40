"""`make gpu-check`: what only a GPU can show. One table at the end, and the same as JSON.

Nothing is downloaded: networks have random weights, and the shapes of Stable Diffusion 1.5 where time or memory counts.
The JSON goes to the file that MLDM_GPU_REPORT names, by default runs/gpu-check.json.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))


@dataclass
class Figure:
    """One line of the table; `holds` is None for a figure without a limit, and for one that was not measured."""

    what: str
    figure: float | None
    unit: str
    limit: str = ""
    holds: bool | None = None


FIGURES: list[Figure] = []


@pytest.fixture
def note() -> Callable[..., None]:
    """`note(what, figure, unit, at_most=…, at_least=…)`: a line of the table; a limit that is missed fails the test."""

    def note(
        what: str,
        figure: float | None,
        unit: str = "",
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        must: bool = True,
    ) -> None:
        holds, limit = None, ""
        if at_most is not None:
            holds, limit = None if figure is None else figure <= at_most, f"<= {at_most:g}"
        elif at_least is not None:
            holds, limit = None if figure is None else figure >= at_least, f">= {at_least:g}"
        FIGURES.append(Figure(what, figure, unit, limit, holds))
        write_report()  # at once: a machine that is lent for minutes may end in the middle
        assert holds or not limit or not must, f"{what}: {figure} {unit}, expected {limit}"

    return note


@pytest.fixture
def cuda() -> torch.device:
    """The GPU; the exact float32 of its convolutions and products, as on a CPU."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield torch.device("cuda", torch.cuda.current_device())
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    torch.cuda.empty_cache()


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that add up in the same order each time, where there are such: Adam's steps are as large for a gradient
    of rounding errors as for any other, so without them two runs alike drift apart."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not FIGURES:
        return
    name, write = torch.cuda.get_device_name(), terminalreporter.write_line
    write(f"\n{name}, torch {torch.__version__}")
    write(f"{'what':<66} {'figure':>11} {'unit':<9} {'limit':<9} holds")
    words = {True: "yes", False: "NO", None: ""}
    for f in FIGURES:
        figure, holds = ("-", "not measured") if f.figure is None else (f"{f.figure:.4g}", words[f.holds])
        write(f"{f.what:<66} {figure:>11} {f.unit:<9} {f.limit:<9} {holds}")
    write(f"written to {write_report()}")


def write_report() -> Path:
    """All figures so far as JSON."""
    path = Path(os.environ.get("MLDM_GPU_REPORT", "runs/gpu-check.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "figures": [asdict(f) for f in FIGURES]}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path
