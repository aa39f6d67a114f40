"""The face networks against literal re-statements of their architecture, and their inputs."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from weights_entries import unreachable

from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.face_networks import FACE_NETWORKS, FaceFeatures, facenet_input, vggface2_input
from mldm_plugin.perceptual.frozen import build_seeded
from mldm_plugin.perceptual.inception_resnet_v1 import InceptionResnetV1
from mldm_plugin.perceptual.vggface2_resnet50 import VGGFace2ResNet50
from mldm_plugin.perceptual.weights import WEIGHT_FILES, fill


def with_statistics(network, seed=1):
    """`network` in eval, with running statistics that matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.2, generator=generator)
        elif name.endswith("running_var"):
            value.mul_(torch.empty_like(value).uniform_(0.5, 1.5, generator=generator))
    return network.eval()


@pytest.fixture(scope="module")
def resnet():
    return with_statistics(build_seeded(VGGFace2ResNet50))


@pytest.fixture(scope="module")
def inception():
    return with_statistics(build_seeded(InceptionResnetV1))


def norm(x, state, name, eps):
    return F.batch_norm(
        x,
        state[f"{name}.running_mean"],
        state[f"{name}.running_var"],
        state[f"{name}.weight"],
        state[f"{name}.bias"],
        eps=eps,
    )


def literal_resnet50(x, s):
    """Caffe's ResNet-50 written out: stride in the first convolution, pooling rounded up."""

    def bn(x, name):
        return norm(x, s, name, 1e-5)

    stages = [F.conv2d(x, s["conv1.weight"], stride=2, padding=3)]
    x = F.max_pool2d(F.relu(bn(stages[0], "bn1")), 3, 2, padding=0, ceil_mode=True)
    for stage, blocks in enumerate([3, 4, 6, 3], start=1):
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = F.relu(bn(F.conv2d(x, s[f"{at}.conv1.weight"], stride=stride), f"{at}.bn1"))
            y = F.relu(bn(F.conv2d(y, s[f"{at}.conv2.weight"], padding=1), f"{at}.bn2"))
            y = bn(F.conv2d(y, s[f"{at}.conv3.weight"]), f"{at}.bn3")
            if block == 0:
                x = bn(F.conv2d(x, s[f"{at}.downsample.0.weight"], stride=stride), f"{at}.downsample.1")
            x = F.relu(x + y)
        stages.append(x)
    return stages


def literal_inception(x, s):
    """InceptionResnetV1 written out from its state dict alone."""

    def conv(x, at, stride=1, padding=0):
        x = F.conv2d(x, s[f"{at}.conv.weight"], stride=stride, padding=padding)
        return F.relu(norm(x, s, f"{at}.bn", 1e-3))

    def residual(x, at, scale, relu=True, **branches):
        outputs = []
        for branch, paddings in branches.items():
            y = x
            for number, padding in enumerate(paddings):
                y = conv(y, f"{at}.{branch}.{number}" if len(paddings) > 1 else f"{at}.{branch}", 1, padding)
            outputs.append(y)
        y = F.conv2d(torch.cat(outputs, 1), s[f"{at}.conv2d.weight"], s[f"{at}.conv2d.bias"])
        return F.relu(x + scale * y) if relu else x + scale * y

    x = conv(conv(x, "conv2d_1a", 2), "conv2d_2a")
    half = conv(x, "conv2d_2b", 1, 1)
    quarter = conv(conv(F.max_pool2d(half, 3, 2), "conv2d_3b"), "conv2d_4a")
    x = conv(quarter, "conv2d_4b", 2)
    for i in range(5):
        x = residual(x, f"repeat_1.{i}", 0.17, branch0=[0], branch1=[0, 1], branch2=[0, 1, 1])
    eighth = x
    long = conv(conv(conv(x, "mixed_6a.branch1.0"), "mixed_6a.branch1.1", 1, 1), "mixed_6a.branch1.2", 2)
    x = torch.cat([conv(x, "mixed_6a.branch0", 2), long, F.max_pool2d(x, 3, 2)], 1)
    for i in range(10):
        x = residual(x, f"repeat_2.{i}", 0.1, branch0=[0], branch1=[0, (0, 3), (3, 0)])
    sixteenth = x
    at = "mixed_7a.branch"
    short = [conv(conv(x, f"{at}{b}.0"), f"{at}{b}.1", 2) for b in (0, 1)]
    long = conv(conv(conv(x, f"{at}2.0"), f"{at}2.1", 1, 1), f"{at}2.2", 2)
    x = torch.cat([*short, long, F.max_pool2d(x, 3, 2)], 1)
    for i in range(5):
        x = residual(x, f"repeat_3.{i}", 0.2, branch0=[0], branch1=[0, (0, 1), (1, 0)])
    last = residual(x, "block8", 1.0, relu=False, branch0=[0], branch1=[0, (0, 1), (1, 0)])
    return [half, quarter, eighth, sixteenth, last]


@torch.no_grad()
def test_resnet50_is_caffes(resnet):
    faces = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(0)) * 60
    for ours, literal in zip(resnet(faces), literal_resnet50(faces, resnet.state_dict()), strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_inception_is_facenets(inception):
    faces = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    state = inception.state_dict()
    literal = literal_inception(faces, state)
    for ours, theirs in zip(inception(faces), literal, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    embedding = F.linear(literal[-1].mean((2, 3)), state["last_linear.weight"])
    embedding = F.normalize(norm(embedding, state, "last_bn", 1e-3))
    torch.testing.assert_close(inception.embed(faces), embedding, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_shapes_are_those_of_the_docstrings(resnet, inception):
    assert [tuple(f.shape) for f in resnet(torch.zeros(1, 3, 224, 224))] == [
        (1, 64, 112, 112),
        (1, 256, 56, 56),
        (1, 512, 28, 28),
        (1, 1024, 14, 14),
        (1, 2048, 7, 7),
    ]
    assert [tuple(f.shape) for f in inception(torch.zeros(1, 3, 160, 160))] == [
        (1, 64, 77, 77),
        (1, 192, 36, 36),
        (1, 256, 17, 17),
        (1, 896, 8, 8),
        (1, 1792, 3, 3),
    ]


def test_names_of_parameters(resnet, inception):
    from torchvision.models import resnet50

    with torch.device("meta"):
        theirs = {k: v.shape for k, v in resnet50().state_dict().items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in resnet.state_dict().items()} == theirs
    # 111 831 500 bytes with a header of 70 896 is the published file: so it has these tensors and `logits`.
    logits = 4 * 8631 * (512 + 1)
    assert sum(v.numel() * v.element_size() for v in inception.state_dict().values()) + logits == 111_760_604
    assert len(inception.state_dict()) == 714


@torch.no_grad()
@pytest.mark.parametrize("name", FACE_NETWORKS)
def test_random_weights_are_sane(name):
    """No stage vanishes or explodes, the seed is fixed, and the host's generator is left alone."""
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    features = FaceFeatures(name, "random")
    assert torch.equal(torch.random.get_rng_state(), state)
    faces = torch.rand(1, 3, features.crop.size, features.crop.size) * 2 - 1
    magnitudes = [float(f.abs().mean()) for f in features(faces)]
    assert all(0.03 < m < 30 for m in magnitudes), magnitudes
    again = FaceFeatures(name, "random")
    assert torch.equal(features(faces)[-1], again(faces)[-1])
    assert len(features.layer_weights) == len(magnitudes)


def test_defect_3_each_network_gets_the_input_it_was_trained_on():
    """The released code gave RGB in [-1, 1] at 254 px."""
    orange = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1)  # RGB 255, 127.5, 0
    torch.testing.assert_close(
        vggface2_input(orange).flatten(), torch.tensor([0 - 91.4953, 127.5 - 103.8827, 255 - 131.0912])
    )
    torch.testing.assert_close(facenet_input(orange).flatten(), torch.tensor([127.5, 0.0, -127.5]) / 128)
    assert FACE_NETWORKS["vggface2_resnet50"].crop.size == 224
    assert FACE_NETWORKS["vggface2_resnet50"].prepare is vggface2_input
    assert FACE_NETWORKS["vggface2_inception"].crop.size == 160
    assert FACE_NETWORKS["vggface2_inception"].prepare is facenet_input


def test_the_network_sees_the_prepared_input():
    features = FaceFeatures("vggface2_resnet50", "random")
    faces = torch.rand(1, 3, 32, 32) * 2 - 1
    conv1 = features.frozen.network.conv1.weight
    expected = F.conv2d(vggface2_input(faces), conv1, stride=2, padding=3)
    torch.testing.assert_close(features(faces)[0], expected)


def test_defect_2_the_network_stays_frozen():
    """The released code's networks were submodules: switched to train mode, and saved in checkpoints."""
    features = FaceFeatures("vggface2_inception", "random")
    network = features.frozen.network

    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)
            self.features = features

    host = Host()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    host.train()
    network.train()
    assert not any(m.training for m in network.modules())
    assert list(host.state_dict()) == ["layer.weight", "layer.bias"]
    assert len(list(host.parameters())) == 2
    faces = torch.rand(1, 3, 80, 80, requires_grad=True)
    sum(f.sum() for f in features(faces)).backward()
    assert faces.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache whose files are not checked and cannot be downloaded."""
    monkeypatch.setenv("MLDM_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for name in FACE_NETWORKS:
        unreachable(monkeypatch, name)
    return tmp_path


@torch.no_grad()
def test_pretrained_resnet50_is_read_from_its_pickle(cache, resnet):
    arrays = {k: v.numpy() for k, v in resnet.state_dict().items() if "num_batches" not in k}
    arrays["fc.weight"] = torch.zeros(3, 2048).numpy()
    arrays["fc.bias"] = torch.zeros(3).numpy()
    (cache / "resnet50_ft_weight.pkl").write_bytes(pickle.dumps(arrays, protocol=2))
    faces = torch.rand(1, 3, 64, 64)
    features = FaceFeatures("vggface2_resnet50")
    torch.testing.assert_close(features(faces)[-1], resnet(vggface2_input(faces))[-1], rtol=1e-3, atol=1e-4)


def test_weights_that_do_not_fit_are_named(resnet):
    state = dict(resnet.state_dict())
    del state["layer3.2.bn2.bias"]
    state["layer9.weight"] = state.pop("conv1.weight")
    faults = r"missing: conv1\.weight, layer3\.2\.bn2\.bias; unexpected: layer9\.weight"
    with pytest.raises(WeightsError, match=faults):
        fill(build_seeded(VGGFace2ResNet50), state, "vggface2_resnet50", ignore=["fc."])


@torch.no_grad()
def test_pretrained_inception_is_read_from_safetensors(cache, inception):
    state = {**inception.state_dict(), "logits.weight": torch.zeros(3, 512), "logits.bias": torch.zeros(3)}
    save_file(state, cache / "facenet_vggface2.safetensors")
    faces = torch.rand(1, 3, 80, 80)
    features = FaceFeatures("vggface2_inception")
    torch.testing.assert_close(features(faces)[-1], inception(facenet_input(faces))[-1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FACE_NETWORKS)
def test_missing_weights_are_an_error_never_random_ones(cache, name):
    last = WEIGHT_FILES[name].addresses[-1]
    with pytest.raises(WeightsError, match=f"Cannot fetch the weights '{name}'.*{last.file_name}"):
        FaceFeatures(name)


def test_an_unknown_network_gets_the_nearest():
    with pytest.raises(WeightsError, match="'vggface2_resnet50'"):
        FaceFeatures("vggface_resnet50", "random")
