"""Hands in a picture, by MediaPipe's networks.

A detector finds palms, and of each seven points. The square around the hand, turned so that it points upwards, goes to
the network that finds 21 points, and once more with the square that those points make.

Source: Zhang et al., "MediaPipe Hands: On-device Real-time Hand Tracking" (2020); MediaPipe's graphs
palm_detection_cpu, palm_detection_detection_to_roi, hand_landmark_cpu and hand_landmark_landmarks_to_roi.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mldm_plugin.perceptual.anchored import Detector, overlap
from mldm_plugin.perceptual.pose import Pose
from mldm_plugin.perceptual.tflite_graph import frozen_graph
from mldm_plugin.perceptual.turned_squares import cut_out, moved, to_picture, upright

PALMS = Detector("mediapipe_palm", size=192, strides=(8, 16, 16, 16), lowest=0.0)
POINTS, SIZE = 21, 224
WRIST, INDEX, MIDDLE, RING = 0, 5, 9, 13  # where the fingers begin
# The wrist and the two joints nearest to it of each finger (three of the thumb): fingertips would make squares jump.
PALM_POINTS = (0, 1, 2, 3, 5, 6, 9, 10, 13, 14, 17, 18)
POSE_HANDS = ((15, 17, 19), (16, 18, 20))  # wrist, little and index finger among BlazePose's points
AROUND = 13.5  # chosen, in wrist to middle of the hand: with 8, 13.5 and 21.6 the same hands were found
NEAR = 6.75  # so that a hand whose wrist lies within two of these lengths is the wrist's


@dataclass(frozen=True)
class Hand:
    """A hand in a picture of H × W pixels.

    Args:
        box: (4,) x0, y0, x1, y1 in pixels around the points.
        score: in [0, 1], of there being a hand.
        points: (21, 2) x, y in pixels: the wrist, then four of each finger from the palm outwards, the thumb first.
        world: (21, 3) x, y, z in metres from the hand's middle, as the network believes it to be.
        right: in [0, 1], of its being a right hand.
    """

    box: Tensor
    score: Tensor
    points: Tensor
    world: Tensor
    right: Tensor


def find_hands(image: Tensor, poses: Sequence[Pose] = (), threshold: float = 0.5) -> list[Hand]:
    """The hands in a picture, the surest first.

    Palms are looked for in the whole picture, shrunk to 192 pixels, and then around each wrist of `poses` that is seen
    but has no hand yet: of a person half as high as the picture the first look finds a quarter of the hands, the second
    one all (docs/hands_and_pose.md).

    Args:
        image: (3, H, W) RGB in [-1, 1].
        poses: what `find_pose` says of it.
        threshold: the lowest score, of the palm and of the hand itself.

    Returns:
        Hands on the picture's device. Gradients flow from all but the box to the picture, with the squares taken as
        given.

    Raises:
        WeightsError: `mediapipe_palm` or `mediapipe_hand` cannot be had.
    """
    found = _hands_of(image, PALMS(image, threshold=threshold), threshold)
    for pose in poses:
        for wrist, square in _wrist_squares(pose):
            if not any((hand.points[WRIST].detach().cpu() - wrist).norm() < square[2] / NEAR for hand in found):
                found += _hands_of(image, PALMS(image, square, threshold), threshold)
    return once(found)


def _hands_of(image: Tensor, palms: Tensor, threshold: float) -> list[Hand]:
    """The hands that belong to palms. The second look halves how far points move when the first square does."""
    if not len(palms):
        return []
    with torch.no_grad():
        first = hands_in(image, _palm_squares(palms))
    again = torch.stack([hand_square(hand.points.cpu()) for hand in first])
    return [hand for hand in hands_in(image, again) if hand.score >= threshold]


def _wrist_squares(pose: Pose) -> list[tuple[Tensor, Tensor]]:
    """Of each wrist that is seen its place (2,) and an upright square (4,) in which its hand must lie.

    Source: MediaPipe, HandDetectionsFromPoseToRectsCalculator, for the hand's middle, and AROUND for the size.
    """
    squares = []
    for wrist, little, index in POSE_HANDS:
        if pose.visibility[wrist] >= 0.5:
            start, *ends = (pose.points[i].detach().cpu() for i in (wrist, little, index))
            middle = (ends[0] + 2 * ends[1]) / 3
            side = AROUND * (middle - start).norm()
            squares.append((start, torch.stack([*middle, side.clamp(min=1), torch.tensor(0.0)])))
    return squares


def hands_in(image: Tensor, squares: Tensor) -> list[Hand]:
    """The hand in each square (K, 4) of a picture (3, H, W), likely or not."""
    crops = cut_out((image + 1) / 2, squares, SIZE)
    raw, scores, right, world = frozen_graph("mediapipe_hand", (0, 1, 2, 3))(crops)
    placed = to_picture(squares, raw.view(len(raw), POINTS, 3)[..., :2] / SIZE)
    world = world.view(len(world), POINTS, 3)
    boxes = torch.cat([placed.amin(1), placed.amax(1)], dim=1).detach()
    return [Hand(boxes[i], scores[i, 0], placed[i], world[i], right[i, 0]) for i in range(len(squares))]


def hand_square(points: Tensor) -> Tensor:
    """The square (4,) around a hand whose points (21, 2) are known."""
    middle = ((points[INDEX] + points[RING]) / 2 + points[MIDDLE]) / 2
    [angle] = upright(points[WRIST][None], middle[None])
    palm = points[list(PALM_POINTS)]
    centre = (palm.amin(0) + palm.amax(0)) / 2
    turn = torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])])
    inside = (palm - centre) @ turn.T
    low, high = inside.amin(0), inside.amax(0)
    square = torch.cat([centre + (low + high) / 2 @ turn, (high - low).amax()[None], angle[None]])
    return moved(square[None], down=-0.1, scale=2.0)[0]


def once(hands: Sequence[Hand]) -> list[Hand]:
    """Of hands whose boxes overlap by more than half the surest one."""
    kept: list[Hand] = []
    for hand in sorted(hands, key=lambda hand: -float(hand.score.detach())):
        if not any(overlap(hand.box, other.box[None]) > 0.5 for other in kept):
            kept.append(hand)
    return kept


def _palm_squares(found: Tensor) -> Tensor:
    """The squares around hands whose palms were found; the first point is the wrist, the third where the middle finger
    begins."""
    box, wrist, middle = found[:, 1:5], found[:, 5:7], found[:, 9:11]
    centre, side = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]).amax(1, keepdim=True)
    squares = torch.cat([centre, side, upright(wrist, middle)[:, None]], dim=1)
    return moved(squares, down=-0.5, scale=2.6)
