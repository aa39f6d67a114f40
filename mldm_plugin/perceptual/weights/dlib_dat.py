"""dlib's face recognition network, read from dlib's own file format without dlib.

A file is data alone: numbers, names of layers and raw floats. Layers nest in dlib, so the version numbers of all layers
come first, the outermost first; then the input layer; then what each layer holds, from the innermost outwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mldm_plugin.errors import WeightsError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# dlib, dnn_face_recognition_ex.cpp. The residual levels from the input on: channels, and blocks of two convolutions.
# The first block of each level but the first halves the picture.
LEVELS = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))
EMBEDDING = 128
MEAN_RGB = (122.782, 117.001, 104.298)  # dlib, input_rgb_image_sized: taken from pixels of 0 to 255
SIZE = 150  # pixels
MOST_LAYERS = 1000  # chosen: the file has 130
_INPUT = b"input_rgb_image_sized"
_CACHED = 3  # tensors that each layer keeps while it computes; empty in a file


def read_dlib_resnet(content: bytes) -> dict[str, Tensor]:
    """The weights in dlib_face_recognition_resnet_model_v1.dat, for `DlibResNet`.

    In the file an affine layer y = γ·(w ∗ x + b) + β follows each convolution. It is folded into it here.

    Args:
        content: of the file.

    Returns:
        `convolutions.i.weight` and `.bias`, i from 0 to 28 from the input on, and `embedding.weight`.

    Raises:
        WeightsError: another format, another network, or a damaged file.
    """
    import torch

    found = _Network()
    stream = _Stream(content)
    _read(stream, found)
    if stream.left:
        raise WeightsError(f"{stream.left} bytes follow the network.")
    if found.layers != list(_expected_layers()) or found.convolutions != list(_expected_convolutions()):
        raise WeightsError("its layers are not those of dlib's face recognition network.")
    return {name: torch.from_numpy(array.copy()) for name, array in found.weights.items()}


def _expected_convolutions() -> Iterator[tuple[int, ...]]:
    """Channels out and in, side, stride and padding of each convolution."""
    before = LEVELS[0][0]
    yield before, 3, 7, 2, 0
    for level, (channels, blocks) in enumerate(LEVELS):
        for block in range(blocks):
            halves = level > 0 and block == 0
            yield channels, before, 3, 2 if halves else 1, 0 if halves else 1
            yield channels, channels, 3, 1, 1
            before = channels


def _expected_layers() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and window of each layer."""
    convolution = (("con_4", ()), ("affine_", ()))
    yield from (*convolution, ("relu_", ()), ("max_pool_2", (3, 3, 2, 2, 0, 0)))
    for level, (_, blocks) in enumerate(LEVELS):
        for block in range(blocks):
            yield from (*convolution, ("relu_", ()), *convolution)
            if level > 0 and block == 0:
                yield "avg_pool_2", (2, 2, 2, 2, 0, 0)
            yield from (("add_prev_", ()), ("relu_", ()))
    yield from (("avg_pool_2", (0, 0, 1, 1, 0, 0)), ("fc_2", ()))


class _Stream:
    """dlib's serialisation of single values."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    @property
    def left(self) -> int:
        return len(self._content) - self._at

    def take(self, count: int) -> bytes:
        if not 0 <= count <= self.left:
            raise WeightsError(f"it wants {count} bytes where {self.left} are left.")
        self._at += count
        return self._content[self._at - count : self._at]

    def whole(self) -> int:
        """A byte with the sign in its highest bit and the count of bytes in its lowest four; then the bytes."""
        control = self.take(1)[0]
        value = int.from_bytes(self.take(control & 15), "little")
        return -value if control & 128 else value

    def wholes(self, count: int) -> list[int]:
        return [self.whole() for _ in range(count)]

    def floats(self, count: int) -> list[float]:
        return [math.ldexp(*self.wholes(2)) for _ in range(count)]  # mantissa, exponent

    def text(self) -> str:
        return self.take(self.whole()).decode("ascii")

    def shape(self, version: int) -> list[int]:
        """Four sides, after a version number."""
        found, *shape = self.wholes(5)
        if found != version or min(shape) < 0:
            raise WeightsError(f"it has a tensor of version {found} and shape {shape}.")
        return shape

    def tensor(self) -> np.ndarray:
        """Little-endian float32 behind their shape, as a flat array."""
        import numpy as np

        return np.frombuffer(self.take(4 * math.prod(self.shape(version=2))), "<f4")


@dataclass
class _Network:
    """What has been read so far."""

    layers: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    convolutions: list[tuple[int, ...]] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def last(self) -> str:
        """The beginning of the names of the last convolution's weights."""
        return f"convolutions.{len(self.convolutions) - 1}"


def _read(stream: _Stream, network: _Network) -> None:
    if (stream.whole(), stream.text()) != (1, "loss_metric_2"):
        raise WeightsError("it does not begin as dlib's file of a network with a metric loss does.")
    stream.floats(2)  # margin and threshold of that loss
    versions = _versions(stream)
    mean, size = stream.floats(3), stream.wholes(2)
    if size != [SIZE, SIZE] or any(abs(m - known) > 1e-3 for m, known in zip(mean, MEAN_RGB, strict=True)):
        raise WeightsError(f"its input is {size} pixels less {mean}, expected {SIZE} less {MEAN_RGB}.")
    for version in reversed(versions):
        if version == 1:
            continue  # a layer that only marks or repeats another one's output
        _read_layer(stream, network)
        if set(stream.take(3)) - set(b"01"):  # three truths, as text
            raise WeightsError("it has no truths behind a layer.")
        for _ in range(_CACHED):
            stream.tensor()
        if version == 3:
            stream.whole()  # of the first layer only: how many crops there are of each sample


def _versions(stream: _Stream) -> list[int]:
    """The version of each layer; the first number above 3 is the length of the input layer's name."""
    versions = []
    while (version := stream.whole()) <= 3:
        versions.append(version)
        if len(versions) > MOST_LAYERS or version < 1:
            raise WeightsError(f"it has a layer of version {version}, or more than {MOST_LAYERS} layers.")
    if version != len(_INPUT) or stream.take(version) != _INPUT:
        raise WeightsError(f"its input layer is not {_INPUT.decode()}.")
    return versions


def _read_layer(stream: _Stream, network: _Network) -> None:
    name = stream.text()
    if name not in _LAYERS:
        raise WeightsError(f"it has a layer {name!r}, which dlib's face recognition network has not.")
    network.layers.append((name, _LAYERS[name](stream, network)))


def _convolution(stream: _Stream, network: _Network) -> tuple[int, ...]:
    parameters = stream.tensor()
    count, height, width, *steps = stream.wholes(7)
    shape, bias = stream.shape(version=1), stream.shape(version=1)
    stream.floats(4)  # how fast it learned
    strides, paddings = set(steps[:2]), set(steps[2:])
    fits = math.prod(shape) + count == parameters.size and bias == [1, count, 1, 1] and shape[0] == count
    if not fits or shape[2:] != [height, width] or height != width or len(strides) != 1 or len(paddings) != 1:
        raise WeightsError(f"it has a convolution of shape {shape} for {parameters.size} numbers.")
    network.convolutions.append((*shape[:3], *strides, *paddings))
    network.weights[f"{network.last}.weight"] = parameters[:-count].reshape(shape)
    network.weights[f"{network.last}.bias"] = parameters[-count:]
    return ()


def _affine(stream: _Stream, network: _Network) -> tuple[int, ...]:
    """Scales γ and shifts β, one after the other; folded into the convolution before it."""
    parameters = stream.tensor()
    scales, shifts = stream.shape(version=1), stream.shape(version=1)
    stream.whole()  # whether it stands behind a convolution
    count = parameters.size // 2
    before = network.weights.get(f"{network.last}.bias")
    if scales != [1, count, 1, 1] or shifts != scales or before is None or before.size != count:
        raise WeightsError(f"it has an affine layer of shape {scales} behind another one's channels.")
    scale, shift = parameters[:count], parameters[count : 2 * count]
    network.weights[f"{network.last}.weight"] = network.weights[f"{network.last}.weight"] * scale[:, None, None, None]
    network.weights[f"{network.last}.bias"] = before * scale + shift
    return ()


def _embedding(stream: _Stream, network: _Network) -> tuple[int, ...]:
    """The last layer, inputs × outputs, without a bias."""
    outputs, inputs = stream.wholes(2)
    parameters = stream.tensor()
    stream.shape(version=1), stream.shape(version=1)
    stream.whole()  # whether it has a bias
    stream.floats(4)
    if (outputs, inputs, parameters.size) != (EMBEDDING, LEVELS[-1][0], EMBEDDING * LEVELS[-1][0]):
        raise WeightsError(
            f"its last layer brings {inputs} to {outputs} numbers, expected {LEVELS[-1][0]} to {EMBEDDING}."
        )
    network.weights["embedding.weight"] = parameters.reshape(inputs, outputs).T
    return ()


def _window(stream: _Stream, network: _Network) -> tuple[int, ...]:
    return tuple(stream.wholes(6))


def _nothing(stream: _Stream, network: _Network) -> tuple[int, ...]:
    return ()


_LAYERS: dict[str, Callable[[_Stream, _Network], tuple[int, ...]]] = {
    "con_4": _convolution,
    "affine_": _affine,
    "fc_2": _embedding,
    "max_pool_2": _window,
    "avg_pool_2": _window,
    "relu_": _nothing,
    "add_prev_": _nothing,
}
