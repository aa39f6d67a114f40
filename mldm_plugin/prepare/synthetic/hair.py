"""Hair and hats. A style is painted in two parts: what hangs behind the neck, and what lies over the head."""

from __future__ import annotations

import numpy as np

from mldm_plugin.prepare.synthetic.canvas import Ink, Layer
from mldm_plugin.prepare.synthetic.curve import Curve, closed, disc, ellipse, mirrored, opened, tube
from mldm_plugin.prepare.synthetic.head import Head
from mldm_plugin.prepare.synthetic.look import Look
from mldm_plugin.prepare.synthetic.palette import CLOTH, HAIR, mix, scaled
from mldm_plugin.prepare.synthetic.part import Part
from mldm_plugin.prepare.synthetic.texture import cloth, curls, strands

FRINGED = ("long straight", "long wavy", "bob", "ponytail", "pigtails")  # some of them
LONG = ("long straight", "long wavy")
# How far down hair hangs behind, in head units from the middle of the head.
LENGTH = {"long straight": 1.15, "long wavy": 1.05, "bob": 0.5}


def has_fringe(look: Look) -> bool:
    """Whether hair falls over the whole forehead; a short cut's is swept aside."""
    return look.hair in FRINGED and look.seed % 5 < 2


class Hair:
    """Paints the hair of one head; `behind` before the body, `over` after the face."""

    def __init__(self, layer: Layer, head: Head) -> None:
        self.layer, self.head, self.look = layer, head, head.look
        self.base = HAIR[head.look.hair_colour]
        self.style = head.look.hair
        self.side = 1 if head.look.seed % 2 else -1  # of the parting

    def ink(self, origin: tuple[float, float] = (0.0, -0.44), count: float = 26, wave: float = 0.0) -> Ink:
        return strands(self.base, self.head.frame, origin, count, self.look.seed, wave)

    def _paint(self, outline: Curve | list[Curve], ink: Ink, form: float = 0.7, drop: float = 0.0) -> None:
        depth = self.head.unit * 0.1
        self.layer.paint(outline, ink, part=Part.HAIR, form=form, depth=depth, edge=0.3, drop=drop)

    def behind(self) -> None:
        """What is seen past the neck from the front."""
        put, style = self.head.frame, self.style
        hanging = self.ink((0, -2.2), 95, 0.012 if style == "long wavy" else 0.004)
        if style in LENGTH:
            self._paint(put(self._curtain(LENGTH[style])), hanging)
        elif style == "ponytail":
            tail = [(self.side * 0.2, -0.1), (self.side * 0.52, 0.2), (self.side * 0.56, 0.6), (self.side * 0.42, 0.95)]
            self._paint(tube(put(opened(tail)), np.array([0.1, 0.15, 0.13, 0.02]) * self.head.unit), hanging)
        elif style == "pigtails":
            for side in (1, -1):
                tail = [(side * 0.36, -0.05), (side * 0.55, 0.12), (side * 0.58, 0.42), (side * 0.5, 0.72)]
                self._paint(tube(put(opened(tail)), np.array([0.05, 0.13, 0.12, 0.02]) * self.head.unit), hanging)
        elif style == "bun":
            self._paint(put(ellipse(0, -0.62, 0.19, 0.17)), self.ink((0, -0.62), 18))
        elif style in ("afro", "curly"):
            self._paint(self._cloud(), curls(self.base, put, self.look.seed))

    def _curtain(self, low: float) -> Curve:
        wavy = 0.03 if self.style == "long wavy" else 0.0
        right = [(0, -0.53), (0.3, -0.46), (0.44, -0.2), (0.46 + wavy, 0.1), (0.47 - wavy, 0.3)]
        right += [(0.47 + wavy, y) for y in np.arange(0.45, low - 0.1, 0.2)]
        right += [(0.4, low - 0.04), (0.2, low + (0.0 if self.style == "bob" else 0.06)), (0, low)]
        return closed(mirrored(right))

    def _cloud(self) -> list[Curve]:
        """Bumps round the crown."""
        big = self.style == "afro"
        rng = np.random.default_rng(self.look.seed)
        radius = 0.52 if big else 0.43
        bumps = []
        for angle in np.linspace(-0.62 if big else -0.42, 1 + (0.62 if big else 0.42), 19) * np.pi:
            r = radius + rng.uniform(-0.02, 0.03)
            centre = self.head.frame.point(r * np.cos(angle), -0.12 - r * np.sin(angle))
            size = self.head.unit * (0.15 if big else 0.12) * rng.uniform(0.9, 1.15)
            bumps.append(disc(centre, size))
        return [self.head.frame(ellipse(0, -0.12, radius, radius)), *bumps]

    def over(self) -> None:
        """Cap and fringe over the forehead, or the whole back of the head."""
        if self.head.seen_from_behind:
            self._back_of_head()
        elif self.style == "buzz cut":
            self._stubble()
        elif self.style in ("afro", "curly"):
            self._curly_front()
        elif self.style != "bald":
            self._cap()
        if self.look.hat != "none":
            Hat(self.layer, self.head).paint()

    def _stubble(self) -> None:
        area = self.head.frame(self.head.lean(self._cap_curve(0.0, -0.3)))
        self.layer.paint(
            area,
            self.base,
            opacity=0.86,
            soft=self.head.unit * 0.008,
            part=Part.HAIR,
            clip=self.head.outline(),
            form=0.5,
        )

    def _cap_curve(self, lift: float, line: float, sides: float = 0.02) -> Curve:
        """From the outline of the crown to the hairline at y = `line`; `sides` is how low the temples' hair goes."""
        parting = self.side * 0.14
        outer = [(-0.4 - lift, sides), (-0.41 - lift, -0.18), (-0.33 - lift, -0.4 - lift), (-0.13, -0.53 - lift)]
        outer += [(0.13, -0.53 - lift), (0.33 + lift, -0.4 - lift), (0.41 + lift, -0.18), (0.4 + lift, sides)]
        hairline = [(0.34, sides + 0.02), (0.33, -0.14), (0.25, line + 0.07), (parting + 0.1, line)]
        hairline += [(parting - 0.08, line - 0.01), (-0.24, line + 0.07), (-0.33, -0.14), (-0.34, sides + 0.02)]
        return closed(outer + hairline, 6)

    def _cap(self) -> None:
        put, lean, style = self.head.frame, self.head.lean, self.style
        ink = self.ink((self.side * 0.14, -0.46))
        if style == "spiky":
            self._spikes(ink)
            return
        if style in ("short", "side part"):
            self._paint(put(lean(self._cap_curve(0.03, -0.27, 0.0))), ink, drop=0.5)
            self._swept_fringe(ink, 0.22 if style == "short" else 0.3)
            return
        low = {"bob": 0.4, "long straight": 0.86, "long wavy": 0.8}.get(style, 0.06)
        self._paint(put(lean(self._cap_curve(0.03, -0.29, 0.05))), ink, drop=0.5)
        if style in (*LONG, "bob"):
            self._locks(low)
        if has_fringe(self.look):
            self._fringe(ink)

    def _locks(self, low: float) -> None:
        """Hair that falls along both cheeks."""
        put, lean = self.head.frame, self.head.lean
        for side in (1, -1):
            x = self.side * 0.14
            points = [
                (x, -0.5),
                (side * 0.3, -0.44),
                (side * 0.45, -0.15),
                (side * 0.47, 0.12),
                (side * 0.45, low + 0.08),
            ]
            points += [
                (side * 0.4, low + 0.07),
                (side * 0.32, low),
                (side * 0.35, 0.25),
                (side * 0.35, 0.05),
                (side * 0.31, -0.16),
                (side * 0.16, -0.33),
            ]
            self._paint(put(lean(closed(points, 6))), self.ink((x, -0.75), 30, 0.03), drop=0.35)

    def _fringe(self, ink: Ink) -> None:
        points = [(-0.36, -0.12), (-0.36, -0.36), (0, -0.5), (0.36, -0.36), (0.36, -0.12)]
        points += [(0.27, -0.13), (0.14, -0.155), (0, -0.15), (-0.14, -0.155), (-0.27, -0.13)]
        self._paint(self.head.frame(self.head.lean(closed(points, 6))), ink, form=0.5, drop=0.5)

    def _swept_fringe(self, ink: Ink, reach: float) -> None:
        s = self.side
        points = [(s * 0.24, -0.4), (s * 0.02, -0.56), (-s * 0.28, -0.47), (-s * 0.385, -0.24), (-s * 0.34, -0.14)]
        points += [(-s * 0.24, -0.2), (-s * (reach - 0.14), -0.235), (s * 0.1, -0.27)]
        self._paint(self.head.frame(self.head.lean(closed(points, 6))), ink, form=0.5, drop=0.5)

    def _spikes(self, ink: Ink) -> None:
        put, rng = self.head.frame, np.random.default_rng(self.look.seed)
        curves = [put(self.head.lean(self._cap_curve(0.0, -0.26, -0.02)))]
        for x in np.linspace(-0.33, 0.33, 6):
            top = -0.5 + 0.9 * x * x
            tip = (x * 1.3 + self.side * rng.uniform(0.03, 0.1), top - 0.1 - rng.uniform(0, 0.07))
            tuft = [(x - 0.13, top + 0.14), (x - 0.07, top - 0.02), tip, (x + 0.09, top), (x + 0.13, top + 0.14)]
            curves.append(put(closed(tuft, 5)))
        for x in np.linspace(-0.24, 0.24, 5):
            curves.append(
                put([(x - 0.07, -0.36), (x + 0.07, -0.36), (x + self.side * 0.05, -0.19 + rng.uniform(-0.02, 0.03))])
            )
        self._paint(curves, ink, drop=0.4)

    def _curly_front(self) -> None:
        rng = np.random.default_rng(self.look.seed + 5)
        curves = [self.head.frame(self.head.lean(self._cap_curve(0.01, -0.3, -0.04)))]
        for x in np.linspace(-0.34, 0.34, 8):
            centre = self.head.frame.point(x, -0.34 + 0.75 * x * x + rng.uniform(-0.02, 0.02))
            curves.append(disc(centre, self.head.unit * rng.uniform(0.07, 0.1)))
        self._paint(curves, curls(self.base, self.head.frame, self.look.seed), drop=0.4)

    def _back_of_head(self) -> None:
        put, style = self.head.frame, self.style
        if style in ("bald", "buzz cut"):
            if style == "buzz cut":
                cropped = closed(mirrored([(0, -0.5), (0.3, -0.4), (0.375, -0.1), (0.33, 0.22), (0, 0.28)]))
                self.layer.paint(
                    put(cropped), self.base, opacity=0.85, part=Part.HAIR, form=0.5, clip=self.head.outline()
                )
            return
        ink = curls(self.base, put, self.look.seed) if style in ("afro", "curly") else self.ink((0, -0.3), 30)
        if style in ("afro", "curly"):
            self._paint(self._cloud(), ink)
            return
        low = 0.4 if style in ("short", "side part", "spiky", "bun", "ponytail", "pigtails") else LENGTH[style]
        right = [(0, -0.54), (0.3, -0.45), (0.42, -0.15), (0.4, 0.12), (0.3, 0.33), (0.15, low), (0, low + 0.02)]
        self._paint(put(closed(mirrored(right)) if low == 0.4 else self._curtain(low)), ink, drop=0.4)
        if style == "ponytail":
            tail = opened([(0, -0.12), (0.05, 0.3), (0, 0.75), (0.06, 1.05)])
            outline = tube(put(tail), np.array([0.08, 0.16, 0.13, 0.02]) * self.head.unit)
            self._paint(outline, self.ink((0, -2.2), 95), drop=0.5)
        elif style == "bun":
            self._paint(put(ellipse(0, -0.35, 0.2, 0.18)), self.ink((0, -0.35), 18), drop=0.5)


class Hat:
    """A cap, beanie or sun hat in the second colour of the clothes."""

    def __init__(self, layer: Layer, head: Head) -> None:
        self.layer, self.head = layer, head
        self.colour = CLOTH[head.look.second_colour]

    def paint(self) -> None:
        weave = cloth(self.colour, scaled(self.colour, 0.8), "plain", self.head.frame, 0.08)
        depth = self.head.unit * 0.14
        kind = self.head.look.hat
        dome = mirrored([(0, -0.64), (0.26, -0.58), (0.42, -0.4), (0.445, -0.2), (0.3, -0.215), (0, -0.24)])
        if kind == "sun hat":
            brim = ellipse(0, -0.25, 0.8, 0.13)
            straw = mix(self.colour, (0.93, 0.8, 0.55), 0.75)
            ink = cloth(straw, straw, "plain", self.head.frame, 0.09)
            self._lay(brim, ink, depth * 0.5, 0.8)
            self._lay(
                closed(mirrored([(0, -0.68), (0.25, -0.63), (0.36, -0.45), (0.4, -0.27), (0, -0.22)])), ink, depth
            )
            band = mirrored([(0, -0.33), (0.39, -0.36), (0.405, -0.27), (0, -0.22)])
            self._lay(band, self.colour, depth)
            return
        self._lay(closed(dome), weave, depth, 0.5)
        if kind == "beanie":
            rim = closed(mirrored([(0, -0.35), (0.42, -0.31), (0.455, -0.2), (0.42, -0.13), (0, -0.2)]))
            self._lay(
                rim, cloth(scaled(self.colour, 0.85), self.colour, "plain", self.head.frame, 0.1), depth * 0.6, 0.5
            )
            self._lay(ellipse(0, -0.68, 0.1, 0.1), scaled(self.colour, 1.15), depth)
        elif not self.head.seen_from_behind:
            peak = closed([(-0.4, -0.23), (0, -0.3), (0.4, -0.23), (0.36, -0.13), (0, -0.08), (-0.36, -0.13)])
            self._lay(
                self.head.lean(peak + np.array((0.12 * np.sin(self.head.yaw), 0))),
                scaled(self.colour, 0.8),
                depth * 0.5,
                0.8,
            )

    def _lay(self, local: Curve, ink: Ink, depth: float, drop: float = 0.0) -> None:
        outline = self.head.frame(local)
        self.layer.paint(outline, ink, part=Part.HAT, form=0.8, depth=depth, edge=0.3, drop=drop)
