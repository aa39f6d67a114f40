"""Clothes: the outlines of garments on a posed body and the order they are put on in."""

from __future__ import annotations

import numpy as np

from mldm_plugin.prepare.synthetic.canvas import Ink, Layer, Rgb
from mldm_plugin.prepare.synthetic.curve import Curve, Frame, closed, disc, ellipse, limb, opened, tube
from mldm_plugin.prepare.synthetic.look import Look
from mldm_plugin.prepare.synthetic.palette import CLOTH, SKIN, deeper, mix, scaled
from mldm_plugin.prepare.synthetic.part import Part
from mldm_plugin.prepare.synthetic.pose import Pose
from mldm_plugin.prepare.synthetic.texture import cloth

# Of the sleeve, as a share of the arm: 1 ends at the wrist, 0.5 at the elbow, 0 has none.
SLEEVES = {"t-shirt": 0.34, "shirt": 0.97, "sweater": 0.97, "dress": 0.24, "tank top": 0.0}
SLEEVES |= {"jacket": 0.97, "suit": 0.97, "hoodie": 0.97}
LOOSE = {"sweater": 1.16, "hoodie": 1.2, "jacket": 1.18, "suit": 1.12}  # how far cloth stands off the arm
HEMS = {"trousers": 0.97, "jeans": 0.96, "shorts": 0.5}


class Clothes:
    """Paints legs, trunk and sleeves of one person, dressed."""

    def __init__(self, layer: Layer, frame: Frame, look: Look, pose: Pose) -> None:
        self.layer, self.frame, self.look, self.pose = layer, frame, look, pose
        self.skin = SKIN[look.skin]
        self.size = (look.tall - 1.33) / 5.07
        self.girth = look.wide * (0.86 if look.feminine else 1.0) * (0.8 if look.child else 1.0)

    def joint(self, name: str) -> np.ndarray:
        return np.array(self.pose.joints[name])

    @property
    def skirted(self) -> bool:
        return self.look.top == "dress" or self.look.bottom == "skirt"

    def top_ink(self) -> Ink:
        look = self.look
        return cloth(CLOTH[look.top_colour], CLOTH[look.second_colour], look.pattern, self.frame)

    def bottom_ink(self) -> Ink:
        look = self.look
        colour = CLOTH[look.bottom_colour] if look.bottom != "none" else CLOTH[look.top_colour]
        weave = 0.09 if look.bottom == "jeans" else 0.04
        return cloth(colour, scaled(colour, 0.8), "plain", self.frame, weave)

    def legs(self) -> None:
        far, near = (
            ("left", "right") if self.joint("left_ankle")[1] < self.joint("right_ankle")[1] else ("right", "left")
        )
        for word in (far, near):
            self._leg(word, Part.LEFT_LEG if word == "left" else Part.RIGHT_LEG)

    def _leg(self, word: str, part: Part) -> None:
        hip, knee, ankle = (self.joint(f"{word}_{j}") for j in ("hip", "knee", "ankle"))
        line = self.frame([hip, knee, ankle])
        r = self.frame.scale * self.girth
        depth = 0.16 * r
        outline = limb(line, [v * r for v in (0.31, 0.27, 0.2, 0.19, 0.12)])
        self.layer.paint(outline, self.skin, part=part, form=0.75, edge=0.4, depth=depth, drop=0.4)
        self._shoe(word, ankle, part)
        hem = HEMS.get(self.look.bottom)
        if hem is None:
            return
        trouser = limb(line, [v * r for v in (0.35, 0.31, 0.26, 0.25, 0.2)], hem)
        seat = self.frame(
            ellipse(hip[0] * 0.55, hip[1] - 0.02, abs(hip[0]) * 0.55 + 0.2 * self.girth, 0.3 * self.girth)
        )
        self.layer.paint(
            [*trouser, seat], self.bottom_ink(), part=part, form=0.85, edge=0.35, depth=depth * 1.2, drop=0.4
        )

    def _shoe(self, word: str, ankle: np.ndarray, part: Part) -> None:
        side = self.pose.side(word == "left")
        x, y = ankle
        out = side * 0.1
        sole = closed(
            [
                (x - 0.12, y - 0.1),
                (x + 0.12, y - 0.1),
                (x + 0.16 + max(out, 0), y + 0.1),
                (x + 0.12 + out, y + 0.18),
                (x - 0.12 + out, y + 0.18),
                (x - 0.16 + min(out, 0), y + 0.1),
            ],
            6,
        )
        colour = CLOTH[self.look.shoe_colour]
        self.layer.paint(self.frame(sole), colour, part=part, form=0.8, edge=0.4, drop=0.3)
        rim = tube(
            self.frame([(x - 0.12 + out, y + 0.165), (x + 0.13 + out, y + 0.165)]), [self.frame.scale * 0.025] * 2
        )
        self.layer.paint(rim, mix(colour, (1, 1, 1), 0.65), part=part, opacity=0.9)

    def trunk_curve(self, grow: float = 0.0, low: float = 1.08) -> Curve:
        """From the shoulders to the hips, in heads; `low` is where it ends, 0 at the shoulders, 1 at the hips."""
        neck, look, s = self.joint("neck"), self.look, 0.5 + 0.5 * self.size
        shoulder = abs(self.joint("left_shoulder")[0] - neck[0])
        waist = (0.47 if look.feminine else 0.6) * look.wide * s
        hip = 0.33 * look.hips * (0.6 + 0.4 * self.size) + 0.28 * self.girth
        chest = shoulder * (0.92 if look.feminine else 0.98) * (0.55 + 0.45 * look.wide)
        half = [(-0.06, 0.19), (-0.01, shoulder * 0.55), (0.045, shoulder * 0.98), (0.12, shoulder + 0.13)]
        half += [(0.32, chest + 0.02), (0.62, max(waist, 0.3))]
        # Under a skirt it narrows: two points side by side would bend the curve out into a spike beside the skirt.
        half += [(0.85, hip - 0.06), (low, 0.6 * hip)] if low < 1 else [(0.9, hip - 0.02), (low, hip)]
        down = -neck
        right = np.array([neck + down * t + (w + grow, 0) for t, w in half])
        left = np.array([neck + down * t - (w + grow, 0) for t, w in half])
        return closed(np.concatenate([right, left[::-1]]), 6)

    def neck(self) -> None:
        head, base = np.array(self.pose.joints["head"]), self.joint("neck")
        thick = (0.165 if self.look.feminine else 0.215) * (0.85 if self.look.child else 1.0)
        line = self.frame([(head[0], head[1] + 0.2), (base[0], base[1] - 0.1), (base[0], base[1] + 0.02)])
        outline = tube(line, np.array([thick, thick * 1.05, thick * 1.2]) * self.frame.scale)
        self.layer.paint(outline, self.skin, part=Part.NECK, form=0.7, edge=0.3)
        under = self.frame(ellipse(head[0], head[1] + 0.58, 0.34, 0.16))
        self.layer.darken(under, 0.75, soft=self.frame.scale * 0.06, clip=outline)

    def neck_over(self) -> None:
        """The neck over the collar's back edge: from the front it is nearer than the shoulders."""
        self.neck()
        if self.look.top in ("shirt", "suit"):
            self._collar(
                CLOTH["white"] if self.look.top == "suit" else mix(CLOTH[self.look.top_colour], (1, 1, 1), 0.25)
            )

    def trunk(self) -> None:
        look, unit = self.look, self.frame.scale
        grow = 0.05 if look.top in LOOSE else 0.0
        low = 0.92 if self.skirted else 1.12 if look.top in ("sweater", "hoodie", "jacket", "suit") else 1.06
        outline = [self.frame(self.trunk_curve(grow, low))]
        if SLEEVES[look.top]:
            outline += self._slopes()
        else:
            self.layer.paint(self._slopes(), self.skin, part=Part.TORSO, form=0.7, edge=0.3)
        self.layer.paint(outline, self.top_ink(), part=Part.TORSO, form=0.85, depth=unit * 0.26, edge=0.35, drop=0.3)
        if look.feminine and not look.child:
            self._bust()
        if not self.pose.back:
            getattr(self, "_front_" + look.top.replace(" ", "_").replace("-", "_"), self._front_t_shirt)()

    def _slopes(self) -> list[Curve]:
        """From the neck down to the round ends of both arms, so that no gap is between those and the trunk."""
        x, y = self.joint("neck")
        end = 0.2 * self.girth * LOOSE.get(self.look.top, 1.0)
        curves = []
        for word in ("left", "right"):
            (sx, sy), side = self.joint(f"{word}_shoulder"), self.pose.side(word == "left")
            points = [(x + side * 0.16, y - 0.19), (sx - side * 0.12, sy - 0.98 * end), (sx + side * 0.02, sy - end)]
            points += [(sx + side * 0.7 * end, sy - 0.7 * end), (sx, sy + 0.12), (x + side * 0.16, y + 0.3)]
            curves.append(self.frame(points))
        return curves

    def _bust(self) -> None:
        neck, unit = self.joint("neck"), self.frame.scale
        y = neck[1] * 0.62
        for side in (1, -1):
            x = neck[0] * 0.65 + side * 0.24
            line = self.frame(opened([(x - 0.2, y - 0.03), (x, y + 0.07), (x + 0.2, y - 0.03)], 5))
            self.layer.darken(tube(line, np.array([0.02, 0.05, 0.02]) * unit), 0.3, soft=unit * 0.05)

    def _neckline(self, wide: float, deep: float, pointed: bool = False) -> Curve:
        """Skin that the collar leaves free."""
        x, y = self.joint("neck")
        tip = (
            [(x, y + deep)]
            if pointed
            else [(x + wide * 0.6, y + deep * 0.8), (x, y + deep), (x - wide * 0.6, y + deep * 0.8)]
        )
        points = [
            (x + wide * 0.75, y - 0.16),
            (x + wide, y - 0.06),
            *tip,
            (x - wide, y - 0.06),
            (x - wide * 0.75, y - 0.16),
        ]
        return self.frame(closed(points, 5) if not pointed else np.array(points))

    def _open_neck(self, wide: float, deep: float, pointed: bool = False, rim: Rgb | None = None) -> None:
        outline, unit = self._neckline(wide, deep, pointed), self.frame.scale
        ring = tube(np.concatenate([outline, outline[:1]]), [unit * 0.03] * 2)
        self.layer.paint(ring, rim or scaled(CLOTH[self.look.top_colour], 0.82), inside=True)
        self.layer.paint(outline, self.skin, part=Part.NECK, inside=True)
        head = np.array(self.pose.joints["head"])
        self.layer.darken(self.frame(ellipse(head[0], head[1] + 0.6, 0.38, 0.2)), 0.7, soft=unit * 0.07, clip=outline)
        for side in (1, -1):
            x, y = self.joint("neck")
            bone = self.frame(
                opened([(x + side * 0.05, y + 0.1), (x + side * 0.17, y + 0.05), (x + side * 0.3, y + 0.03)], 4)
            )
            self.layer.paint(
                tube(bone, [unit * 0.012] * 2),
                deeper(self.skin),
                soft=unit * 0.012,
                opacity=0.55,
                clip=outline,
                inside=True,
            )

    def _front_t_shirt(self) -> None:
        self._open_neck(0.25, 0.14)

    def _front_dress(self) -> None:
        self._open_neck(0.34, 0.3)

    def _front_tank_top(self) -> None:
        self._open_neck(0.36, 0.32)

    def _front_sweater(self) -> None:
        self._open_neck(0.24, 0.06)

    def _front_shirt(self) -> None:
        colour = mix(CLOTH[self.look.top_colour], (1, 1, 1), 0.25)
        self._open_neck(0.2, 0.3, pointed=True)
        self._buttons(scaled(colour, 0.6))

    def _collar(self, colour: Rgb) -> None:
        x, y = self.joint("neck")
        for side in (1, -1):
            flap = [
                (x + side * 0.19, y - 0.2),
                (x + side * 0.32, y - 0.02),
                (x + side * 0.2, y + 0.22),
                (x + side * 0.01, y + 0.26),
            ]
            flap += [(x + side * 0.12, y + 0.02)]
            self.layer.paint(self.frame(np.array(flap)), colour, part=Part.TORSO, form=0.4, edge=0.4, drop=0.5)

    def _buttons(self, colour: Rgb) -> None:
        start, unit = self.joint("neck"), self.frame.scale
        seam = self.frame([start * (1 - t) + (0.0, 0.0) for t in (0.14, 1.0)])
        self.layer.darken(tube(seam, [unit * 0.012] * 2), 0.45, soft=unit * 0.006)
        for t in np.arange(0.24, 0.95, 0.15):
            x, y = self.frame.point(*(start * (1 - t)))
            self.layer.paint(ellipse(x, y, unit * 0.028, unit * 0.028, n=12), colour, inside=True)

    def _front_suit(self) -> None:
        self._lapels(CLOTH["white"], tie=CLOTH[self.look.second_colour])

    def _front_jacket(self) -> None:
        self._lapels(CLOTH[self.look.second_colour], tie=None)

    def _lapels(self, shirt: Rgb, tie: Rgb | None) -> None:
        (x, y), unit = self.joint("neck"), self.frame.scale
        deep = -y * (0.62 if tie is not None else 0.98)
        opening = self.frame(
            [(x + 0.2, y - 0.12), (x + 0.26, y), (x * 0.4, y + deep), (x - 0.26, y), (x - 0.2, y - 0.12)]
        )
        if tie is None:
            right = [(x + 0.2, y - 0.12), (x + 0.3, y), (0.2, y + deep)]
            opening = self.frame([*right, (-0.2, y + deep), (x - 0.3, y), (x - 0.2, y - 0.12)])
        self.layer.paint(opening, cloth(shirt, shirt, "plain", self.frame), form=0.3, inside=True, part=Part.TORSO)
        self._open_neck(0.19, 0.14, rim=scaled(shirt, 0.85))
        if tie is not None:
            tip = y + deep * 0.85
            band = [(x - 0.06, y + 0.12), (x + 0.06, y + 0.12), (x + 0.1, tip), (x, y + deep * 0.98), (x - 0.1, tip)]
            self.layer.paint(self.frame(band), tie, form=0.5, edge=0.4, clip=opening, inside=True)
        dark = scaled(CLOTH[self.look.top_colour], 0.88)
        for side in (1, -1):
            end = (x * 0.4 + side * 0.01, y + deep) if tie is not None else (side * 0.2, y + deep)
            outer = [(x + side * 0.2, y - 0.14), (x + side * 0.36, y + 0.08), (x + side * 0.42, y + 0.34)]
            lapel = np.array([*outer, (x + side * 0.3, y + 0.36), end, (x + side * 0.22, y + 0.02)])
            self.layer.paint(self.frame(lapel), dark, form=0.4, edge=0.4, drop=0.4, part=Part.TORSO)
        for t in (0.7, 0.85) if tie is not None else ():
            button = self.frame.point(0.05, y * (1 - t))
            self.layer.paint(disc(button, unit * 0.035), scaled(dark, 0.5), inside=True)

    def _front_hoodie(self) -> None:
        (x, y), unit = self.joint("neck"), self.frame.scale
        hood = self.frame(
            closed(
                [
                    (x + 0.2, y - 0.2),
                    (x + 0.42, y - 0.1),
                    (x + 0.3, y + 0.16),
                    (x, y + 0.26),
                    (x - 0.3, y + 0.16),
                    (x - 0.42, y - 0.1),
                    (x - 0.2, y - 0.2),
                ]
            )
        )
        self.layer.paint(hood, scaled(CLOTH[self.look.top_colour], 0.85), form=0.7, edge=0.4, part=Part.TORSO, drop=0.4)
        self._open_neck(0.19, 0.12)
        for side in (1, -1):
            cord = opened([(x + side * 0.12, y + 0.14), (x + side * 0.14, y + 0.4), (x + side * 0.11, y + 0.62)], 5)
            self.layer.paint(
                tube(self.frame(cord), [unit * 0.02] * 2), (0.93, 0.92, 0.9), edge=0.3, inside=True, drop=0.3
            )
        pocket = self.frame(np.array([(-0.36, y * 0.12), (-0.24, y * 0.36), (0.24, y * 0.36), (0.36, y * 0.12)]))
        rim = tube(np.concatenate([pocket, pocket[:1]]), [unit * 0.014] * 2)
        self.layer.darken(rim, 0.4, soft=unit * 0.01)

    def skirt(self) -> None:
        """Over the legs; of a dress or a skirt."""
        look, knee = self.look, (self.joint("left_knee") + self.joint("right_knee")) / 2
        if not self.skirted:
            return
        hip = 0.33 * look.hips * (0.6 + 0.4 * self.size) + 0.28 * self.girth
        wide = max(abs(self.joint("left_knee")[0] - self.joint("right_knee")[0]) / 2 + 0.34 * self.girth, hip * 1.15)
        hem = knee[1] + (0.12 if self.pose.sitting else 0.05 if look.seed % 2 else -0.25)
        waist = -0.62 * self.size
        right = [
            (0.51 * look.wide * (0.5 + 0.5 * self.size), waist),
            (hip + 0.04, -0.15),
            (wide * 0.97, hem * 0.7),
            (wide, hem),
        ]
        folds = [(wide * t, hem + (0.06 if i % 2 else 0.0)) for i, t in enumerate(np.linspace(0.8, -0.8, 9))]
        left = [(-x, y) for x, y in right[::-1]]
        outline = self.frame(closed([*right, *folds, *left], 5))
        unit = self.frame.scale
        ink = self.top_ink() if look.top == "dress" else self.bottom_ink()
        self.layer.paint(outline, ink, part=Part.TORSO, form=0.8, depth=unit * 0.26, edge=0.35, drop=0.4)
        for t in np.linspace(-0.7, 0.7, 6):
            fold = self.frame(opened([(t * 0.5, waist + 0.35), (t * 0.8, hem * 0.4), (t * wide, hem)], 4))
            self.layer.darken(tube(fold, np.array([0.005, 0.02, 0.045]) * unit), 0.35, soft=unit * 0.03, clip=outline)
        if look.top == "dress":
            belt = self.frame(
                opened([(-0.5 * look.wide, waist + 0.02), (0, waist + 0.07), (0.5 * look.wide, waist + 0.02)])
            )
            self.layer.paint(
                tube(belt, [unit * 0.05] * 2),
                CLOTH[look.second_colour],
                form=0.5,
                edge=0.3,
                clip=self.frame(self.trunk_curve()),
                inside=True,
            )

    def arm(self, word: str) -> None:
        """Skin and sleeve, without the hand."""
        shoulder, elbow, wrist = (self.joint(f"{word}_{j}") for j in ("shoulder", "elbow", "wrist"))
        part = Part.LEFT_ARM if word == "left" else Part.RIGHT_ARM
        line, r = self.frame([shoulder, elbow, wrist]), self.frame.scale * self.girth
        outline = limb(line, [v * r for v in (0.2, 0.185, 0.16, 0.15, 0.105)])
        self.layer.paint(outline, self.skin, part=part, form=0.75, edge=0.45, depth=0.13 * r, drop=0.5)
        sleeve = SLEEVES[self.look.top]
        if not sleeve:
            return
        stand = r * LOOSE.get(self.look.top, 1.06)
        body = limb(
            line, [v * stand for v in ((0.2, 0.21, 0.19, 0.185, 0.15) if sleeve > 0.9 else (0.2, 0.25, 0.25))], sleeve
        )
        cap = disc(line[0], 0.2 * stand)
        self.layer.paint([cap, *body], self.top_ink(), part=part, form=0.85, edge=0.3, depth=0.15 * r, drop=0.4)
        if self.look.top in ("sweater", "hoodie", "shirt", "suit"):
            start = line[1] + (line[2] - line[1]) * 0.84
            cuff = tube(
                np.linspace(start, line[1] + (line[2] - line[1]) * 0.95, 3),
                [0.162 * stand, 0.152 * stand],
                round_ends=False,
            )
            colour = CLOTH["white"] if self.look.top == "suit" else scaled(CLOTH[self.look.top_colour], 0.8)
            self.layer.paint(cuff, colour, part=part, form=0.7, edge=0.4)
