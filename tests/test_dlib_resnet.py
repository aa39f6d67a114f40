"""dlib's face network: its file, its numbers, and how it tells people apart."""

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from make_step import ddpm, make_step, tiny_vae
from PIL import Image
from torch.nn import functional as F
from weights_entries import dlib_file, needs_weights

from mldm_plugin import LossStack
from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.dlib_resnet import DlibResNet
from mldm_plugin.perceptual.face_crops import FaceCrop, crop_faces
from mldm_plugin.perceptual.face_networks import FACE_NETWORKS, FaceFeatures, dlib_input
from mldm_plugin.perceptual.frozen import build_seeded
from mldm_plugin.perceptual.weights import WEIGHT_FILES, load_state_dict
from mldm_plugin.perceptual.weights.dlib_dat import MEAN_RGB, read_dlib_resnet

FREE = FACE_NETWORKS["dlib_resnet"]
pretrained = needs_weights("dlib_resnet")


@pytest.fixture(scope="module")
def network():
    return FaceFeatures("dlib_resnet")


@pytest.fixture(scope="module")
def astronaut():
    data = pytest.importorskip("skimage.data")
    return torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].float() / 127.5 - 1


ASTRONAUT = torch.tensor([[181.05, 62.16, 267.75, 172.05]])  # her face, by MTCNN


# The file


@pytest.fixture(scope="module")
def state():
    """Weights that tell where they went."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in DlibResNet().state_dict().items()}
    return {name: torch.randn(shape, generator=generator) / 10 for name, shape in shapes.items()}


def test_a_file_is_read_back(state):
    found = read_dlib_resnet(dlib_file(state))
    assert set(found) == set(state)
    for name, value in state.items():
        torch.testing.assert_close(found[name], value)


def test_affine_layers_are_folded_in(state):
    """y = γ·(w ∗ x + b) + β."""
    scaled = read_dlib_resnet(dlib_file(state, scale=2.0, shift=0.5))
    torch.testing.assert_close(scaled["convolutions.3.weight"], 2 * state["convolutions.3.weight"])
    torch.testing.assert_close(scaled["convolutions.3.bias"], 2 * state["convolutions.3.bias"] + 0.5)
    torch.testing.assert_close(scaled["embedding.weight"], state["embedding.weight"])


def test_another_network_is_refused(state):
    whole = dlib_file(state)
    for content, fault in (
        (whole + b"x", "1 bytes follow"),
        (whole[:-1], "it wants 1 bytes where 0 are left"),
        (whole.replace(b"loss_metric_2", b"loss_metric_9"), "does not begin as dlib's"),
        (whole.replace(b"input_rgb_image_sized", b"input_rgb_image_piled"), "input layer is not"),
        (whole.replace(b"add_prev_", b"system_ls"), "a layer 'system_ls'"),
        (whole.replace(b"relu_", b"con_4", 1), "it wants|has a tensor|has a convolution"),
    ):
        with pytest.raises(WeightsError, match=fault):
            read_dlib_resnet(content)
    with pytest.raises(WeightsError, match="layers are not those of"):
        read_dlib_resnet(dlib_file(state, leave_out=7))


def test_a_tensor_of_ten_gigabytes_is_refused(state):
    shape = b"".join(b"\x04" + struct.pack("<I", side) for side in (10000, 10000, 5, 5))
    whole = dlib_file(state)
    at = whole.index(b"con_4") + len(b"con_4")
    with pytest.raises(WeightsError, match=r"it wants 10000000000 bytes where \d+ are left"):
        read_dlib_resnet(whole[:at] + b"\x01\x02" + shape + whole[at:])


# The network


def test_shapes_are_those_of_the_docstring():
    features = build_seeded(DlibResNet)(torch.zeros(1, 3, 150, 150))
    expected = [(32, 35, 35), (64, 17, 17), (128, 8, 8), (256, 4, 4), (256, 2, 2), (128,)]
    assert [tuple(f.shape[1:]) for f in features] == expected
    assert len(FREE.layer_weights) == len(expected)


def test_the_input_is_dlibs():
    orange = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1)  # RGB 255, 127.5, 0
    expected = (torch.tensor([255, 127.5, 0]) - torch.tensor(MEAN_RGB)) / 256
    torch.testing.assert_close(dlib_input(orange).flatten(), expected)
    assert FREE.prepare is dlib_input
    assert FREE.crop == FaceCrop(size=150, extent=0.97, down=0.085)


@torch.no_grad()
def test_the_network_is_dlibs_written_out():
    network = build_seeded(DlibResNet).eval()
    s = network.state_dict()
    convolutions = iter(range(29))

    def conv(x, stride=1, padding=1):
        i = next(convolutions)
        return F.conv2d(x, s[f"convolutions.{i}.weight"], s[f"convolutions.{i}.bias"], stride, padding)

    faces = torch.rand(2, 3, 150, 150, generator=torch.Generator().manual_seed(0)) - 0.5
    x = F.max_pool2d(conv(faces, 2, 0).relu(), 3, 2)
    levels = []
    for channels, blocks in ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1)):
        for block in range(blocks):
            halves = channels != 32 and block == 0
            y = conv(conv(x, 2 if halves else 1, 0 if halves else 1).relu())
            if halves:
                x = F.avg_pool2d(x, 2)
                sides = [max(a, b) for a, b in zip(x.shape[1:], y.shape[1:], strict=True)]
                wide = torch.zeros(2, 2, *sides)
                for part, t in enumerate((x, y)):
                    wide[:, part, : t.shape[1], : t.shape[2], : t.shape[3]] = t
                x = wide.sum(dim=1).relu()
            else:
                x = (x + y).relu()
        levels.append(x)
    levels.append(x.mean(dim=(2, 3)) @ s["embedding.weight"].T)
    for ours, literal in zip(network(faces), levels, strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-4, atol=1e-5)


@pretrained
@torch.no_grad()
def test_embeddings_are_dlibs_own(network, astronaut, tmp_path):
    dlib = pytest.importorskip("dlib", reason="pip install dlib-bin")
    path = tmp_path / "network.dat"
    path.write_bytes(dlib_file(load_state_dict("dlib_resnet")))
    theirs = dlib.face_recognition_model_v1(str(path))
    chips = [astronaut[0, :, 30:180, 150:300], astronaut[0, :, 300:450, 60:210], torch.zeros(3, 150, 150) - 0.3]
    pixels = [((chip + 1) * 127.5).round().clamp(0, 255) for chip in chips]
    ours = network(torch.stack(pixels) / 127.5 - 1)[-1]
    for chip, embedding in zip(pixels, ours, strict=True):
        array = np.ascontiguousarray(chip.permute(1, 2, 0).numpy().astype(np.uint8))
        own = torch.tensor(list(theirs.compute_face_descriptor(array)))
        assert (embedding - own).abs().max() <= 1e-5


@pretrained
def test_the_gradient_is_finite_for_small_and_large_faces(network, astronaut):
    for side in (16, 32, 64, 150, 256, 512):
        scale = side / 110
        picture = F.interpolate(astronaut, scale_factor=scale, mode="area" if scale < 1 else "bilinear")
        changed = (picture + 0.05 * torch.randn(picture.shape)).requires_grad_()
        boxes = [ASTRONAUT * scale]
        pairs = zip(
            FREE.layer_weights,
            network(crop_faces(changed, boxes, FREE.crop)),
            network(crop_faces(picture, boxes, FREE.crop)),
            strict=True,
        )
        sum(w * (a - b).abs().mean() for w, a, b in pairs).backward()
        assert torch.isfinite(changed.grad).all(), side
        assert changed.grad.abs().max() > 0, side


@pretrained
@torch.no_grad()
def test_a_batch_is_its_faces_one_by_one(network, astronaut):
    faces = crop_faces(astronaut, [torch.cat([ASTRONAUT, ASTRONAUT + 40, ASTRONAUT / 2])], FREE.crop)
    together = network(faces)
    for k in range(3):
        for alone, all_of_them in zip(network(faces[k : k + 1]), together, strict=True):
            torch.testing.assert_close(alone[0], all_of_them[k], rtol=1e-4, atol=1e-5)


@pretrained
@torch.no_grad()
def test_more_blur_costs_more_at_every_level_and_alike(network, astronaut):
    faces = crop_faces(astronaut, [ASTRONAUT], FREE.crop)
    sharp = network(faces)
    costs = []
    for sigma in (1, 2, 4):
        blurred = network(_blurred(faces, sigma))
        pairs = zip(FREE.layer_weights, blurred, sharp, strict=True)
        costs.append(torch.stack([w * (a - b).abs().mean() for w, a, b in pairs]))
    assert (costs[0] < costs[1]).all()
    assert (costs[1] < costs[2]).all()
    assert costs[1].max() < 2.5 * costs[1].min()  # the levels pull alike


def _blurred(faces, sigma):
    reach = torch.arange(-3 * sigma, 3 * sigma + 1)
    kernel = torch.exp(-(reach**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    wide = F.pad(faces, [3 * sigma] * 4, mode="replicate")
    return F.conv2d(F.conv2d(wide, kernel, groups=3), kernel.mT, groups=3)


# People

PEOPLE = importlib.util.find_spec("openpeople")
PICTURES = ("studio_portrait", "studio_posture", "amateur_selfie", "amateur_posture")


@pretrained
@needs_weights("mtcnn")
@pytest.mark.skipif(PEOPLE is None, reason="pip install --no-deps openpeople==0.1.2")
@torch.no_grad()
def test_the_same_person_is_nearer_than_another_one(network):
    """Ten people of openpeople, four pictures each, boxes by our detector."""
    from mldm_plugin.prepare.faces.mtcnn import Mtcnn
    from mldm_plugin.prepare.source import Source

    folder = Path(PEOPLE.origin).parent / "data" / "curated"
    seen, who = [], []
    for path in (path for name in PICTURES for path in sorted(folder.glob(f"P*/assets/{name}.jpg"))):
        picture = Image.open(path).convert("RGB").reduce(2)
        shown = type("Shown", (), {"size": picture.size, "rgb": lambda self, picture=picture: picture})()
        face = Mtcnn(side=512)(Source(name="a", path="a", text=""), shown, None)[0]
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
        crop = crop_faces(pixels, [torch.tensor([face.box])], FREE.crop)
        seen.append(network(crop))
        who.append(path.parent.parent.name)
    embeddings = torch.cat([features[-1] for features in seen])
    distances = torch.cdist(embeddings, embeddings)
    pairs = [(a, b) for a in range(len(who)) for b in range(a)]
    same = torch.tensor([distances[a, b] for a, b in pairs if who[a] == who[b]])
    other = torch.tensor([distances[a, b] for a, b in pairs if who[a] != who[b]])
    assert len(same) == 60
    assert (same[:, None] < other[None]).float().mean() >= 0.98
    one, another = zip(*[(seen[a], seen[b]) for a, b in pairs if who[a] != who[b]], strict=True)
    levels = [
        weight * (torch.cat(these) - torch.cat(those)).abs().mean()
        for weight, these, those in zip(
            FREE.layer_weights, zip(*one, strict=True), zip(*another, strict=True), strict=True
        )
    ]
    assert 0.9 < sum(levels) < 1.1  # another person costs about 1
    assert max(levels) < 1.5 * min(levels)  # and each level says as much


def test_it_comes_from_either_source_and_is_free():
    file = WEIGHT_FILES["dlib_resnet"]
    assert [source.kind for source in file.sources] == ["package", "url"]
    assert "CC0" in file.licence


@pretrained
def test_the_start_up_table_names_it_and_its_terms(tmp_path):
    preset = tmp_path / "free.yaml"
    preset.write_text(
        "losses:\n  face: {weight: 0.5, max_timestep: 999, network: dlib_resnet}\nchecks: {picture: warn}\n"
    )
    stack = LossStack.from_preset(str(preset), vae=tiny_vae(), noise_scheduler=ddpm())
    table = stack.prove(make_step((900,)))
    assert "; dlib_resnet from " in table
    assert "(CC0)" in table
