"""Graph models of TensorFlow.js: their arrays are read, and what is no such file is refused in one line."""

import json

import numpy as np
import pytest
import torch
from weights_entries import graph_model

from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.weights import readers
from mldm_plugin.perceptual.weights.tfjs import read_graph_model

ARRAYS = {
    "a/kernel": np.arange(6, dtype=np.float16).reshape(1, 2, 3) / 8,
    "a/bias": np.array([0.1, -1], np.float32),
    "axes": np.array([1, 2], np.int32),
    "six": np.array(6, np.float16),
}


def weight(shape, dtype="float32", name="a", **more):
    return {"name": name, "shape": shape, "dtype": dtype, **more}


def test_arrays_are_read_and_float16_becomes_float32(tmp_path):
    found = read_graph_model(graph_model(tmp_path, ARRAYS))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        kind = torch.int32 if array.dtype == np.int32 else torch.float32
        torch.testing.assert_close(found[name], torch.from_numpy(array).to(kind), rtol=0, atol=0)


def test_several_groups_and_files_are_joined(tmp_path):
    _, numbers = graph_model(tmp_path, ARRAYS)
    content = numbers.read_bytes()
    (tmp_path / "one.bin").write_bytes(content[:5])  # inside a number
    (tmp_path / "two.bin").write_bytes(content[5:12])
    (tmp_path / "three.bin").write_bytes(content[12:])
    described = json.loads((tmp_path / "tiny.json").read_text())
    weights = described["weightsManifest"][0]["weights"]
    groups = [
        {"paths": ["one.bin", "two.bin"], "weights": weights[:1]},
        {"paths": ["three.bin"], "weights": weights[1:]},
    ]
    (tmp_path / "tiny.json").write_text(json.dumps({**described, "weightsManifest": groups}))
    found = read_graph_model([tmp_path / name for name in ("tiny.json", "three.bin", "one.bin", "two.bin")])
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name].numpy(), array)


@pytest.mark.parametrize(
    ("weights", "fault"),
    [
        ([weight([3])], r"'a' wants 12 bytes where 8 are left"),
        ([weight([1])], "4 bytes follow the last array"),
        ([], "8 bytes follow the last array"),
        ([weight([10**12, 10**12])], r"'a' has the shape \[1000000000000, 1000000000000\]"),
        ([weight([8, 8, 8, 8, 8, 8, 8, 8])], "'a' wants 67108864 bytes where 8 are left"),
        ([weight([1] * 9)], "'a' has the shape"),
        ([weight([-1, -2])], "'a' has the shape"),
        ([weight([0, 2]), weight([2], name="b")], "'a' has the shape"),
        ([weight([True, 2])], "'a' has the shape"),
        ([weight([2.0])], "'a' has the shape"),
        ([weight("2")], "'a' has the shape '2'"),
        ([weight([2], "string")], "'a' is of 'string', expected float32, float16, int32"),
        ([weight([8], quantization={"dtype": "uint8", "scale": 1, "min": 0})], "'a' is of 'uint8'"),
        ([weight([1]), weight([1])], "two arrays called 'a'"),
        ([weight([2], name=None)], "two arrays called None, or one without a name"),
        ([weight([3], name="x" * 5000 + "\n")], "'x{79}… wants 12 bytes"),
        ([{"name": "a"}], "cannot be read .KeyError"),
        (7, "cannot be read .TypeError"),
    ],
)
def test_shapes_that_do_not_match_the_bytes_are_refused(tmp_path, monkeypatch, weights, fault):
    monkeypatch.setitem(readers.READERS, "graph", read_graph_model)
    files = graph_model(
        tmp_path, {"a": np.zeros(2, np.float32)}, weightsManifest=[{"paths": ["tiny.bin"], "weights": weights}]
    )
    with pytest.raises(WeightsError, match=fault) as caught:
        readers.read_files("graph", files)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("paths", "fault"),
    [
        (["other.bin"], "names a file 'other.bin', expected one of tiny.bin"),
        (["../tiny.bin"], r"names a file '\.\./tiny.bin'"),
        (["/etc/passwd"], "names a file '/etc/passwd'"),
        (["tiny.bin", "tiny.bin"], "names a file 'tiny.bin', expected one of none"),
        (["tiny.json"], "names a file 'tiny.json'"),
        ([["tiny.bin"]], r"names a file \['tiny.bin'\]"),
        ([], "'a' has the shape"),
    ],
)
def test_no_file_but_the_given_ones_is_opened(tmp_path, monkeypatch, paths, fault):
    monkeypatch.setitem(readers.READERS, "graph", read_graph_model)
    manifest = [{"paths": paths, "weights": [weight([2])]}]
    files = graph_model(tmp_path, {"a": np.zeros(2, np.float32)}, weightsManifest=manifest)
    with pytest.raises(WeightsError, match=f"tiny.json, tiny.bin is refused: .*{fault}"):
        readers.read_files("graph", files)


def test_a_file_that_is_not_named_is_told(tmp_path):
    files = graph_model(tmp_path, ARRAYS)
    with pytest.raises(WeightsError, match="it does not name more.bin"):
        read_graph_model([*files, tmp_path / "more.bin"])


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "{}", '{"format": "layers-model"}', "[" * 100_000, "9" * 100_000]
)
def test_what_is_no_graph_model_is_refused(tmp_path, content):
    files = graph_model(tmp_path, ARRAYS)
    files[0].write_text(content)
    with pytest.raises(WeightsError, match=r"tiny.json, tiny.bin (is refused: it is no graph model|cannot be read)"):
        readers.read_files("faceres", files)


# human's faceres


def test_another_graph_model_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="it has no array 'conv1_relu/Const_1'; expected human's faceres"):
        readers.read_files("faceres", graph_model(tmp_path, ARRAYS))
    other = {"conv1_relu/Const_1": np.array(0, np.float16), "conv1_relu/Cast": np.array(7, np.float16)}
    with pytest.raises(WeightsError, match="follows its convolution conv1 does not cut at 0 and 6"):
        readers.read_files("faceres", graph_model(tmp_path, other))
