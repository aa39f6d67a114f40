"""Points of real hands are plausible, spoilt ones are not."""

import pytest
import torch
from openpeople_pictures import photograph
from weights_entries import needs_weights

from mldm_plugin.errors import DataError
from mldm_plugin.perceptual.hand_shape import BONES, LIMITS, MEAN, bends, hand_shape_distance, lengths
from mldm_plugin.perceptual.hands import find_hands

PRETRAINED = needs_weights("mediapipe_palm", "mediapipe_hand")


def flat_hand():
    """Four fingers side by side and a thumb, each bone of length 1."""
    points = torch.zeros(21, 3, dtype=torch.float64)
    for finger in range(5):
        for joint in range(4):
            points[1 + 4 * finger + joint] = torch.tensor([finger - 2.0, 2.0 + joint, 0.0])
    return points


def longer(points, finger):
    out = points.clone()
    base = 4 * finger + 1
    out[base : base + 4] = points[base] + 2 * (points[base : base + 4] - points[base])
    return out


def exchanged(points, one, other):
    order = list(range(21))
    for i in range(1, 5):
        order[4 * one + i], order[4 * other + i] = 4 * other + i, 4 * one + i
    return points[order]


def test_lengths_by_hand():
    """The palm is the mean of √5, 2, √5 and √8 from the index to the little finger."""
    palm = (2 + 2 * 5**0.5 + 8**0.5 - 5**0.5 + 5**0.5) / 4
    found = lengths(flat_hand()) * (palm / 1)
    assert found[2].tolist() == pytest.approx([2, 1, 1, 1, 1])
    assert found[4].tolist() == pytest.approx([8**0.5, 1, 1, 1, 4])
    assert BONES[1] == ((0, 5), (5, 6), (6, 7), (7, 8), (5, 9))


def test_bends_by_hand():
    points = flat_hand()
    assert bends(points)[2].tolist() == pytest.approx([0, 0, 0], abs=1e-4)
    points[12] = points[11] + torch.tensor([0.0, 0, -1])  # the middle finger's last bone, straight down
    assert bends(points)[2].tolist() == pytest.approx([0, 0, 90], abs=1e-4)
    points[12] = points[11] - torch.tensor([0.0, 1, 0])
    assert bends(points)[2, 2].item() == pytest.approx(180)


def test_it_knows_no_place_size_or_turn():
    points = torch.randn(2, 3, 21, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    distance = hand_shape_distance(points)
    assert distance.shape == (2, 3)
    torch.testing.assert_close(hand_shape_distance(7 * points @ turn + 5), distance)
    torch.testing.assert_close(hand_shape_distance(points[1, 2]), distance[1, 2])


def test_gradients_and_bad_input():
    points = (flat_hand() + 0.1 * torch.randn(21, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()
    assert torch.autograd.gradcheck(hand_shape_distance, points)
    hand_shape_distance(torch.zeros(21, 3, requires_grad=True)).backward()
    with pytest.raises(DataError, match=r"expected \(..., 21, 3\), got \(21, 2\)"):
        hand_shape_distance(torch.zeros(21, 2))
    assert len(MEAN) == len(LIMITS) == 5


@PRETRAINED
@pytest.mark.parametrize("person", ["P009", "P010"])
def test_real_hands_are_plausible_and_spoilt_ones_are_not(person):
    """People whom the statistics have not seen."""
    hands = find_hands(photograph(person, "studio_posture", 1024))
    assert len(hands) == 2
    for hand in hands:
        real = hand_shape_distance(hand.world)
        assert real < 1.5
        for finger in range(5):
            assert hand_shape_distance(longer(hand.world, finger)) > max(2.0, 2 * real)
        for pair in ((0, 1), (1, 3), (2, 4)):
            assert hand_shape_distance(exchanged(hand.world, *pair)) > max(2.0, 1.5 * real)
