"""A picture as a tensor that knows its frame: crops, flips and changes of size are followed in tensor space, too.

Whatever is computed from such a tensor comes out as it always does. A result keeps a frame where the operation is known
to leave pixels in their places, or to move them along with an affine map; what else may be a picture still knows its
file, and that it was lost; anything more (a batch, what a network makes of it) is an ordinary tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mldm_plugin.attach.frame import IDENTITY, Frame, cut, scaling

_ARITHMETIC = ("add", "sub", "mul", "div", "truediv", "pow")
_POINTWISE = {
    *(form.format(name) for name in _ARITHMETIC for form in ("{}", "__{}__", "__r{}__", "__i{}__")),
    *("rsub", "true_divide", "neg", "__neg__", "abs", "clamp", "clip", "clamp_min", "clamp_max", "round", "floor"),
    *("sqrt", "exp", "log", "lerp", "where", "to", "type", "type_as", "float", "half", "double", "bfloat16", "int"),
    *("byte", "cpu", "cuda", "contiguous", "clone", "detach", "requires_grad", "pin_memory"),
}
_SHAPED = {"unsqueeze", "squeeze", "reshape", "view"}  # leading dimensions alone, or the frame no longer fits
_PLAIN = {"as_subclass"}
_CHANNELS = (1, 3, 4)
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]


class FollowedTensor(Tensor):
    """A picture (…, H, W) that knows its frame."""

    mldm_frame: Frame  # the name that `ledger.frame_of` looks for

    @classmethod
    def of(cls, tensor: Tensor, frame: Frame) -> FollowedTensor:
        """The same memory, with a frame."""
        followed = tensor.as_subclass(cls)
        followed.mldm_frame = frame
        return followed

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:  # torch's own wants `new_empty` to give the subclass
        copied = copy.deepcopy(self.as_subclass(Tensor), memo)
        return FollowedTensor.of(copied, self.mldm_frame) if hasattr(self, "mldm_frame") else copied

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            name = getattr(func, "__name__", "")
            if func == _DATA:
                name = "detach"
            given = [a for a in (*args, *kwargs.values()) if isinstance(a, FollowedTensor) and hasattr(a, "mldm_frame")]
            _lose_overwritten(name, args)
            if not given or not isinstance(result, Tensor) or not _may_be_picture(result) or name in _PLAIN:
                return result
            frame = _moved(name, given, result, args, kwargs)
            if frame.size != (result.shape[-1], result.shape[-2]):
                frame = frame.lose(f"{name} on a tensor")
            return cls.of(result, frame)


def _may_be_picture(result: Tensor) -> bool:
    """Whether a result is shaped like a picture, or like a batch of one, which is how torchvision resizes."""
    if result.ndim == 4:
        return result.shape[0] == 1 and result.shape[1] in (1, 3)
    return result.ndim == 3 and result.shape[0] in _CHANNELS


def _simple(name: str) -> str:
    """`mul_` is `mul`."""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _lose_overwritten(name: str, args: Sequence[Any]) -> None:
    """A picture whose pixels were replaced in place by others' is not where it was; a value painted over it is none."""
    replaced = name == "__setitem__" and any(isinstance(a, FollowedTensor) for a in args[2:])
    replaced |= name.endswith("_") and not name.endswith("__") and _simple(name) not in _POINTWISE | _SHAPED
    if replaced and isinstance(args[0], FollowedTensor) and hasattr(args[0], "mldm_frame"):
        args[0].mldm_frame = args[0].mldm_frame.lose(f"{name} on a tensor")


def _moved(
    name: str, given: Sequence[FollowedTensor], result: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Frame:
    """The frame of a result that is as large as a picture."""
    picture, frame = given[0], given[0].mldm_frame
    if any(other.mldm_frame != frame for other in given[1:]):
        return frame.lose(f"{name} of two pictures")
    simple = _simple(name)
    size = (result.shape[-1], result.shape[-2])
    if (
        simple in _POINTWISE
        or (simple in _SHAPED and result.numel() == picture.numel())
        or _same(name, picture, result)
    ):
        return frame
    if simple == "__getitem__":
        return _cut(frame, args[1], picture.ndim)
    if simple == "flip":
        return _flipped(frame, args[1:] or (kwargs["dims"],), picture.ndim)
    if simple == "interpolate":
        return frame.then(scaling((0, 0, *frame.size), size), size)
    if simple == "pad":
        borders = [*(args[1] if len(args) > 1 else kwargs["pad"]), 0, 0]  # left, right, top, …
        return frame.then((1, 0, borders[0], 0, 1, borders[2]), size)
    return frame.lose(f"{name} on a tensor")


def _same(name: str, picture: Tensor, result: Tensor) -> bool:
    """Whether `as_strided` has left all as it was; torchvision's v2 rewrites the stride of a batch of one by it."""
    place = [(x.data_ptr(), x.numel(), x.stride()[-3:]) for x in (picture, result)]
    return name == "as_strided" and place[0] == place[1]


def _cut(frame: Frame, key: Any, ndim: int) -> Frame:
    """After indexing: rows and columns by slices, what comes before them in any way."""
    keys = [k for k in (key if isinstance(key, tuple) else (key,)) if k is not None]
    if not all(k is Ellipsis or isinstance(k, (int, slice)) for k in keys):
        return frame.lose("indexing a tensor by more than slices")
    if Ellipsis not in keys:
        keys.append(Ellipsis)
    place = keys.index(Ellipsis)
    whole = [*keys[:place], *[slice(None)] * (ndim - len(keys) + 1), *keys[place + 1 :]]
    return cut(frame, whole[-2], whole[-1], f"indexing a tensor with {key!r}")


def _flipped(frame: Frame, dims: Sequence[Any], ndim: int) -> Frame:
    """After a flip of any dimensions; of those before rows and columns it is one of channels."""
    listed = dims[0] if isinstance(dims[0], (tuple, list)) else dims
    axes = {int(d) % ndim for d in listed}
    width, height = frame.size
    a, b, c, d, e, f = IDENTITY
    if ndim - 1 in axes:
        a, c = -1, width
    if ndim - 2 in axes:
        e, f = -1, height
    return frame.then((a, b, c, d, e, f), frame.size)
