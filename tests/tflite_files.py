"""Small networks of TensorFlow Lite, written here as flatbuffers."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

KINDS = {"float32": 0, "float16": 1, "int32": 2}
CODES = {
    "ADD": 0,
    "AVERAGE_POOL_2D": 1,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 4,
    "DEPTH_TO_SPACE": 5,
    "DEQUANTIZE": 6,
    "FULLY_CONNECTED": 9,
    "LOGISTIC": 14,
    "MAX_POOL_2D": 17,
    "MUL": 18,
    "RELU": 19,
    "RESHAPE": 22,
    "RESIZE_BILINEAR": 23,
    "PAD": 34,
    "MEAN": 40,
    "PRELU": 54,
    "HARD_SWISH": 117,
    "DENSIFY": 124,
}
CUSTOM = 32  # code of operators that are known by their name; their options are bytes
VERSIONS = {"DEQUANTIZE": 2, "RESIZE_BILINEAR": 3}
# The number of an operator's kind of options in the schema's union; those without any are left out.
UNION = {
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 2,
    "AVERAGE_POOL_2D": 5,
    "MAX_POOL_2D": 5,
    "FULLY_CONNECTED": 8,
    "CONCATENATION": 10,
    "ADD": 11,
    "RESIZE_BILINEAR": 15,
    "MUL": 21,
    "RESHAPE": 17,
    "PAD": 22,
    "MEAN": 27,
    "DEQUANTIZE": 46,
    "DEPTH_TO_SPACE": 94,
    "DENSIFY": 113,
}


@dataclass
class Sparse:
    """A matrix in compressed rows, its rows all axes but the last."""

    dense: np.ndarray


def flatbuffer(table: dict[int, Any], identifier: bytes = b"TFL3") -> bytes:
    """A table as a file: field → int, str, bytes, a list of ints or of tables, or a table."""
    out = bytearray(8)
    out[4:8] = identifier
    out[:4] = struct.pack("<I", _put(out, table))
    return bytes(out)


def _put(out: bytearray, value: Any) -> int:
    """Write a table, a text or a vector at the end; returns where it begins."""
    _align(out, 4)
    if isinstance(value, dict):
        fields = 1 + max(value, default=-1)
        vtable, start = len(out), len(out) + 4 + 2 * fields + 2 * (fields % 2)
        slots = {field: 4 + 4 * i for i, field in enumerate(value)}
        out += struct.pack("<HH", 4 + 2 * fields, 4 + 4 * len(value))
        out += b"".join(struct.pack("<H", slots.get(field, 0)) for field in range(fields))
        out += bytes(start - len(out)) + struct.pack("<i", start - vtable) + bytes(4 * len(value))
        for field, content in value.items():
            at = start + slots[field]
            out[at : at + 4] = struct.pack("<i", content if isinstance(content, int) else _put(out, content) - at)
        return start
    if isinstance(value, (str, bytes)):
        content = value.encode() if isinstance(value, str) else value
        _align(out, 16, ahead=4)  # a tensor's data starts at a multiple of 16
        start = len(out)
        out += struct.pack("<I", len(content)) + content + b"\0"
        return start
    start = len(out)
    out += struct.pack("<I", len(value)) + bytes(4 * len(value))
    for i, content in enumerate(value):
        at = start + 4 + 4 * i
        out[at : at + 4] = struct.pack("<i", int(content) if not isinstance(content, dict) else _put(out, content) - at)
    return start


def _align(out: bytearray, to: int, ahead: int = 0) -> None:
    out += bytes(-(len(out) + ahead) % to)


def tflite_file(
    shape: Sequence[int], operators: Sequence[tuple[str, Sequence[Any], Sequence[int], dict[Any, Any]]]
) -> bytes:
    """A network as a chain.

    Args:
        shape: of its input.
        operators: kind, what it reads, the shape of its output, its options by the number of their field. What it
            reads is arrays, which become constants, and whole numbers: 0 is the input, i the output of operator i.

    Returns:
        The file; the last operator's output is the network's.
    """
    kinds = sorted({kind for kind, *_ in operators})
    buffers: list[dict[int, Any]] = [{}]
    tensors: list[dict[int, Any]] = [{0: list(shape), 1: 0, 3: "input"}]
    outputs, written = [0], []
    for kind, reads, out_shape, options in operators:
        inputs = []
        for one in reads:
            if isinstance(one, int):
                inputs.append(outputs[one])
                continue
            inputs.append(len(tensors))
            tensors.append(_constant(one, len(buffers)))
            buffers.append({0: _values(one).tobytes()})
        half = kind == "DENSIFY" and tensors[inputs[0]][1] == KINDS["float16"]
        outputs.append(len(tensors))
        tensors.append({0: list(out_shape), 1: KINDS["float16" if half else "float32"], 3: f"output {len(outputs)}"})
        operator: dict[int, Any] = {0: kinds.index(kind), 1: inputs, 2: [outputs[-1]]}
        given = {5: options["bytes"]} if kind not in CODES else {3: UNION[kind], 4: options} if kind in UNION else {}
        written.append({**operator, **given})
    codes = [_code(kind) for kind in kinds]
    graph = {0: tensors, 1: [0], 2: [outputs[-1]], 3: written, 4: "main"}
    return flatbuffer({0: 3, 1: codes, 2: [graph], 3: "tiny", 4: buffers})


def _code(kind: str) -> dict[int, Any]:
    code = CODES.get(kind, CUSTOM)
    return {0: code, **({} if kind in CODES else {1: kind}), 2: VERSIONS.get(kind, 1), 3: code}


def _constant(one: np.ndarray | Sparse, buffer: int) -> dict[int, Any]:
    array = one.dense if isinstance(one, Sparse) else one
    tensor: dict[int, Any] = {0: list(array.shape), 1: KINDS[str(array.dtype)], 2: buffer, 3: f"constant {buffer}"}
    if isinstance(one, Sparse):
        rows = array.reshape(-1, array.shape[-1])
        starts = np.concatenate([[0], np.cumsum((rows != 0).sum(1))])
        dense = [{0: 0, 1: side} for side in array.shape[:-1]]
        columns = {0: 1, 2: 1, 3: {0: starts.tolist()}, 4: 1, 5: {0: rows.nonzero()[1].tolist()}}
        tensor[6] = {0: list(range(array.ndim)), 2: [*dense, columns]}
    return tensor


def _values(one: np.ndarray | Sparse) -> np.ndarray:
    return one.dense[one.dense != 0] if isinstance(one, Sparse) else one
