"""A picture as a tensor that knows its frame: crops, flips and changes of size are followed in tensor space, too.

Whatever is computed from such a tensor comes out as it always does. A result keeps its frames where the operation is
known to leave pixels in their places, or to move them along with an affine map; what else may be a picture still knows
its file, and that it was lost; anything more (a batch, what a network makes of it) is an ordinary tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mldm_plugin.attach.followed_array import FollowedArray
from mldm_plugin.attach.frame import Frame, scaling
from mldm_plugin.attach.planes import Planes, in_words

_ARITHMETIC = ("add", "sub", "mul", "div", "truediv", "pow", "gt", "ge", "lt", "le", "eq", "ne")
_POINTWISE = {
    *(form.format(name) for name in _ARITHMETIC for form in ("{}", "__{}__", "__r{}__", "__i{}__")),
    *("rsub", "true_divide", "neg", "__neg__", "abs", "clamp", "clip", "clamp_min", "clamp_max", "round", "floor"),
    *("sqrt", "exp", "log", "lerp", "float", "half", "double", "bfloat16", "int", "byte", "cpu", "cuda", "contiguous"),
    *("clone", "detach", "requires_grad", "pin_memory", "numpy"),
}
_SHAPED = {"unsqueeze", "squeeze", "reshape", "view"}  # axes before rows and columns alone, or they no longer fit
_PERMUTED = {"permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims"}
_PARTED = {"unbind", "chunk", "split", "tensor_split"}
_JOINED = {"cat", "concat", "concatenate"}
_OF_FIRST = {"to", "type", "type_as"}  # what else they are given says how
_PLAIN = {"as_subclass", *(f"{name}_like" for name in ("zeros", "ones", "full", "empty", "rand", "randn", "randint"))}
_CHANNELS = (1, 3, 4)
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]


class FollowedTensor(Tensor):
    """A tensor of pictures, most often one (…, H, W), that knows their frames."""

    mldm_planes: Planes  # the name that `ledger.frame_of` looks for

    @classmethod
    def of(cls, tensor: Tensor, planes: Planes | Frame) -> FollowedTensor:
        """The same memory, with the frames of its planes, or that of the one picture (…, H, W) that it is."""
        followed = tensor if isinstance(tensor, cls) else tensor.as_subclass(cls)
        followed.mldm_planes = Planes.of(planes, tensor.shape) if isinstance(planes, Frame) else planes
        return followed

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:  # torch's own wants `new_empty` to give the subclass
        copied = copy.deepcopy(self.as_subclass(Tensor), memo)
        return FollowedTensor.of(copied, self.mldm_planes.copied()) if hasattr(self, "mldm_planes") else copied

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            name = "detach" if func == _DATA else getattr(func, "__name__", "")
            given = _given(name, args, kwargs)
            _lose_overwritten(name, args, kwargs)
            if name in _JOINED and "out" not in kwargs:
                return _joined(result, args, kwargs)
            if not given or name in _PLAIN:
                return result
            if name in _PARTED and isinstance(result, (tuple, list)):
                return type(result)(_parts(name, given[0], result, args, kwargs))
            if not isinstance(result, (Tensor, np.ndarray)):
                return result
            return _with(result, _moved(func, name, given, result, args, kwargs), f"{name} on a tensor", given[0])


def _is_known(value: Any) -> bool:
    return isinstance(value, FollowedTensor) and hasattr(value, "mldm_planes")


def _given(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[FollowedTensor]:
    """The pictures that a result may show."""
    given = [a for a in (*args, *kwargs.values()) if _is_known(a)]
    if name in _OF_FIRST:  # what else it is given says how
        return [a for a in given if a is args[0]]
    return [a for a in given if a.dtype != torch.bool] if name == "where" else given


def _with(result: Any, planes: Planes | None, operation: str, source: FollowedTensor) -> Any:
    if planes is None:
        return result
    if isinstance(result, np.ndarray) or torch._C._is_alias_of(result, source):  # type: ignore[attr-defined]
        planes = replace(planes, memory=source.mldm_planes.memory)
    else:
        planes = planes.copied()
    planes = planes.checked(result.shape, operation)
    return (FollowedTensor if isinstance(result, Tensor) else FollowedArray).of(result, planes)


def _may_be_picture(result: Any) -> bool:
    """Whether a result is shaped like a picture, or like a batch of one, which is how torchvision resizes."""
    if result.ndim == 4:
        return result.shape[0] == 1 and result.shape[1] in (1, 3)
    return result.ndim == 3 and result.shape[0] in _CHANNELS


def _simple(name: str) -> str:
    """`mul_` is `mul`."""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _lose_overwritten(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """A picture whose pixels were replaced in place by others' is not where it was; a value painted over it is none."""
    written: Any = kwargs.get("out", args[0] if args else None)
    if not _is_known(written):
        return
    in_place = name != _simple(name) and _simple(name) not in _POINTWISE | _SHAPED
    replaced = in_place or "out" in kwargs
    if name == "__setitem__" and isinstance(args[2], Tensor):
        replaced = args[2].ndim >= 2 and args[2].shape[-2:] == written.shape[-2:]  # all of it
        if isinstance(args[2], FollowedTensor) and _is_known(args[2]):
            replaced = not written.mldm_planes.have(args[1], args[2].mldm_planes)
    elif name == "__set__":  # tensor.data = …
        replaced = isinstance(args[1], Tensor)
    if replaced:
        written.mldm_planes.memory.lost = f"{name} on a tensor"


def _moved(
    func: Any, name: str, given: Sequence[FollowedTensor], result: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Planes | None:
    """The frames of a result; None where it is no picture any more."""
    picture, planes, simple = given[0], given[0].mldm_planes, _simple(name)
    if simple in _POINTWISE | _OF_FIRST | {"where"} or _same(name, picture, result):
        together = Planes.together([g.mldm_planes for g in given], result.shape, name)
        if _is_known(result) and not result.mldm_planes.equal(together):  # written in place
            result.mldm_planes.memory.lost = f"{name} of two pictures"
        return together
    moved, lost = None, f"{name} on a tensor"
    if len(given) > 1:
        lost = f"{name} of two pictures"
    elif simple in _SHAPED:
        moved = planes.reshaped(picture.shape, result.shape)
    elif simple in _PERMUTED:
        numbered = torch.empty(tuple(range(picture.ndim)), device="meta")  # each axis is as long as its number
        args = [numbered if x is picture else x for x in args]
        kwargs = {name: numbered if x is picture else x for name, x in kwargs.items()}
        moved = planes.permuted(func(*args, **kwargs).shape)
    elif simple == "__getitem__":
        moved, lost = planes.indexed(args[1]), f"indexing a tensor {in_words(args[1])}"
    elif simple == "flip":
        moved = _flipped(planes, args[1:] or (kwargs["dims"],))
    elif simple == "interpolate" and planes.last:
        size = (result.shape[-1], result.shape[-2])
        moved = planes.each(lambda frame: frame.then(scaling((0, 0, *frame.size), size), size))
    elif simple == "pad" and planes.last:
        borders = [*(args[1] if len(args) > 1 else kwargs["pad"]), 0, 0]  # left, right, top, …
        size = (result.shape[-1], result.shape[-2])
        moved = planes.each(lambda frame: frame.then((1, 0, borders[0], 0, 1, borders[2]), size))
    if moved is None and _may_be_picture(result):
        return planes.lost_as(lost, result.shape)
    return moved


def _joined(result: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Pictures (C, H, W) as channels of one tensor part again; of anything else, a batch, the result is ordinary."""
    tensors = list(kwargs.get("tensors", args[0] if args else ()))
    axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if axis not in (0, -3) or any(tensor.ndim != 3 for tensor in tensors):
        return result
    size = (tensors[0].shape[-1], tensors[0].shape[-2])
    unknown = Frame("", size, size).lose("what lies beside a picture")
    parts = [t.mldm_planes if _is_known(t) else Planes.of(unknown, t.shape) for t in tensors]
    planes = Planes.joined(parts, 0) if all(planes.last for planes in parts) else None
    return result if planes is None else FollowedTensor.of(result, planes.checked(result.shape, "cat of tensors"))


def _parts(
    name: str, picture: FollowedTensor, results: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """What a tensor was taken apart into, each with its frames."""
    place = 1 if name == "unbind" else 2  # of the axis among the arguments
    axis = int(kwargs.get("dim", args[place] if len(args) > place else 0)) % picture.ndim
    start, parts = 0, []
    for result in results:
        size = 1 if name == "unbind" else result.shape[axis]
        taken = start if name == "unbind" else slice(start, start + size)
        planes = picture.mldm_planes.indexed((*[slice(None)] * axis, taken))
        parts.append(_with(result, planes, f"{name} of a tensor", picture))
        start += size
    return parts


def _flipped(planes: Planes, dims: Sequence[Any]) -> Planes | None:
    """After a flip of any axes; of those before rows and columns it is one of channels."""
    axes = {int(d) % planes.ndim for d in (dims[0] if isinstance(dims[0], (tuple, list)) else dims)}
    return planes.indexed(tuple(slice(None, None, -1 if axis in axes else 1) for axis in range(planes.ndim)))


def _same(name: str, picture: Tensor, result: Any) -> bool:
    """Whether `as_strided` has left all as it was; torchvision's v2 rewrites the stride of a batch of one by it."""
    if name != "as_strided":
        return False
    place = [(x.data_ptr(), x.numel(), x.stride()[-3:]) for x in (picture, result)]
    return place[0] == place[1]
