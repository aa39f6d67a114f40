"""Networks that look but never learn."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

_bfloat16: contextvars.ContextVar[bool] = contextvars.ContextVar("bfloat16", default=False)


@contextlib.contextmanager
def in_bfloat16(on: bool = True) -> Iterator[None]:
    """Inside, frozen networks multiply in bfloat16; what they return is float32 all the same.

    Never in float16, whose range SDXL's VAE and the face networks' pixels of 0–255 leave.
    """
    token = _bfloat16.set(on)
    try:
        yield
    finally:
        _bfloat16.reset(token)


class Frozen:
    """A pretrained network held out of reach of the host's training.

    It is deliberately not an `nn.Module`: stored on any object it becomes no submodule, so no `.train()`
    switches its batch norms or dropout, no checkpoint holds its weights and no optimiser sees them. Gradients
    flow through it to its input. It runs on the device of its input, in float32 whatever the host's autocast says,
    with convolutions in bfloat16 inside `in_bfloat16`, and in channels_last order, which convolutions are faster in
    (docs/performance.md).
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network.eval().requires_grad_(False)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)
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
        layout = torch.channels_last if images.ndim == 4 else torch.preserve_format
        half = _bfloat16.get() and dtype == torch.float32
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=half):
            out = self._network(images.to(dtype, memory_format=layout), *args, **kwargs)
        return tree_map_only(Tensor, Tensor.float, out) if half else out


def build_seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """`build()` with its random initial weights drawn from `seed`, the host's generators untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
