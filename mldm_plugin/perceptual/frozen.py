"""Networks that look but never learn."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Frozen:
    """A pretrained network held out of reach of the host's training.

    It is deliberately not an `nn.Module`: stored on any object it becomes no submodule, so no `.train()`
    switches its batch norms or dropout, no checkpoint holds its weights and no optimiser sees them. Gradients
    flow through it to its input. It runs in float32 with autocast off, on the device of its input.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network.eval().requires_grad_(False)
        self._network.train = lambda mode=True: network  # type: ignore[method-assign]

    @property
    def network(self) -> nn.Module:
        return self._network

    def __call__(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The network's output for float32 (or, for tests, float64) `images`."""
        first = next(itertools.chain(self._network.parameters(), self._network.buffers()))
        dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
        if first.device != images.device or first.dtype != dtype:
            self._network.to(images.device, dtype)
        with torch.autocast(images.device.type, enabled=False):
            return self._network(images.to(dtype), *args, **kwargs)


def build_seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """`build()` with its random initial weights drawn from `seed`, the host's generators untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
