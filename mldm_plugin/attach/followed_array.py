"""A picture as a numpy array that knows its frame.

Whatever is computed from such an array comes out as it always does. What is not known here loses the frame; numpy's
functions that are made of slices and transpositions, such as `numpy.rot90`, need not be known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mldm_plugin.attach.frame import Frame
from mldm_plugin.attach.planes import Planes, in_words

_OVERWRITING = {"copyto", "put", "place", "putmask", "put_along_axis", "fill_diagonal"}
_UNKNOWN = "a step on an array"
_BLANK = {"zeros_like", "ones_like", "full_like"}
_UNMOVED = {"copy", "nan_to_num", "where", "around", "round"}


class FollowedArray(np.ndarray):
    """An array of pictures.

    `mldm_planes` is None where nothing is known; `mldm_blank` is true for an array that shows nothing yet, into which a
    picture may be pasted.
    """

    mldm_planes: Planes | None = None  # the name that `ledger.frame_of` looks for
    mldm_blank: bool = False

    @classmethod
    def of(cls, array: np.ndarray, planes: Planes | None) -> FollowedArray:
        """The same memory, with frames."""
        followed = array.view(cls)
        followed.mldm_planes = planes
        return followed

    @classmethod
    def blank(cls, array: np.ndarray) -> FollowedArray:
        """The same memory, which shows nothing yet."""
        followed = array.view(cls)
        followed.mldm_planes, followed.mldm_blank = None, True
        return followed

    def __array_finalize__(self, origin: Any) -> None:
        """What numpy makes of `origin` is lost, until who made it says better."""
        planes = getattr(origin, "mldm_planes", None)
        if planes is not None and self.ndim >= 2:
            self.mldm_planes = planes.lost(_UNKNOWN, self.shape)

    def _keep(self, result: Any, planes: Planes | None, operation: str) -> Any:
        """`result` with `planes`, or lost."""
        if isinstance(result, FollowedArray) and self.mldm_planes is not None and result.ndim >= 2:
            known = self.mldm_planes.lost(operation, result.shape) if planes is None else planes
            result.mldm_planes = known.checked(result.shape, operation)
        return result

    def __getitem__(self, key: Any) -> Any:
        result = super().__getitem__(key)
        if self.mldm_planes is None:
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
        elif self.mldm_blank:
            self.mldm_blank, self.mldm_planes = False, _pasted(pasted, key, self.shape)
        elif self.mldm_planes is not None and not self.mldm_planes.have(key, pasted):
            self._lose("a picture that was written into another")

    def _lose(self, operation: str) -> None:
        self.mldm_blank = False
        if self.mldm_planes is not None:
            self.mldm_planes = self.mldm_planes.lose(operation)

    def __iter__(self) -> Any:
        return (self[row] for row in range(len(self)))

    def transpose(self, *axes: Any) -> Any:
        result = super().transpose(*axes)
        if self.mldm_planes is None:
            return result
        order = np.empty(range(self.ndim), dtype=bool).transpose(*axes).shape  # nothing of size 0 is made
        return self._keep(result, self.mldm_planes.permuted(order), "transpose of an array")

    @property
    def T(self) -> Any:  # noqa: N802
        return self.transpose()

    def swapaxes(self, axis1: Any, axis2: Any) -> Any:
        order = list(range(self.ndim))
        order[axis1], order[axis2] = order[axis2], order[axis1]
        return self.transpose(order)

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

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: Any, *inputs: Any, out: tuple[Any, ...] | None = None, **kwargs: Any
    ) -> Any:
        if out is not None:
            kwargs["out"] = tuple(_plain(x) for x in out)
        result = getattr(ufunc, method)(*(_plain(x) for x in inputs), **kwargs)
        if method != "__call__" or not isinstance(result, np.ndarray):
            return result if out is None else out[0]
        return _computed(result if out is None else out[0], inputs, ufunc.__name__)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        result = super().__array_function__(func, types, args, kwargs)
        name = func.__name__
        if name in _OVERWRITING and isinstance(args[0], FollowedArray):
            args[0]._lose(f"numpy.{name}")
        if not isinstance(result, np.ndarray):
            return result
        if name in _BLANK:
            return FollowedArray.blank(result)
        if name == "concatenate":
            return _joined(result, args[0], *args[1:2], **kwargs)
        if name in _UNMOVED:
            return _computed(result, args, name)
        known = _known(args)
        if known and known[0].is_lost < any(planes.is_lost for planes in _known([result])):
            return FollowedArray.of(result, known[0].lost(f"numpy.{name}", result.shape))
        return result


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, FollowedArray) else value


def _known(values: Sequence[Any]) -> list[Planes]:
    return [v.mldm_planes for v in values if isinstance(v, FollowedArray) and v.mldm_planes is not None]


def _computed(result: np.ndarray, inputs: Sequence[Any], operation: str) -> np.ndarray:
    """The result of computing pixel by pixel."""
    parts = _known(inputs)
    if not parts or result.ndim < 2:
        return result
    planes = Planes.together(parts, result.shape, f"numpy.{operation}").checked(result.shape, f"numpy.{operation}")
    if isinstance(result, FollowedArray):
        result.mldm_blank, result.mldm_planes = False, planes
        return result
    return FollowedArray.of(result, planes)


def _joined(result: np.ndarray, arrays: Sequence[Any], axis: int | None = 0, **_: Any) -> np.ndarray:
    """The result of concatenation; without frames unless all parts have some."""
    parts = _known(arrays)
    if axis is None or len(parts) < len(arrays):
        return _plain(result)
    planes = Planes.joined(parts, axis)
    known = parts[0].lost("numpy.concatenate", result.shape) if planes is None else planes
    return FollowedArray.of(result, known.checked(result.shape, "numpy.concatenate"))


def _pasted(planes: Planes, key: Any, shape: Sequence[int]) -> Planes:
    """After a picture was written into an empty array of `shape` at `key`."""
    operation = f"writing a picture into an array, {in_words(key)},"
    whole = Planes.of(Frame("", (shape[1], shape[0]), (shape[1], shape[0])), shape, 0, 1)
    place, frame = whole.indexed(key), planes.frame()
    hole = None if place is None else place.frame()
    if frame is None or hole is None or (planes.rows, planes.columns) != (0, 1):
        return planes.lost(operation, shape)
    if hole.size != frame.size or (hole.affine[0], hole.affine[4]) != (1, 1):
        return planes.lost(operation, shape)
    left, top = -hole.affine[2], -hole.affine[5]
    return Planes.of(frame.then((1, 0, left, 0, 1, top), whole.frames.flat[0].size), shape, 0, 1)
