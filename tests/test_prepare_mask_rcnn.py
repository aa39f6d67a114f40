"""People found by Mask R-CNN: detections become labels; the real network, loaded the real way, with random weights."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from weights_entries import unreachable

from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.weights import WEIGHT_FILES
from mldm_plugin.prepare import mask_rcnn
from mldm_plugin.prepare.mask_rcnn import MaskRCNN, label_map
from mldm_plugin.prepare.source import Source

SOURCE = Source(name="a", path="a.png", text="")
AS_IT_CAME = WEIGHT_FILES["mask_rcnn"].addresses[0].file_name
CAT = 17


class Shown:
    """A picture that is in memory."""

    def __init__(self, picture):
        self.size = picture.size
        self.rgb = lambda: picture


def detections(*found, size=(4, 6)):
    """Of each: category, score, and the rows and columns of its mask, which is 0.9 there and 0.49 elsewhere."""
    masks = torch.full((len(found), 1, *size), 0.49)
    for mask, (_, _, rows, columns) in zip(masks, found, strict=True):
        mask[0, rows, columns] = 0.9
    return {
        "labels": torch.tensor([f[0] for f in found], dtype=torch.int64),
        "scores": torch.tensor([f[1] for f in found], dtype=torch.float32),
        "masks": masks,
    }


ALL = slice(None)


def test_people_are_numbered_by_certainty_and_the_smaller_is_in_front():
    found = detections(
        (1, 0.8, slice(0, 2), slice(2, 4)),  # the second label, the smaller one
        (CAT, 0.99, ALL, ALL),
        (1, 0.95, slice(0, 3), slice(0, 4)),
        (1, 0.69, ALL, slice(4, 6)),
    )
    labels, scores = label_map(found, (4, 6), 0.7)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [
        [1, 1, 2, 2, 0, 0],
        [1, 1, 2, 2, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert scores == [0.95, 0.8]
    assert label_map(found, (4, 6), 0.6)[1] == [0.95, 0.8, 0.69]


def test_a_person_behind_others_is_counted_and_an_empty_mask_is_nobody():
    found = detections(
        (1, 0.9, slice(0, 1), slice(0, 6)),
        (1, 0.8, slice(0, 1), slice(0, 3)),
        (1, 0.75, slice(0, 1), slice(3, 6)),
        (1, 0.72, slice(0, 0), ALL),
    )
    labels, scores = label_map(found, (4, 6), 0.7)
    assert labels[0].tolist() == [2, 2, 2, 3, 3, 3]
    assert scores == [0.9, 0.8, 0.75]


def test_a_mask_begins_at_a_half():
    found = detections((1, 1.0, slice(0, 0), ALL))
    found["masks"][0, 0, 0, :2] = torch.tensor([0.5, 0.4999])
    assert label_map(found, (4, 6), 0.7)[0].nonzero()[1].tolist() == [0]


def test_nobody():
    labels, scores = label_map(detections(), (4, 6), 0.7)
    assert labels.shape == (4, 6)
    assert not labels.any()
    assert scores == []


def test_a_label_map_holds_255_people():
    found = detections(
        *[(1, 0.9, slice(k // 20, k // 20 + 1), slice(k % 20, k % 20 + 1)) for k in range(300)], size=(15, 20)
    )
    labels, scores = label_map(found, (15, 20), 0.7)
    assert labels.max() == len(scores) == 255


def test_what_is_seen_is_bounded_and_the_map_has_the_size_of_the_picture():
    seen = MaskRCNN().reduced(Image.new("RGB", (6000, 4000))).size
    assert seen == (1200, 800)
    assert MaskRCNN().reduced(Image.new("RGB", (400, 4000))).size == (133, 1333)
    assert MaskRCNN().reduced(Image.new("RGB", (640, 480))).size == (640, 480)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """Seeded random weights of the real network, that see people everywhere."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

    torch.manual_seed(0)
    network = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.bias[mask_rcnn.PERSON] += 5
    path = tmp_path_factory.mktemp("weights") / AS_IT_CAME
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and an address that cannot be reached; any file is taken."""
    monkeypatch.setenv("MLDM_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    unreachable(monkeypatch, "mask_rcnn")
    mask_rcnn.load_network.cache_clear()
    yield tmp_path / "cache"
    mask_rcnn.load_network.cache_clear()


@pytest.fixture
def cache_with_weights(cache, weights_file, monkeypatch):
    monkeypatch.setenv("MLDM_WEIGHTS", str(weights_file.parent))
    return cache


def noise(width, height):
    return Shown(Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)))


def test_the_real_network_finds_people(cache_with_weights):
    find = MaskRCNN(least_score=0.5, short_side=64, long_side=96)
    found = find(SOURCE, noise(250, 190))
    scores = found.columns["person_scores"]
    assert found.labels.shape == (190, 250)
    assert found.labels.dtype == np.uint8
    assert found.count == len(scores) > 1
    assert set(np.unique(found.labels)) <= set(range(found.count + 1))
    assert found.labels.any()
    assert scores == sorted(scores, reverse=True)
    assert all(0.5 <= s <= 1 for s in scores)
    again = pickle.loads(pickle.dumps(find))(SOURCE, noise(250, 190))
    np.testing.assert_array_equal(again.labels, found.labels)
    assert mask_rcnn.load_network.cache_info().misses == 1


def test_the_network_is_frozen_and_its_options_are_given_to_it(cache_with_weights):
    network = mask_rcnn.load_network(0.5, 64, 96)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert network.roi_heads.score_thresh == 0.5
    assert (network.transform.min_size, network.transform.max_size) == ((64,), 96)


def test_pixels_reach_the_network_as_rgb_between_0_and_1(cache_with_weights, monkeypatch):
    network = mask_rcnn.load_network(0.5, 64, 96)
    given = []
    network.register_forward_pre_hook(lambda module, arguments: given.append(arguments[0][0]))
    MaskRCNN(0.5, 64, 96)(SOURCE, Shown(Image.new("RGB", (80, 64), (255, 51, 0))))
    assert given[0].shape == (3, 64, 80)
    assert given[0][:, 5, 5].tolist() == pytest.approx([1.0, 0.2, 0.0])


class Bright(torch.nn.Module):
    """A network that sees a person in what is bright, so that it is known where the labels should lie."""

    def __init__(self):
        super().__init__()
        self.threshold = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, pictures):
        masks = torch.stack([(p.mean(dim=0, keepdim=True) > self.threshold).float() for p in pictures])
        return [{"labels": torch.tensor([1]), "scores": torch.tensor([0.9]), "masks": m[None]} for m in masks]


@pytest.mark.parametrize("size", [(2000, 1500), (601, 2200), (300, 200)])
def test_labels_lie_where_the_person_is_however_large_the_picture(monkeypatch, size):
    monkeypatch.setattr(mask_rcnn, "load_network", lambda *options: Bright())
    width, height = size
    picture = Image.new("RGB", size)
    ImageDraw.Draw(picture).ellipse((0.2 * width, 0.1 * height, 0.5 * width, 0.9 * height), fill="white")
    truth = np.asarray(picture)[:, :, 0] > 0
    labels = MaskRCNN()(SOURCE, Shown(picture)).labels
    assert labels.shape == truth.shape
    assert (truth & (labels == 1)).sum() / (truth | (labels == 1)).sum() > 0.99


def test_person_is_the_first_category():
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_V2_Weights

    assert MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.meta["categories"][mask_rcnn.PERSON] == "person"


def test_without_weights_the_error_names_file_address_and_place(cache):
    with pytest.raises(WeightsError) as caught:
        MaskRCNN()(SOURCE, noise(64, 64))
    for part in (AS_IT_CAME, "file:///nowhere/x", f"put it into {cache}", "give masks of your own"):
        assert part in str(caught.value)


def test_weights_of_another_network_are_refused(cache):
    cache.mkdir()
    torch.save({"backbone.weight": torch.zeros(1)}, cache / AS_IT_CAME)
    with pytest.raises(WeightsError, match="do not fit MaskRCNN; missing: backbone.body.conv1.weight"):
        MaskRCNN()(SOURCE, noise(64, 64))
