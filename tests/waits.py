"""Counts what would wait for a device, whatever the device is here."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# What hands a number, or a shape that depends on numbers, over to the host.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal", "is_nonzero"}


class _Calls(TorchFunctionMode):
    """What waits on a GPU without an operation that would show it here: `tolist`, copies of lists, lists as indices."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.tolist:
            self.seen.append("tolist")
        if function is torch.Tensor.new_tensor:
            self.seen.append("new_tensor")
        if function is torch.Tensor.__getitem__:
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            self.seen.extend("list as index" for place in places if isinstance(place, list))
        return function(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    """Inside `with`, `seen` holds the name of everything that would wait, in order."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self._calls = _Calls(self.seen)

    def __enter__(self):
        self._calls.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._calls.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_flags = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in WAITING or by_flags:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))
