"""Networks of TensorFlow Lite as tensors and a graph. Nothing of the file is run.

A .tflite file is a flatbuffer: operators that read and write numbered tensors, and buffers with the constants. Only
what MediaPipe's networks consist of is understood: one graph of float operators, each with one output, its constants
float32, float16 or int32. Constants that the file itself would turn into others when it starts (float16 made
float32 by DEQUANTIZE, sparse made dense by DENSIFY) are those others here.

Source: tensorflow/lite/schema/schema.fbs, version 3, for the numbers of fields, kinds and options.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.weights.flatbuffer import Table, root

if TYPE_CHECKING:
    from torch import Tensor

GRAPH = "graph"  # the name under which the graph's text goes among the tensors
# Chosen: the largest of MediaPipe's networks have 350 operators, 450 tensors, 8 inputs and 3 million numbers.
MOST_ENTRIES = 10_000
MOST_INPUTS = 16
MOST_RANK = 5
MOST_STRIDE = 256
MOST_NUMBERS = 1 << 25

_KINDS: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 2: np.dtype("<i4")}
_INDICES: dict[int, np.dtype[Any]] = {1: np.dtype("<i4"), 2: np.dtype("<u2"), 3: np.dtype("u1")}
_PADDING = {0: "SAME", 1: "VALID"}
_ACTIVATION = {0: "NONE", 1: "RELU", 3: "RELU6"}
_STRIDED = {"padding": (0, "b", 0), "stride_w": (1, "i", 0), "stride_h": (2, "i", 0)}
_ACTIVATED = {"activation": (0, "b", 0)}
# Code → name and its options: field, format and default.
_POOLED = {**_STRIDED, "filter_w": (3, "i", 0), "filter_h": (4, "i", 0), "activation": (5, "b", 0)}
_OPERATORS: dict[int, tuple[str, dict[str, tuple[int, str, int]]]] = {
    0: ("ADD", _ACTIVATED),
    1: ("AVERAGE_POOL_2D", _POOLED),
    2: ("CONCATENATION", {"axis": (0, "i", 0), "activation": (1, "b", 0)}),
    3: ("CONV_2D", {**_STRIDED, "activation": (3, "b", 0), "dilation_w": (4, "i", 1), "dilation_h": (5, "i", 1)}),
    4: (
        "DEPTHWISE_CONV_2D",
        {**_STRIDED, "activation": (4, "b", 0), "dilation_w": (5, "i", 1), "dilation_h": (6, "i", 1)},
    ),
    5: ("DEPTH_TO_SPACE", {"block_size": (0, "i", 0)}),
    6: ("DEQUANTIZE", {}),
    9: ("FULLY_CONNECTED", {**_ACTIVATED, "weights_format": (1, "b", 0)}),
    14: ("LOGISTIC", {}),
    17: ("MAX_POOL_2D", _POOLED),
    18: ("MUL", _ACTIVATED),
    19: ("RELU", {}),
    22: ("RESHAPE", {}),
    23: ("RESIZE_BILINEAR", {"align_corners": (2, "?", 0), "half_pixel_centers": (3, "?", 0)}),
    34: ("PAD", {}),
    40: ("MEAN", {"keep_dims": (0, "?", 0)}),
    54: ("PRELU", {}),
    117: ("HARD_SWISH", {}),
    124: ("DENSIFY", {}),
}
_FOLDED = ("DEQUANTIZE", "DENSIFY")
_CUSTOM = 32  # an operator of MediaPipe's own, by its name
_TRANSPOSED = "Convolution2DTransposeBias"


def read_tflite(content: bytes) -> dict[str, Tensor]:
    """The constants and the graph of a .tflite file.

    Args:
        content: the file.

    Returns:
        `constant.I` → tensor I of the file, in TFLite's order of axes (a picture is (N, H, W, C), a convolution's
        weights (out, H, W, in), a depthwise one's (1, H, W, C)), and `graph` → its JSON text as bytes: so whatever
        recognises the tensors by their digest recognises the graph as well. The text has `input` (number and shape),
        `outputs` (numbers, in the file's order) and `operators`, each with `kind`, `inputs`, `output` and options,
        in an order in which they can be run.

    Raises:
        WeightsError: damaged, or anything but such a network.
    """
    import torch

    graph, constants = _Model(content).read()
    state = {f"constant.{i}": torch.from_numpy(value.copy()) for i, value in constants.items()}
    text = json.dumps(graph, separators=(",", ":")).encode()
    return {GRAPH: torch.frombuffer(bytearray(text), dtype=torch.uint8), **state}


class _Model:
    """One file while it is read."""

    def __init__(self, content: bytes) -> None:
        model = root(content, b"TFL3")
        self._codes = [_code(code) for code in model.tables(1, MOST_ENTRIES)]
        graphs = model.tables(2, MOST_ENTRIES)
        if len(graphs) != 1:
            raise WeightsError(f"it has {len(graphs)} graphs, expected one.")
        self._graph = graphs[0]
        self._buffers = model.tables(4, MOST_ENTRIES)
        self._tensors = self._graph.tables(0, MOST_ENTRIES)
        self._known: dict[int, NDArray[Any]] = {}  # constants, as they are found
        self._numbers = 0

    def read(self) -> tuple[dict[str, Any], dict[int, NDArray[Any]]]:
        """The graph, and the constants that it uses."""
        inputs = self._listed(self._graph, 1)
        if len(inputs) != 1:
            raise WeightsError(f"it has {len(inputs)} inputs, expected one.")
        computed, operators = set(inputs), []
        for table in self._graph.tables(3, MOST_ENTRIES):
            operator = self._operator(table)
            output = operator["output"]
            if output in computed or output in self._known:
                raise WeightsError(f"its tensor {output} is written twice.")
            if operator["kind"] in _FOLDED:
                self._fold(operator)
                continue
            for one in operator["inputs"]:
                if one not in computed:
                    self._constant(one)
            computed.add(output)
            operators.append(operator)
        outputs = self._listed(self._graph, 2)
        if not outputs or not computed.issuperset(outputs):
            raise WeightsError(f"its outputs are {outputs}, but its operators write others.")
        used = {one for operator in operators for one in operator["inputs"]} - computed
        given = {"tensor": inputs[0], "shape": list(self._shape(inputs[0]))}
        graph = {"input": given, "outputs": outputs, "operators": operators}
        return graph, {one: self._known[one] for one in sorted(used)}

    def _operator(self, table: Table) -> dict[str, Any]:
        code = table.number(0, "I")
        if code >= len(self._codes):
            raise WeightsError(f"it names operator {code} of {len(self._codes)}.")
        kind, options = self._codes[code]
        inputs, outputs = self._listed(table, 1), self._listed(table, 2)
        if not inputs or len(outputs) != 1:
            raise WeightsError(f"its {kind} has {len(inputs)} inputs and {len(outputs)} outputs, expected one output.")
        if kind == _TRANSPOSED:
            return {"kind": kind, "inputs": inputs, "output": outputs[0], **self._upscaling(table, inputs)}
        told = table.table(4)
        values = {
            name: default if told is None else told.number(field, form, default)
            for name, (field, form, default) in options.items()
        }
        return {"kind": kind, "inputs": inputs, "output": outputs[0], **_checked(kind, values)}

    def _upscaling(self, table: Table, inputs: list[int]) -> dict[str, int]:
        """The strides of a transposed convolution, in MediaPipe's struct of padding, width and height; each pixel is
        to become a block of pixels of its own, else it is refused."""
        struct = table.numbers(5, np.dtype("u1"))
        numbers = struct.view("<i4").tolist() if len(struct) == 12 else []
        kernel = list(self._shape(inputs[1]))[1:3] if len(inputs) == 3 else None
        if len(numbers) != 3 or kernel != numbers[:0:-1] or max(numbers) > MOST_STRIDE:
            raise WeightsError(
                f"its {_TRANSPOSED} has options {numbers} and a kernel {kernel}, expected equal strides."
            )
        return {"stride_w": numbers[1], "stride_h": numbers[2]}

    def _listed(self, table: Table, field: int) -> list[int]:
        """Numbers of tensors, each of which there is."""
        found = [int(i) for i in table.numbers(field, np.dtype("<i4"))[: MOST_INPUTS + 1]]
        if len(found) > MOST_INPUTS or not all(0 <= i < len(self._tensors) for i in found):
            raise WeightsError(f"it lists tensors {found}, expected at most {MOST_INPUTS} below {len(self._tensors)}.")
        return found

    def _shape(self, number: int) -> tuple[int, ...]:
        sides = tuple(int(side) for side in self._tensors[number].numbers(0, np.dtype("<i4"))[: MOST_RANK + 1])
        if len(sides) > MOST_RANK or not all(0 < side <= MOST_NUMBERS for side in sides):
            raise WeightsError(f"its tensor {number} has shape {sides}, expected up to {MOST_RANK} sides above 0.")
        return sides

    def _fold(self, operator: dict[str, Any]) -> None:
        """Take the output of DEQUANTIZE or DENSIFY for a constant, which it is: float16 made float32, sparse dense."""
        source = operator["inputs"][0]
        value = self._constant(source, sparse=operator["kind"] == "DENSIFY")
        if value.dtype.kind != "f" or value.shape != self._shape(operator["output"]):
            raise WeightsError(f"its {operator['kind']} of tensor {source} gives another shape or kind.")
        self._known[operator["output"]] = value

    def _constant(self, number: int, sparse: bool = False) -> NDArray[Any]:
        if number in self._known:
            return self._known[number]
        tensor, shape = self._tensors[number], self._shape(number)
        kind = _KINDS.get(tensor.number(1, "b"))
        buffer = tensor.number(2, "I")
        if kind is None or buffer >= len(self._buffers):
            raise WeightsError(f"its tensor {number} has kind {tensor.number(1, 'b')}, expected a float or int32.")
        data = self._buffers[buffer].numbers(0, np.dtype("u1"))
        count = math.prod(shape)
        self._numbers += count
        if self._numbers > MOST_NUMBERS:
            raise WeightsError(f"its constants have more than {MOST_NUMBERS} numbers.")
        table = tensor.table(6)
        if (
            (table is not None) != sparse
            or len(data) % kind.itemsize
            or (not sparse and count * kind.itemsize != len(data))
        ):
            raise WeightsError(
                f"its tensor {number} of shape {shape} has {len(data)} bytes, or is of unexpected sparsity."
            )
        values = data.view(kind)
        self._known[number] = values.reshape(shape) if table is None else _dense(values, shape, table)
        return self._known[number]


def _code(table: Table) -> tuple[str, dict[str, tuple[int, str, int]]]:
    """An operator's name and options."""
    code = max(table.number(0, "b"), table.number(3, "i"))
    if code == _CUSTOM and table.text(1) == _TRANSPOSED:
        return _TRANSPOSED, {}
    if code not in _OPERATORS:
        raise WeightsError(
            f"its operator {table.text(1) or code} is none of {', '.join(o for o, _ in _OPERATORS.values())}."
        )
    return _OPERATORS[code]


def _checked(kind: str, values: dict[str, int]) -> dict[str, Any]:
    """Options with their names, each in its range."""
    names: dict[str, dict[int, Any]] = {"padding": _PADDING, "activation": _ACTIVATION, "weights_format": {0: 0}}
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name in names:
            valid = value in names[name]
            checked[name] = names[name].get(value)
        elif name in ("align_corners", "half_pixel_centers", "keep_dims"):
            valid, checked[name] = True, bool(value)
        else:
            valid, checked[name] = (-MOST_RANK if name == "axis" else 1) <= value <= MOST_STRIDE, value
        if not valid:
            raise WeightsError(f"its {kind} has {name} {value}, which is not understood.")
    return checked


def _dense(values: NDArray[Any], shape: tuple[int, ...], table: Table) -> NDArray[Any]:
    """A matrix in compressed rows, its rows all axes but the last.

    Row i holds `values[starts[i] : starts[i + 1]]` at the columns `columns[starts[i] : starts[i + 1]]`.
    """
    axes = table.tables(2, MOST_RANK)
    order = table.numbers(0, np.dtype("<i4")).tolist()
    if order != list(range(len(shape))) or len(table.numbers(1, np.dtype("<i4"))) or len(axes) != len(shape):
        raise WeightsError(f"it has a sparse tensor in blocks or in the order {order[:MOST_RANK]}, expected rows.")
    if [axis.number(0, "b") for axis in axes] != [0] * (len(axes) - 1) + [1]:
        raise WeightsError("it has a sparse tensor in another form than compressed rows.")
    starts, columns = (_indices(axes[-1], field) for field in (2, 4))
    rows = math.prod(shape[:-1])
    whole = len(starts) == rows + 1 and starts[0] == 0 and starts[-1] == len(columns) == len(values)
    if not whole or (np.diff(starts) < 0).any() or (columns < 0).any() or (columns >= shape[-1]).any():
        raise WeightsError(f"it has a sparse tensor of shape {shape} whose rows do not fit.")
    dense = np.zeros((rows, shape[-1]), values.dtype)
    dense[np.repeat(np.arange(rows), np.diff(starts)), columns] = values
    return dense.reshape(shape)


def _indices(axis: Table, field: int) -> NDArray[Any]:
    """Whole numbers in a union of vectors: the field says of which size, the next one points at them."""
    kind, vector = _INDICES.get(axis.number(field, "B")), axis.table(field + 1)
    if kind is None or vector is None:
        raise WeightsError("it has a sparse tensor without indices.")
    return vector.numbers(0, kind).astype(np.int64)
