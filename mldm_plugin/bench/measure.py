"""Time and memory of candidates that take turns."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from mldm_plugin.bench.expected import Gate
from mldm_plugin.planning.tensor_memory import TensorMemory


@dataclass
class Case:
    """One thing to measure, and what came of it.

    Args:
        candidate: its name in the table.
        gate: see `expected`.
        gated: how many images are decoded, k; None where nothing is gated.
        run: does it once, and leaves nothing behind.
        seconds: every timed repetition.
        peak_bytes: the most memory it took beyond what was there before.
        tflop: operations of matrix products and convolutions, 10¹², two for a multiplication and addition.
        fault: why there is no time.
    """

    candidate: str
    gate: Gate
    gated: int | None
    run: Callable[[], Any] = field(repr=False)
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    tflop: float | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Quartiles:
    """Of repeated measurements."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles | None:
        """None without values."""
        if not values:
            return None
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


def measure(cases: Sequence[Case], rounds: int, device: torch.device, title: str) -> bool:
    """Measure every case; False if Ctrl-C ended it before its time.

    First each case runs once for its memory and operations, which also warms up, and on a GPU once more. Then all
    are timed in turn, `rounds` times over, beginning with another case each time, so that a machine that slows down
    slows down all of them.
    """
    warm_ups = 2 if device.type == "cuda" else 1
    with tqdm(total=len(cases) * (warm_ups + rounds), desc=title, unit="run", leave=False, disable=None) as bar:
        try:
            for case in cases:
                _attempt(case, partial(_weigh, case, device), bar)
            for number in range(1 - warm_ups, rounds):
                turn = number % len(cases)
                for case in [*cases[turn:], *cases[:turn]]:
                    _attempt(case, partial(_time, case, device, keep=number >= 0), bar)
        except KeyboardInterrupt:
            return False
    return True


def _attempt(case: Case, act: Callable[[], None], bar: Any) -> None:
    bar.set_postfix_str(case.candidate if case.gated is None else f"{case.candidate}, k={case.gated}")
    if case.fault is None:
        try:
            act()
        except torch.OutOfMemoryError:
            case.fault, case.seconds = "out of memory", []
        if case.fault is not None:
            gc.collect()
            torch.cuda.empty_cache()
    bar.update()


def _weigh(case: Case, device: torch.device) -> None:
    with FlopCounterMode(display=False) as operations:
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            case.run()
            torch.cuda.synchronize()
            case.peak_bytes = torch.cuda.max_memory_allocated() - before
        else:
            with TensorMemory() as memory:
                case.run()
            case.peak_bytes = memory.peak
    case.tflop = operations.get_total_flops() / 1e12


def _time(case: Case, device: torch.device, *, keep: bool) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    case.run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    if keep:
        case.seconds.append(time.perf_counter() - began)
