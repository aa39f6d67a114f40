"""Metrics of people in one picture: a failure is a value, nothing asked is none, and real faces and hands are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mldm_plugin.errors import DataError
from mldm_plugin.evaluation.cases import Case
from mldm_plugin.evaluation.picture import FoundFace, Picture
from mldm_plugin.perceptual.weights import locate
from mldm_plugin.plugins import load_plugins

METRICS = load_plugins().metrics
needs_weights = pytest.mark.skipif(
    any(locate(n) is None for n in ("mtcnn", "dlib_resnet", "vgg16", "mediapipe_hand")),
    reason="mldm weights fetch mtcnn dlib_resnet vgg16 mediapipe_palm mediapipe_hand mediapipe_person mediapipe_pose",
)


def seen(people=1, hands=None, faces=(), **found):
    """A picture in which detectors found what is given."""
    boxes = [FoundFace(torch.tensor([8.0, 8.0, 56.0, 56.0]), score, torch.zeros(5, 2)) for score in faces]
    image = found.pop("image", torch.linspace(-1, 1, 3 * 64 * 64).view(3, 64, 64))
    return SimpleNamespace(image=image, case=Case("0", "", people, hands), faces=boxes, known=None, photo=None, **found)


@pytest.mark.parametrize(
    ("name", "people", "faces", "value"),
    [
        ("face_found", 1, [], 0),
        ("face_found", 2, [0.9], 0.5),
        ("face_found", 2, [0.9, 0.9, 0.9], 1),
        ("face_found", None, [0.9], None),
        ("face_found", 0, [], None),
        ("face_score", 2, [0.9], 0.45),
        ("face_score", 1, [0.9, 1.0], 1),
        ("face_score", 1, [], 0),
        ("face_score", None, [0.9], None),
        ("people_count", 2, [0.9] * 5, 3),
        ("people_count", 2, [], 2),
        ("people_count", 0, [0.9], 1),
        ("people_count", None, [], None),
    ],
)
def test_faces_found(name, people, faces, value):
    assert METRICS[name]()(seen(people, faces=faces)) == value


def test_sharpness_is_far_from_photographs_for_blur_and_for_grain():
    generator = torch.Generator().manual_seed(0)
    face = F.avg_pool2d(torch.randn(1, 3, 66, 66, generator=generator), 3, 1)[0]
    blurred = F.avg_pool2d(face[None], 5, 1, 2)[0]
    grainy = face + torch.randn(face.shape, generator=generator)
    metric = METRICS["face_sharpness"](photographs=[seen(faces=[1.0], image=face)])
    same, soft, rough = (metric(seen(faces=[1.0], image=image)) for image in (face, blurred, grainy))
    assert same == pytest.approx(0, abs=1e-5)
    assert soft > 1
    assert rough > 1
    assert metric(seen()) == 4
    assert metric(seen(people=None, faces=[1.0])) is None
    assert METRICS["face_sharpness"](photographs=[seen()])(seen(faces=[1.0])) is None


def hand(score=0.9, world=None):
    return SimpleNamespace(score=torch.tensor(score), world=torch.zeros(21, 3) if world is None else world)


@needs_weights
def test_hands_that_are_not_found_count():
    found, score, shape = (METRICS[name]() for name in ("hands_found", "hand_score", "hand_shape"))
    none, one = seen(hands=2, hands_=None), seen(hands=2)
    none.hands, one.hands = [], [hand()]
    assert (found(none), score(none), shape(none)) == (0, 0, 4)
    assert found(one) == 0.5
    assert score(one) == pytest.approx(0.45)
    assert shape(one) == 4, "21 points in one place are no hand"
    nobody = seen(hands=None)
    nobody.hands = [hand()]
    assert found(nobody) is score(nobody) is shape(nobody) is None


def test_diversity_is_the_mean_of_all_pairs():
    from itertools import combinations

    from mldm_plugin.hooks.metrics.diversity import mean_angle_apart

    rows = F.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    wanted = np.mean([1 - float(a @ b) for a, b in combinations(rows, 2)])
    assert mean_angle_apart(rows) == pytest.approx(wanted)
    assert mean_angle_apart(rows[:1].expand(4, 5)) == pytest.approx(0, abs=1e-6)


# Poses


@given(st.integers(0, 2**20))
def test_oks_is_pycocotools(seed):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from mldm_plugin.hooks.metrics.pose import oks

    generator = np.random.default_rng(seed)
    known = np.concatenate([generator.uniform(0, 200, (17, 2)), generator.integers(0, 3, (17, 1))], 1)
    known[0, 2] = 2
    found = known[:, :2] + generator.normal(0, 8, (17, 2))
    area = float(generator.uniform(500, 20000))
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "keypoints": known.flatten().tolist(), "area": area}
    annotation |= {"bbox": [0, 0, 200, 200], "iscrowd": 0, "num_keypoints": int((known[:, 2] > 0).sum())}
    answer = {"image_id": 1, "category_id": 1, "score": 1.0}
    answer["keypoints"] = np.concatenate([found, np.ones((17, 1))], 1).flatten().tolist()
    coco = COCO()
    coco.dataset = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": [annotation], "info": {}}
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes([answer]), "keypoints")
    evaluation._prepare()
    wanted = evaluation.computeOks(1, 1)[0, 0]
    ours = oks(torch.from_numpy(found), torch.from_numpy(known), torch.tensor(area + np.spacing(1)))
    assert float(ours) == pytest.approx(wanted, abs=1e-6)


@needs_weights
def test_poses_are_matched_with_whom_they_fit_and_one_not_found_counts(monkeypatch):
    from mldm_plugin.hooks.metrics import pose as hook

    monkeypatch.setattr(hook, "as_coco", lambda pose: pose)
    generator = torch.Generator().manual_seed(0)
    known = torch.cat([torch.rand(2, 17, 2, generator=generator) * 60, torch.full((2, 17, 1), 2.0)], 2)
    known[1, :, 0] += 60
    photo = SimpleNamespace(known=SimpleNamespace(keypoints=known), image=torch.zeros(3, 64, 64))
    metric = METRICS["pose_oks"]()

    def value(*poses):
        picture = seen(people=2, poses=list(poses))
        picture.photo = photo
        return metric(picture)

    assert value(known[1], known[0]) == pytest.approx(1)
    assert value(known[0]) == pytest.approx(0.5)
    assert value() == 0
    assert value(known[0] + 100) < 0.01
    larger = seen(people=2, poses=[known[0] * 2, known[1] * 2], image=torch.zeros(3, 128, 128))
    larger.photo = photo
    assert metric(larger) == pytest.approx(1), "the same pose in a picture twice as large"
    assert metric(seen(poses=[known[0]])) is None
    assert METRICS["pose_found"]()(seen(people=2, poses=[known[0]])) == 0.5


# Real people


@pytest.fixture(scope="module")
def photo():
    """`photo(person, name)`: a picture of openpeople, its longer side 512 pixels."""
    from importlib.resources import files

    from PIL import Image

    openpeople = pytest.importorskip("openpeople")
    assert openpeople

    def read(person, name):
        path = files("openpeople") / "data" / "curated" / person / "assets" / f"{name}.jpg"
        picture = Image.open(str(path)).convert("RGB")
        picture.thumbnail((512, 512), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1
        return Picture(pixels, Case(name, "", 1, 2))

    return read


@needs_weights
def test_a_real_person_is_found_and_known(photo):
    portrait, other, posture = (
        photo("P008", "studio_portrait"),
        photo("P009", "studio_portrait"),
        photo("P008", "studio_posture"),
    )
    assert METRICS["face_found"]()(portrait) == METRICS["pose_found"]()(posture) == 1
    assert METRICS["face_score"]()(portrait) > 0.99
    assert METRICS["hands_found"]()(posture) == 1
    assert METRICS["hand_shape"]()(posture) < 3
    (person,) = posture.people
    assert person[3] - person[1] > 0.7 * posture.image.shape[1]
    likeness = METRICS["identity_dlib"](person=[photo("P008", "amateur_selfie")])
    assert likeness(portrait) > likeness(other)
    assert likeness(seen()) == 0
    assert likeness(seen(people=None)) is None
    with pytest.raises(DataError, match="no face was found"):
        METRICS["identity_dlib"](person=[seen()])


@needs_weights
def test_the_judge_tells_people_apart(photo):
    if locate("faceres") is None:
        pytest.skip("mldm weights fetch faceres")
    likeness = METRICS["identity"](person=[photo("P008", "amateur_selfie")])
    assert likeness(photo("P008", "studio_portrait")) > likeness(photo("P009", "studio_portrait")) + 0.1


@needs_weights
def test_a_copy_is_found_whatever_its_size(photo):
    known = [photo(person, "studio_portrait") for person in ("P008", "P009")]
    copying = METRICS["copying"](train_data=known)
    small = Picture(F.interpolate(known[0].image[None], scale_factor=0.5, mode="area")[0], known[0].case)
    assert copying(known[0]) == pytest.approx(1, abs=1e-5)
    assert copying(small) > 0.95
    assert copying(photo("P010", "studio_portrait")) < copying(small) - 0.1


def test_every_metric_says_which_way_is_good_and_what_it_is():
    for name, factory in METRICS.entries.items():
        kind = getattr(factory, "func", factory)
        assert kind.__doc__, name
        assert kind.better in ("smaller", "larger"), name
