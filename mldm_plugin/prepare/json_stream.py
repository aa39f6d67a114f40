"""Reading a large JSON file item by item: COCO's annotations need gigabytes when they are read as a whole.

ijson 3.6 was tried in its place: 1.5 times as fast with its C backend, but it refuses NaN and a byte order mark, and a
file of 100 000 opening brackets takes all memory.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from mldm_plugin.errors import DataError

CHUNK = 1 << 20  # characters read at a time, chosen
LARGEST_ITEM = 1 << 26  # characters; chosen: COCO's largest annotation has some 10 000
LONGEST_NUMBER = 400  # characters; the longest float has some 330 before its point
_SPACE = " \t\n\r"
_OF_A_NUMBER = "0123456789.eE+-"


def items(path: Path, *keys: str) -> Iterator[tuple[str, Any]]:
    """The items of the arrays under `keys` of the object that the file holds, one at a time, each with its key.

    NaN and Infinity, which some programs write, are read as floats. Other values of the object are passed over.

    Raises:
        DataError: the file cannot be read, is not JSON, or has no array under one of the keys.
    """
    missing = list(keys)
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for name, value in _members(_Text(stream), keys):
                if name in keys:
                    missing = [key for key in missing if key != name]
                    yield from ((name, item) for item in _checked(path, name, value))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name a JSON file in COCO's format.") from error
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits, and of bytes
        raise DataError(
            f"{path} is not JSON ({error}): was it copied or downloaded to its end? Fetch it anew."
        ) from error
    if missing:
        raise DataError(f"{path} has no array {missing[0]!r}; expected a file in COCO's format with one.")


def _checked(path: Path, key: str, value: Any) -> Iterator[Any]:
    if not isinstance(value, Iterator):
        raise DataError(f"{path}: {key!r} is {type(value).__name__}, expected an array of objects.")
    return value


class _Text:
    """The part of a file that is being read; values are decoded by the json module."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, expected: str) -> str:
        """Pass over the next character, which has to be one of `expected`."""
        character = self.peek()
        if not character or character not in expected:
            raise json.JSONDecodeError(f"Expecting one of {expected!r}", self._text, self._at)
        self._at += 1
        return character

    def value(self) -> Any:
        """The next value. A number is whole when something follows that could not be of it."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if len(self._text) - self._at > LARGEST_ITEM or not self._more():
                    raise
                continue
            left = len(self._text) - end
            if left < LONGEST_NUMBER and not self._text[end:].strip(_OF_A_NUMBER) and self._more():
                continue
            self._at = end
            return value

    def _more(self) -> bool:
        """Read on; as much again as is being decoded, so that a long value is not decoded too often."""
        self._text = self._text[self._at :]
        self._at = 0
        read = self._stream.read(max(CHUNK, len(self._text)))
        self._text += read
        return bool(read)


def _members(text: _Text, streamed: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Names and values of the object; an array under a name in `streamed` as an iterator of its items."""
    text.take("{")
    if text.peek() == "}":
        text.take("}")
    else:
        while True:
            name = text.value()
            text.take(":")
            if name in streamed and text.peek() == "[":
                yield name, _array(text)
            elif name not in streamed and text.peek() == "[":
                for _ in _array(text):
                    pass
            else:
                yield name, text.value()
            if text.take(",}") == "}":
                break
    if text.peek():
        raise json.JSONDecodeError("Extra data", text.peek(), 0)


def _array(text: _Text) -> Iterator[Any]:
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    while True:
        yield text.value()
        if text.take(",]") == "]":
            return
