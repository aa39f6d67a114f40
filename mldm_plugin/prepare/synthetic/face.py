"""The face: eyes that look somewhere, brows, nose, mouth with its expression, ears, beard and glasses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mldm_plugin.prepare.synthetic.canvas import Layer, Rgb
from mldm_plugin.prepare.synthetic.curve import Curve, closed, disc, ellipse, encloses, opened, tube
from mldm_plugin.prepare.synthetic.head import EYE, MOUTH_Y, NOSE, Head
from mldm_plugin.prepare.synthetic.palette import EYES, HAIR, SKIN, deeper, mix, scaled
from mldm_plugin.prepare.synthetic.part import Part

# A mouth's size as a share of the drawn one, and what of the face has to be left free around its lower lip. Chosen.
MOUTHS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64)
MOUTH_ROOM = (1.08, 1.03)
SIDES = ((1, "left"), (-1, "right"))  # the person's own; their left is the picture's right


@dataclass(frozen=True)
class Mimic:
    """An expression in head units.

    Args:
        curl: how far the corners of the mouth stand above its middle; negative for a sad mouth.
        opening: height of the opened mouth.
        width: of half the mouth.
        brow: lift of the brows; inner: extra lift of their inner ends.
        eye: factor of the eyes' opening; lower: lift of the lower lids, as cheeks push them.
        round_mouth: an O.
    """

    curl: float
    opening: float
    width: float
    brow: float
    inner: float
    eye: float
    lower: float = 0.0
    round_mouth: bool = False


MIMICS = {
    "smile": Mimic(curl=0.055, opening=0.0, width=0.15, brow=0.008, inner=0.0, eye=0.92, lower=0.2),
    "laugh": Mimic(curl=0.06, opening=0.105, width=0.165, brow=0.025, inner=0.0, eye=0.78, lower=0.4),
    "neutral": Mimic(curl=0.0, opening=0.0, width=0.115, brow=0.0, inner=0.0, eye=1.0),
    "surprise": Mimic(curl=0.0, opening=0.13, width=0.07, brow=0.065, inner=0.01, eye=1.3, round_mouth=True),
    "sad": Mimic(curl=-0.052, opening=0.0, width=0.115, brow=-0.005, inner=0.055, eye=0.84),
}
GAZE = {
    "camera": (0.0, 0.0),
    "picture left": (-1.0, 0.0),
    "picture right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}


class Face:
    """Paints a face on a layer; call `ears`, `skin`, then `features`."""

    def __init__(self, layer: Layer, head: Head) -> None:
        self.layer, self.head, self.look = layer, head, head.look
        self.skin_colour = SKIN[head.look.skin]
        self.shadow = deeper(self.skin_colour)
        self.mimic = MIMICS[head.look.expression]
        self.unit = head.unit

    def line(self, points: Curve, width: float, colour: Rgb, opacity: float = 1.0, taper: float = 0.25) -> None:
        """A brush stroke along points in pixels, thick in the middle; `width` in head units."""
        thick = max(width * self.unit * 0.5, 0.55)
        outline = tube(opened(points, 6), [thick * taper, thick, thick * taper])
        self.layer.paint(outline, colour, opacity=opacity, inside=True)

    @staticmethod
    def ear_centre(head: Head, side: int) -> tuple[float, float]:
        """In pixels; `side` is the sign of x where the ear is drawn."""
        x = side * 0.395 + (0.03 if side * head.yaw > 0 else 0.14) * np.sin(head.yaw)
        return head.frame.point(float(x), 0.085 + head.pitch * 0.3)

    def ears(self) -> None:
        back = self.head.seen_from_behind
        for side, name in SIDES:
            if side * self.head.yaw > 0.22 and not back:
                continue  # turned out of sight behind the cheek
            part = Part.LEFT_EAR if (name == "left") != back else Part.RIGHT_EAR
            size, unit = 1.0 - 0.25 * side * self.head.yaw, self.unit
            x, y = self.ear_centre(self.head, side)
            tilt = side * 0.18 + self.head.frame.angle
            self.layer.paint(
                ellipse(x, y, 0.062 * size * unit, 0.115 * unit, tilt), self.skin_colour, part=part, form=0.8, edge=0.5
            )
            inner = ellipse(x, y, 0.034 * size * unit, 0.075 * unit, tilt)
            self.layer.paint(inner, self.shadow, soft=unit * 0.012, opacity=0.65, inside=True)

    def skin(self) -> None:
        outline = self.head.outline()
        self.layer.paint(
            outline, self.skin_colour, part=Part.FACE, form=0.75, depth=self.unit * 0.17, edge=0.4, drop=0.55
        )

    def features(self) -> None:
        look = self.look
        self._cheeks()
        if look.beard == "stubble":
            self._stubble()
        self._sockets()
        self._nose()
        if look.beard in ("full beard", "goatee"):
            self._beard()
        self._mouth()
        if look.beard in ("full beard", "goatee", "moustache"):
            self._moustache()
        for side, _ in SIDES:
            self._eye(side)
            self._brow(side)
        if look.glasses != "none":
            self._glasses()

    def _cheeks(self) -> None:
        warm = mix(self.skin_colour, (0.86, 0.25, 0.22), 0.55)
        strength = {"smile": 0.5, "laugh": 0.6}.get(self.look.expression, 0.32)
        for side, _ in SIDES:
            blush = self.head.put(ellipse(side * 0.21, 0.19, 0.095, 0.062))
            self.layer.paint(blush, warm, soft=self.unit * 0.04, opacity=strength, inside=True)
            if self.look.expression in ("smile", "laugh"):
                fold = self.head.put([(side * 0.115, 0.21), (side * 0.165, 0.25), (side * 0.19, 0.315)])
                self.line(fold, 0.016, self.shadow, 0.4)
        forehead = self.head.put(ellipse(0, -0.18, 0.16, 0.08))
        self.layer.paint(forehead, scaled(self.skin_colour, 1.12), soft=self.unit * 0.06, opacity=0.5, inside=True)
        if self.look.freckles:
            rng = np.random.default_rng(self.look.seed)
            spots = np.stack([rng.uniform(-0.24, 0.24, 26), rng.normal(0.15, 0.04, 26)], 1)
            for x, y in self.head.put(spots):
                self.layer.paint(disc((x, y), self.unit * 0.008), self.shadow, opacity=0.55, inside=True)

    def _sockets(self) -> None:
        for side, _ in SIDES:
            socket = self.head.put(ellipse(side * EYE[0], EYE[1] - 0.025, 0.12, 0.075))
            self.layer.paint(socket, self.shadow, soft=self.unit * 0.035, opacity=0.38, inside=True)

    def _nose(self) -> None:
        head, u, size = self.head, self.unit, self.look.nose_size
        away = 1.0 if self.layer.light.x < 0 else -1.0
        x, y = NOSE
        bridge = [(away * 0.035, -0.03), (away * 0.042, 0.08), (away * 0.06 * size, y)]
        shade = tube(head.put(bridge, 0.06), np.array([0.012, 0.02, 0.035]) * u)
        self.layer.paint(shade, self.shadow, soft=u * 0.016, opacity=0.5, inside=True)
        under = head.put(ellipse(x, y + 0.035, 0.075 * size, 0.022), 0.06)
        self.layer.paint(under, self.shadow, soft=u * 0.012, opacity=0.75, inside=True)
        tip = head.put(ellipse(x - away * 0.01, y - 0.012, 0.036 * size, 0.032), 0.09)
        self.layer.paint(tip, scaled(self.skin_colour, 1.16), soft=u * 0.014, opacity=0.75, inside=True)
        for side in (1, -1):
            wing = head.put(
                [(side * 0.05 * size, y - 0.025), (side * 0.072 * size, y + 0.005), (side * 0.05 * size, y + 0.03)],
                0.06,
            )
            self.line(wing, 0.014, self.shadow, 0.75)
            hole = head.put(ellipse(side * 0.028 * size, y + 0.026, 0.016 * size, 0.009), 0.07)
            self.layer.paint(hole, scaled(self.shadow, 0.55), opacity=0.85, inside=True)

    def eye_curves(self, side: int) -> tuple[Curve, Curve]:
        """Upper and lower lid from the inner to the outer corner, in head units."""
        w = 0.098 * self.look.eye_size
        h = 0.058 * self.look.eye_size * self.mimic.eye
        low = h * (0.85 - self.mimic.lower)
        if self.look.gaze == "down":
            h *= 0.75
        upper = np.array([(-w, 0.012), (-0.55 * w, -0.72 * h), (0.1 * w, -h), (0.65 * w, -0.72 * h), (w, -0.004)])
        lower = np.array([(-w, 0.012), (-0.4 * w, 0.78 * low), (0.2 * w, low), (0.7 * w, 0.68 * low), (w, -0.004)])
        x, y = EYE
        return opened(upper * (side, 1) + (side * x, y), 5), opened(lower * (side, 1) + (side * x, y), 5)

    def _eye(self, side: int) -> None:
        head, u, layer = self.head, self.unit, self.layer
        upper, lower = self.eye_curves(side)
        almond = head.put(np.concatenate([upper, lower[::-1][1:-1]]))
        layer.paint(almond, (0.97, 0.965, 0.96), inside=True)
        gx, gy = GAZE[self.look.gaze]
        size = self.look.eye_size
        cx, cy = side * EYE[0] + gx * 0.047 * size, EYE[1] + gy * 0.024 * size - 0.004
        radius = 0.05 * size
        iris = EYES[self.look.eye_colour]
        layer.paint(head.put(ellipse(cx, cy, radius, radius)), scaled(iris, 0.5), clip=almond, inside=True)
        inner = ellipse(cx, cy + 0.006, radius * 0.76, radius * 0.76)
        layer.paint(head.put(inner), scaled(iris, 1.25), clip=almond, inside=True)
        layer.paint(head.put(ellipse(cx, cy, radius * 0.5, radius * 0.5)), (0.04, 0.03, 0.04), clip=almond, inside=True)
        lid = tube(head.put(upper), [u * 0.018] * 2)
        layer.paint(lid, (0.25, 0.2, 0.25), clip=almond, soft=u * 0.01, opacity=0.5, inside=True)
        glint = ellipse(cx + 0.016 * np.sign(layer.light.x), cy - 0.018, 0.013, 0.013)
        layer.paint(head.put(glint), (1.0, 1.0, 1.0), clip=almond, inside=True)
        self._lids(side, upper, lower)

    def _lids(self, side: int, upper: Curve, lower: Curve) -> None:
        put = self.head.put
        lash = (0.14, 0.09, 0.09)
        feminine = self.look.feminine
        tail = upper[-1] + (side * 0.03, -0.022) if feminine else upper[-1] + (side * 0.008, 0.004)
        self.line(put(np.concatenate([upper[::5], [tail]])), 0.034 if feminine else 0.024, lash, taper=0.35)
        self.line(put(lower[::5]), 0.012, mix(self.shadow, lash, 0.35), 0.8)
        self.line(put(upper[3:-2:5] - (0, 0.028)), 0.012, self.shadow, 0.75)

    def _brow(self, side: int) -> None:
        colour = self.look.hair_colour if self.look.hair_colour not in ("white", "pink", "blue") else "grey"
        ink = mix(scaled(HAIR[colour], 0.72), self.shadow, 0.12)
        self.layer.paint(self.brow_outline(side), ink, opacity=0.92, inside=True)

    def brow_outline(self, side: int) -> Curve:
        """In pixels."""
        m = self.mimic
        y = EYE[1] - 0.125 - m.brow
        points = [
            (side * 0.07, y + 0.012 - m.inner),
            (side * 0.15, y - 0.022 - m.inner * 0.3),
            (side * 0.225, y - 0.016 + abs(m.inner) * 0.3),
            (side * 0.28, y + 0.022 + abs(m.inner) * 0.4),
        ]
        thick = 0.03 if self.look.feminine else 0.046
        return tube(
            opened(self.head.put(points), 6), np.array([0.6, 1.0, 0.8, 0.15]) * max(thick * self.unit * 0.5, 0.6)
        )

    def mouth_lines(self) -> tuple[Curve, Curve]:
        """The edge of the upper and of the lower lip where they part, from right to left, in head units."""
        m = self.mimic
        t = np.linspace(-1, 1, 17)
        if m.round_mouth:
            bow = np.sqrt(1 - t**2)
            y = MOUTH_Y + 0.025
            return self._within_face(
                np.stack([t * m.width, y - bow * m.opening * 0.5], 1),
                np.stack([t * m.width, y + bow * m.opening * 0.5], 1),
            )
        base = MOUTH_Y - 0.5 * m.curl + m.curl * (1 - t**2)
        bow = (1 - t**2) ** 0.6 * m.opening
        return self._within_face(
            np.stack([t * m.width, base - bow * 0.15], 1), np.stack([t * m.width, base + bow * 0.85], 1)
        )

    def _within_face(self, top: Curve, low: Curve) -> tuple[Curve, Curve]:
        """The mouth, made smaller where it would lie over a narrow chin's edge, and drawn towards the nose."""
        outline, centre = self.head.outline(), np.array([0.0, MOUTH_Y - 0.04])
        for size in MOUTHS:
            lips = [centre + size * (edge - centre) for edge in (top, low)]
            if encloses(outline, self.head.put(lips[1] * MOUTH_ROOM + (0, self._lip() * 1.25), 0.03)):
                break
        return lips[0], lips[1]

    def _lip(self) -> float:
        """Height of a lip."""
        return 0.03 * self.look.lips

    def lip_rims(self, top: Curve, low: Curve) -> tuple[Curve, Curve]:
        """The upper edge of the upper lip and the lower one of the lower, above and below where they part."""
        t = np.linspace(-1, 1, len(top))
        shape = (1 - t**2) ** 0.6
        cupid = 1 - 0.28 * np.exp(-((t / 0.16) ** 2))
        full = self._lip()
        rim_top = top - np.stack([0 * t, full * shape * cupid], 1)
        rim_low = low + np.stack([0 * t, full * 1.25 * shape], 1)
        return rim_top, rim_low

    def _mouth(self) -> None:
        head, u, layer, m = self.head, self.unit, self.layer, self.mimic
        top, low = self.mouth_lines()
        rim_top, rim_low = self.lip_rims(top, low)
        full = self._lip()
        rosy = 0.5 if self.look.feminine else 0.28
        lip = mix(mix(self.skin_colour, self.shadow, 0.45), (0.74, 0.2, 0.24), rosy)
        outer = head.put(np.concatenate([rim_top, rim_low[::-1][1:-1]]), 0.03)
        layer.paint(outer, lip, form=0.5, inside=True)
        gleam = head.put(ellipse(0, float(low[8, 1]) + full * 0.55, 0.05, full * 0.25), 0.03)
        layer.paint(gleam, mix(lip, (1, 0.9, 0.88), 0.6), soft=u * 0.008, opacity=0.6, clip=outer, inside=True)
        below = head.put(ellipse(0, float(rim_low[8, 1]) + 0.03, 0.075, 0.014), 0.02)
        layer.paint(below, self.shadow, soft=u * 0.014, opacity=0.5, inside=True)
        if m.opening:
            self._inside_mouth(top, low)
        else:
            self.line(head.put(top[::2], 0.03), 0.022, scaled(self.shadow, 0.5), 0.95, taper=0.4)
            for end in (top[0], top[-1]):
                corner = head.put(disc(end, 0.011), 0.03)
                layer.paint(corner, scaled(self.shadow, 0.6), soft=u * 0.006, opacity=0.8, inside=True)

    def _inside_mouth(self, top: Curve, low: Curve) -> None:
        head, layer, m = self.head, self.layer, self.mimic
        hole = head.put(np.concatenate([top, low[::-1][1:-1]]), 0.03)
        layer.paint(hole, (0.32, 0.07, 0.08), inside=True)
        tongue = head.put(ellipse(0, float(low[8, 1]) - 0.005, m.width * 0.6, m.opening * 0.33), 0.03)
        layer.paint(tongue, (0.82, 0.38, 0.38), form=0.4, clip=hole, inside=True)
        if not m.round_mouth:
            teeth = np.concatenate([top, (top + np.array((0, m.opening * 0.36)))[::-1]])
            layer.paint(head.put(teeth, 0.03), (0.98, 0.97, 0.94), clip=hole, inside=True)
        self.line(head.put(top[::2], 0.03), 0.014, scaled(self.shadow, 0.55), 0.8, taper=0.5)

    def _hair_ink(self) -> Rgb:
        return mix(HAIR[self.look.hair_colour], self.shadow, 0.15)

    def _stubble(self) -> None:
        area = self.head.put(self._jaw_curve(0.2))
        ink = mix(self.shadow, HAIR[self.look.hair_colour], 0.5)
        self.layer.paint(area, ink, soft=self.unit * 0.03, opacity=0.5, clip=self.head.outline(), inside=True)

    def _jaw_curve(self, top: float) -> Curve:
        """The bearded region: from the sideburns round the chin, leaving the cheeks free, in head units."""
        right = [(0.39, top - 0.1), (0.39, 0.3), (0.25, 0.5), (0, 0.56)]
        inner = [(0, 0.235), (0.12, 0.25), (0.22, 0.3), (0.31, 0.2), (0.335, top - 0.1)]
        points = np.array(right + [(-x, y) for x, y in right[::-1][1:]] + [(-x, y) for x, y in inner[::-1]] + inner[1:])
        return closed(points, 5)

    def _beard(self) -> None:
        head, ink = self.head, self._hair_ink()
        if self.look.beard == "goatee":
            area = head.put(
                closed(
                    [(0, 0.36), (0.1, 0.375), (0.11, 0.46), (0.06, 0.535), (-0.06, 0.535), (-0.11, 0.46), (-0.1, 0.375)]
                )
            )
            self.layer.paint(area, ink, part=Part.FACE, form=0.6, edge=0.2)
            return
        area = head.frame(head.lean(self._jaw_curve(0.16)))
        self.layer.paint(area, ink, part=Part.FACE, form=0.6, depth=self.unit * 0.08, soft=self.unit * 0.008)
        rng = np.random.default_rng(self.look.seed + 1)
        light = mix(ink, (1, 0.95, 0.85), 0.25)
        for x in np.sort(rng.uniform(-0.33, 0.33, 22)):
            y = 0.36 + 0.1 * np.sqrt(max(0.0, 1 - (x / 0.36) ** 2)) - 0.06
            strand = head.put([(x, y), (x * 0.96, y + 0.05), (x * 0.9, y + 0.1)])
            self.line(strand, 0.012, light, 0.4)

    def _moustache(self) -> None:
        ink = self._hair_ink()
        for side in (1, -1):
            points = [(side * 0.008, 0.262), (side * 0.07, 0.268), (side * 0.135, 0.3), (side * 0.165, 0.33)]
            outline = tube(opened(self.head.put(points, 0.05), 6), np.array([0.6, 1.0, 0.75, 0.2]) * self.unit * 0.027)
            self.layer.paint(outline, ink, form=0.6, inside=True)

    def _glasses(self) -> None:
        head, u, layer = self.head, self.unit, self.layer
        dark = self.look.glasses == "sunglasses"
        frame = (0.12, 0.1, 0.11) if self.look.seed % 3 else (0.45, 0.16, 0.14)
        width = self.rim()
        for side, _ in SIDES:
            x, y = self.lens_centre(side)
            lens = head.put(self.lens(side), 0.02)
            if dark:
                layer.paint(lens, (0.09, 0.08, 0.11), part=Part.GLASSES, form=0.5, opacity=0.96)
            else:
                layer.paint(lens, (0.9, 0.97, 1.0), opacity=0.1, inside=True)
            glare = head.put(
                [(x - 0.07, y + 0.03), (x - 0.01, y - 0.085), (x + 0.03, y - 0.085), (x - 0.03, y + 0.05)], 0.02
            )
            layer.paint(glare, (1.0, 1.0, 1.0), opacity=0.28, clip=lens, soft=u * 0.006, inside=True)
            layer.paint(tube(np.concatenate([lens, lens[:1]]), [width / 2] * 2), frame)
            if -side * head.yaw > -0.3:
                arm = np.array([head.point(x + side * 0.13, y - 0.04, 0.02), head.point(side * 0.395, y + 0.0)])
                layer.paint(tube(arm, [width / 2] * 2), frame, inside=True)
        layer.paint(tube(self.bridge(), [width / 2] * 2), frame)

    def rim(self) -> float:
        """Pixels of a frame's width."""
        return max(0.02 * self.unit, 1.2)

    def bridge(self) -> Curve:
        """Of glasses, in pixels."""
        points = [(-0.05, EYE[1] - 0.01), (0, EYE[1] - 0.03), (0.05, EYE[1] - 0.01)]
        return opened(self.head.put(points, 0.03), 5)

    @staticmethod
    def lens_centre(side: int) -> tuple[float, float]:
        """In head units."""
        return side * (EYE[0] + 0.005), EYE[1] + 0.01

    def lens(self, side: int) -> Curve:
        """In head units."""
        x, y = self.lens_centre(side)
        if self.look.glasses == "round glasses":
            return ellipse(x, y, 0.137, 0.125)
        w, h = 0.142, 0.105
        return closed(
            [
                (x - w, y - h * 0.9),
                (x, y - h),
                (x + w, y - h * 0.9),
                (x + w * 0.97, y + h * 0.5),
                (x + w * 0.55, y + h),
                (x - w * 0.55, y + h),
                (x - w * 0.97, y + h * 0.5),
            ],
            5,
        )
