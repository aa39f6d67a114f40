"""The figures of docs/losses/keypoints.md: which faults of drawn hands and arms the loss orders.

python docs/keypoints.py 500 128   so many people, drawn in pictures of about that size
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mldm_plugin import DiffusionStep
from mldm_plugin.hooks.keypoints import EXTENT, Keypoints
from mldm_plugin.perceptual.hands import hands_in
from mldm_plugin.perceptual.limb_squares import hand_squares
from mldm_plugin.perceptual.turned_squares import cut_out
from mldm_plugin.prepare.synthetic.annotation import annotate
from mldm_plugin.prepare.synthetic.canvas import Layer
from mldm_plugin.prepare.synthetic.clothes import Clothes
from mldm_plugin.prepare.synthetic.curve import Frame, opened, tube
from mldm_plugin.prepare.synthetic.hand import GESTURES, hand_points, paint_hand
from mldm_plugin.prepare.synthetic.palette import SKIN
from mldm_plugin.prepare.synthetic.part import KEYPOINTS, Part
from mldm_plugin.prepare.synthetic.person import Person
from mldm_plugin.prepare.synthetic.picture import FINER, Plan, draw_plan, paint

FAULTS = ("none", "hand bent by 15°", "hand missing", "six fingers", "forearm bent by 15°", "arm missing")
SIZES = (0, 12, 16, 24, 32, 48, 10_000)  # of hands, wrist to fingertip, in pixels
# In `FAULTS`: which must cost more than the one before.
ORDERS = ((0, 1), (0, 2), (0, 1, 2), (0, 3), (2, 3), (0, 1, 2, 3), (0, 4, 5), (4, 5))
PARTS = ("hands", "bodies")
ANGLE = math.radians(15)


@dataclass(frozen=True)
class Faulty(Person):
    """A person one of whose arms is wrong."""

    fault: str = "none"
    word: str = "left"

    def _arm_and_hand(self, layer: Layer, clothes: Clothes, word: str) -> None:
        if word != self.word or self.fault not in FAULTS[1:4] + FAULTS[5:]:
            super()._arm_and_hand(layer, clothes, word)
            return
        if self.fault == "arm missing":
            return
        clothes.arm(word)
        if self.fault == "hand missing":
            return
        frame, gesture = self.hand_frame(word), self.pose.hands[word == "right"]
        part, skin = (Part.LEFT_HAND if word == "left" else Part.RIGHT_HAND), SKIN[self.look.skin]
        if self.fault == "six fingers":
            a = math.radians(2.65 * GESTURES[gesture].spread)  # one further than the little finger
            x, y = 0.25, -0.38
            line = opened([(x * 0.8, y + 0.1), (x, y), (x + math.sin(a) * 0.33, y - math.cos(a) * 0.33)], 5)
            thick = np.interp(np.linspace(0, 3, len(line)), range(4), (0.06, 0.06, 0.055, 0.047))
            layer.paint(frame(tube(line, thick)), skin, part=part, form=0.7, edge=0.75, drop=0.3)
        paint_hand(layer, frame, gesture, skin, part)

    def hand_frame(self, word: str) -> Frame:
        frame = super().hand_frame(word)
        bent = word == self.word and self.fault == "hand bent by 15°"
        return replace(frame, angle=frame.angle + ANGLE) if bent else frame


def with_fault(person: Person, word: str, fault: str) -> Faulty:
    if fault == "forearm bent by 15°":
        joints, i = dict(person.pose.joints), int(word == "right")
        (ex, ey), (wx, wy) = joints[f"{word}_elbow"], joints[f"{word}_wrist"]
        c, s = math.cos(ANGLE), math.sin(ANGLE)
        joints[f"{word}_wrist"] = (ex + c * (wx - ex) - s * (wy - ey), ey + s * (wx - ex) + c * (wy - ey))
        angles = tuple(a + ANGLE * (k == i) for k, a in enumerate(person.pose.hand_angles))
        person = replace(person, pose=replace(person.pose, joints=joints, hand_angles=angles))
    own = {field.name: getattr(person, field.name) for field in dataclasses.fields(Person)}
    return Faulty(**own, fault=fault, word=word)


def shown_hand(plan: Plan) -> str | None:
    """Whose hand, left or right, is seen whole with its fingers; None for another picture."""
    if len(plan.people) != 1 or plan.props or plan.people[0].pose.back:
        return None
    [person] = plan.people
    for i, word in enumerate(("left", "right")):
        at = np.array(person.frame.point(*person.pose.joints[f"{word}_wrist"]))
        length = person.hand_frame(word).scale
        inside = (at > length).all() and (at < np.array(plan.size) * FINER - length).all()
        if person.pose.hands[i] in ("open", "relaxed") and person.pose.arms[i] != "crossed" and inside:
            return word
    return None


def as_estimate(image: Tensor, seed: int) -> Tensor:
    """Half as sharp, with a little noise: what little-noised estimates look like, right or wrong."""
    blurred = F.interpolate(F.avg_pool2d(image[None], 2, ceil_mode=True), image.shape[1:], mode="bilinear")[0]
    return blurred + 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Case:
    """A drawn person one of whose hands is looked at, and what might have become of them.

    Args:
        length: of the hand in pixels, wrist to fingertip.
        keypoints: (1, 17, 3), with one elbow and wrist.
        points: (21, 2), the photograph's hand in pixels.
        photo: (1, 3, H, W) in [-1, 1].
        estimates: (6, 3, H, W), one of each of `FAULTS`.
    """

    length: float
    keypoints: Tensor
    points: Tensor
    photo: Tensor
    estimates: Tensor


def people(count: int, size: int) -> Iterator[Case]:
    """Each with all its faults."""
    found, seed = 0, 1000  # those before chose the stages
    while found < count:
        seed += 1
        plan = draw_plan(np.random.default_rng([77, seed]), size)
        word = shown_hand(plan)
        if word is None:
            continue
        wrong = [replace(plan, people=[with_fault(plan.people[0], word, fault)]) for fault in FAULTS]
        drawn = [paint(plan, np.random.default_rng(1)) for plan in wrong]
        [person] = (a for a in annotate(drawn[0], np.random.default_rng(1)) if "keypoints" in a)
        keypoints = torch.tensor(person["keypoints"]).view(1, 17, 3)
        arm = [KEYPOINTS.index(f"{word}_{joint}") for joint in ("elbow", "wrist")]
        if not (keypoints[0, arm, 2] > 0).all():
            continue
        images = torch.stack([torch.from_numpy(d.pixels).permute(2, 0, 1).float() / 127.5 - 1 for d in drawn])
        other = [k for k, name in enumerate(KEYPOINTS) if name.endswith("wrist") and k not in arm]
        keypoints[0, other] = 0  # so that the one hand alone is looked at
        found += 1
        estimates = torch.stack([as_estimate(image, seed) for image in images])
        hand, gesture = plan.people[0].hand_frame(word), plan.people[0].pose.hands[word == "right"]
        points = torch.from_numpy(hand_points(hand, gesture) / FINER).float()
        yield Case(hand.scale / FINER, keypoints, points, images[:1], estimates)


def costs(loss: Keypoints, case: Case) -> list[float]:
    n, z = len(case.estimates), torch.zeros(len(case.estimates), 4, 1, 1)
    step = DiffusionStep(z, z, z, torch.zeros(n), z, z, keypoints=[case.keypoints] * n)
    return loss(replace(step, pred_images=case.estimates, target_images=case.photo.expand_as(case.estimates))).tolist()


def pixels(case: Case) -> list[float]:
    """The squared difference of the pixels in the same square."""
    squares = hand_squares(case.keypoints, EXTENT)
    true, *own = (cut_out(image, squares, 64) for image in (case.photo[0], *case.estimates))
    return [float((image - true).square().mean()) for image in own]


def answers(case: Case) -> list[float]:
    """How far the 21 points that the hand network answers are from those in the photograph."""
    squares = hand_squares(case.keypoints, EXTENT)
    [true], *own = (hands_in(image, squares) for image in (case.photo[0], *case.estimates))
    return [float((hand.points - true.points).norm(dim=1).mean()) for [hand] in own]


def in_order(table: np.ndarray, order: Sequence[int]) -> str:
    share = (np.diff(table[:, order], axis=1) > 0).all(1).mean()
    return " < ".join(FAULTS[k] for k in order) + f" {100 * share:.0f} %"


def main(count: int, size: int, more: dict[str, Callable[[Case], list[float]]] | None = None) -> None:
    """Print how often each order holds, by what is told here and by `more`, lists of what each estimate costs."""
    told: dict[str, Callable[[Case], list[float]]] = {of: partial(costs, Keypoints(of=of, smallest=1)) for of in PARTS}
    told |= {"pixels": pixels, "answers": answers} | (more or {})
    lengths, values = [], {name: [] for name in told}
    for case in people(count, size):
        lengths.append(case.length)
        for name, of in told.items():
            values[name].append(of(case))
    place = np.digitize(lengths, SIZES)
    for name, numbers in values.items():
        table = np.array(numbers)
        click.echo(f"{name}: medians, in those without fault: {np.median(table / table[:, :1], axis=0).round(2)}")
        for bin_ in (*range(1, len(SIZES)), None):
            of = table if bin_ is None else table[place == bin_]
            said = "all" if bin_ is None else f"{SIZES[bin_ - 1]} to {SIZES[bin_]} px"
            if len(of):
                shares = ", ".join(in_order(of, order) for order in ORDERS)
                click.echo(f"  {said}, {len(of)} hands: {shares}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        main(int(sys.argv[1]), int(sys.argv[2]))
