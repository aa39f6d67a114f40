"""The labels of a person's parts, and through which parts a keypoint can be seen."""

from __future__ import annotations

from enum import IntEnum


class Part(IntEnum):
    """What is on top at a pixel; 0 is nothing. Left and right are the person's own."""

    FACE = 1
    LEFT_EAR = 2
    RIGHT_EAR = 3
    HAIR = 4
    HAT = 5
    GLASSES = 6
    NECK = 7
    TORSO = 8
    LEFT_ARM = 9
    RIGHT_ARM = 10
    LEFT_HAND = 11
    RIGHT_HAND = 12
    LEFT_LEG = 13
    RIGHT_LEG = 14
    THING = 15
    # Of a face, marked on it after it is painted. Glasses are dark, spectacles are looked through.
    SPECTACLES = 16
    NOSE = 17
    LEFT_EYE = 18
    RIGHT_EYE = 19
    LEFT_BROW = 20
    RIGHT_BROW = 21
    UPPER_LIP = 22
    MOUTH = 23
    LOWER_LIP = 24


FACE_PARTS = frozenset({Part.FACE, *(part for part in Part if part >= Part.SPECTACLES)})  # what shows the face

# COCO's order.
KEYPOINTS = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
# COCO's person_keypoints, from 1.
SKELETON = (
    (16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9),
    (8, 10), (9, 11), (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7),
)  # fmt: skip


def seen_through(name: str) -> frozenset[Part]:
    """The parts that show a keypoint when they are on top of it; any other part hides it."""
    if name == "nose" or name.endswith("_eye"):
        return FACE_PARTS
    side, joint = name.split("_")
    of_side = {word: Part[f"{side.upper()}_{word}"] for word in ("EAR", "ARM", "HAND", "LEG")}
    if joint == "ear":
        return frozenset({of_side["EAR"]})
    if joint in ("elbow", "wrist"):
        return frozenset({of_side["ARM"], of_side["HAND"]})
    if joint in ("shoulder", "hip"):
        return frozenset({Part.TORSO, of_side["ARM"], of_side["LEG"]})
    return frozenset({of_side["LEG"], Part.TORSO})  # a skirt is of the torso
