"""Backdrops: studio, room, park, street and beach, painted behind the people."""

from __future__ import annotations

import numpy as np

from mldm_plugin.prepare.synthetic.canvas import Layer, Rgb
from mldm_plugin.prepare.synthetic.curve import Curve, box, closed, ellipse, opened, tube
from mldm_plugin.prepare.synthetic.palette import Pixels, mix, rgb, scaled
from mldm_plugin.prepare.synthetic.scene import EVENING, Scene, fade


class Backdrop:
    """Paints one scene on a layer that it fills wholly."""

    def __init__(self, layer: Layer, scene: Scene) -> None:
        self.layer, self.scene = layer, scene
        self.width, self.height = layer.size
        self.rng = np.random.default_rng(scene.seed)
        self.evening = scene.light.key == EVENING.key
        self.line = scene.ground * self.height  # where floor and wall, or earth and sky, meet

    def paint(self) -> None:
        getattr(self, f"_{self.scene.name}")()

    def _fill(self, ink: Rgb | Pixels, y0: float = 0, y1: float | None = None) -> None:
        self.layer.paint(box(-4, y0 - 0.5, self.width + 4, (y1 or self.height) + 4), ink)

    def _studio(self) -> None:
        hue = self.rng.choice(["8fb0c4", "c9a28f", "a7b89a", "b9a4c0", "d2c3a3", "9aa3ad", "c98f8a"])
        colour = rgb(str(hue))
        self._fill(fade(scaled(colour, 0.92), scaled(colour, 1.05), 0, self.line, 0.02, 4))
        glow = ellipse(
            self.width * (0.5 + 0.15 * self.scene.light.x), self.height * 0.4, self.width * 0.4, self.height * 0.4
        )
        self.layer.paint(glow, mix(colour, (1, 1, 1), 0.55), soft=self.width * 0.14, opacity=0.8)
        if self.line < self.height:
            floor = box(-9, self.line + self.height * 0.06, self.width + 9, self.height * 1.2)
            self.layer.paint(floor, scaled(colour, 0.85), soft=self.height * 0.04, opacity=0.8)

    def _room(self) -> None:
        rng, w, h, z = self.rng, self.width, self.height, self.scene.zoom
        wall = rgb(str(rng.choice(["d9c7a8", "a9c0b5", "c5b3c9", "b7c6d6", "dcb7a0", "c8cdb0", "e1d8c8"])))
        self._fill(fade(scaled(wall, 1.04), scaled(wall, 0.9), 0, self.line, 0.03, 1.5))
        if rng.random() < 0.4:
            for x in np.arange(0, w, w * 0.09 * z):
                self.layer.paint(box(x, 0, x + w * 0.045 * z, self.line), scaled(wall, 0.93), opacity=0.7)
        if self.line < h:
            self._planks()
        side = rng.choice([0.04, 0.62])
        self._window(w * side, h * 0.08, w * 0.32 * z**0.5, min(h * 0.4 * z**0.5, self.line * 0.7))
        for _ in range(int(rng.integers(1, 3))):
            x = w * ((0.62 if side < 0.5 else 0.06) + rng.uniform(0, 0.22))
            self._painting(x, h * rng.uniform(0.08, 0.25), w * rng.uniform(0.11, 0.17) * z**0.5)
        if self.scene.zoom < 2:
            self._sofa(w * (0.66 if side < 0.5 else 0.2))

    def _planks(self) -> None:
        wood = rgb(str(self.rng.choice(["a97c50", "8a6242", "c39a6b"])))
        w, h = self.width, self.height
        self._fill(fade(scaled(wood, 0.85), scaled(wood, 1.05), self.line, h, 0.08, 2), self.line)
        for i in np.linspace(-1.6, 2.6, 24):
            seam = np.array([(w * (0.5 + (i - 0.5) * 0.55), self.line), (w * (0.5 + (i - 0.5) * 1.5), h)])
            self.layer.paint(tube(seam, [h * 0.001, h * 0.003], round_ends=False), scaled(wood, 0.62), opacity=0.6)
        self.layer.paint(box(-2, self.line - h * 0.035, w + 2, self.line), (0.93, 0.91, 0.87), form=0.5, edge=0.3)
        self.layer.darken(box(0, self.line, w, self.line + h * 0.02), 0.6, soft=h * 0.01)

    def _window(self, x: float, y: float, w: float, h: float) -> None:
        t = h * 0.05
        frame, rng = (0.95, 0.94, 0.91), self.rng
        self.layer.paint(box(x - t, y - t, x + w + t, y + h + t), frame, form=0.5, edge=0.3, depth=t)
        pane = box(x, y, x + w, y + h)
        self.layer.paint(pane, fade((0.55, 0.76, 0.95), (0.9, 0.95, 0.98), y, y + h))
        for _ in range(7):
            leaf = ellipse(x + rng.uniform(0, w), y + h * rng.uniform(0.75, 1.0), w * 0.2, h * 0.2)
            green = mix((0.35, 0.55, 0.32), (0.55, 0.7, 0.4), rng.random())
            self.layer.paint(leaf, green, clip=pane, form=0.6, soft=h * 0.01)
        self.layer.paint(box(x + w / 2 - t / 3, y, x + w / 2 + t / 3, y + h), frame, edge=0.3)
        self.layer.paint(box(x, y + h / 2 - t / 3, x + w, y + h / 2 + t / 3), frame, edge=0.3)
        colour = rgb(str(rng.choice(["b5524a", "4d7d8c", "d6b04f", "6f7f56"])))
        for x0, side in ((x - 2 * t, 1), (x + w + 2 * t, -1)):
            drape = np.array(
                [
                    (x0, y - 2 * t),
                    (x0 + side * w * 0.28, y - 2 * t),
                    (x0 + side * w * 0.2, y + h + 3 * t),
                    (x0 - side * t, y + h + 3 * t),
                ]
            )
            self.layer.paint(drape, colour, form=0.8, edge=0.3, drop=0.3)
            for i in (0.25, 0.5, 0.75):
                fx = x0 + side * w * 0.26 * i
                self.layer.darken(
                    box(fx - t * 0.15, y - 2 * t, fx + t * 0.15, y + h + 3 * t), 0.45, soft=t * 0.2, clip=drape
                )

    def _painting(self, x: float, y: float, w: float) -> None:
        rng, h = self.rng, w * self.rng.uniform(0.8, 1.3)
        self.layer.paint(
            box(x, y, x + w, y + h),
            mix((0.3, 0.2, 0.12), (0.75, 0.6, 0.35), rng.random()),
            form=0.6,
            edge=0.5,
            depth=w * 0.05,
            drop=0.5,
        )
        inner = box(x + w * 0.1, y + w * 0.1, x + w * 0.9, y + h - w * 0.1)
        self.layer.paint(inner, (0.93, 0.9, 0.84), edge=0.3)
        for _ in range(4):
            cx, cy = x + w * rng.uniform(0.2, 0.8), y + h * rng.uniform(0.3, 0.85)
            spot = ellipse(cx, cy, w * rng.uniform(0.1, 0.3), h * rng.uniform(0.08, 0.2), rng.uniform(0, 3))
            self.layer.paint(spot, tuple(rng.uniform(0.25, 0.85, 3)), clip=inner, form=0.4)

    def _sofa(self, x: float) -> None:
        h = self.height
        u, y = h * 0.12 * self.scene.zoom, self.line + h * 0.04 * self.scene.zoom
        colour = rgb(str(self.rng.choice(["8a4b4b", "4b6a7a", "7a7f5c", "6a5678", "b08a5a"])))
        for outline in (
            closed(
                [
                    (x - 1.9 * u, y - 1.5 * u),
                    (x, y - 1.62 * u),
                    (x + 1.9 * u, y - 1.5 * u),
                    (x + 2 * u, y),
                    (x - 2 * u, y),
                ]
            ),
            box(x - 2 * u, y - 0.7 * u, x + 2 * u, y + 0.1 * u),
            closed(
                [
                    (x - 2.4 * u, y - 1.0 * u),
                    (x - 1.9 * u, y - 1.0 * u),
                    (x - 1.9 * u, y + 0.2 * u),
                    (x - 2.4 * u, y + 0.2 * u),
                ]
            ),
            closed(
                [
                    (x + 1.9 * u, y - 1.0 * u),
                    (x + 2.4 * u, y - 1.0 * u),
                    (x + 2.4 * u, y + 0.2 * u),
                    (x + 1.9 * u, y + 0.2 * u),
                ]
            ),
        ):
            self.layer.paint(
                outline,
                fade(colour, scaled(colour, 0.9), y - u, y, 0.06, 0.6),
                form=0.8,
                edge=0.4,
                depth=u * 0.25,
                drop=0.4,
            )

    def _sky(self, low: float) -> None:
        top, bottom = (rgb("4f97d6"), rgb("cfe6f2")) if not self.evening else (rgb("5d7fc0"), rgb("f9cfa0"))
        self._fill(fade(top, bottom, 0, low))
        rng, w = self.rng, self.width
        for _ in range(int(rng.integers(2, 6))):
            x, y, size = (
                rng.uniform(0, w),
                low * rng.uniform(0.08, 0.6),
                w * rng.uniform(0.05, 0.11) * self.scene.zoom**0.5,
            )
            puffs = [
                ellipse(x + size * dx, y - size * dy, size * r, size * r * 0.62)
                for dx, dy, r in ((-1.1, 0, 0.6), (-0.4, 0.28, 0.75), (0.4, 0.2, 0.8), (1.1, 0, 0.55))
            ]
            self.layer.paint(
                puffs,
                (1.0, 0.985, 0.96) if not self.evening else (1.0, 0.9, 0.8),
                form=0.5,
                soft=size * 0.14,
                opacity=0.85,
            )

    def _leaves(self, x: float, y: float, r: float, green: Rgb, count: int = 26) -> None:
        """The crown of a tree or a bush: many small cushions, the lit ones on top."""
        rng = self.rng
        angle, reach = rng.uniform(0, 6.3, count), np.sqrt(rng.uniform(0, 1, count)) * r * 0.8
        curves = [
            ellipse(x + d * np.cos(a), y + d * 0.85 * np.sin(a), r * 0.34, r * 0.3, n=14)
            for a, d in zip(angle, reach, strict=True)
        ]
        self.layer.paint(
            [*curves, ellipse(x, y, r * 0.85, r * 0.75)],
            fade(scaled(green, 1.12), scaled(green, 0.72), y - r, y + r, 0.26, 0.35 * self.scene.zoom),
            form=0.9,
            depth=r * 0.35,
        )
        light = self.scene.light
        for a, d in list(zip(angle, reach, strict=True))[: count // 2]:
            cx, cy = x + d * np.cos(a) + light.x * r * 0.25, y + d * np.sin(a) * 0.8 + light.y * r * 0.25
            leaf = ellipse(cx, cy, r * 0.17, r * 0.13, a, n=14)
            self.layer.paint(leaf, mix(green, self.scene.light.key, 0.35), soft=r * 0.03, opacity=0.55, inside=True)

    def _park(self) -> None:
        rng, w, h, z = self.rng, self.width, self.height, self.scene.zoom
        self._sky(self.line)
        for i in range(2):
            hill = [(-0.1 * w, h)] + [
                (w * t, self.line - h * (0.1 - 0.05 * i) * rng.uniform(0.4, 1.5)) for t in np.linspace(-0.1, 1.1, 7)
            ]
            far = mix(rgb("6f9a86"), rgb("5f9355"), i)
            self.layer.paint(closed([*hill, (1.1 * w, h)]), far, form=0.3)
        grass = rgb("76ab4c") if not self.evening else rgb("8c9a45")
        self._fill(fade(mix(grass, (0.8, 0.9, 0.5), 0.25), scaled(grass, 0.8), self.line, h, 0.14, 1.0), self.line)
        for _ in range(120):
            y = self.line + (h - self.line) * rng.random() ** 0.7
            size = h * 0.02 * (0.3 + (y - self.line) / (h - self.line))
            x = rng.uniform(0, w)
            blade = tube([(x, y), (x + size * rng.uniform(-0.5, 0.5), y - size)], [size * 0.1, size * 0.03])
            self.layer.paint(blade, scaled(grass, rng.uniform(0.7, 1.25)), opacity=0.7)
        if rng.random() < 0.6:
            path = closed(
                [
                    (w * 0.46, self.line + 1),
                    (w * 0.52, self.line + 1),
                    (w * 0.75, h * 0.8),
                    (w * 1.1, h * 1.05),
                    (w * 0.1, h * 1.05),
                    (w * 0.4, h * 0.8),
                ]
            )
            self.layer.paint(path, fade(rgb("d9c79f"), rgb("c4ab80"), self.line, h, 0.1, 0.6), soft=h * 0.004, edge=0.2)
        for x in rng.permutation([0.05, 0.28, 0.72, 0.94])[: int(rng.integers(2, 5))]:
            self._tree(
                w * (float(x) + rng.uniform(-0.06, 0.06)),
                self.line + h * rng.uniform(0.01, 0.08),
                h * rng.uniform(0.11, 0.17) * z**0.7,
            )

    def _tree(self, x: float, y: float, r: float) -> None:
        self.layer.darken(ellipse(x - self.scene.light.x * r, y, r * 1.1, r * 0.16), 0.7, soft=r * 0.08)
        trunk = closed(
            [
                (x - 0.16 * r, y - 2.2 * r),
                (x + 0.14 * r, y - 2.2 * r),
                (x + 0.17 * r, y - 0.4 * r),
                (x + 0.3 * r, y),
                (x - 0.3 * r, y),
                (x - 0.18 * r, y - 0.4 * r),
            ]
        )
        self.layer.paint(trunk, fade(rgb("6b4a33"), rgb("7d5a3d"), y - 2 * r, y, 0.3, 0.25), form=0.9, edge=0.3)
        green = mix(rgb("3f7f3f"), rgb("7aa63f"), self.rng.random())
        self._leaves(x, y - 2.5 * r, r * 1.25, green, 34)

    def _street(self) -> None:
        rng, w, h, z = self.rng, self.width, self.height, self.scene.zoom
        self._sky(self.line)
        x = -w * rng.uniform(0, 0.15)
        base = self.line + h * 0.05
        while x < w:
            wide = w * rng.uniform(0.2, 0.34) * z**0.5
            top = base - h * rng.uniform(0.32, 0.62)
            self._house(x, top, wide, base)
            x += wide
        self._fill(fade(rgb("b9b3aa"), rgb("a8a29a"), base, h, 0.08, 0.5), base)
        self.layer.paint(box(-2, base + h * 0.1, w + 2, base + h * 0.125), rgb("cfcac2"), form=0.5, edge=0.3)
        road = fade(rgb("6b6b70"), rgb("55555b"), base, h, 0.12, 0.3)
        self.layer.paint(box(-2, base + h * 0.125, w + 2, base + h * 0.24), road)
        for sx in np.arange(-0.05, 1.1, 0.22):
            self.layer.paint(box(w * sx, base + h * 0.178, w * (sx + 0.1), base + h * 0.187), (0.92, 0.9, 0.82))
        for i in np.linspace(-1, 2, 13):
            seam = np.array([(w * (0.5 + (i - 0.5) * 0.9), base + h * 0.24), (w * (0.5 + (i - 0.5) * 1.5), h)])
            self.layer.paint(tube(seam, [h * 0.0015] * 2), rgb("8d8780"), opacity=0.7)
        lamp = w * rng.choice([0.12, 0.88])
        self.layer.paint(
            tube(np.array([(lamp, base + h * 0.1), (lamp, base - h * 0.5)]), [h * 0.008, h * 0.005]),
            rgb("3c4145"),
            form=0.6,
        )
        self.layer.paint(ellipse(lamp, base - h * 0.52, h * 0.025, h * 0.032), (1.0, 0.95, 0.78), form=0.4, edge=0.5)

    def _house(self, x: float, top: float, wide: float, base: float) -> None:
        rng = self.rng
        wall = rgb(str(rng.choice(["b9705a", "d8b98c", "a8b5b0", "c9c0b2", "8f7f8e", "d5a07a", "93a5b8"])))
        self.layer.paint(
            box(x, top, x + wide, base + 2),
            fade(scaled(wall, 1.05), scaled(wall, 0.9), top, base, 0.08, 0.4),
            edge=0.35,
            form=0.3,
        )
        self.layer.paint(
            box(x - wide * 0.02, top - wide * 0.03, x + wide * 1.02, top + wide * 0.03), scaled(wall, 0.7), form=0.6
        )
        columns = max(2, round(wide / (0.075 * self.width * self.scene.zoom**0.5)))
        step = wide / columns
        for row, y in enumerate(np.arange(top + step * 0.4, base - step * 1.6, step * 1.35)):
            for i in range(columns):
                self._pane(x + step * (i + 0.24), float(y), step, self.evening and (row + i) % 3 == 0)
        self._shop(x, base, wide, step)

    def _pane(self, x: float, y: float, step: float, lit: bool) -> None:
        frame = box(x - step * 0.06, y - step * 0.06, x + step * 0.58, y + step * 0.86)
        self.layer.paint(frame, (0.93, 0.91, 0.87))
        top, low = ((0.98, 0.86, 0.55), (0.95, 0.75, 0.4)) if lit else ((0.42, 0.56, 0.68), (0.7, 0.82, 0.9))
        self.layer.paint(box(x, y, x + step * 0.52, y + step * 0.8), fade(top, low, y, y + step * 0.8), edge=0.4)

    def _shop(self, x: float, base: float, wide: float, step: float) -> None:
        colour = rgb(str(self.rng.choice(["c0463f", "3f7f6a", "d9a13f", "4a6fa5"])))
        y = base - step * 1.25
        x0, x1 = x + step * 0.2, x + wide - step * 0.2
        self.layer.paint(box(x0, y, x1, base), (0.25, 0.3, 0.34), edge=0.3)
        low = y + step * 0.35
        awning = np.array(
            [(x0, y - step * 0.1), (x1, y - step * 0.1), (x1 + step * 0.15, low), (x0 - step * 0.15, low)]
        )
        self.layer.paint(awning, colour, form=0.5, edge=0.3, drop=0.4)

    def _beach(self) -> None:
        rng, w, h = self.rng, self.width, self.height
        sea = self.line - h * 0.1
        self._sky(sea)
        if self.evening:
            sun = ellipse(w * (0.5 + 0.3 * self.scene.light.x), sea * 0.85, h * 0.05, h * 0.05)
            self.layer.paint(sun, (1.0, 0.93, 0.72), soft=h * 0.008)
        blue, pale = (rgb("1f7fa6"), rgb("6fc9cf")) if not self.evening else (rgb("46719c"), rgb("d8a88c"))
        self._fill(fade(blue, pale, sea, self.line + h * 0.05, 0.06, 0.8), sea)
        for _ in range(60):
            y = sea + (self.line + h * 0.04 - sea) * rng.random()
            x, length = rng.uniform(0, w), w * rng.uniform(0.02, 0.1)
            wave = opened([(x, y), (x + length / 2, y - h * 0.003), (x + length, y)], 4)
            self.layer.paint(tube(wave, np.array([0.1, 1, 0.1]) * h * 0.0028), (1, 1, 1), opacity=0.45)
        sand = rgb("e8cf9e") if not self.evening else rgb("d9ab7c")
        shore = [(-9.0, h + 9)] + [
            (w * t, self.line + h * (0.04 + 0.015 * np.sin(7 * t + rng.random()))) for t in np.linspace(-0.05, 1.05, 9)
        ]
        curve: Curve = np.concatenate([np.array(shore), [(w + 9.0, h + 9)]])
        self.layer.paint(curve - (0, h * 0.012), (1, 1, 1), soft=h * 0.004, opacity=0.85)
        self.layer.paint(
            curve, fade(scaled(sand, 0.82), sand, self.line + h * 0.03, self.line + h * 0.1, 0.07, 0.4), soft=1
        )
        if rng.random() < 0.7:
            self._umbrella(w * rng.choice([0.14, 0.86]), self.line + h * 0.14, h * 0.2 * self.scene.zoom**0.5)

    def _umbrella(self, x: float, y: float, r: float) -> None:
        self.layer.darken(ellipse(x - self.scene.light.x * r * 0.8, y, r, r * 0.16), 0.7, soft=r * 0.05)
        self.layer.paint(tube(np.array([(x, y), (x, y - 1.7 * r)]), [r * 0.03] * 2), rgb("efe8dc"), form=0.5)
        colour = rgb(str(self.rng.choice(["d94f45", "2f8f8f", "e5a13c"])))
        t = np.linspace(np.pi, 2 * np.pi, 9)
        for i in range(8):
            a, b = t[i], t[i + 1]
            gore = np.array(
                [
                    (x, y - 1.95 * r),
                    *[(x + r * np.cos(s), y - 1.25 * r + 0.7 * r * np.sin(s)) for s in np.linspace(a, b, 5)],
                ]
            )
            self.layer.paint(gore, colour if i % 2 else (0.97, 0.95, 0.9), edge=0.25, form=0.3)
