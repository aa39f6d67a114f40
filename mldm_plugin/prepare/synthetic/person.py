"""A whole person: painted from back to front on a layer of their own, with their joints in pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mldm_plugin.prepare.synthetic.canvas import Layer, Light
from mldm_plugin.prepare.synthetic.clothes import Clothes
from mldm_plugin.prepare.synthetic.curve import Frame, closed, ellipse, opened, tube
from mldm_plugin.prepare.synthetic.face import Face
from mldm_plugin.prepare.synthetic.face_marks import mark_face
from mldm_plugin.prepare.synthetic.hair import Hair
from mldm_plugin.prepare.synthetic.hand import paint_hand
from mldm_plugin.prepare.synthetic.head import EYE, NOSE, Head
from mldm_plugin.prepare.synthetic.look import Look
from mldm_plugin.prepare.synthetic.palette import CLOTH, SKIN
from mldm_plugin.prepare.synthetic.part import KEYPOINTS, Part
from mldm_plugin.prepare.synthetic.pose import ARMS, HEAD, Pose

HAND = 0.66  # length of a hand in heads; a real one is 0.75 of the face, which is shorter than the head


@dataclass(frozen=True)
class Person:
    """Someone who stands in the picture.

    Args:
        look, pose: who, and how.
        frame: from heads (origin: middle of the hips) to pixels of the working picture.
        thing: what a holding hand holds, or an empty string.
        place: where they are seen among the others, for captions: "front" or "behind".
    """

    look: Look
    pose: Pose
    frame: Frame
    thing: str = ""
    place: str = "front"

    @property
    def head(self) -> Head:
        x, y = self.frame.point(*self.pose.joints["head"])
        frame = Frame(x, y, self.frame.scale * HEAD, self.pose.head_tilt)
        return Head(frame, self.look, self.pose.yaw, self.pose.pitch, self.pose.back)

    def keypoints(self) -> np.ndarray:
        """COCO's seventeen (17, 2), in pixels of the working picture."""
        head = self.head
        points: dict[str, tuple[float, float]] = {"nose": head.point(*NOSE, 0.08)}
        for word, sign in (("left", 1), ("right", -1)):
            side = self.pose.side(word == "left") if self.pose.back else sign
            points[f"{word}_eye"] = head.point(side * EYE[0], EYE[1])
            points[f"{word}_ear"] = Face.ear_centre(head, side)
        for name in KEYPOINTS[5:]:
            points[name] = self.frame.point(*self.pose.joints[name])
        return np.array([points[name] for name in KEYPOINTS])

    def paint(self, size: tuple[int, int], light: Light) -> Layer:
        """The person alone on a clear layer."""
        layer = Layer(size, light)
        clothes, hair = Clothes(layer, self.frame, self.look, self.pose), Hair(layer, self.head)
        if not self.pose.back:
            hair.behind()
        for word in ("left", "right"):
            if ARMS[self._arm(word)].behind and not self.pose.back:
                self._arm_and_hand(layer, clothes, word)
        if not self.pose.sitting:
            clothes.legs()
        if self.pose.back:
            clothes.neck()
        clothes.trunk()
        if self.pose.sitting:
            clothes.legs()
        clothes.skirt()
        if not self.pose.back:
            clothes.neck_over()
        self._head(layer, hair)
        for word in ("right", "left"):
            if self.pose.back or not ARMS[self._arm(word)].behind:
                self._arm_and_hand(layer, clothes, word)
        return layer

    def _arm(self, word: str) -> str:
        return self.pose.arms[0 if word == "left" else 1]

    def _head(self, layer: Layer, hair: Hair) -> None:
        face = Face(layer, self.head)
        face.ears()
        face.skin()
        if not self.pose.back:
            face.features()
            mark_face(face)
        hair.over()

    def hand_frame(self, word: str) -> Frame:
        """Where the "left" or "right" hand lies, whose length is the frame's scale."""
        angle, side = self.pose.hand_angles[word == "right"], self.pose.side(word == "left")
        x, y = self.frame.point(*self.pose.joints[f"{word}_wrist"])
        unit = HAND * self.frame.scale * (0.92 if self.look.feminine else 1.0)
        c, s = math.cos(angle), math.sin(angle)
        # The thumb lies towards the body, and on top where the hand is level.
        thumb = -side * (1 if c > 0 else -1) if abs(c) > 0.6 else (-1 if s > 0 else 1)
        return Frame(x, y, unit, angle, -1.0 if thumb > 0 else 1.0)

    def _arm_and_hand(self, layer: Layer, clothes: Clothes, word: str) -> None:
        gesture, frame = self.pose.hands[word == "right"], self.hand_frame(word)
        clothes.arm(word)
        holding = gesture == "holding" and self.thing
        if holding:
            self._thing(layer, frame)
        paint_hand(layer, frame, gesture, SKIN[self.look.skin], Part.LEFT_HAND if word == "left" else Part.RIGHT_HAND)

    def _thing(self, layer: Layer, hand: Frame) -> None:
        """What the hand holds, upright whatever the hand's angle."""
        u = self.frame.scale
        x, y = hand.point(0.0, -0.32)
        at = Frame(x, y, u)
        colour = CLOTH[self.look.second_colour]
        paint = {"part": Part.THING, "form": 0.8, "edge": 0.3, "drop": 0.3}
        if self.thing == "a cup":
            cup = at([(-0.17, -0.34), (0.17, -0.34), (0.14, 0.14), (-0.14, 0.14)])
            layer.paint(cup, colour, **paint)  # type: ignore[arg-type]
            layer.paint(at(ellipse(0, -0.34, 0.17, 0.05)), (0.35, 0.22, 0.15), part=Part.THING, edge=0.5)
        elif self.thing == "a flower":
            stem = at(opened([(0, 0.3), (0.02, -0.1), (0, -0.5)]))
            layer.paint(tube(stem, [u * 0.025] * 2), (0.25, 0.5, 0.22), **paint)  # type: ignore[arg-type]
            for angle in np.linspace(0, 2 * math.pi, 7)[:-1]:
                petal = ellipse(0.11 * math.cos(angle), -0.55 + 0.11 * math.sin(angle), 0.1, 0.075, angle)
                layer.paint(at(petal), colour, **paint)  # type: ignore[arg-type]
            layer.paint(at(ellipse(0, -0.55, 0.07, 0.07)), (0.95, 0.78, 0.25), part=Part.THING, form=0.6)
        else:
            string = at(opened([(0, 0.1), (0.05, -0.8), (-0.02, -1.3), (0.02, -1.75)]))
            layer.paint(tube(string, [max(u * 0.012, 0.6)] * 2), (0.9, 0.9, 0.88), part=Part.THING)
            skin = closed([(0.02, -1.72), (0.36, -2.1), (0.3, -2.5), (0, -2.62), (-0.3, -2.5), (-0.33, -2.1)])
            layer.paint(at(skin), colour, **paint)  # type: ignore[arg-type]
            gleam = at(ellipse(0.14 * np.sign(layer.light.x), -2.38, 0.06, 0.1, 0.4))
            layer.paint(gleam, (1, 1, 1), soft=u * 0.03, opacity=0.7, inside=True)
