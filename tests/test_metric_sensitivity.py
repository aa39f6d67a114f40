"""What metrics see of planted degradations, on a few photographs: one that goes blind is noticed.

docs/metrics/sensitivity.md has all of it, on more photographs.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mldm_plugin.evaluation.cases import Case
from mldm_plugin.evaluation.picture import Picture
from mldm_plugin.perceptual.weights import locate
from mldm_plugin.plugins import load_plugins

NETWORKS = ("mtcnn", "faceres", "dlib_resnet", "vgg16", "mediapipe_palm", "mediapipe_hand", "mediapipe_pose")
METRICS = load_plugins().metrics
pytestmark = pytest.mark.skipif(
    any(locate(name) is None for name in NETWORKS), reason=f"mldm weights fetch {' '.join(NETWORKS)} mediapipe_person"
)
sys.path.append(str(Path(__file__).parent.parent / "docs" / "metrics"))


@pytest.fixture(scope="module")
def scenes():
    """Two people's faces, two expressions of each."""
    pytest.importorskip("openpeople")
    from photographs import face_scene

    with torch.no_grad():
        return [face_scene(person, panel) for person in ("P008", "P009") for panel in ("happy", "pensive")]


@pytest.fixture(scope="module")
def degraded(scenes):
    """`degraded(name, strength)`: pictures of the scenes with the k-th strength of a degradation, None for none."""
    from planted import FACES

    found = {}

    def pictures(name, k=2):
        if (name, k) not in found:
            one = FACES.get(name)
            images = [s.image if one is None else one.plant(s, list(one.strengths.values())[k]) for s in scenes]
            found[name, k] = [Picture(image, Case(str(i), "", 1)) for i, image in enumerate(images)]
        return found[name, k]

    return pictures


def values(metric, pictures):
    return np.array([metric(picture) for picture in pictures])


def test_what_is_planted_stays_where_it_is_planted(scenes):
    """A degradation changes the face or the hand, the rest of the picture not by a bit."""
    from planted import FACES

    scene = scenes[0]
    for name in ("blur", "grain", "eyes", "eye", "other"):
        one = FACES[name]
        changed = [one.plant(scene, strength) - scene.image for strength in one.strengths.values()]
        assert all(not change[:, -10:].any() and not change[:, :, :10].any() for change in changed), name
        sizes = [float(change.abs().mean()) for change in changed]
        assert 0 < sizes[0] < sizes[1] < sizes[2], name
        assert torch.equal(one.plant(scene, 1.0), one.plant(scene, 1.0))
    assert torch.allclose(FACES["other"].plant(replace(scene, other=scene), 1.0), scene.image, atol=1e-3)


def test_a_blurred_face_is_seen(degraded):
    sharpness = METRICS["face_sharpness"](photographs=degraded(None))
    plain, soft = (values(sharpness, degraded(name)) for name in (None, "blur"))
    assert soft.mean() > plain.mean() + 0.7
    distance = METRICS["kd_vgg16_face"]()
    sets = [torch.cat([distance.features(picture) for picture in degraded(name)]) for name in (None, "blur")]
    halves = distance.distance(sets[0][::2], sets[0][1::2])
    assert distance.distance(sets[1], sets[0]) > max(halves, 0) + 0.01
    assert values(METRICS["face_found"](), degraded("blur")).all(), "not by whether it is found"


def test_another_persons_face_is_seen_by_identity(degraded):
    for name in ("identity", "identity_dlib"):
        likeness = METRICS[name](person=degraded(None)[:1])
        own, other = (values(likeness, degraded(way)[:2]) for way in (None, "other"))
        assert (other < own - 0.05).all(), name


def test_a_molten_face_is_not_found(degraded):
    assert values(METRICS["face_found"](), degraded(None)).all()
    assert not values(METRICS["face_found"](), degraded("melt")).any()
    assert not values(METRICS["face_score"](), degraded("melt")).any()


def test_a_second_face_is_counted_by_people_count_alone(degraded):
    assert not values(METRICS["people_count"](), degraded(None)).any()
    assert values(METRICS["people_count"](), degraded("second")).all()
    assert (values(METRICS["face_found"](), degraded("second")) == 1).all()


def test_exchanged_eyes_are_faces_to_the_detector(degraded):
    assert values(METRICS["face_found"](), degraded("eyes")).all()


def test_sixth_finger_and_mirrored_hand_are_hands_to_the_network():
    """No metric counts fingers; a page that says otherwise, or a network that learns to, is noticed here."""
    pytest.importorskip("openpeople")
    from photographs import body_scene
    from planted import BODIES

    with torch.no_grad():
        scene, _ = body_scene("P009", "studio_posture")
        assert len(scene.hands) == 2
        found = METRICS["hands_found"]()
        for name, k in (("finger", 1), ("mirror", 1)):
            image = BODIES[name].plant(scene, list(BODIES[name].strengths.values())[k])
            assert float((image - scene.image).abs().max()) > 0.2
            assert found(Picture(image, Case(name, "", 1, 2))) == 1, name
        blurred = BODIES["hands"].plant(scene, 8.0)
        assert found(Picture(blurred, Case("hands", "", 1, 2))) < 1
