"""Networks of TensorFlow Lite, run by torch."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.frozen import Frozen
from mldm_plugin.perceptual.weights import load_state_dict
from mldm_plugin.perceptual.weights.tflite import GRAPH

Options = Mapping[str, Any]


class TfliteGraph(nn.Module):
    """A graph of float operators as `read_tflite` gives it; gradients flow, and each picture is by itself.

    Inside, tensors keep TFLite's order of axes, (N, H, W, C); torch's convolutions see them permuted, which is a view
    in the order that is fastest on a CPU. Constants are float32 here, those of whole numbers are lists.

    Args:
        state: `constant.I` and `graph`, from `read_tflite`.
        outputs: which of the graph's outputs are wanted; what only others need is left out. None is all of them.
        inside: numbers of tensors inside the graph that are wanted, too; they come before the outputs.

    Args to the call:
        images: (N, 3, H, W) of the network's `size`, in the range that it was trained on.

    Returns:
        A list of what is wanted, (N, …) in TFLite's order of axes.

    Raises:
        WeightsError: a graph that refers to what is not there, or pictures of another size.

    Source: TensorFlow Lite's operator reference and its reference kernels, for padding, resizing and rounding.
    """

    def __init__(
        self, state: Mapping[str, Tensor], outputs: Sequence[int] | None = None, inside: Sequence[int] = ()
    ) -> None:
        super().__init__()
        graph = _graph_of(state)
        if unknown := set(inside) - {operator["output"] for operator in graph["operators"]}:
            raise WeightsError(f"The graph computes no tensors {sorted(unknown)}; take outputs of its operators.")
        self._input: int = graph["input"]["tensor"]
        _, height, width, self._channels = graph["input"]["shape"]
        self.size: tuple[int, int] = (height, width)
        last = range(len(graph["outputs"])) if outputs is None else outputs
        self._outputs = [*inside, *(graph["outputs"][i] for i in last)]
        self.operators = _needed(graph["operators"], self._outputs)
        self._lists: dict[int, list[int]] = {}
        computed = {self._input}
        for operator in self.operators:
            for number in operator["inputs"]:
                if number not in computed:
                    self._keep(number, state)
            computed.add(operator["output"])
        self._last_use = {number: i for i, o in enumerate(self.operators) for number in o["inputs"]}

    def _keep(self, number: int, state: Mapping[str, Tensor]) -> None:
        name = f"constant.{number}"
        if name not in state:
            raise WeightsError(f"The graph has no {name}; fetch the file that `mldm weights list` names.")
        value = state[name]
        if value.is_floating_point():
            self.register_buffer(f"constant_{number}", value.float())
        else:
            self._lists[number] = value.flatten().tolist()

    def forward(self, images: Tensor) -> list[Tensor]:
        if images.shape[1:] != (self._channels, *self.size):
            expected = f"(N, {self._channels}, {self.size[0]}, {self.size[1]})"
            raise WeightsError(f"The network takes pictures {expected}, not {tuple(images.shape)}; resize them first.")
        values: dict[int, Tensor] = {self._input: images.permute(0, 2, 3, 1)}
        for i, operator in enumerate(self.operators):
            given = [self._value(number, values) for number in operator["inputs"]]
            values[operator["output"]] = OPERATIONS[operator["kind"]](operator, *given)
            for number in operator["inputs"]:
                if self._last_use[number] == i and number not in self._outputs:
                    values.pop(number, None)
        return [values[number] for number in self._outputs]

    def _value(self, number: int, values: Mapping[int, Tensor]) -> Any:
        if number in values:
            return values[number]
        return self._lists[number] if number in self._lists else getattr(self, f"constant_{number}")


def _graph_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    if GRAPH not in state:
        raise WeightsError(f"The weights have no {GRAPH!r}; expected what `read_tflite` makes of a .tflite file.")
    graph: dict[str, Any] = json.loads(bytes(state[GRAPH].tolist()))
    return graph


def _needed(operators: Sequence[Options], outputs: Sequence[int]) -> list[Options]:
    """Those operators that lead to `outputs`, in their order."""
    wanted, kept = set(outputs), []
    for operator in reversed(operators):
        if operator["output"] in wanted:
            wanted.update(operator["inputs"])
            kept.append(operator)
    return kept[::-1]


def _activated(x: Tensor, options: Options) -> Tensor:
    if options["activation"] == "RELU":
        return F.relu(x)
    return F.relu6(x) if options["activation"] == "RELU6" else x


def _padded(x: Tensor, options: Options, kernel: Sequence[int], value: float = 0.0) -> tuple[Tensor, tuple[int, int]]:
    """`x` (N, C, H, W) with SAME's padding, as far as it is uneven; the rest is for the convolution itself.

    SAME gives ⌈side / stride⌉ outputs. Of an odd number of padding pixels the larger half goes to the end.
    """
    if options["padding"] == "VALID":
        return x, (0, 0)
    strides = (options["stride_h"], options["stride_w"])
    dilations = (options.get("dilation_h", 1), options.get("dilation_w", 1))
    totals = [
        max(0, (-(-side // stride) - 1) * stride + dilation * (k - 1) + 1 - side)
        for side, stride, dilation, k in zip(x.shape[2:], strides, dilations, kernel, strict=True)
    ]
    if not any(total % 2 for total in totals) and value == 0:
        return x, (totals[0] // 2, totals[1] // 2)
    top, left = totals[0] // 2, totals[1] // 2
    return F.pad(x, (left, totals[1] - left, top, totals[0] - top), value=value), (0, 0)


def _convolution(options: Options, x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """`x` (N, H, W, C) and `weight` (out, in / groups, H, W)."""
    padded, padding = _padded(x.permute(0, 3, 1, 2), options, weight.shape[2:])
    strides = (options["stride_h"], options["stride_w"])
    dilations = (options["dilation_h"], options["dilation_w"])
    y = F.conv2d(padded, weight, bias, strides, padding, dilations, groups)
    return _activated(y.permute(0, 2, 3, 1), options)


def _conv_2d(options: Options, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _convolution(options, x, weight.permute(0, 3, 1, 2), bias, groups=1)


def _depthwise_conv_2d(options: Options, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _convolution(options, x, weight.permute(3, 0, 1, 2), bias, groups=x.shape[3])


def _average_pool_2d(options: Options, x: Tensor) -> Tensor:
    """The files here average whole maps or whole blocks: without padding."""
    kernel, strides = (options["filter_h"], options["filter_w"]), (options["stride_h"], options["stride_w"])
    padded, padding = _padded(x.permute(0, 3, 1, 2), options, kernel)
    if any(padding) or padded.shape[2:] != x.shape[1:3]:
        raise WeightsError("AVERAGE_POOL_2D with padding is not understood.")
    return _activated(F.avg_pool2d(padded, kernel, strides).permute(0, 2, 3, 1), options)


def _max_pool_2d(options: Options, x: Tensor) -> Tensor:
    kernel = (options["filter_h"], options["filter_w"])
    padded, _ = _padded(x.permute(0, 3, 1, 2), options, kernel, value=-torch.inf)
    y = F.max_pool2d(padded, kernel, (options["stride_h"], options["stride_w"]))
    return _activated(y.permute(0, 2, 3, 1), options)


def _fully_connected(options: Options, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _activated(F.linear(x.reshape(-1, weight.shape[1]), weight, bias), options)


def _add(options: Options, x: Tensor, y: Tensor) -> Tensor:
    return _activated(x + y, options)


def _mul(options: Options, x: Tensor, y: Tensor) -> Tensor:
    return _activated(x * y, options)


def _relu(options: Options, x: Tensor) -> Tensor:
    return F.relu(x)


def _hard_swish(options: Options, x: Tensor) -> Tensor:
    return F.hardswish(x)


def _concatenation(options: Options, *xs: Tensor) -> Tensor:
    return _activated(torch.cat(xs, dim=options["axis"]), options)


def _pad(options: Options, x: Tensor, paddings: Sequence[int]) -> Tensor:
    """`paddings` is before and after each axis, the first axis first; F.pad wants the last one first."""
    axes = [paddings[i : i + 2] for i in range(0, len(paddings), 2)]
    return F.pad(x, [side for axis in reversed(axes) for side in axis])


def _mean(options: Options, x: Tensor, axes: Sequence[int]) -> Tensor:
    return x.mean(dim=tuple(axes), keepdim=options["keep_dims"])


def _prelu(options: Options, x: Tensor, slope: Tensor) -> Tensor:
    return F.prelu(x.permute(0, 3, 1, 2), slope.flatten()).permute(0, 2, 3, 1)


def _reshape(options: Options, x: Tensor, shape: Sequence[int]) -> Tensor:
    """The file's shape is that of one picture."""
    return x.reshape(len(x), *shape[1:])


def _resize_bilinear(options: Options, x: Tensor, size: Sequence[int]) -> Tensor:
    """The files here have TensorFlow 2's half-pixel centres, or corners that fall together, as torch has them."""
    if options["align_corners"] == options["half_pixel_centers"]:
        raise WeightsError("RESIZE_BILINEAR with neither half-pixel centres nor aligned corners is not understood.")
    y = F.interpolate(x.permute(0, 3, 1, 2), list(size), mode="bilinear", align_corners=options["align_corners"])
    return y.permute(0, 2, 3, 1)


def _depth_to_space(options: Options, x: Tensor) -> Tensor:
    """Channel (i·b + j)·C' + c of a pixel goes to channel c of row i, column j of its block of b × b pixels."""
    block = options["block_size"]
    count, height, width, channels = x.shape
    y = x.reshape(count, height, width, block, block, channels // block**2)
    return y.permute(0, 1, 3, 2, 4, 5).reshape(count, height * block, width * block, -1)


def _transposed_convolution(options: Options, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`weight` (out, H, W, in): each pixel becomes H × W pixels, the strides."""
    strides = (options["stride_h"], options["stride_w"])
    return F.conv_transpose2d(x.permute(0, 3, 1, 2), weight.permute(3, 0, 1, 2), bias, strides).permute(0, 2, 3, 1)


def _logistic(options: Options, x: Tensor) -> Tensor:
    return torch.sigmoid(x)


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "ADD": _add,
    "AVERAGE_POOL_2D": _average_pool_2d,
    "CONCATENATION": _concatenation,
    "CONV_2D": _conv_2d,
    "Convolution2DTransposeBias": _transposed_convolution,
    "DEPTHWISE_CONV_2D": _depthwise_conv_2d,
    "DEPTH_TO_SPACE": _depth_to_space,
    "FULLY_CONNECTED": _fully_connected,
    "HARD_SWISH": _hard_swish,
    "LOGISTIC": _logistic,
    "MAX_POOL_2D": _max_pool_2d,
    "MEAN": _mean,
    "MUL": _mul,
    "PAD": _pad,
    "PRELU": _prelu,
    "RELU": _relu,
    "RESHAPE": _reshape,
    "RESIZE_BILINEAR": _resize_bilinear,
}


@functools.cache
def frozen_graph(name: str, outputs: tuple[int, ...]) -> Frozen:
    """The pretrained network `name`, fetched on first use and kept for the process, with those of its outputs.

    Raises:
        WeightsError: weights that cannot be had.
    """
    return Frozen(TfliteGraph(load_state_dict(name), outputs))
