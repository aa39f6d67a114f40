"""The skeleton: where a person's joints are, in heads, from plausible angles.

The origin is the middle of the hips, y points down. Angles are degrees from hanging straight down, positive away
from the body. Seen from the front the person's left is at x > 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mldm_plugin.prepare.synthetic.look import Look, pick, uniform

HEAD = 1.2  # drawn height of a head, in heads: illustration enlarges it, so that faces read in small pictures

TUCKED = 0.4  # of an upper arm's angle in a portrait, so that the hand stays in the picture


@dataclass(frozen=True)
class Arm:
    """One way to hold an arm.

    Args:
        upper, fore: angles of the two bones.
        hand: gesture, see hand.GESTURES.
        turn: angle of the hand against the forearm, towards the body.
        short: factor of the forearm's length as seen, for one that points at the viewer.
        behind: hidden behind the body.
    """

    upper: float
    fore: float
    hand: str
    turn: float = 0.0
    short: float = 1.0
    behind: bool = False


ARMS = {
    "hanging": Arm(11, 7, "relaxed"),
    "on the hip": Arm(44, -52, "fist", turn=-10),
    "waving": Arm(38, 166, "open", turn=-8),
    "raised": Arm(158, 172, "open"),
    "raised fist": Arm(118, 178, "fist"),
    "crossed": Arm(13, -97, "relaxed", turn=12, short=0.92),
    "pointing aside": Arm(78, 96, "pointing"),
    "pointing up": Arm(24, 172, "pointing"),
    "peace sign": Arm(30, 164, "peace sign"),
    "thumb up": Arm(20, -118, "thumb up", turn=28, short=0.8),
    "at the chin": Arm(26, -140, "fist"),  # the wrist goes where the chin is
    "holding": Arm(16, -126, "holding", turn=-40, short=0.72),
    "behind the back": Arm(14, -26, "fist", behind=True),
    "spread": Arm(66, 112, "open", turn=10),
    "on the knee": Arm(20, -8, "relaxed", short=0.85),
}
# What both arms do: left and right (or the other way round) and how often. Chosen so that hands are seen often.
STANDING = {
    ("hanging", "hanging"): 2.0,
    ("on the hip", "on the hip"): 1.6,
    ("on the hip", "hanging"): 1.2,
    ("waving", "hanging"): 3.0,
    ("waving", "on the hip"): 1.6,
    ("raised", "raised"): 1.8,
    ("raised fist", "hanging"): 0.8,
    ("crossed", "crossed"): 1.6,
    ("pointing aside", "hanging"): 1.2,
    ("pointing up", "on the hip"): 1.0,
    ("peace sign", "hanging"): 1.4,
    ("thumb up", "hanging"): 1.2,
    ("at the chin", "crossed"): 1.2,
    ("holding", "hanging"): 1.4,
    ("holding", "waving"): 0.6,
    ("behind the back", "behind the back"): 0.5,
    ("spread", "spread"): 1.2,
}
CLOSE = {  # for portraits: hands near the face
    ("waving", "hanging"): 3.0,
    ("peace sign", "hanging"): 2.0,
    ("at the chin", "hanging"): 2.0,
    ("pointing up", "hanging"): 1.6,
    ("waving", "waving"): 1.0,
    ("peace sign", "peace sign"): 0.6,
    ("hanging", "hanging"): 2.0,
    ("raised", "raised"): 0.6,
}
PORTRAIT = {("hanging", "hanging"): 1.0}
SITTING = {
    ("on the knee", "on the knee"): 2.0,
    ("waving", "on the knee"): 2.0,
    ("crossed", "crossed"): 1.0,
    ("at the chin", "on the knee"): 1.0,
    ("holding", "on the knee"): 1.2,
    ("peace sign", "on the knee"): 1.0,
}
# Thigh angle and length as seen, shin angle and length as seen; the person's left and right.
LEGS = {
    "standing": ((6, 1, 3, 1), (6, 1, 3, 1)),
    "standing at ease": ((15, 1, 9, 1), (1, 1, 1, 1)),
    "standing astride": ((17, 1, 12, 1), (17, 1, 12, 1)),
    "walking": ((4, 1, 2, 1), (3, 0.93, 6, 0.74)),
    "sitting": ((16, 0.34, 3, 1), (16, 0.34, 3, 1)),
    "sitting cross-legged": ((66, 0.86, -78, 0.92), (66, 0.86, -78, 0.92)),
    "jumping": ((30, 0.92, -22, 0.78), (24, 0.95, -34, 0.72)),
}
FULL_BODY = {
    "standing": 3.0,
    "standing at ease": 3.0,
    "standing astride": 1.5,
    "walking": 3.0,
    "sitting": 2.2,
    "sitting cross-legged": 1.4,
    "jumping": 1.0,
}


@dataclass(frozen=True)
class Pose:
    """Joints by COCO's names (of eyes, ears and nose the face knows) and what the body does.

    Attributes:
        joints: name → (x, y) in heads; also "neck", "head" (its middle) and the hands' angles in `hand_angles`.
        hands: gesture of the left and right hand.
        arms: names of ARMS, left and right.
        head_tilt, yaw: radians; pitch in heads.
    """

    legs: str
    arms: tuple[str, str]
    joints: dict[str, tuple[float, float]]
    hand_angles: tuple[float, float]
    head_tilt: float
    yaw: float
    pitch: float
    back: bool
    hands: tuple[str, str]

    def side(self, left: bool) -> int:
        """The sign of x where the person's left (or right) side is drawn."""
        return 1 if left != self.back else -1

    @property
    def sitting(self) -> bool:
        return self.legs.startswith("sitting")

    @property
    def lift(self) -> float:
        """How high the soles are above the ground, in heads."""
        return 0.5 if self.legs == "jumping" else 0.0

    @property
    def lowest(self) -> float:
        """y of the soles, in heads."""
        feet = max(self.joints["left_ankle"][1], self.joints["right_ankle"][1])
        return max(feet + 0.18, 0.42)


def draw_pose(rng: np.random.Generator, look: Look, shot: str, back: bool = False) -> Pose:
    """A pose at random. `shot` is "portrait", without hands and nearly straight, "close", "half", "knee" or "full"."""
    legs = pick(rng, FULL_BODY) if shot == "full" else "standing at ease" if rng.random() < 0.5 else "standing"
    if back and legs in ("sitting", "sitting cross-legged", "jumping"):
        legs = "walking"
    calm = 0.5 if shot == "portrait" else 1.0
    table = (
        PORTRAIT
        if shot == "portrait"
        else CLOSE
        if shot == "close"
        else SITTING
        if legs.startswith("sitting")
        else STANDING
    )
    weights = {str(i): v for i, v in enumerate(table.values())}
    arms = list(table)[int(pick(rng, weights))]
    if legs == "jumping":
        arms = ("raised", "raised")
    if back:
        arms = [("hanging", "hanging"), ("waving", "hanging"), ("on the hip", "on the hip"), ("raised", "raised")][
            int(rng.integers(4))
        ]
    if rng.random() < 0.5:
        arms = (arms[1], arms[0])
    joints, angles = _joints(rng, look, arms, legs, back, TUCKED if shot == "close" else 1.0)
    return Pose(
        legs=legs,
        arms=arms,
        joints=joints,
        hand_angles=angles,
        head_tilt=calm * float(np.clip(rng.normal(0, 0.09), -0.2, 0.2)),
        yaw=calm * float(rng.uniform(-0.34, 0.34)),
        pitch=float(rng.uniform(-0.04, 0.04)),
        back=back,
        hands=(ARMS[arms[0]].hand, ARMS[arms[1]].hand),
    )


def _toward(start: tuple[float, float], degrees: float, length: float, side: int) -> tuple[float, float]:
    a = math.radians(degrees)
    return start[0] + side * math.sin(a) * length, start[1] + math.cos(a) * length


def _joints(
    rng: np.random.Generator, look: Look, arms: tuple[str, str], legs: str, back: bool, tuck: float
) -> tuple[dict[str, tuple[float, float]], tuple[float, float]]:
    """All joints in heads, and the directions of the hands (radians, 0 upwards, clockwise)."""
    size = (look.tall - 1.33) / 5.07  # of the body below the chin, against an adult of 6.4 heads
    lean = rng.uniform(-0.08, 0.08)
    neck = (lean, -2.0 * size)
    joints = {"neck": neck, "head": (lean * 1.25, neck[1] - 0.2 - HEAD / 2)}
    tilt = rng.uniform(-0.05, 0.05)
    angles = []
    mirror_legs = bool(rng.random() < 0.5)
    for i, word in enumerate(("left", "right")):
        side = 1 if (word == "left") != back else -1
        arm = ARMS[arms[i]]
        shoulder = (neck[0] + side * 0.66 * look.broad * (0.5 + 0.5 * size), neck[1] + 0.2 + side * tilt)
        upper, fore = arm.upper * tuck + rng.uniform(-5, 5), arm.fore + rng.uniform(-5, 5)
        elbow = _toward(shoulder, upper, 1.12 * size, side)
        wrist = _toward(elbow, fore, 0.98 * size * arm.short, side)
        direction = 180 - fore - arm.turn + rng.uniform(-6, 6)
        if arms[i] == "at the chin":
            x, y = joints["head"]
            elbow = _toward(shoulder, 26, 0.95 * size, side)
            wrist, direction = (x + side * 0.2, y + HEAD / 2 + 0.28), -16
        joints |= {f"{word}_shoulder": shoulder, f"{word}_elbow": elbow, f"{word}_wrist": wrist}
        angles.append(math.radians(direction) * side)
        thigh, far, shin, low = LEGS[legs][i if not mirror_legs else 1 - i]
        hip = (side * 0.33 * look.hips * (0.6 + 0.4 * size), 0.0)
        knee = _toward(hip, thigh + rng.uniform(-2, 2), 1.5 * far * size, side)
        ankle = _toward(knee, shin + rng.uniform(-2, 2), 1.42 * low * size, side)
        joints |= {f"{word}_hip": hip, f"{word}_knee": knee, f"{word}_ankle": ankle}
    return joints, (angles[0], angles[1])


def draw_thing(rng: np.random.Generator) -> str:
    """What a holding hand holds."""
    return uniform(rng, "a cup", "a flower", "a balloon")
