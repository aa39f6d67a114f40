"""The arrays of a TensorFlow.js graph model: a JSON file that describes them, and files of bare numbers.

The JSON file has a graph, too. It is not looked at, and nothing here could run one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mldm_plugin.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

# Its `quantization`, or its `dtype` where it has none → how the numbers lie in the file, all of them little-endian.
NUMBERS = {"float32": "<f4", "float16": "<f2", "int32": "<i4"}
MOST_SIDES = 8  # chosen: a kernel has four


def read_graph_model(files: Sequence[Path]) -> dict[str, Tensor]:
    """The arrays of a graph model by name; those of float16 as float32, which holds them exactly.

    Args:
        files: the JSON file, then the files that its `weightsManifest` names, in any order.

    Raises:
        WeightsError: another format, a file of numbers too few or too many, or more or fewer bytes in it than the
            shapes want.

    Source: TensorFlow.js, tfjs-core/src/io/types.ts (WeightsManifestConfig) and io_utils.ts (decodeWeights).
    """
    description, *shards = files
    model = json.loads(description.read_text(encoding="utf-8"))
    if not isinstance(model, dict) or model.get("format") != "graph-model":
        raise WeightsError("it is no graph model of TensorFlow.js.")
    given = {path.name: path for path in shards}
    arrays: dict[str, Tensor] = {}
    for group in model["weightsManifest"]:
        content, start = _joined(group["paths"], given), 0
        for entry in group["weights"]:
            name = entry["name"]
            if not isinstance(name, str) or name in arrays:
                raise WeightsError(f"it has two arrays called {_shown(name)}, or one without a name.")
            arrays[name], start = _array(entry, content, start)
        if start != len(content):
            raise WeightsError(f"{len(content) - start} bytes follow the last array.")
    if given:
        raise WeightsError(f"it does not name {min(given)}.")
    return arrays


def _joined(names: Sequence[str], given: dict[str, Path]) -> bytes:
    """The bytes of the files called `names`. Only files that were given are opened, and each of them once."""
    content = b""
    for name in names:
        if not isinstance(name, str) or name not in given:
            raise WeightsError(f"it names a file {_shown(name)}, expected one of {', '.join(given) or 'none'}.")
        content += given.pop(name).read_bytes()
    return content


def _array(entry: Mapping[str, Any], content: bytes, start: int) -> tuple[Tensor, int]:
    """The array that starts at byte `start`, and where the next one does."""
    import numpy as np
    import torch

    name, shape, kind = entry["name"], entry["shape"], (entry.get("quantization") or entry)["dtype"]
    if kind not in NUMBERS:
        raise WeightsError(f"its array {_shown(name)} is of {_shown(kind)}, expected {', '.join(NUMBERS)}.")
    if len(shape) > MOST_SIDES or not all(type(side) is int and 0 < side <= len(content) for side in shape):
        raise WeightsError(f"its array {_shown(name)} has the shape {_shown(shape)}.")
    numbers = np.dtype(NUMBERS[kind])
    end = start + math.prod(shape) * numbers.itemsize
    if end > len(content):
        raise WeightsError(f"its array {_shown(name)} wants {end - start} bytes where {len(content) - start} are left.")
    array = np.frombuffer(content[start:end], numbers).reshape(shape)
    return torch.from_numpy(array.astype(np.int32 if kind == "int32" else np.float32)), end


def _shown(value: object) -> str:
    """What a file says, in few letters of one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
