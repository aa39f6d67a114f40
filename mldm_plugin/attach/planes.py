"""The planes of an array or a tensor: which axes are rows and columns, and the frame of what each plane shows.

A picture has the same frame in all its channels; several pictures beside each other, as `numpy.stack` or
`numpy.concatenate` leave them, have several frames, which part again when the pictures do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from mldm_plugin.attach.frame import Frame, transposition


@dataclass(eq=False)
class Memory:
    """Memory that an array shares with its views: what is written into one of them is in all."""

    lost: str = ""  # what was written that cannot be followed, or the empty string


@dataclass(frozen=True, eq=False)
class Planes:
    """What is known of an array's pictures.

    Args:
        frames: `Frame` objects; its axes are those of the array but rows and columns, in their order.
        rows, columns: axes of the array, counted from 0; rows come first. A picture whose columns do is a turned one.
        memory: where the pictures lie.
    """

    frames: np.ndarray
    rows: int
    columns: int
    memory: Memory = field(default_factory=Memory)

    @classmethod
    def of(cls, frame: Frame, shape: Sequence[int], rows: int = -2, columns: int = -1) -> Planes:
        """Those of one picture, as an array of `shape`."""
        axes = range(len(shape))
        rows, columns = axes[rows], axes[columns]
        others = [size for axis, size in enumerate(shape) if axis not in (rows, columns)]
        alone = np.empty((), dtype=object)
        alone[()] = frame
        return cls(np.broadcast_to(alone, others), rows, columns)

    @property
    def ndim(self) -> int:
        """How many axes the array has."""
        return self.frames.ndim + 2

    @property
    def last(self) -> bool:
        """Whether rows and columns are the last two axes, in this order."""
        return (self.rows, self.columns) == (self.ndim - 2, self.ndim - 1)

    def frame(self) -> Frame | None:
        """The frame of the picture, if all planes are of one; None if they are not."""
        first, *others = {id(frame): frame for frame in _once(self.frames).flat}.values() or [None]
        if first is None or any(frame != first for frame in others):
            return None
        return first.lose(self.memory.lost) if self.memory.lost else first

    def each(self, change: Callable[[Frame], Frame]) -> Planes:
        """After a step that moves all pictures alike."""
        once = _once(self.frames)
        made = {key: change(frame) for key, frame in {id(frame): frame for frame in once.flat}.items()}
        frames = np.empty(once.shape, dtype=object)
        for place, frame in enumerate(once.flat):
            frames.flat[place] = made[id(frame)]
        return replace(self, frames=np.broadcast_to(frames, self.frames.shape))

    def lose(self, operation: str) -> Planes:
        """After a step that cannot be followed, but left the axes as they were."""
        return self.each(lambda frame: frame.lose(operation))

    @property
    def is_lost(self) -> bool:
        """Whether any of its frames is."""
        return bool(self.memory.lost) or any(frame.lost for frame in _once(self.frames).flat)

    def copied(self) -> Planes:
        """Those of a copy: what is written into the one from now on is not in the other."""
        return replace(self.lose(self.memory.lost) if self.memory.lost else self, memory=Memory())

    def lost_as(self, operation: str, shape: Sequence[int]) -> Planes:
        """After a step that cannot be followed, of whose result only the shape is known."""
        frame = next(self.frames.flat, Frame("", (0, 0), (0, 0)))
        return replace(Planes.of(frame.lose(self.memory.lost or operation), shape), memory=self.memory)

    def checked(self, shape: Sequence[int], operation: str) -> Planes:
        """Itself, if it fits an array of `shape`; else lost by `operation`."""
        others = tuple(size for axis, size in enumerate(shape) if axis not in (self.rows, self.columns))
        if others != self.frames.shape or len(shape) != self.ndim:
            return self.lost_as(operation, shape)
        size = (shape[self.columns], shape[self.rows])
        if all(frame.size == size for frame in _once(self.frames).flat):
            return self
        return self.each(lambda frame: frame if frame.size == size else replace(frame.lose(operation), size=size))

    def indexed(self, key: Any) -> Planes | None:
        """After `array[key]`; None if that is more than slices, numbers and new axes, or takes rows or columns away."""
        keys = _spelled_out(key, self.ndim)
        if keys is None:
            return None
        others: list[Any] = []
        places: list[int] = []
        cuts: list[slice] = []
        axis = new = 0  # of the array, of the result
        for one in keys:
            if one is not None and axis in (self.rows, self.columns):
                if not isinstance(one, slice):
                    return None
                places.append(new)
                cuts.append(one)
            else:
                others.append(one)
            axis += one is not None
            new += one is None or isinstance(one, slice)
        size = self.frames.flat[0].size if self.frames.size else (0, 0)
        down, across = _along(cuts[0], size[1]), _along(cuts[1], size[0])
        if down is None or across is None:
            return None
        (e, f, height), (a, c, width) = down, across
        others.append(Ellipsis)  # an array even where no axis is left
        taken = replace(self, frames=self.frames[tuple(others)], rows=places[0], columns=places[1])
        return taken.each(lambda frame: frame.then((a, 0, c, 0, e, f), (width, height)))

    def have(self, key: Any, written: Planes) -> bool:
        """Whether what was written at `key` shows what was there, as after `picture[0] *= 2`."""
        own = self.indexed(key)
        return own is not None and own.equal(written.copied())

    def covers(self, key: Any) -> bool:
        """Whether `key` takes all rows and columns of one picture, as they are."""
        own, frame = self.indexed(key), self.frame()
        return own is not None and frame is not None and own.frame() == frame

    def permuted(self, order: Sequence[int]) -> Planes:
        """After a transposition: axis i of the result was axis `order[i]`."""
        others = [axis for axis in range(self.ndim) if axis not in (self.rows, self.columns)]
        frames = self.frames.transpose([others.index(axis) for axis in order if axis in others])
        rows, columns = list(order).index(self.rows), list(order).index(self.columns)
        if rows < columns:
            return Planes(frames, rows, columns, self.memory)
        turned = Planes(frames, columns, rows, self.memory)
        return turned.each(lambda frame: frame.then(*transposition(Image.Transpose.TRANSPOSE, frame.size)))

    def reshaped(self, old: Sequence[int], new: Sequence[int]) -> Planes | None:
        """After the axes before rows and columns were laid out anew, or axes of length 1 came or went; else None."""
        rows, columns = len(new) - 2, len(new) - 1
        if not (self.last and len(new) >= 2 and tuple(new[-2:]) == tuple(old[-2:])):
            before, after = ([axis for axis, size in enumerate(shape) if size != 1] for shape in (old, new))
            place = {self.rows, self.columns}
            if [old[axis] for axis in before] != [new[axis] for axis in after] or not place <= {*before}:
                return None
            rows, columns = (after[before.index(axis)] for axis in sorted(place))
        others = [size for axis, size in enumerate(new) if axis not in (rows, columns)]
        return Planes(self.frames.reshape(others), rows, columns, self.memory)

    def spread(self, shape: Sequence[int]) -> Planes | None:
        """After it was broadcast to `shape` together with something that has no frame; None if it does not fit."""
        grown = self.indexed((None,) * (len(shape) - self.ndim))
        if grown is None or grown.ndim != len(shape):
            return None
        others = [size for axis, size in enumerate(shape) if axis not in (grown.rows, grown.columns)]
        if any(own not in (1, size) for own, size in zip(grown.frames.shape, others, strict=True)):
            return None
        return replace(grown, frames=np.broadcast_to(grown.frames, others))

    def equal(self, other: Planes) -> bool:
        """Whether both are of the same pictures, in the same places."""
        if (self.rows, self.columns, self.frames.shape) != (other.rows, other.columns, other.frames.shape):
            return False
        pairs = np.broadcast_arrays(_once(self.frames), _once(other.frames))
        return all(a is b or a == b for a, b in zip(*(frames.flat for frames in pairs), strict=True))

    @staticmethod
    def together(parts: Sequence[Planes], shape: Sequence[int], operation: str) -> Planes:
        """What comes out where arrays are computed with each other pixel by pixel."""
        parts = [planes.copied() for planes in parts]
        widest = max(parts, key=lambda planes: (planes.ndim, planes.frames.size))
        out = widest.spread(shape) or widest.lost_as(operation, shape)
        for other in parts:
            own = out if other is widest else other.spread(shape)
            if own is None or not own.equal(out):
                return out.lose(f"{operation} of two pictures")
        return out

    @staticmethod
    def joined(parts: Sequence[Planes], axis: int) -> Planes | None:
        """After concatenation along an axis that exists; None if that is one of rows or columns."""
        parts = [planes.copied() for planes in parts]
        first = parts[0]
        axis = range(first.ndim)[axis]
        place = (first.rows, first.columns)
        if axis in place or any((p.rows, p.columns) != place or p.ndim != first.ndim for p in parts):
            return None
        along = axis - sum(other < axis for other in place)
        return replace(first, frames=np.concatenate([planes.frames for planes in parts], axis=along))


def in_words(key: Any) -> str:
    """An index, for a message; it may be a whole mask.

    >>> in_words((slice(2), 3))
    'with (slice(None, 2, None), 3)'
    """
    return "by more than slices" if _spelled_out(key, 0) is None else f"with {key!r}"


def _spelled_out(key: Any, ndim: int) -> list[Any] | None:
    """A key for every axis, None for new ones; None for a key that has more than slices, numbers and new axes."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if not all(one is None or one is Ellipsis or isinstance(one, slice) or _is_number(one) for one in keys):
        return None
    if not any(one is Ellipsis for one in keys):
        keys.append(Ellipsis)
    place = next(n for n, one in enumerate(keys) if one is Ellipsis)
    given = sum(one is not None for one in keys) - 1
    return [*keys[:place], *[slice(None)] * (ndim - given), *keys[place + 1 :]]


def _is_number(key: Any) -> bool:
    return isinstance(key, (int, np.integer)) and not isinstance(key, bool)


def _along(key: slice, length: int) -> tuple[int, int, int] | None:
    """A slice of an axis as u' = a u + c, and how long it is; None for anything but a cut or a flip."""
    start, stop, step = key.indices(length)
    if step not in (1, -1):
        return None
    return (1, -start, len(range(start, stop, step))) if step == 1 else (-1, start + 1, len(range(start, stop, step)))


def _once(frames: np.ndarray) -> np.ndarray:
    """Frames without those that broadcasting repeated: one of a picture, however many planes it has."""
    key = (*(slice(None) if stride else slice(1) for stride in frames.strides), Ellipsis)
    return frames[key]
