"""A picture as a numpy array that knows its frame.

Whatever is computed from such an array comes out as it always does. What is not known here loses the frame; numpy's
functions that are made of slices and transpositions, such as `numpy.rot90`, need not be known.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mldm_plugin.attach.frame import Frame
from mldm_plugin.attach.planes import Planes, in_words

_UNKNOWN = "a step on an array"
_BLANK = {"zeros_like", "ones_like", "full_like", "empty_like"}
_UNMOVED = {"copy", "nan_to_num", "where", "around", "round", "clip"}
_OVERWRITING = {"copyto", "put", "place", "putmask", "put_along_axis", "fill_diagonal"}


class FollowedArray(np.ndarray):
    """An array of pictures; one of which nothing is known may be an empty one, into which a picture is pasted."""

    __module__ = "numpy"  # by which torch's DataLoader knows arrays
    mldm_planes: Planes | None = None  # the name that `ledger.frame_of` looks for

    @classmethod
    def of(cls, array: np.ndarray, planes: Planes | None = None) -> FollowedArray:
        """The same memory, with frames."""
        followed = array.view(cls)
        followed.mldm_planes = planes
        return followed

    def __array_finalize__(self, origin: Any) -> None:
        """What numpy makes of `origin` is lost, until who made it says better."""
        planes = getattr(origin, "mldm_planes", None)
        if planes is not None and self.ndim >= 2:
            self.mldm_planes = planes.lost_as(_UNKNOWN, self.shape)

    def __reduce__(self) -> Any:
        """A file that it is written to is read without this package."""
        return _plain(self).__reduce__()

    def _keep(self, result: Any, planes: Planes | None, operation: str) -> Any:
        """`result` with `planes`, or lost."""
        if isinstance(result, FollowedArray) and self.mldm_planes is not None and result.ndim >= 2:
            known = self.mldm_planes.lost_as(operation, result.shape) if planes is None else planes
            known = known if np.may_share_memory(self, result) else known.copied()
            result.mldm_planes = known.checked(result.shape, operation)
        return result

    def __getitem__(self, key: Any) -> Any:
        result = super().__getitem__(key)
        if self.mldm_planes is None or not isinstance(result, FollowedArray):
            return result
        return self._keep(result, self.mldm_planes.indexed(key), f"indexing an array {in_words(key)}")

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        pasted = getattr(value, "mldm_planes", None)
        if pasted is None:
            # Of a package that is not followed: in all of a picture it is taken for other colours, as kohya's are.
            covered = self.mldm_planes is not None and self.mldm_planes.covers(key)
            if isinstance(value, np.ndarray) and value.ndim >= 2 and not covered:
                self._lose("an array that was written into another")
        elif self.mldm_planes is None and self.ndim >= 2:
            self.mldm_planes = _pasted(pasted, key, self)
        elif self.mldm_planes is not None and not self.mldm_planes.have(key, pasted):
            self._lose("a picture that was written into another")

    def _lose(self, operation: str) -> None:
        """All that lies in its memory."""
        if self.mldm_planes is not None:
            self.mldm_planes.memory.lost = self.mldm_planes.memory.lost or operation

    def transpose(self, *axes: Any) -> Any:
        return self._turned("transpose", axes)

    @property
    def T(self) -> Any:  # noqa: N802
        return self.transpose()

    def swapaxes(self, *axes: Any) -> Any:
        return self._turned("swapaxes", axes)

    def _turned(self, name: str, axes: Sequence[Any]) -> Any:
        turn = getattr(np.ndarray, name)
        result = turn(self, *axes)
        if self.mldm_planes is None:
            return result
        order = turn(np.empty(range(self.ndim), dtype=bool), *axes).shape  # nothing of size 0 is made
        return self._keep(result, self.mldm_planes.permuted(order), f"{name} of an array")

    def reshape(self, *shape: Any, **order: Any) -> Any:
        return self._laid_out(super().reshape(*shape, **order), "reshape of an array", plain=not order)

    def squeeze(self, axis: Any = None) -> Any:
        return self._laid_out(super().squeeze(axis), "squeeze of an array")

    def _laid_out(self, result: Any, operation: str, plain: bool = True) -> Any:
        if self.mldm_planes is None:
            return result
        return self._keep(result, self.mldm_planes.reshaped(self.shape, result.shape) if plain else None, operation)

    def astype(self, *args: Any, **kwargs: Any) -> Any:
        return self._keep(super().astype(*args, **kwargs), self.mldm_planes, "astype of an array")

    def copy(self, order: Any = "C") -> Any:
        return self._keep(super().copy(order), self.mldm_planes, "copy of an array")

    def __copy__(self) -> Any:
        return self.copy("K")

    def __deepcopy__(self, memo: dict[int, Any] | None) -> Any:
        return self._keep(super().__deepcopy__(memo), self.mldm_planes, "copy of an array")

    @property
    def flat(self) -> Any:
        self._lose("flat of an array")  # what is written through it is not seen
        return super().flat

    @flat.setter
    def flat(self, value: Any) -> None:
        super().flat[:] = value
        self._lose("flat of an array")

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: Any, *inputs: Any, out: tuple[Any, ...] = (), **kwargs: Any
    ) -> Any:
        plain = {name: _plain(value) for name, value in kwargs.items()}
        if out:
            plain["out"] = tuple(_plain(x) for x in out)
        result, name = getattr(ufunc, method)(*(_plain(x) for x in inputs), **plain), f"numpy.{ufunc.__name__}"
        if method == "at" and isinstance(inputs[0], FollowedArray):
            inputs[0]._lose(name)
        unmoved = method == "__call__" and ufunc.signature is None
        parts = _known((*inputs, *out) if "where" in kwargs else inputs) if unmoved else []
        if not isinstance(result, tuple):
            return _computed(result, parts, name, *out)
        return tuple(_computed(x, parts, name, to) for x, to in zip(result, out or [None] * len(result), strict=True))

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        result = super().__array_function__(func, types, args, kwargs)
        name, written = func.__name__, [x for x in (*args[1:], *kwargs.values()) if x is result]
        if name in _OVERWRITING:
            written = [*args[:1]] or [*kwargs.values()]
        for array in written if name not in _UNMOVED else []:
            if isinstance(array, FollowedArray):
                array._lose(f"numpy.{name}")
        if written or not isinstance(result, np.ndarray):
            return result
        if name in _BLANK:
            return FollowedArray.of(result)
        if name == "concatenate":
            return _joined(result, args[0], *args[1:2], **kwargs)
        if name in _UNMOVED:
            return _computed(result, _known(args[1:] if name == "where" else args), f"numpy.{name}")
        known = _known(args)
        if known and known[0].is_lost < any(planes.is_lost for planes in _known([result])):
            return FollowedArray.of(result, known[0].copied().lost_as(f"numpy.{name}", result.shape))
        return result


def _overwriting(name: str) -> Callable[..., Any]:
    """A method that moves pixels in place."""
    original = getattr(np.ndarray, name)

    @functools.wraps(original)
    def method(self: FollowedArray, *args: Any, **kwargs: Any) -> Any:
        self._lose(f"{name} of an array")
        return original(self, *args, **kwargs)

    return method


for _name in ("fill", "partition", "put", "setfield", "sort"):
    setattr(FollowedArray, _name, _overwriting(_name))


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, FollowedArray) else value


def _known(values: Sequence[Any]) -> list[Planes]:
    return [v.mldm_planes for v in values if isinstance(v, FollowedArray) and v.mldm_planes is not None]


def _computed(result: Any, parts: Sequence[Planes], operation: str, out: Any = None) -> Any:
    """The result of computing pixel by pixel from `parts`, or `out`, which it was written into."""
    planes = None
    if parts and isinstance(result, np.ndarray) and result.ndim >= 2:
        planes = Planes.together(parts, result.shape, operation).checked(result.shape, operation)
    if out is None:
        return result if planes is None else FollowedArray.of(result, planes)
    if isinstance(out, FollowedArray) and not (planes and out.mldm_planes and planes.equal(out.mldm_planes)):
        out._lose(operation)
        out.mldm_planes = planes or out.mldm_planes
    return out


def _joined(result: np.ndarray, arrays: Sequence[Any], axis: int | None = 0, **_: Any) -> np.ndarray:
    """The result of concatenation; without frames unless all parts have some."""
    parts = _known(arrays)
    if axis is None or len(parts) < len(arrays):
        return _plain(result)
    planes = Planes.joined(parts, axis) or parts[0].copied().lost_as("numpy.concatenate", result.shape)
    return FollowedArray.of(result, planes.checked(result.shape, "numpy.concatenate"))


def _pasted(planes: Planes, key: Any, canvas: np.ndarray) -> Planes:
    """After a picture was written into `canvas` at `key`; lost unless that is empty around it, of one colour."""
    planes, shape, operation = planes.copied(), canvas.shape, f"writing a picture into an array, {in_words(key)},"
    whole = Planes.of(Frame("", (shape[1], shape[0]), (shape[1], shape[0])), shape, 0, 1)
    place, frame = whole.indexed(key), planes.frame()
    hole = None if place is None else place.frame()
    if frame is None or hole is None or (planes.rows, planes.columns) != (0, 1):
        return planes.lost_as(operation, shape)
    if hole.size != frame.size or (hole.affine[0], hole.affine[4]) != (1, 1) or not _is_empty(_plain(canvas), key):
        return planes.lost_as(operation, shape)
    left, top = -hole.affine[2], -hole.affine[5]
    return Planes.of(frame.then((1, 0, left, 0, 1, top), (shape[1], shape[0])), shape, 0, 1)


def _is_empty(canvas: np.ndarray, key: Any) -> bool:
    """Whether all pixels but those at `key` have the same colour."""
    around = np.ones_like(canvas, dtype=bool)
    around[key] = False
    if not around.any():
        return True
    row, column = np.unravel_index(around.argmax(), around.shape)[:2]
    return not ((canvas != canvas[row, column]) & around).any()
