"""The random generators of this process: their state taken, put back, and left alone."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def capture() -> State:
    """The state of Python's, NumPy's and PyTorch's generators, in types that `torch.load` takes unquestioned."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: State = {
        "python": random.getstate(),
        "numpy": (str(name), [int(k) for k in keys], int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # this process's GPU; asking for all would occupy memory on each
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore(state: State) -> None:
    """Put the generators back into a captured state."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Whatever is drawn inside, the generators are afterwards as they were before."""
    before = capture()
    try:
        yield
    finally:
        restore(before)
