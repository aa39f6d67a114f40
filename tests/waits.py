"""Counts what would wait for a device, whatever the device is here.

The tensors of a test all lie on the CPU. So each is taken to lie on the device, unless it was made without a device
inside `with`, comes from such tensors alone, or was said to lie on the host.
"""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# What hands a number, or a shape that depends on numbers, over to the host.
WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}
WAITING.add("bincount")
INDEXED = {Tensor.__getitem__, Tensor.__setitem__}


def lies_on_host(tensor):
    return getattr(tensor, "_lies_on_host", False)


class _Calls(TorchFunctionMode):
    """What waits on a GPU without an operation that would show it here: copies, lists as indices, and `tolist`."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        goal = _goal(function, args, kwargs)
        self.seen.extend(_waits(function, args, kwargs, goal))
        result = function(*args, **kwargs)
        from_host = all(map(lies_on_host, _tensors(args, kwargs))) and kwargs.get("device") is None
        on_host = from_host if goal is None else goal == "host"
        return tree_map_only(Tensor, lambda tensor: _placed(tensor, on_host), result)


def _tensors(*given):
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]


def _placed(tensor, on_host):
    """`tensor` with the mark; another view of it where a copy to elsewhere was none here."""
    if lies_on_host(tensor) != on_host:
        tensor = tensor.view_as(tensor)
        tensor._lies_on_host = on_host
    return tensor


def _goal(function, args, kwargs):
    """Where a call brings its tensor: `host`, `device`, or None if it stays. A device by its name is the host."""
    if function is Tensor.cpu:
        return "host"
    if function is not Tensor.to:
        return None
    where = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, (str, torch.device, Tensor))]
    if not where:
        return None
    return "host" if where[0] == "cpu" or lies_on_host(where[0]) else "device"


def _waits(function, args, kwargs, goal):
    first = args[0] if args and isinstance(args[0], Tensor) else None
    on_device = first is not None and not lies_on_host(first)
    blocking = not kwargs.get("non_blocking", any(x is True for x in args))
    if on_device and function in (Tensor.tolist, Tensor.new_tensor, Tensor.numpy, Tensor.__array__):
        yield function.__name__
    if goal == "host" and on_device:
        yield "to the host"
    if goal == "device" and not on_device and blocking:
        yield "to the device"
    if function is Tensor.copy_ and blocking and lies_on_host(first) != lies_on_host(args[1]):
        yield "copy_"
    if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None and not on_device:
        yield "made on the device"
    if function in INDEXED and on_device:
        places = args[1] if isinstance(args[1], tuple) else (args[1],)
        yield from ("list as index" for place in places if isinstance(place, list))
        yield from ("index from the host" for place in places if lies_on_host(place) and place.ndim)


class Waits(TorchDispatchMode):
    """Inside `with`, `seen` holds the name of everything that would wait, in order.

    Args:
        on_host: tensors that lie on the host.
    """

    def __init__(self, on_host=()):
        super().__init__()
        self.seen = []
        self._calls = _Calls(self.seen)
        for tensor in on_host:
            tensor._lies_on_host = True

    def __enter__(self):
        self._from_numpy = torch.from_numpy  # which no mode sees
        torch.from_numpy = lambda array: _placed(self._from_numpy(array), on_host=True)
        self._calls.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._calls.__exit__(*error)
        torch.from_numpy = self._from_numpy

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = _tensors(args, kwargs)
        if (not tensors or not all(map(lies_on_host, tensors))) and _operation_waits(function, args, kwargs):
            self.seen.append(function.overloadpacket.__name__)
        return function(*args, **kwargs)


def _operation_waits(function, args, kwargs):
    name = function.overloadpacket.__name__
    if name == "repeat_interleave":  # without its length
        return kwargs.get("output_size") is None
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        by_flags = any(i is not None and i.dtype == torch.bool for i in args[1])
        return by_flags and (name == "index" or args[2].numel() != 1)  # one number is filled in without waiting
    return name in WAITING
