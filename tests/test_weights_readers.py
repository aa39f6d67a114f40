"""Files as they came are read, and one that is hostile or damaged runs no code and is refused in one line."""

import functools
import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save
from weights_entries import TENSORS

from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.weights.readers import ALEXNET, VGG16, read_files


@pytest.fixture
def read(tmp_path):
    """`read(reader, content)`: the tensors of a file with that content."""

    def run(reader, content):
        path = tmp_path / "tiny.file"
        path.write_bytes(content)
        return read_files(reader, [path])

    return run


def saved(state):
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def test_reads_what_torch_and_safetensors_wrote(read):
    torch.testing.assert_close(read("torch", saved(TENSORS)), TENSORS)
    torch.testing.assert_close(read("safetensors", save(TENSORS)), TENSORS)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(2)])
def test_what_is_no_dict_of_tensors_is_refused(read, content):
    with pytest.raises(WeightsError, match="tiny.file is refused: it holds a .*, expected a dict of tensors"):
        read("torch", saved(content))


# Trunks


def test_torchvisions_trunk_comes_without_its_classifier(read):
    state = {"features.0.weight": torch.ones(2, 3, 1, 1), "classifier.0.weight": torch.ones(1)}
    assert list(read("torchvision_trunk", saved(state))) == ["features.0.weight"]
    with pytest.raises(WeightsError, match="has no entries features"):
        read("torchvision_trunk", saved({"classifier.0.weight": torch.ones(1)}))


def flax(name, count):
    """A trunk as flax keeps it: kernels (height, width, in, out) that count upwards."""
    convolutions = {
        f"Conv_{i}": {"kernel": np.full((3, 2, 4, 5), i, np.float32), "bias": np.full(5, i, np.float32)}
        for i in range(count)
    }
    convolutions["Conv_0"]["kernel"] = np.arange(120, dtype=np.float32).reshape(3, 2, 4, 5)
    lines = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": np.ones((1, 1, 4, 1), np.float32)}} for i in range(5)}
    return {f"{name}_0": convolutions, **lines}


@pytest.mark.parametrize(("name", "layers"), [("VGG16", VGG16), ("AlexNet", ALEXNET)])
def test_flaxs_trunk_gets_torchvisions_names_and_order_of_axes(read, name, layers):
    import torchvision

    tree = flax(name, len(layers))
    trunk = read("flax_trunk", pickle.dumps(tree, 3))
    own = getattr(torchvision.models, name.lower())(weights=None).features.state_dict()
    assert set(trunk) == {f"features.{key}" for key in own}
    assert [int(trunk[f"features.{layer}.bias"][0]) for layer in layers] == list(range(len(layers)))
    kernel = tree[f"{name}_0"]["Conv_0"]["kernel"]
    weight = trunk["features.0.weight"]
    assert weight.shape == (5, 4, 3, 2)
    assert weight[4, 1, 2, 0] == kernel[2, 0, 1, 4]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda tree: tree.update(evil=np.zeros(1)), "an entry evil"),
        (lambda tree: tree["VGG16_0"].pop("Conv_12"), "is of no AlexNet or VGG16"),
        (lambda tree: tree["VGG16_0"]["Conv_3"].update(bias=np.zeros((2, 2))), r"Conv_3/bias of shape \(2, 2\)"),
        (lambda tree: tree.pop("VGG16_0"), "no convolutions"),
    ],
)
def test_another_tree_is_refused(read, change, fault):
    tree = flax("VGG16", 13)
    change(tree)
    with pytest.raises(WeightsError, match=fault):
        read("flax_trunk", pickle.dumps(tree, 3))


# Pickles


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_reads_pickles_of_numpy_arrays(read, protocol):
    arrays = OrderedDict((k, v.numpy()) for k, v in TENSORS.items())
    arrays["big endian"] = np.array([1.5, 2.5], dtype=">f4")
    arrays["scalar"] = np.float32(3)
    found = read("arrays", pickle.dumps(arrays, protocol))
    assert list(found) == list(arrays)
    torch.testing.assert_close({k: found[k] for k in TENSORS}, TENSORS)
    assert found["big endian"].tolist() == [1.5, 2.5]
    assert found["scalar"].item() == 3


def test_reads_arrays_of_every_shape_and_kind_of_number(read):
    arrays = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros((0, 3), np.float32),
        "point": np.array(7, np.int64),
        "half": np.ones(2, np.float16),
        "truth": np.array([True, False]),
    }
    for key, tensor in read("arrays", pickle.dumps(arrays, 4)).items():
        np.testing.assert_array_equal(tensor.numpy(), arrays[key], strict=True)


def test_reads_an_ordered_dict_of_pairs(read):
    pickled = pickle.dumps([["a", np.zeros(2)]], 0)
    pairs = b"ccollections\nOrderedDict\n(" + pickled[:-1] + b"tR."
    assert list(read("arrays", pairs)) == ["a"]


def test_reads_a_pickle_that_python_2_wrote(read):
    data = np.array([[1.0, -2.0]], dtype="<f4").tobytes()
    python_2 = (
        b"\x80\x02}U\x06weightcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01K\x02\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89U" + bytes([len(data)]) + data + b"tbs."
    )
    assert read("arrays", python_2)["weight"].tolist() == [[1.0, -2.0]]


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("reader", ["arrays", "flax_trunk", "torch", "torchvision_trunk"])
def test_a_file_runs_no_code(read, tmp_path, reader):
    content = {"weight": np.zeros(2), "evil": Evil(tmp_path / "was run")}
    if reader in ("arrays", "flax_trunk"):
        written = pickle.dumps(content, protocol=2)
    else:
        stream = io.BytesIO()
        torch.save(content, stream)
        written = stream.getvalue()
    with pytest.raises(WeightsError, match=r"tiny\.file (is refused: it refers to .*mkdir|cannot be read)") as caught:
        read(reader, written)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (pickle.dumps(eval, 2), r"builtin.*\.eval"),
        (b"cos\nsystem\n(S'true'\ntR.", r"os\.system"),
        (b"cnumpy.core.multiarray\nfrombuffer\n.", r"multiarray\.frombuffer"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "codec 'rot13'"),
        (pickle.dumps([1, 2], 2), "a list, expected a dict"),
        (pickle.dumps({"a": "text"}, 2), "'a' is no array"),
        (pickle.dumps({"a": np.array([None, {}], dtype=object)}, 2), "array of kind 'O8'"),
        (pickle.dumps({"a": np.zeros(2, dtype=complex)}, 2), "array of kind 'c16'"),
        (pickle.dumps({"a": np.zeros(2, dtype=[("x", "f4")])}, 2), "array of kind 'V4'"),
        # An object array over raw bytes: whoever touches its element ends the interpreter.
        (b"(dVa\ncnumpy\nndarray\n((I1\ntVO\nVAAAAAAAA\ntRs.", r"numpy\.ndarray over raw bytes"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "cannot be read"),
        (b"(dVa\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntVb\ntRs.", "only numpy.ndarray is"),
        (b"(dVa\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntRs.", "'a' is no array"),
        (b"(dVa\ncnumpy.core.multiarray\nscalar\n(VO\nVAAAAAAAA\ntRs.", "array of kind 'O'"),
        (b"ccollections\nOrderedDict\n(Vab\ntR.", "an OrderedDict of a str"),
        (b"cnumpy\ndtype\n(dVx\nI1\nsb.", "it changes what"),
        (pickle.dumps({"a": np.zeros(9)}, 2)[:-20], "cannot be read"),
        (b"not a pickle", "cannot be read"),
        (b"\x80\x02}r\xff\xff\xff\x0f.", "asks for 268435455 places in memory after 3 steps"),
        (b"}p999999999\n.", "asks for 999999999 places in memory"),
        (
            pickle.dumps(functools.reduce(lambda inner, _: {"a": inner}, range(12), np.zeros(1)), 2),
            "no array of numbers",
        ),
    ],
)
def test_other_pickles_are_refused(read, pickled, reason):
    with pytest.raises(WeightsError, match=reason) as caught:
        read("arrays", pickled)
    assert str(caught.value).startswith("tiny.file ")


@pytest.mark.parametrize("reader", ["torch", "torchvision_trunk", "safetensors", "arrays", "flax_trunk"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no", b"\xff" * 99, b"\0\0\0\x80\x02\0\0\0{}"])
def test_a_damaged_file_is_told_in_one_line(read, reader, content):
    """The last has a header of ten gigabytes, by its own word."""
    with pytest.raises(WeightsError, match=r"tiny\.file cannot be read.*damaged") as caught:
        read(reader, content)
    assert "\n" not in str(caught.value)
