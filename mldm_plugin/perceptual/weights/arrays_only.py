"""Pickles of numpy arrays, read without running anything that they name.

A pickle is a program. This reader lends it the few names that arrays are pickled with, as stand-ins of its own, and
refuses every other.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

from mldm_plugin.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

DEEPEST = 8  # dicts in dicts; chosen, flax's have three
MEMO_SLACK = 1 << 16  # chosen: other picklers may count from anywhere near 0


def _latin1(text: str, encoding: str) -> bytes:
    """What `_codecs.encode` does in pickles of byte strings; no other codec is lent to a file."""
    if encoding not in ("latin1", "latin-1"):
        raise WeightsError(f"it asks for the codec {encoding!r}, and only latin1 is admitted.")
    return text.encode("latin1")


class _Lent:
    """Something that a pickle may call, and neither look into nor change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise WeightsError("it changes what it may only call.")


class _Kind:
    """Stands for a `numpy.dtype` of numbers; a file that makes others could have raw bytes taken for objects."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch("[fiu][1248]|b1", code):
            raise WeightsError(f"it holds an array of kind {code!r}, and only numbers are admitted.")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise WeightsError(f"it holds an array of byte order {state[1]!r}.")
        self.order = state[1]


class _Array:
    """Stands for an array: `array` once the file has given its content."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: Any = None

    def __setstate__(self, state: Any) -> None:
        import numpy as np

        *_, shape, kind, fortran, content = state
        if not isinstance(kind, _Kind):
            raise WeightsError(f"it holds an array of kind {kind!r}, and only numbers are admitted.")
        raw = content.encode("latin1") if isinstance(content, str) else content  # Python 2's bytes come as text
        flat = np.frombuffer(raw, np.dtype(kind.order + kind.code))
        self.array = flat.reshape(shape, order="F" if fortran else "C")


def _refuse(*_: Any) -> Any:
    raise WeightsError("it makes a numpy.ndarray over raw bytes.")


_NDARRAY = _Lent(_refuse)


def _reconstruct(which: Any, *_: Any) -> _Array:
    if which is not _NDARRAY:
        raise WeightsError(f"it makes a {which!r}, and only numpy.ndarray is admitted.")
    return _Array()


def _scalar(kind: Any, content: Any) -> _Array:
    scalar = _Array()
    scalar.__setstate__(((), kind, False, content))
    return scalar


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    if not isinstance(pairs, (list, tuple)):
        raise WeightsError(f"it makes an OrderedDict of a {type(pairs).__name__}, expected pairs.")
    return dict(pairs)


class _ArraysOnly(pickle.Unpickler):
    """Admits the few names that pickles of numpy arrays refer to, as stand-ins; nothing of numpy's is lent."""

    def find_class(self, module: str, name: str) -> Any:
        admitted: dict[tuple[str, str], _Lent] = {
            ("numpy", "ndarray"): _NDARRAY,
            ("numpy", "dtype"): _Lent(_Kind),
            ("_codecs", "encode"): _Lent(_latin1),
            ("collections", "OrderedDict"): _Lent(_dict),
        }
        for array_module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # it moved in numpy 2
            admitted[array_module, "_reconstruct"] = _Lent(_reconstruct)
            admitted[array_module, "scalar"] = _Lent(_scalar)
        if (module, name) not in admitted:
            raise WeightsError(f"it refers to {module}.{name}, and only numpy arrays are admitted.")
        return admitted[module, name]


def load_arrays(stream: IO[bytes]) -> dict[str, Tensor]:
    """The numpy arrays in a pickle, also of Python 2 (hence latin1), as tensors.

    Args:
        stream: a dict of arrays, or of dicts of them and so on: their names are joined by a slash.

    Raises:
        WeightsError: anything else in it.
    """
    _check_memo(stream)
    content = _ArraysOnly(stream, encoding="latin1").load()
    if not isinstance(content, dict):
        raise WeightsError(f"it holds a {type(content).__name__}, expected a dict of arrays.")
    return dict(_flat(content, "", DEEPEST))


def _check_memo(stream: IO[bytes]) -> None:
    """Refuse a place in the unpickler's memory that no file of so many steps needs: it would be allocated at once."""
    steps = 0
    for steps, (operation, argument, _) in enumerate(pickletools.genops(stream), 1):
        if "PUT" in operation.name and int(argument or 0) > steps + MEMO_SLACK:
            raise WeightsError(f"it asks for {argument} places in memory after {steps} steps.")
    stream.seek(0)


def _flat(content: dict[Any, Any], prefix: str, deepest: int) -> Iterator[tuple[str, Tensor]]:
    import numpy as np
    import torch

    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and deepest:
            yield from _flat(value, f"{name}/", deepest - 1)
            continue
        if not isinstance(value, _Array) or value.array is None:
            raise WeightsError(f"its entry {name!r} is no array of numbers.")
        array = value.array
        yield name, torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
