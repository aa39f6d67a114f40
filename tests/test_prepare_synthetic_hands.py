"""A drawn hand's 21 points lie where the hand is drawn."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from mldm_plugin.prepare.synthetic.canvas import Layer, Light
from mldm_plugin.prepare.synthetic.curve import Frame
from mldm_plugin.prepare.synthetic.hand import GESTURES, hand_points, paint_hand
from mldm_plugin.prepare.synthetic.palette import SKIN
from mldm_plugin.prepare.synthetic.part import Part
from mldm_plugin.prepare.synthetic.picture import draw_plan
from mldm_plugin.prepare.synthetic.pose import ARMS

LIGHT = Light(-0.6, -0.8, (1.0, 0.96, 0.9), (0.6, 0.55, 0.6))
WRIST, TIPS = 0, (4, 8, 12, 16, 20)


def apart(points, mask):
    """From each point to the nearest pixel of the mask, and from each pixel of the mask to the nearest point."""
    rows, columns = np.nonzero(mask)
    pixels = np.stack([columns, rows], 1) + 0.5
    distances = np.hypot(*(points[:, None] - pixels[None]).transpose(2, 0, 1))
    return distances.min(1), distances.min(0)


def bones(points):
    """Places along the way from the wrist through each finger's four points."""
    steps = np.linspace(0, 1, 9)[:, None]
    fingers = [points[[WRIST, *range(tip - 3, tip + 1)]] for tip in TIPS]
    return np.concatenate([a + steps * (b - a) for finger in fingers for a, b in pairwise(finger)])


@pytest.mark.parametrize("gesture", GESTURES)
@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_a_hand_is_where_its_points_are(gesture, mirror):
    layer, frame = Layer((200, 200), LIGHT), Frame(100, 110, 80, 0.7, mirror)
    paint_hand(layer, frame, gesture, SKIN["fair"], Part.LEFT_HAND)
    points = hand_points(frame, gesture)
    hand = layer.part == Part.LEFT_HAND
    assert points.shape == (21, 2)
    assert apart(points, hand)[0].max() < 1
    assert apart(bones(points), hand)[1].max() < 0.17 * frame.scale  # nor is there a finger without points
    other = hand_points(replace(frame, mirror=-mirror), gesture)
    a_fist = GESTURES[gesture] == GESTURES["fist"]  # is nearly its own mirror image
    assert a_fist or apart(other, hand)[0].max() > 4


@pytest.mark.parametrize("gesture", GESTURES)
def test_straight_fingers_end_at_their_outline_and_curled_ones_within(gesture):
    frame, spec = Frame(0, 0, 1), GESTURES[gesture]
    points = hand_points(frame, gesture)
    reach = np.linalg.norm(points[list(TIPS)], axis=1)
    assert points[WRIST].tolist() == [0, 0]
    for straight, far in zip(spec.fingers, reach[1:], strict=True):
        assert far > 0.75 if straight else far < 0.45
    assert (reach[0] > 0.45) == (spec.thumb is not None)
    assert 0.95 < np.linalg.norm(hand_points(frame, "open")[12]) < 1.05  # the unit of length


def test_both_hands_of_people_are_where_their_points_are():
    """Alone on their layer, so that nobody stands before them."""
    looked = set()
    for seed in range(25):
        plan = draw_plan(np.random.default_rng([9, seed]), 96)
        person = plan.people[0]
        shown = [ARMS[arm] for arm in person.pose.arms if not ARMS[arm].behind and arm != "crossed"]
        if len(shown) < 2 or person.pose.back:
            continue
        person = replace(person, frame=replace(person.frame, x=300, y=300, scale=60))
        part = person.paint((600, 600), LIGHT).part
        for word, label in (("left", Part.LEFT_HAND), ("right", Part.RIGHT_HAND)):
            gesture = person.pose.hands[word == "right"]
            off, _ = apart(hand_points(person.hand_frame(word), gesture), part == label)
            assert off.max() < 2, (seed, word, gesture)
            looked.add((word, gesture))
    assert len(looked) >= 8
