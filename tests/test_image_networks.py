"""The networks that sets of pictures are compared in: their inputs, layers and weights."""

import sys

import pytest
import torch
from small_transformers import save_clip, save_dinov2
from weights_entries import needs_weights

from mldm_plugin.errors import PresetError, WeightsError
from mldm_plugin.perceptual import image_networks, vision_transformers
from mldm_plugin.perceptual.fid_inception import FIDInception, fid_input
from mldm_plugin.perceptual.frozen import build_seeded
from mldm_plugin.perceptual.image_networks import image_network


def pictures(size, n=2, seed=0):
    """Whole grey levels, as a file has them."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), generator=g, dtype=torch.uint8)


def as_seen(levels):
    return levels.float() / 127.5 - 1


SIZES = [
    ("vgg16", 128, 512),
    ("alexnet", 128, 256),
    ("inception", 299, 2048),
    ("dlib", 150, 128),
    ("faceres", 224, 1024),
]


@pytest.mark.parametrize(("name", "size", "width"), SIZES)
def test_random_networks_are_seeded_and_one_picture_is_blind_to_the_others(name, size, width):
    before = torch.get_rng_state()
    network, twin = (image_network(name, "random") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert (network.size, network.width, network.networks) == (size, width, ())
    images = as_seen(pictures(size))
    vectors = network.embed(images)
    assert vectors.shape == (2, width)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(twin.embed(images[1:]), vectors[1:], rtol=1e-4, atol=1e-5)
    assert (0.02 if name == "alexnet" else 0.05) < vectors.std() < 20


def test_vgg16_is_the_average_of_its_last_relu():
    network = image_network("vgg16", "random")
    trunk = image_networks.LPIPSNetwork("vgg", "random")
    images = as_seen(pictures(224, n=1))
    expected = trunk.trunk(trunk.scaling(images)).relu5_3.mean((2, 3))
    torch.testing.assert_close(network.embed(images), expected)


@pytest.fixture(scope="module")
def inception():
    """FID's network with batch norms that have seen something."""
    network = build_seeded(FIDInception).eval()
    g = torch.Generator().manual_seed(1)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=g))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=g))
    return network


def published_layout(network):
    """The tensors that the published file has: ours and the classifier of the graph, 1008 classes."""
    return {**network.state_dict(), "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


def test_inception_equals_torch_fidelity_and_has_the_tensors_of_its_file(inception, tmp_path):
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", exc_type=ImportError)
    path = tmp_path / "weights.pth"
    torch.save(published_layout(inception), path)
    other = theirs.FeatureExtractorInceptionV3("fid", ["2048"], feature_extractor_weights_path=str(path))
    ours = published_layout(inception)
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in ours.items()}
    levels = pictures(299)  # of the network's size, so that nobody resizes
    (expected,) = other(levels)
    with torch.no_grad():
        torch.testing.assert_close(inception(fid_input(as_seen(levels))), expected, rtol=1e-5, atol=1e-5)


def test_inception_takes_the_weights_of_its_file(inception, monkeypatch):
    state = {k: v for k, v in published_layout(inception).items() if not k.endswith("num_batches_tracked")}
    monkeypatch.setattr(image_networks, "load_state_dict", {"fid_inception": state}.__getitem__)
    network = image_network("inception")
    assert network.networks == ("fid_inception from this machine (Apache-2.0, ImageNet)",)
    images = as_seen(pictures(299, n=1))
    with torch.no_grad():
        torch.testing.assert_close(network.embed(images), inception(fid_input(images)), rtol=1e-4, atol=1e-5)
    del state["Mixed_7c.branch1x1.conv.weight"]
    with pytest.raises(WeightsError, match=r"Mixed_7c\.branch1x1\.conv\.weight"):
        image_network("inception")


def test_clip_is_the_image_half_of_a_whole_clip(tmp_path):
    import transformers

    folder = save_clip(tmp_path / "clip")
    network = image_network("clip", path=folder)
    assert (network.size, network.width) == (28, 24)
    levels = pictures(28)
    preparation = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False)
    given = preparation(images=list(levels.permute(0, 2, 3, 1).numpy()), return_tensors="pt")
    whole = transformers.CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        seen = whole.visual_projection(whole.vision_model(**given).pooler_output)
    torch.testing.assert_close(network.embed(as_seen(levels)), seen, rtol=1e-4, atol=1e-5)


def test_dinov2_is_the_class_token(tmp_path):
    import transformers

    folder = save_dinov2(tmp_path / "dinov2")
    network = image_network("dinov2", path=folder)
    assert (network.size, network.width) == (224, 32)
    levels = pictures(224, n=1)
    preparation = transformers.BitImageProcessor(
        do_resize=False, do_center_crop=False, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    given = preparation(images=list(levels.permute(0, 2, 3, 1).numpy()), return_tensors="pt")
    model = transformers.Dinov2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        seen = model(**given).last_hidden_state[:, 0]
    torch.testing.assert_close(network.embed(as_seen(levels)), seen, rtol=1e-4, atol=1e-5)


def test_a_vision_transformer_that_is_not_there_is_told_in_one_line(tmp_path, monkeypatch):
    known = vision_transformers.VisionTransformer("nobody/has-this", "Dinov2Model", "none")
    monkeypatch.setitem(vision_transformers.VISION_TRANSFORMERS, "dinov2", known)
    with pytest.raises(WeightsError, match=r"Fetch it: hf download nobody/has-this, or name a folder"):
        image_network("dinov2")
    with pytest.raises(WeightsError, match=r"holds no config\.json; expected a folder of Dinov2Model"):
        image_network("dinov2", path=str(tmp_path))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(WeightsError, match=r"pip install 'transformers>="):
        image_network("dinov2")


@pytest.mark.parametrize("change", ["cut", "missing", "other"])
def test_a_folder_with_bad_weights_is_told_in_one_line(tmp_path, change):
    from safetensors.torch import load_file, save_file

    path = save_clip(tmp_path / "clip") if change == "other" else save_dinov2(tmp_path / "dinov2")
    file = tmp_path / "dinov2" / "model.safetensors"
    if change == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif change == "missing":
        state = load_file(file)
        del state["layernorm.weight"]
        save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError) as error:
        image_network("dinov2", path=path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(path)


def test_options_of_other_networks_and_unknown_names():
    with pytest.raises(PresetError, match="path is an option of clip and dinov2; vgg16 comes"):
        image_network("vgg16", "random", path="somewhere")
    with pytest.raises(PresetError, match="clip has no random weights"):
        image_network("clip", "random")
    with pytest.raises(WeightsError, match=r"No image network is called 'vgg'; did you mean 'vgg16'\?"):
        image_network("vgg")


@needs_weights("vgg16", "dlib_resnet")
@pytest.mark.parametrize("name", ["vgg16", "dlib"])
def test_pretrained_networks_say_where_they_came_from(name):
    network = image_network(name)
    assert network.networks[0].startswith(("vgg16 from ", "dlib_resnet from "))
    assert torch.isfinite(network.embed(as_seen(pictures(network.size)))).all()
