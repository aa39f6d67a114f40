"""Hands lie where hands are."""

import pytest
import torch
from openpeople_pictures import as_tensor, photograph
from torch.nn import functional as F
from weights_entries import needs_weights

from mldm_plugin.perceptual.hands import Hand, find_hands, hand_square, once
from mldm_plugin.perceptual.pose import find_pose

PRETRAINED = needs_weights("mediapipe_palm", "mediapipe_hand", "mediapipe_person", "mediapipe_pose")


def hand(box, score):
    return Hand(torch.tensor(box), torch.tensor(score), torch.zeros(21, 2), torch.zeros(21, 3), torch.tensor(1.0))


def test_of_the_same_hand_the_surest_stays():
    low, high, other = hand([0.0, 0, 10, 10], 0.6), hand([1.0, 0, 11, 10], 0.9), hand([9.0, 0, 19, 10], 0.7)
    assert once([low, high, other]) == [high, other]


def test_the_square_of_a_hand_turns_with_it():
    points = torch.tensor([[50.0, 90], *[[50 + 8 * f - 16.0, 60 - 12.0 * j] for f in range(5) for j in range(4)]])
    square = hand_square(points)
    assert square[3].item() == pytest.approx(0, abs=0.1)
    assert 0 < square[1] < 90
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])  # (x, y) → (-y, x), a quarter turn clockwise
    turned = hand_square(points @ turn)
    assert (turned[3] - square[3]).item() == pytest.approx(torch.pi / 2, abs=1e-4)
    torch.testing.assert_close(turned[:2], square[:2] @ turn, atol=1e-3, rtol=0)
    assert turned[2].item() == pytest.approx(square[2].item(), rel=1e-4)


@PRETRAINED
@pytest.mark.parametrize("kind", ["studio_posture", "amateur_posture"])
def test_both_hands_of_a_standing_person_lie_at_the_right_wrists(kind):
    image = photograph("P008", kind)
    [pose] = find_pose(image)
    hands = find_hands(image)
    assert len(hands) == 2
    tall = pose.box[3] - pose.box[1]
    for found in hands:
        assert found.score > 0.9
        wrist = 16 if found.right > 0.5 else 15
        assert (found.points[0] - pose.points[wrist]).norm() < 0.05 * tall
        assert (found.points.amin(0) >= found.box[:2]).all()
        assert 0.05 < found.world.norm(dim=1).max() < 0.2  # metres
    assert sorted(round(float(found.right)) for found in hands) == [0, 1]


@PRETRAINED
def test_the_hands_of_a_small_person_are_found_by_the_wrists():
    person = photograph("P008", "amateur_posture", 360)
    image = F.pad(person, (300, 300, 332, 332))
    poses = find_pose(image)
    assert find_hands(image) == []
    assert len(find_hands(image, poses)) == 2


@PRETRAINED
@pytest.mark.parametrize("name", ["coffee", "rocket", "chelsea"])
def test_no_hand_is_found_where_none_is(name):
    import skimage.data

    assert find_hands(as_tensor(getattr(skimage.data, name)())) == []


@PRETRAINED
def test_hands_in_pockets_are_not_found():
    image = photograph("P001", "amateur_posture")
    assert find_hands(image, find_pose(image)) == []


@PRETRAINED
def test_gradients_reach_the_hand_alone():
    image = photograph("P008", "studio_posture").requires_grad_()
    found = find_hands(image)[0]
    (found.points.sum() + found.score + found.right + found.world.sum()).backward()
    assert image.grad.isfinite().all()
    x0, y0, x1, y1 = found.box.tolist()
    reach = max(x1 - x0, y1 - y0)
    far = torch.ones(image.shape[1:], dtype=torch.bool)
    far[max(0, int(y0 - reach)) : int(y1 + reach), max(0, int(x0 - reach)) : int(x1 + reach)] = False
    assert image.grad.abs().sum() > 0
    assert image.grad[:, far].abs().sum() == 0
