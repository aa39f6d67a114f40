"""Entries of the table of weights for tests: their files lie on this disk, in archives made here."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from mldm_plugin.perceptual.weights import (
    WEIGHT_FILES,
    Address,
    Addresses,
    Package,
    WeightFile,
    locate,
    tensors,
)

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.0, -1.0])}
CONTENT = save(TENSORS)
MEMBER = "tiny_weights-1.0/tiny_weights/tiny.st"
SETUP = "import pathlib\npathlib.Path(__file__).with_name('was run').touch()\npathlib.Path({mark!r}).touch()\n"


def needs_weights(*names: str) -> pytest.MarkDecorator:
    """Skips a test where weights are missing, with the command that fetches them."""
    try:
        missing = [name for name in names if locate(name) is None]
    except Exception as error:  # torch does not import: other tests say so
        return pytest.mark.skip(reason=str(error))
    return pytest.mark.skipif(bool(missing), reason=f"mldm weights fetch {' '.join(missing)}")


def sdist(folder: Path, mark: Path, content: bytes = CONTENT) -> Path:
    """tiny_weights-1.0.tar.gz with the weights, and a setup.py that makes the file `mark` if anybody runs it."""
    files = {
        "tiny_weights-1.0/PKG-INFO": b"Metadata-Version: 2.1\nName: tiny_weights\nVersion: 1.0\n",
        "tiny_weights-1.0/setup.py": SETUP.format(mark=str(mark)).encode(),
        MEMBER: content,
    }
    folder.mkdir(parents=True, exist_ok=True)
    return tar_of(folder / "tiny_weights-1.0.tar.gz", files)


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def package(archive: Path, **changes: Any) -> Package:
    """The source that `archive` is, made by `sdist`."""
    content = archive.read_bytes()
    fields: dict[str, Any] = {
        "name": "tiny_weights",
        "version": "1.0",
        "archive": archive.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "members": ((MEMBER, len(CONTENT)),),
        "reader": "safetensors",
    }
    return Package(**{**fields, **changes})


def addresses(path: Path, **changes: Any) -> Addresses:
    """The file at `path`, of the tiny network's tensors, as a source."""
    fields: dict[str, Any] = {
        "url": path.as_uri(),
        "file_name": "tiny.st",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "size": len(CONTENT),
    }
    return Addresses("safetensors", (Address(**{**fields, **changes}),))


def put(monkeypatch: pytest.MonkeyPatch, *sources: Package | Addresses, name: str = "tiny", **changes: Any) -> None:
    """Put an entry into the table."""
    fields: dict[str, Any] = {"licence": "none", "terms": "free", "digest": tensors.digest(TENSORS), **changes}
    monkeypatch.setitem(WEIGHT_FILES, name, WeightFile(name=name, sources=sources, **fields))


def unreachable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the entry `name` take any file that is put into the cache by hand, and reach none by itself."""
    file = WEIGHT_FILES[name]
    sources = tuple(
        replace(
            source,
            files=tuple(
                replace(a, url="file:///nowhere/x", page=None, sha256=None, size=None, packed=None)
                for a in source.files
            ),
        )
        for source in file.sources
        if isinstance(source, Addresses)
    )
    monkeypatch.setitem(WEIGHT_FILES, name, replace(file, sources=sources, digest=None))


def graph_model(folder: Path, arrays: Mapping[str, np.ndarray], **changes: Any) -> list[Path]:
    """A graph model of TensorFlow.js without a graph: tiny.json and tiny.bin; float16 counts as quantised float32."""
    weights: list[dict[str, Any]] = []
    for name, array in arrays.items():
        kept = {"dtype": "float32", "quantization": {"dtype": "float16", "original_dtype": "float32"}}
        kind = kept if array.dtype == np.float16 else {"dtype": str(array.dtype)}
        weights.append({"name": name, "shape": list(array.shape), **kind})
    model = {"format": "graph-model", "modelTopology": {}, "weightsManifest": [{"paths": ["tiny.bin"]}], **changes}
    model["weightsManifest"][0].setdefault("weights", weights)
    (folder / "tiny.json").write_text(json.dumps(model))
    (folder / "tiny.bin").write_bytes(b"".join(array.tobytes() for array in arrays.values()))
    return [folder / "tiny.json", folder / "tiny.bin"]


def dlib_file(
    state: Mapping[str, torch.Tensor],
    scale: float = 1,
    shift: float = 0,
    leave_out: int | None = None,
    blocks_of_levels: Sequence[int] = (3, 4, 3, 3, 1),
) -> bytes:
    """dlib's file of its face network with the weights `state`, as dlib itself writes it.

    Every affine layer scales and shifts by the same numbers; the layer `leave_out` is missing.
    """
    layers: list[bytes | None] = []  # None: a layer that marks or repeats another one's output
    convolutions = iter(range(1 + 2 * sum(blocks_of_levels)))

    def convolution(stride: int, padding: int) -> list[bytes]:
        i = next(convolutions)
        weight, bias = state[f"convolutions.{i}.weight"], state[f"convolutions.{i}.bias"]
        count, _, side, _ = weight.shape
        channels = _shape(1, 1, count, 1, 1)
        numbers = torch.cat([weight.flatten(), bias])
        affine = torch.cat([torch.full((count,), float(scale)), torch.full((count,), float(shift))])
        return [
            _text("con_4")
            + _tensor(numbers)
            + _wholes(count, side, side, stride, stride, padding, padding)
            + _shape(1, *weight.shape)
            + channels
            + _floats(1, 1, 1, 0),
            _text("affine_") + _tensor(affine) + channels + channels + _whole(0),
        ]

    def window(name: str, *numbers: int) -> bytes:
        return _text(name) + _wholes(*numbers)

    layers += [*convolution(2, 0), _text("relu_"), window("max_pool_2", 3, 3, 2, 2, 0, 0)]
    for level, blocks in enumerate(blocks_of_levels):
        for block in range(blocks):
            halves = level > 0 and block == 0
            layers += [None, *convolution(2 if halves else 1, 0 if halves else 1)]
            layers += [_text("relu_"), *convolution(1, 1)]
            layers += [None, None, window("avg_pool_2", 2, 2, 2, 2, 0, 0)] if halves else []
            layers += [_text("add_prev_"), _text("relu_")]
    outputs, inputs = state["embedding.weight"].shape
    embedding = _wholes(outputs, inputs) + _tensor(state["embedding.weight"].T, (inputs, outputs, 1, 1))
    empty = _shape(1, 0, 0, 0, 0)
    layers += [window("avg_pool_2", 0, 0, 1, 1, 0, 0)]
    layers += [_text("fc_2") + embedding + _shape(1, inputs, outputs, 1, 1) + empty + _whole(1) + _floats(1, 1, 1, 0)]
    if leave_out is not None:
        del layers[leave_out]
    tail = b"110" + _tensor(torch.zeros(0)) * 3
    versions = _wholes(*(1 if layer is None else 2 for layer in reversed(layers[1:])), 3)
    head = _whole(1) + _text("loss_metric_2") + _floats(0.04, 0.6) + versions + _text("input_rgb_image_sized")
    body = [layer + tail for layer in layers if layer is not None]
    body[0] += _whole(1)
    return head + _floats(122.782, 117.001, 104.298) + _wholes(150, 150) + b"".join(body)


def _whole(value: int) -> bytes:
    size = (abs(value).bit_length() + 7) // 8 or 1
    return bytes([size | (128 if value < 0 else 0)]) + abs(value).to_bytes(size, "little")


def _wholes(*values: int) -> bytes:
    return b"".join(map(_whole, values))


def _floats(*values: float) -> bytes:
    """Mantissa and exponent of each."""
    parts = [math.frexp(value) for value in values]
    return b"".join(_wholes(round(mantissa * 2**24), exponent - 24) for mantissa, exponent in parts)


def _text(value: str) -> bytes:
    return _whole(len(value)) + value.encode()


def _shape(version: int, *sides: int) -> bytes:
    return _wholes(version, *sides)


def _tensor(values: torch.Tensor, shape: tuple[int, ...] | None = None) -> bytes:
    flat = values.contiguous().flatten()
    sides = shape or (len(flat), 1, 1, 1)
    return _shape(2, *(sides if len(flat) else (0, 0, 0, 0))) + flat.numpy().astype("<f4").tobytes()
