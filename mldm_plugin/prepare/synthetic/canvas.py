"""Painting: smooth outlines filled with antialiased, softly shaded colour on layers with coverage and part labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Rgb = tuple[float, float, float]
Window = tuple[slice, slice]  # rows and columns
Ink = Rgb | Callable[[np.ndarray, np.ndarray], np.ndarray]  # a colour, or colours (3, h, w) of pixels at x, y
Outline = np.ndarray | Sequence[np.ndarray]  # one closed curve in pixels, or several that are united

SMALL = 130  # pixels: outlines up to here are drawn finer, since eyes and fingers are made of few pixels


@dataclass(frozen=True)
class Light:
    """One far lamp, and what the sky gives to the shadows.

    Args:
        x, y: unit vector in the picture towards the lamp.
        key: colour that lit sides lean towards.
        shade: factor for each channel in full shadow.
    """

    x: float
    y: float
    key: Rgb
    shade: Rgb


@dataclass(frozen=True)
class Stamp:
    """How much of each pixel an outline covers: float32 (h, w) in [0, 1], its corner at (x, y) of the layer."""

    x: int
    y: int
    cover: np.ndarray

    @property
    def window(self) -> Window:
        h, w = self.cover.shape
        return slice(self.y, self.y + h), slice(self.x, self.x + w)

    def within(self, low: np.ndarray, high: np.ndarray) -> Window:
        """The part of this stamp between two corners (x, y) of the layer, counted from the stamp's own."""
        (x0, y0), (x1, y1) = np.floor(low).astype(int), np.ceil(high).astype(int)
        return slice(max(y0 - self.y, 0), max(y1 - self.y, 0)), slice(max(x0 - self.x, 0), max(x1 - self.x, 0))


def blurred(cover: np.ndarray, radius: float) -> np.ndarray:
    """A coverage blurred by a Gaussian of `radius` pixels, in steps of 1/255; a wide blur is made on fewer pixels."""
    if radius < 0.3:
        return cover
    picture = Image.fromarray((cover * 255 + 0.5).astype(np.uint8))
    fewer = int(min(radius / 3, 8))
    if fewer > 1:
        small = picture.reduce(fewer).filter(ImageFilter.GaussianBlur(float(radius) / fewer))
        picture = small.resize(picture.size, Image.Resampling.BILINEAR)
    else:
        picture = picture.filter(ImageFilter.GaussianBlur(float(radius)))
    return np.asarray(picture, np.float32) * np.float32(1 / 255)


def planes(colour: Rgb) -> np.ndarray:
    """A colour as (3, 1, 1)."""
    return np.array(colour, np.float32)[:, None, None]


def shade(colour: np.ndarray, light: Light, amount: np.ndarray, window: Window) -> None:
    """Multiply a window of colours (3, h, w) towards the light's shade, by `amount` (h, w) in [0, 1]."""
    colour[:, window[0], window[1]] *= 1 - amount * (1 - planes(light.shade))


def shifted(cover: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """The value that stands dx to the right and dy below; the border's beyond it."""
    h, w = cover.shape
    return cover[np.clip(np.arange(h) + dy, 0, h - 1)][:, np.clip(np.arange(w) + dx, 0, w - 1)]


def stamp(outline: Outline, size: tuple[int, int], pad: float = 1) -> Stamp | None:
    """The coverage of an outline on a layer of `size` (width, height); None where it lies outside."""
    curves = [outline] if isinstance(outline, np.ndarray) else list(outline)
    points = np.concatenate(curves)
    low = np.floor(points.min(0) - pad - 1)
    high = np.ceil(points.max(0) + pad + 1)
    x0, y0 = (int(max(v, 0)) for v in low)
    x1, y1 = (int(min(v, s)) for v, s in zip(high, size, strict=True))
    if x1 <= x0 or y1 <= y0:
        return None
    fine = 4 if max(x1 - x0, y1 - y0) <= SMALL else 2
    drawn = Image.new("L", ((x1 - x0) * fine, (y1 - y0) * fine))
    pen = ImageDraw.Draw(drawn)
    for curve in curves:
        # Pillow colours the pixels whose centres are at whole numbers.
        pen.polygon(np.rint((curve - (x0, y0)) * fine - 0.5).astype(int).ravel().tolist(), fill=255)
    return Stamp(x0, y0, np.asarray(drawn.reduce(fine), np.float32) / 255)


class Layer:
    """A transparent sheet of the picture's working size.

    Attributes:
        colour: float32 (3, h, w), times coverage; planes, because numpy is slow along an axis of three.
        cover: float32 (h, w) in [0, 1].
        part: uint8 (h, w), the label of what is on top where it covers more than half.
    """

    def __init__(self, size: tuple[int, int], light: Light) -> None:
        width, height = size
        self.size, self.light = size, light
        self.colour = np.zeros((3, height, width), np.float32)
        self.cover = np.zeros((height, width), np.float32)
        self.part = np.zeros((height, width), np.uint8)
        self._low, self._high = (height, width), (0, 0)

    def paint(
        self,
        outline: Outline,
        ink: Ink,
        *,
        part: int | None = None,
        form: float = 0.0,
        depth: float | None = None,
        edge: float = 0.0,
        opacity: float = 1.0,
        soft: float = 0.0,
        clip: Outline | None = None,
        inside: bool = False,
        drop: float = 0.0,
    ) -> None:
        """Fill an outline.

        Args:
            outline: curves in pixels.
            ink: a colour in [0, 1], or a function of pixel coordinates.
            part: label for what is painted; None leaves the labels that are there.
            form: how strongly the shape is rounded by the light, 0 flat, 1 full.
            depth: pixels over which the rounding turns; by default a quarter of the outline's shorter side.
            edge: how much the rim is darkened, in [0, 1].
            opacity: in [0, 1].
            soft: blur of the outline, in pixels.
            clip: paint only inside this outline.
            inside: paint only where the layer is covered already, so that its outline does not grow.
            drop: the strength of the shadow thrown on what the layer holds already.
        """
        curves = [outline] if isinstance(outline, np.ndarray) else list(outline)
        points = np.concatenate(curves)
        if depth is None:
            depth = float(min(np.ptp(points[:, 0]), np.ptp(points[:, 1]))) * 0.25
        margin = 2 * soft + 1
        made = stamp(curves, self.size, pad=max(margin, depth if form or drop else 0))
        if made is None:
            return
        if drop:
            self._drop_shadow(made, drop, depth)
        cover = blurred(made.cover, soft)
        if clip is not None:
            cover = cover * _on(stamp(clip, self.size), made)
        inner = made.within(points.min(0) - margin, points.max(0) + margin)
        tight = Stamp(made.x + inner[1].start, made.y + inner[0].start, cover[inner])
        if not tight.cover.size:
            return
        colour = self._colours(tight, ink)
        if form or edge:
            colour = self._shaded(colour, made.cover, inner, form, max(depth, 0.6), edge)
        self._lay(tight, colour, tight.cover * np.float32(opacity), part, inside)

    def mark(self, outline: Outline, part: int, over: Collection[int], clip: Outline | None = None) -> None:
        """Label what lies inside an outline and shows one of the parts `over`, without painting."""
        made = stamp(outline, self.size)
        if made is None:
            return
        cover = made.cover if clip is None else made.cover * _on(stamp(clip, self.size), made)
        labels = self.part[made.window]
        labels[(cover > 0.5) & np.isin(labels, list(over))] = part

    def darken(self, outline: Outline, amount: float, soft: float = 0.0, clip: Outline | None = None) -> None:
        """Multiply what is there towards the light's shade."""
        made = stamp(outline, self.size, pad=2 * soft)
        if made is None:
            return
        cover = blurred(made.cover, soft)
        if clip is not None:
            cover = cover * _on(stamp(clip, self.size), made)
        self._shade(made.window, cover * amount)

    def _shade(self, window: Window, amount: np.ndarray) -> None:
        shade(self.colour, self.light, amount, window)

    def _drop_shadow(self, made: Stamp, strength: float, depth: float) -> None:
        reach = max(1.0, depth * 0.6)
        cast = blurred(made.cover, reach)
        dx, dy = round(self.light.x * reach), round(self.light.y * reach)
        self._shade(made.window, shifted(cast, dx, dy) * strength)

    def _colours(self, made: Stamp, ink: Ink) -> np.ndarray:
        if not callable(ink):
            return planes(ink)
        h, w = made.cover.shape
        return ink(
            np.arange(made.x, made.x + w, dtype=np.float32)[None] + np.float32(0.5),
            np.arange(made.y, made.y + h, dtype=np.float32)[:, None] + np.float32(0.5),
        )

    def _shaded(
        self, colour: np.ndarray, cover: np.ndarray, inner: Window, form: float, depth: float, edge: float
    ) -> np.ndarray:
        """The colour as if the outline were a cushion: bright towards the lamp, dark away from it and at the rim."""
        shade = planes(self.light.shade)
        lost = np.zeros((3, *cover[inner].shape), np.float32)
        if edge:
            rim = 1 - np.clip(blurred(cover, max(1.0, min(depth * 0.35, 4.0)))[inner] * 2 - 1, 0, 1)
            lost += (np.float32(edge) * rim) * (np.float32(1.1) - shade)
        if not form:
            return colour * (1 - lost)
        wide = blurred(cover, depth)
        dx, dy = round(self.light.x * depth), round(self.light.y * depth)
        tilt = (shifted(wide, -dx, -dy)[inner] - shifted(wide, dx, dy)[inner]) * np.float32(form)
        lost += np.maximum(-tilt, 0) * (1 - shade)
        key = planes(self.light.key)
        return colour * (1 - lost) + np.maximum(tilt, 0) * (np.float32(0.38) * (key - colour))

    @property
    def extent(self) -> Window:
        """The rows and columns in which anything was painted."""
        (y0, x0), (y1, x1) = self._low, self._high
        return slice(y0, max(y1, y0)), slice(x0, max(x1, x0))

    def _lay(self, made: Stamp, colour: np.ndarray, cover: np.ndarray, part: int | None, inside: bool) -> None:
        window = made.window
        target = self.colour[:, window[0], window[1]]
        if inside:
            target[...] += cover * (colour * self.cover[window] - target)
            return
        target[...] += cover * (colour - target)
        self.cover[window] += cover * (1 - self.cover[window])
        rows, columns = window
        self._low = min(self._low[0], rows.start), min(self._low[1], columns.start)
        self._high = max(self._high[0], rows.stop), max(self._high[1], columns.stop)
        if part is not None:
            self.part[window][cover > 0.5] = part


def _on(other: Stamp | None, made: Stamp) -> np.ndarray:
    """Another stamp's coverage, over the window of `made`."""
    cover = np.zeros_like(made.cover)
    if other is None:
        return cover
    h, w = cover.shape
    y0, x0 = max(made.y, other.y), max(made.x, other.x)
    y1 = min(made.y + h, other.y + other.cover.shape[0])
    x1 = min(made.x + w, other.x + other.cover.shape[1])
    if x1 > x0 and y1 > y0:
        cover[y0 - made.y : y1 - made.y, x0 - made.x : x1 - made.x] = other.cover[
            y0 - other.y : y1 - other.y, x0 - other.x : x1 - other.x
        ]
    return cover
