"""Networks that look but never learn."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

Network = TypeVar("Network", bound=nn.Module)

_dtype: contextvars.ContextVar[torch.dtype] = contextvars.ContextVar("dtype", default=torch.float32)


@contextlib.contextmanager
def computing_in(dtype: torch.dtype) -> Iterator[None]:
    """Inside, frozen networks compute in float32 or bfloat16; what they return is float32 all the same."""
    token = _dtype.set(dtype)
    try:
        yield
    finally:
        _dtype.reset(token)


class Frozen:
    """A pretrained network held out of reach of the host's training.

    It is deliberately not an `nn.Module`: stored on any object it becomes no submodule, so no `.train()`
    switches its batch norms or dropout, no checkpoint holds its weights and no optimiser sees them. Gradients
    flow through it to its input. It runs on the device of its input, in float32 whatever the host's autocast says, or
    inside `computing_in(torch.bfloat16)` with weights and activations of bfloat16, but for the statistics of batch
    norms. The weights are bfloat16 themselves: under autocast a GPU would keep them and every group norm in float32,
    twice the memory.

    Convolutions compute in channels_last order, which is faster; but on a GPU a group norm brings its tensors back
    into contiguous order, two copies each, so networks that have one stay contiguous there.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = _locked(network)
        self._half: nn.Module | None = None
        self._layouts: dict[bool, torch.memory_format] = {}
        self._normalises_groups = any(isinstance(m, nn.GroupNorm) for m in network.modules())

    @property
    def network(self) -> nn.Module:
        """The network in float32."""
        return self._network

    def __call__(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The network's output for float32 (or, for tests, float64) `images`."""
        dtype = torch.float64 if images.dtype == torch.float64 else _dtype.get()
        layout = self.layout_on(images.device)
        network = self._placed(images.device, dtype, layout)
        given = images.to(dtype, memory_format=layout if images.ndim == 4 else torch.preserve_format)
        with torch.autocast(images.device.type, enabled=False):
            out = network(given, *args, **kwargs)
        return tree_map_only(Tensor, Tensor.float, out) if dtype == torch.bfloat16 else out

    def layout_on(self, device: torch.device) -> torch.memory_format:
        """The memory order that convolutions compute in."""
        last = device.type == "cpu" or not self._normalises_groups
        return torch.channels_last if last else torch.contiguous_format

    def rest(self) -> None:
        """Take the float32 weights off the device, if those in bfloat16 are what is used."""
        if self._half is not None:
            self._network.to("cpu")

    def _placed(self, device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> nn.Module:
        """The network in that precision, on that device, its convolutions in that order."""
        half = dtype == torch.bfloat16
        if half and self._half is None:
            self._half = _in_bfloat16(self._network)
        network: Any = self._half if half else self._network
        first = next(itertools.chain(network.parameters(), network.buffers()), None)
        if first is not None and (first.device != device or (first.dtype != dtype and not half)):
            network.to(device, None if half else dtype)
        if self._layouts.get(half) != layout:
            self._layouts[half] = layout
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(memory_format=layout)
        return network


def _locked(network: nn.Module) -> nn.Module:
    """`network` in evaluation mode for good, its weights without gradient."""
    network.eval().requires_grad_(False)
    network.train = lambda mode=True: network  # type: ignore[method-assign]
    return network


def _in_bfloat16(network: nn.Module) -> nn.Module:
    """A copy whose weights are bfloat16, but for batch norms: their statistics are sums that want their digits."""
    half = copy.deepcopy(network)
    for module in half.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        for own in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if own.is_floating_point():
                own.data = own.data.bfloat16()
    return _locked(half)


def build_seeded(build: Callable[[], Network], seed: int = 0) -> Network:
    """`build()` with its random initial weights drawn from `seed`, the host's generators untouched.

    Weights are drawn on the CPU, so only its generator is moved, and put back. `torch.manual_seed` would reseed those
    of every GPU, and all ranks would draw alike from then on.
    """
    before = torch.random.get_rng_state()
    torch.random.default_generator.manual_seed(seed)
    try:
        with torch.device("cpu"):
            return build()
    finally:
        torch.random.set_rng_state(before)


class _Undrawn(TorchFunctionMode):
    """Inside, `torch.nn.init` leaves tensors as their memory was. Not all of its functions can be seen; what those that
    cannot do is."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if getattr(func, "__module__", None) == "torch.nn.init" or func in (Tensor.normal_, Tensor.uniform_):
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def build_to_fill(build: Callable[[], Network]) -> Network:
    """`build()` for weights that come from elsewhere: those it would draw are not, which takes seconds of a VGG16.

    Where nothing is put in their place they are whatever the memory held. No generator is moved.
    """
    with _Undrawn():
        return build_seeded(build)
