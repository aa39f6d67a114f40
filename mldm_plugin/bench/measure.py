"""Time and memory of candidates that take turns, and the mean step that follows from them."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.benchmark import timer  # waits for the device
from tqdm import tqdm

from mldm_plugin.planning.operations import counting
from mldm_plugin.planning.tensor_memory import TensorMemory

# Who decides whether an image is decoded: each image's timestep, one timestep for the whole batch, or nobody, because
# the cost is the same for all.
Gate = Literal["each image", "whole batch", "none"]
TIMESTEPS = 1000  # of Stable Diffusion, from which a trainer draws uniformly


@dataclass
class Candidate:
    """One thing to measure, and what came of it, by the number k of gated images.

    Args:
        name: in the tables.
        gate: see above.
        runs: k → does it once, and leaves nothing behind. Without a gate, one k stands for all.
        seconds: k → every timed repetition.
        peak_bytes: k → the most memory it took beyond what was there before.
        tflop: k → operations of matrix products and convolutions, 10¹², two for a multiplication and addition.
        faults: k → why there is no time.
    """

    name: str
    gate: Gate
    runs: Mapping[int, Callable[[], Any]] = field(repr=False, default_factory=dict)
    seconds: dict[int, list[float]] = field(default_factory=dict)
    peak_bytes: dict[int, int] = field(default_factory=dict)
    tflop: dict[int, float] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)

    def cost(self, *, timed: bool = True) -> dict[int, float]:
        """k → seconds, the median, or TFLOP."""
        if not timed:
            return self.tflop
        return {k: statistics.median(samples) for k, samples in self.seconds.items() if samples}

    def mean(self, n: int, max_timestep: int, *, timed: bool = True) -> float | None:
        """The mean cost of a step of n images, see `mean_cost`."""
        return mean_cost(self.cost(timed=timed), n, max_timestep, self.gate)

    @property
    def most_bytes(self) -> int | None:
        """The peak of its worst k."""
        return max(self.peak_bytes.values(), default=None)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles over the median, of its least steady k."""
        quartiles = (np.quantile(samples, (0.25, 0.5, 0.75)) for samples in self.seconds.values() if samples)
        return max((float(high - low) / (2 * median) for low, median, high in quartiles if median), default=0.0)


def mean_cost(by_gated: Mapping[int, float], n: int, max_timestep: int, gate: Gate) -> float | None:
    """The mean cost of a step when timesteps are uniform.

    With p = (T+1)/1000 the probability that t ≤ T, the number k of gated images is binomial, so for a gate by image
    the mean is Σ_k C(N,k) p^k (1−p)^(N−k) cost(k), with costs between measured k on a straight line. For one timestep
    a batch it is (1−p) cost(0) + p cost(N).

    Args:
        by_gated: k → cost; k = 0 and N must be there unless `gate` is none.
        n: images in the batch, N.
        max_timestep: T.
        gate: see above.

    Returns:
        In the units of the costs; None if a k is missing.

    >>> mean_cost({0: 1.0, 2: 3.0}, 2, 499, "each image")  # 1/4 · 1 + 1/2 · 2 + 1/4 · 3
    2.0
    >>> mean_cost({0: 1.0, 2: 3.0}, 2, 249, "whole batch")  # 3/4 · 1 + 1/4 · 3
    1.5
    """
    if gate == "none":
        return next(iter(by_gated.values()), None)
    if not {0, n} <= by_gated.keys():
        return None
    p = (max_timestep + 1) / TIMESTEPS
    if gate == "whole batch":
        return (1 - p) * by_gated[0] + p * by_gated[n]
    known = sorted(by_gated)
    costs = np.interp(range(n + 1), known, [by_gated[k] for k in known])
    return float(sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) * cost for k, cost in enumerate(costs)))


def gated_numbers(n: int, gate: Gate) -> list[int]:
    """The numbers k of gated images that are measured: 0, 1, 2, 4 and N where there are so many."""
    if gate == "none":
        return [min(1, n)]
    return [0, n] if gate == "whole batch" else sorted({k for k in (0, 1, 2, 4, n) if k <= n})


def measure(candidates: Iterable[Candidate], rounds: int, device: torch.device, title: str) -> bool:
    """Measure every candidate; False if Ctrl-C ended it before its time.

    First each runs once for its memory and operations, which also warms up, and on a GPU once more. Then all are timed
    in turn, `rounds` times over, beginning with another one each time, so that a machine that slows down slows down all
    of them.
    """
    cases = [(candidate, k) for candidate in candidates for k in candidate.runs]
    warm_ups = 2 if device.type == "cuda" else 1
    with tqdm(total=len(cases) * (warm_ups + rounds), desc=title, unit="run", leave=False, disable=None) as bar:
        try:
            for case in cases:
                _attempt(*case, partial(_weigh, device=device), bar)
            for number in range(1 - warm_ups, rounds):
                turn = number % len(cases)
                for case in [*cases[turn:], *cases[:turn]]:
                    _attempt(*case, partial(_time, keep=number >= 0), bar)
        except KeyboardInterrupt:
            return False
    return True


def _attempt(candidate: Candidate, k: int, act: Callable[[Candidate, int], None], bar: Any) -> None:
    bar.set_postfix_str(f"{candidate.name}, k={k}")
    if k not in candidate.faults:
        try:
            act(candidate, k)
        except torch.OutOfMemoryError:
            candidate.faults[k] = "out of memory"
            candidate.seconds.pop(k, None)
        if k in candidate.faults:
            gc.collect()
            torch.cuda.empty_cache()
    bar.update()


def _weigh(candidate: Candidate, k: int, device: torch.device) -> None:
    with counting() as operations:
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            candidate.runs[k]()
            torch.cuda.synchronize()
            candidate.peak_bytes[k] = torch.cuda.max_memory_allocated() - before
        else:
            with TensorMemory() as memory:
                candidate.runs[k]()
            candidate.peak_bytes[k] = memory.peak
    candidate.tflop[k] = operations.get_total_flops() / 1e12


def _time(candidate: Candidate, k: int, *, keep: bool) -> None:
    began = timer()
    candidate.runs[k]()
    seconds = timer() - began
    if keep:
        candidate.seconds.setdefault(k, []).append(seconds)


def by_name(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    return {candidate.name: candidate for candidate in candidates}
