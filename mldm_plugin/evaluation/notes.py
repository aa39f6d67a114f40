"""What was measured, written down picture by picture, so that a kill loses one picture at most."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Key = tuple[str, int]  # of a case, and the repetition
Values = dict[Key, dict[str, Any]]  # name of a metric → float, None or an array (k, d)


class Notes:
    """The measurements of one run of a model in a folder: a file of JSON lines for each process that wrote some.

    Args:
        folder: of the files; made where it is missing.
        rank: of this process, which writes to a file of its own.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self._rank = folder, rank
        folder.mkdir(parents=True, exist_ok=True)
        self.known = read_notes(folder)

    def lacks(self, key: Key, names: Iterable[str]) -> list[str]:
        """Which of these are not yet known of a picture."""
        known = self.known.get(key, {})
        return [name for name in names if name not in known]

    def add(self, key: Key, values: Mapping[str, Any]) -> None:
        """Write down what was found of a picture."""
        line = {"case": key[0], "repetition": key[1], "values": {name: _written(v) for name, v in values.items()}}
        with (self.folder / f"{self._rank:03d}.jsonl").open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(line))  # the line break comes first: it ends a line that a kill tore
        self.known.setdefault(key, {}).update(values)


def read_notes(folder: Path) -> Values:
    """All that the processes wrote down; a line that a kill tore is left out."""
    found: Values = {}
    for file in sorted(folder.glob("*.jsonl")):
        for line in _lines(file):
            key = (line["case"], line["repetition"])
            found.setdefault(key, {}).update({name: _read(value) for name, value in line["values"].items()})
    return found


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            continue


def _written(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value, dtype="<f4")
        return {"rows": len(array), "float32": base64.b64encode(array.tobytes()).decode("ascii")}
    return value


def _read(value: Any) -> Any:
    if isinstance(value, dict):
        array = np.frombuffer(base64.b64decode(value["float32"]), dtype="<f4")
        return array.reshape(value["rows"], -1) if value["rows"] else array.reshape(0, 0)
    return value
