"""A whole picture: who is where, painted from back to front, with the exact silhouette of each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from mldm_plugin.prepare.synthetic import prop
from mldm_plugin.prepare.synthetic.backdrop import Backdrop
from mldm_plugin.prepare.synthetic.canvas import Layer, blurred, planes, shade, shifted
from mldm_plugin.prepare.synthetic.curve import Frame, ellipse
from mldm_plugin.prepare.synthetic.look import draw_look, pick
from mldm_plugin.prepare.synthetic.person import Person
from mldm_plugin.prepare.synthetic.pose import HEAD, Pose, draw_pose, draw_thing
from mldm_plugin.prepare.synthetic.scene import Scene, draw_scene

FINER = 2  # working pixels in a pixel of the picture, along each side; outlines are drawn finer still
SHOTS = {"close": 0.34, "half": 0.3, "knee": 0.12, "full": 0.24}
COUNTS = {
    "close": {"1": 0.85, "2": 0.15},
    "half": {"1": 0.5, "2": 0.35, "3": 0.15},
    "knee": {"1": 0.4, "2": 0.4, "3": 0.2},
    "full": {"1": 0.35, "2": 0.3, "3": 0.25, "4": 0.1},
}
# Pixels of a body's head unit, as a share of the picture's height (range), and for full bodies of what fits.
UNITS = {"close": (0.33, 0.43), "half": (0.2, 0.25), "knee": (0.14, 0.16), "full": (0.112, 0.128)}
WHOLE = (slice(None), slice(None))
SHAPES = {"1 1": 0.4, "0.82 1.1": 0.35, "1.2 0.9": 0.25}  # width and height, as shares of the asked size


@dataclass
class Item:
    """Something painted: a person, a plant, a crowd, or an unannotated prop."""

    kind: str
    layer: Layer
    person: Person | None = None


@dataclass(frozen=True)
class Plan:
    """What a picture will show, before it is painted; `size` is (width, height) in its pixels."""

    size: tuple[int, int]
    shot: str
    scene: Scene
    people: list[Person]
    props: list[str]


@dataclass
class Picture:
    """What was painted.

    Attributes:
        pixels: uint8 (H, W, 3).
        items: from back to front.
        shares: float32 (items, H, W), the part of each pixel that shows the item; they sum to at most 1.
        top: uint8 (h, w) of the working picture: which item is on top, counted from 1; 0 is the backdrop.
        parts: uint8 (h, w), its part's label.
    """

    plan: Plan
    pixels: np.ndarray
    items: list[Item]
    shares: np.ndarray
    top: np.ndarray
    parts: np.ndarray


def draw_plan(rng: np.random.Generator, size: int) -> Plan:
    """A picture at random, of about `size` pixels a side."""
    wide, tall = (float(v) for v in pick(rng, SHAPES).split())
    scale = size * rng.uniform(0.94, 1.06)
    width, height = round(wide * scale), round(tall * scale)
    shot = pick(rng, SHOTS)
    scene = draw_scene(rng, shot)
    count = int(pick(rng, COUNTS[shot]))
    people = _people(rng, shot, count, (width * FINER, height * FINER))
    props = []
    if shot in ("half", "knee") and scene.name == "room" and rng.random() < 0.4:
        props.append("table")
    if rng.random() < (0.4 if scene.name in ("room", "studio") else 0.25):
        props.append("bush" if scene.name == "park" and rng.random() < 0.6 else "plant")
    if shot == "full" and scene.outdoors and rng.random() < 0.4:
        props.append("crowd")
    return Plan((width, height), shot, scene, people, props)


def _people(rng: np.random.Generator, shot: str, count: int, size: tuple[int, int]) -> list[Person]:
    """From back to front, in working pixels."""
    width, height = size
    unit = height * rng.uniform(*UNITS[shot])
    room = {"close": 2.3, "half": 1.9, "knee": 1.9, "full": 1.9}[shot]
    unit = min(unit, width / (room * count if count > 1 else 2.6))
    places = (np.arange(count) + 0.5) / count + rng.uniform(-0.3, 0.3, count) * 0.5 / count
    behind = rng.random(count) < 0.45
    if count > 1 and behind.all():
        behind[int(rng.integers(count))] = False
    people = []
    for i in range(count):
        look = draw_look(rng)
        back = bool(count > 1 and behind[i] and rng.random() < 0.08)
        pose = draw_pose(rng, look, shot, back)
        far = bool(behind[i]) and count > 1
        scale = unit * (rng.uniform(0.8, 0.9) if far else 1.0)
        x = width * places[i] if count > 1 else width * rng.uniform(0.44, 0.56)
        frame = Frame(x, 0.0, scale)
        ground = height * ((0.86 if far else 0.95) + rng.uniform(-0.02, 0.01))
        y = ground - (pose.lowest + pose.lift) * scale if shot == "full" else _head_room(rng, shot, pose, scale, height)
        thing = draw_thing(rng) if "holding" in pose.arms else ""
        people.append(Person(look, pose, replace(frame, y=y), thing, "behind" if far else "front"))
    return sorted(people, key=lambda p: p.place != "behind")


def _head_room(rng: np.random.Generator, shot: str, pose: Pose, unit: float, height: int) -> float:
    """y of the hips such that the head stands where a photographer would have it."""
    head = pose.joints["head"][1]
    middle = {"close": rng.uniform(0.4, 0.46), "half": rng.uniform(0.27, 0.33), "knee": rng.uniform(0.2, 0.25)}[shot]
    tops = [pose.joints[f"{w}_wrist"][1] - 0.6 for w in ("left", "right")]
    need = (head - min(*tops, head - HEAD * 0.62)) * unit + 0.02 * height
    return max(middle * height, min(need, 0.5 * height)) - head * unit


def paint(plan: Plan, rng: np.random.Generator) -> Picture:
    """Paint the plan."""
    width, height = plan.size
    size = (width * FINER, height * FINER)
    canvas = _background(plan)
    items = _items(plan, size, rng)
    shares = np.zeros((len(items), size[1], size[0]), np.float32)
    top, parts = np.zeros((2, size[1], size[0]), np.uint8)
    for i, item in enumerate(items):
        _cast(canvas, item, plan)
        at = item.layer.extent
        cover = item.layer.cover[at]
        channels, below, own = (slice(None), *at), (slice(i), *at), (i, *at)
        canvas.colour[channels] *= 1 - cover
        canvas.colour[channels] += item.layer.colour[channels]
        shares[below] *= 1 - cover
        shares[own] = cover
        over = cover > 0.5
        top[at][over], parts[at][over] = i + 1, item.layer.part[at][over]
    pixels = _finished(canvas.colour, plan, rng)
    return Picture(plan, pixels, items, _reduced(shares), top, parts)


def _items(plan: Plan, size: tuple[int, int], rng: np.random.Generator) -> list[Item]:
    light, items = plan.scene.light, []
    width, height = size

    def made(kind: str) -> Layer:
        items.append(Item(kind, Layer(size, light)))
        return items[-1].layer

    if "crowd" in plan.props:
        prop.crowd(made("crowd"), plan.scene.ground * height + 0.06 * height, height * 0.016, rng)
    for person in plan.people:
        if person.pose.legs == "sitting":
            prop.stool(made("prop"), person.frame, person.pose.lowest, plan.scene.outdoors)
        items.append(Item("person", person.paint(size, light), person))
    if "table" in plan.props:
        prop.table(made("prop"), height * rng.uniform(0.76, 0.84), rng)
    side = 1 if rng.random() < 0.5 else -1
    if "plant" in plan.props:
        unit = height * (0.1 if plan.shot == "full" else 0.13)
        prop.plant(
            made("potted plant"), Frame(width * (0.5 + side * rng.uniform(0.34, 0.42)), height * 0.985, unit), rng
        )
    if "bush" in plan.props:
        unit = width * rng.uniform(0.16, 0.24)
        prop.bush(made("prop"), Frame(width * (0.5 + side * rng.uniform(0.3, 0.46)), height * 1.02, unit), rng)
    return items


def _background(plan: Plan) -> Layer:
    """The backdrop, out of focus behind near people. It is painted in the picture's own pixels and enlarged."""
    canvas = Layer(plan.size, plan.scene.light)
    Backdrop(canvas, plan.scene).paint()
    radius = {"close": 0.012, "half": 0.006, "knee": 0.002, "full": 0.0}[plan.shot] * plan.size[1]
    if radius > 0.3:
        canvas.colour = np.stack([blurred(np.clip(plane, 0, 1), radius) for plane in canvas.colour])
    large = Layer((plan.size[0] * FINER, plan.size[1] * FINER), plan.scene.light)
    large.colour = canvas.colour.repeat(FINER, 1).repeat(FINER, 2)
    return large


def _cast(canvas: Layer, item: Item, plan: Plan) -> None:
    """The shadow that an item throws on the ground, or softly on the wall behind."""
    cover, light = item.layer.cover, plan.scene.light
    height = len(cover)
    if item.person is not None:
        frame, pose = item.person.frame, item.person.pose
        if plan.shot != "full" and not plan.scene.outdoors:
            reach = frame.scale * 0.3
            soft = blurred(cover, reach * 0.7)
            shade(canvas.colour, light, shifted(soft, round(light.x * reach), round(light.y * reach)) * 0.5, WHOLE)
        if frame.y + pose.lowest * frame.scale < height:
            _cast_on_ground(canvas, cover, item.person)
    elif item.kind == "potted plant":
        shade(canvas.colour, light, blurred(cover, height * 0.02) * 0.4, WHOLE)


def _cast_on_ground(canvas: Layer, cover: np.ndarray, person: Person) -> None:
    """The silhouette laid down behind the feet, away from the lamp, and a dark spot under the soles."""
    (height, width), frame, light = cover.shape, person.frame, canvas.light
    foot = frame.y + person.pose.lowest * frame.scale
    ground = foot + person.pose.lift * frame.scale
    slant, squash = -2.2 * light.x, 0.26
    low = max(0, int(ground - frame.scale * 2.6))  # a raised hand's shadow ends below this
    flat = Image.fromarray((cover * 255).astype(np.uint8)).transform(
        (width, height - low),
        Image.Transform.AFFINE,
        (1, slant, slant * (low - ground), 0, 1 / squash, foot + (low - ground) / squash),
        Image.Resampling.BILINEAR,
    )
    shadow = blurred(np.asarray(flat, np.float32) / 255, frame.scale * 0.06)
    shade(canvas.colour, light, shadow * 0.75, (slice(low, height), slice(None)))
    near = ellipse(frame.x, ground - 0.05 * frame.scale, frame.scale, frame.scale * 0.16)
    canvas.darken(near, 0.6, frame.scale * 0.1)


def _reduced(values: np.ndarray) -> np.ndarray:
    """The mean of FINER x FINER working pixels; the last two axes are the picture's."""
    *others, height, width = values.shape
    return values.reshape(*others, height // FINER, FINER, width // FINER, FINER).mean((-3, -1))


def _finished(colour: np.ndarray, plan: Plan, rng: np.random.Generator) -> np.ndarray:
    """Down to the picture's pixels, with the lamp's tint from its side, a vignette and a little grain."""
    small = _reduced(colour)
    width, height = plan.size
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    light = plan.scene.light
    lit = 0.5 + 0.5 * np.clip(x * light.x + y * light.y, -1, 1)
    small = small * (0.94 + 0.1 * lit) * (1 + 0.05 * (planes(light.key) - 0.95))
    small = small * (1 - 0.08 * np.clip(x * x + y * y - 0.6, 0, 2))
    small = small + rng.normal(0, 0.004, (height, width)).astype(np.float32)
    return (np.clip(small, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
