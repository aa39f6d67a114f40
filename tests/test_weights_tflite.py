"""Files of TensorFlow Lite are read as tensors and a graph, or refused in one line."""

import json

import numpy as np
import pytest
import torch
from tflite_files import Sparse, flatbuffer, tflite_file

from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.weights.flatbuffer import Table, root
from mldm_plugin.perceptual.weights.tflite import MOST_NUMBERS, read_tflite

CONVOLUTION = {0: 0, 1: 1, 2: 1, 3: 0, 4: 1, 5: 1}
WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 1, 1, 3)
BIAS = np.ones(2, np.float32)


def conv(weight=WEIGHT, bias=BIAS, reads=0, **changes):
    return (
        "CONV_2D",
        [reads, weight, bias],
        (1, 4, 4, 2),
        {**CONVOLUTION, **{int(k[1:]): v for k, v in changes.items()}},
    )


def test_tensors_and_graph_come_out():
    state = read_tflite(tflite_file((1, 4, 4, 3), [conv(f3=1), ("LOGISTIC", [1], (1, 4, 4, 2), {})]))
    graph = json.loads(bytes(state["graph"].tolist()))
    assert graph["input"] == {"tensor": 0, "shape": [1, 4, 4, 3]}
    assert [operator["kind"] for operator in graph["operators"]] == ["CONV_2D", "LOGISTIC"]
    first, second = graph["operators"]
    assert (first["padding"], first["stride_h"], first["activation"]) == ("SAME", 1, "RELU")
    assert second["inputs"] == [first["output"]]
    assert graph["outputs"] == [second["output"]]
    assert torch.equal(state[f"constant.{first['inputs'][1]}"], torch.from_numpy(WEIGHT))
    assert torch.equal(state[f"constant.{first['inputs'][2]}"], torch.from_numpy(BIAS))
    assert len(state) == 3


def test_sparse_and_half_constants_stay_halves():
    dense = np.array([[0, 2, 0], [0, 0, 0], [1, 0, 3]], np.float16).reshape(3, 1, 1, 3)
    state = read_tflite(
        tflite_file(
            (1, 4, 4, 3),
            [
                ("DENSIFY", [Sparse(dense)], (3, 1, 1, 3), {}),
                ("DEQUANTIZE", [1], (3, 1, 1, 3), {}),
                ("CONV_2D", [0, 2, np.zeros(3, np.float32)], (1, 4, 4, 3), CONVOLUTION),
            ],
        )
    )
    graph = json.loads(bytes(state["graph"].tolist()))
    [operator] = graph["operators"]
    weight = state[f"constant.{operator['inputs'][1]}"]
    assert weight.dtype == torch.float16
    assert torch.equal(weight, torch.from_numpy(dense))


def test_what_is_not_understood_is_refused():
    def refused(message, content):
        with pytest.raises(WeightsError, match=message) as caught:
            read_tflite(content)
        assert "\n" not in str(caught.value)

    refused("expected b'TFL3'", flatbuffer({}, identifier=b"ABCD"))
    refused("has 0 graphs", flatbuffer({0: 3}))
    refused("operator 99 is none of ADD", flatbuffer({1: [{0: 99, 3: 99}], 2: [{}]}))
    refused("operator Mine is none of", flatbuffer({1: [{0: 32, 1: "Mine", 3: 32}], 2: [{}]}))
    refused("has 0 inputs", flatbuffer({1: [], 2: [{}]}))
    refused("stride_w 0", tflite_file((1, 4, 4, 3), [conv(f1=0)]))
    refused("padding 7", tflite_file((1, 4, 4, 3), [conv(f0=7)]))
    refused("activation 4", tflite_file((1, 4, 4, 3), [conv(f3=4)]))
    refused("kind", tflite_file((1, 4, 4, 3), [("DEQUANTIZE", [np.ones(2, np.int32)], (2,), {})]))
    refused("another shape", tflite_file((1, 4, 4, 3), [("DEQUANTIZE", [np.ones(2, np.float16)], (3,), {})]))
    refused("unexpected sparsity", tflite_file((1, 4, 4, 3), [conv(weight=Sparse(WEIGHT))]))
    refused("unexpected sparsity", tflite_file((1, 4, 4, 3), [("DENSIFY", [WEIGHT], WEIGHT.shape, {})]))


def graph_of(tensors, operators, inputs=(0,), outputs=(2,), buffers=({},)):
    """A file of additions."""
    graph = {0: list(tensors), 1: list(inputs), 2: list(outputs), 3: list(operators)}
    return flatbuffer({1: [{0: 0}], 2: [graph], 4: list(buffers)})


@pytest.mark.parametrize(
    ("message", "operators", "outputs"),
    [
        ("tensor 1 of shape", [{1: [0, 1], 2: [2]}], (2,)),  # reads what nothing has written, and is no constant
        ("tensor 2 of shape", [{1: [0, 2], 2: [2]}], (2,)),  # reads itself
        ("written twice", [{1: [0, 0], 2: [2]}, {1: [0, 0], 2: [2]}], (2,)),
        ("written twice", [{1: [0, 0], 2: [0]}], (0,)),
        ("its outputs are", [{1: [0, 0], 2: [2]}], (1,)),
        ("its outputs are", [{1: [0, 0], 2: [2]}], ()),
        (r"tensors \[0, 9\]", [{1: [0, 9], 2: [2]}], (2,)),
        (r"tensors \[0, -1\]", [{1: [0, -1], 2: [2]}], (2,)),
        ("0 inputs and 1 outputs", [{2: [2]}], (2,)),
        ("names operator 5 of 1", [{0: 5, 1: [0, 0], 2: [2]}], (2,)),
        ("expected at most 16", [{1: [0] * 17, 2: [2]}], (2,)),
    ],
)
def test_a_graph_that_does_not_lead_anywhere_is_refused(message, operators, outputs):
    with pytest.raises(WeightsError, match=message):
        read_tflite(graph_of([{0: [1, 2]}] * 3, operators, outputs=outputs))


def test_sizes_that_no_network_has_are_refused():
    huge = [{0: [1, 2]}, {0: [MOST_NUMBERS, 4]}, {0: [1, 2]}]
    with pytest.raises(WeightsError, match="more than 33554432 numbers"):
        read_tflite(graph_of(huge, [{1: [0, 1], 2: [2]}]))
    with pytest.raises(WeightsError, match="has shape"):
        read_tflite(graph_of([{0: [1, 2]}, {0: [-1]}, {0: [1]}], [{1: [0, 1], 2: [2]}]))
    with pytest.raises(WeightsError, match="has shape"):
        read_tflite(graph_of([{0: [1, 2]}, {0: [1] * 6}, {0: [1]}], [{1: [0, 1], 2: [2]}]))


@pytest.mark.parametrize("starts", [[0, 1], [0, 1, 3, 3], [1, 1, 2, 2], [0, 2, 1, 2]])
def test_sparse_rows_that_do_not_fit_are_refused(starts):
    axis = {0: 1, 2: 1, 3: {0: starts}, 4: 1, 5: {0: [0, 1]}}
    sparse = {0: [3, 2], 1: 0, 2: 1, 6: {0: [0, 1], 2: [{0: 0, 1: 3}, axis]}}
    content = flatbuffer(
        {
            1: [{0: 124, 3: 124}],
            2: [{0: [{0: [1, 2]}, sparse, {0: [3, 2]}], 1: [0], 2: [2], 3: [{1: [1], 2: [2]}]}],
            4: [{}, {0: np.ones(2, np.float32).tobytes()}],
        }
    )
    with pytest.raises(WeightsError, match="rows do not fit"):
        read_tflite(content)


def everything(content):
    table = root(content, b"TFL3")
    return table.number(0, "i"), table.numbers(2, np.dtype("<i4")), table.text(1)


def test_offsets_outside_the_file_are_refused():
    whole = flatbuffer({0: 7, 2: [1, 2, 3], 1: "text"})
    table = root(whole, b"TFL3")
    assert (table.number(0, "i"), table.text(1), table.numbers(2, np.dtype("<i4")).tolist()) == (7, "text", [1, 2, 3])
    assert (table.number(9, "i", 5), table.text(9), table.table(9), table.tables(9, 1)) == (5, "", None, [])
    for end in range(len(whole) - 1):  # the last byte ends a text
        with pytest.raises(WeightsError, match=r"points at byte|begins with|claims a list"):
            everything(whole[:end])
    with pytest.raises(WeightsError, match="points at byte -"):
        Table(b"\xff\x00\x00\x00" + bytes(8), 0)


def test_long_lists_are_refused():
    with pytest.raises(WeightsError, match="list of 3 entries, expected at most 2"):
        root(flatbuffer({0: [{}, {}, {}]}), b"TFL3").tables(0, 2)
    with pytest.raises(WeightsError, match="text of 5000 bytes"):
        root(flatbuffer({0: "x" * 5000}), b"TFL3").text(0)
