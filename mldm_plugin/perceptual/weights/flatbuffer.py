"""Flatbuffers, read with every offset checked.

A flatbuffer is tables that point at each other. A table's first four bytes lead back to its vtable: two bytes of its
length, two of the table's, then for each field, two bytes, where in the table it lies, 0 where it has its default.
Texts, vectors and tables lie elsewhere, and the field holds how many bytes further on.

Source: FlatBuffers, "Internals" (flatbuffers.dev/internals).
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldm_plugin.errors import WeightsError

LONGEST_TEXT = 4096  # chosen: names of tensors have up to some hundred bytes


def unpack(content: bytes, form: str, at: int) -> int:
    """The number of `struct`'s little-endian format `form` at `at`.

    Raises:
        WeightsError: it does not lie in the file.
    """
    if not 0 <= at <= len(content) - struct.calcsize(form):
        raise WeightsError(f"it points at byte {at}, but has {len(content)} bytes.")
    return int(struct.unpack_from(f"<{form}", content, at)[0])


class Table:
    """A table of a flatbuffer; its fields are read when asked for, each in the file's bounds or refused.

    Args:
        content: the whole file.
        at: where the table begins.
    """

    def __init__(self, content: bytes, at: int) -> None:
        self._content, self._at = content, at
        self._vtable = at - unpack(content, "i", at)
        self._length = unpack(content, "H", self._vtable)

    def number(self, field: int, form: str, default: int = 0) -> int:
        """A whole number of the format `form` (`struct`'s letters)."""
        at = self._place(field)
        return default if at is None else unpack(self._content, form, at)

    def table(self, field: int) -> Table | None:
        """Another table, or None."""
        at = self._target(field)
        return None if at is None else Table(self._content, at)

    def tables(self, field: int, most: int) -> list[Table]:
        """A vector of tables, none where the field is absent; more than `most` are refused."""
        offsets = self.numbers(field, np.dtype("<u4"))
        if len(offsets) > most:
            raise WeightsError(f"it has a list of {len(offsets)} entries, expected at most {most}.")
        start = (self._target(field) or 0) + 4
        return [Table(self._content, start + 4 * i + int(offset)) for i, offset in enumerate(offsets)]

    def numbers(self, field: int, kind: np.dtype[Any]) -> NDArray[Any]:
        """A vector of numbers as a read-only view of the file, empty where the field is absent."""
        at = self._target(field)
        if at is None:
            return np.zeros(0, kind)
        count = unpack(self._content, "I", at)
        if count * kind.itemsize > len(self._content) - at - 4:
            raise WeightsError(f"it claims a list of {count} numbers at byte {at}, but has {len(self._content)} bytes.")
        return np.frombuffer(self._content, kind, count, at + 4)

    def text(self, field: int) -> str:
        """A text, empty where the field is absent."""
        letters = self.numbers(field, np.dtype("u1"))
        if len(letters) > LONGEST_TEXT:
            raise WeightsError(f"it has a text of {len(letters)} bytes, expected at most {LONGEST_TEXT}.")
        return letters.tobytes().decode("utf-8", "replace")

    def _place(self, field: int) -> int | None:
        """Where the field lies in the file; None where it has its default."""
        if 4 + 2 * field + 2 > self._length:
            return None
        offset = unpack(self._content, "H", self._vtable + 4 + 2 * field)
        return self._at + offset if offset else None

    def _target(self, field: int) -> int | None:
        """Where what the field points at lies."""
        at = self._place(field)
        return None if at is None else at + unpack(self._content, "I", at)


def root(content: bytes, identifier: bytes) -> Table:
    """The first table of the file.

    Raises:
        WeightsError: the file's four letters are not `identifier`.
    """
    if content[4:8] != identifier:
        raise WeightsError(f"it begins with {content[:8]!r}, expected {identifier!r} after four bytes.")
    return Table(content, unpack(content, "I", 0))
