"""Counts what would wait for a device, whatever the device is here."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# What hands a number, or a shape that depends on numbers, over to the host.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal", "is_nonzero"}


class Waits(TorchDispatchMode):
    """Counts those operations, and what waits on a GPU without one: `tolist`, copies of lists, and lists as indices."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.seen = []
        tolist, new_tensor, getitem = torch.Tensor.tolist, torch.Tensor.new_tensor, torch.Tensor.__getitem__

        def get(tensor, index):
            places = index if isinstance(index, tuple) else (index,)
            self.seen.extend("list as index" for place in places if isinstance(place, list))
            return getitem(tensor, index)

        monkeypatch.setattr(torch.Tensor, "__getitem__", get)
        monkeypatch.setattr(torch.Tensor, "tolist", lambda t: self.seen.append("tolist") or tolist(t))
        monkeypatch.setattr(
            torch.Tensor, "new_tensor", lambda *a, **k: self.seen.append("new_tensor") or new_tensor(*a, **k)
        )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_flags = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in WAITING or by_flags:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))
