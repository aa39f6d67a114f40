"""Degradations of photographs, planted where faces and hands are: what docs/metrics/sensitivity.py shows to metrics.

A degradation takes a scene and a strength and returns a picture (3, H, W) in [-1, 1]. Its edges are soft.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor


@dataclass(frozen=True)
class Scene:
    """A photograph and what is where in it.

    Args:
        image: (3, H, W) in [-1, 1].
        box: (4,) of the face.
        points: (5, 2) its eyes, nose, corners of the mouth.
        hands: (21, 2) of each.
        other: another person's photograph.
        seed: of noise.
    """

    image: Tensor
    box: Tensor = field(default_factory=lambda: torch.zeros(4))
    points: Tensor = field(default_factory=lambda: torch.zeros(5, 2))
    hands: tuple[Tensor, ...] = ()
    other: Scene | None = None
    seed: int = 0


@dataclass(frozen=True)
class Degradation:
    """What is done, and how much of it.

    Args:
        title: a few words for a table.
        strengths: three, from weak to strong, as they are shown, with the number that `plant` takes.
        plant: the picture of a scene and a strength.
    """

    title: str
    strengths: dict[str, float]
    plant: Callable[[Scene, float], Tensor]


# Pictures


def as_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def as_image(image: Tensor) -> Image.Image:
    return Image.fromarray(((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def places(image: Tensor) -> Tensor:
    """(H, W, 2) x and y of each pixel."""
    height, width = image.shape[1:]
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    return torch.stack([x, y], -1)


def taken(image: Tensor, at: Tensor) -> Tensor:
    """The colours of `image` at `at` (H, W, 2), its border repeated outside."""
    limit = torch.tensor([image.shape[2] - 1.0, image.shape[1] - 1.0])
    options = {"mode": "bicubic", "padding_mode": "border", "align_corners": True}
    return F.grid_sample(image[None], (2 * at / limit - 1)[None], **options)[0].clamp(-1, 1)


def blurred(image: Tensor, sigma: float) -> Tensor:
    return torch.from_numpy(gaussian_filter(image.numpy(), (0, sigma, sigma), mode="nearest"))


def ellipse(image: Tensor, centre: Tensor, radii: Tensor, soft: float = 0.25) -> Tensor:
    """(H, W) 1 inside and 0 outside, with an edge that takes `soft` of the radius."""
    far = ((places(image) - centre) / radii).norm(dim=-1)
    return ((1 - far) / soft).clamp(0, 1)


def face(scene: Scene, by: float = 1.1) -> Tensor:
    """The mask of the face."""
    box = scene.box
    return ellipse(scene.image, (box[:2] + box[2:]) / 2, by * (box[2:] - box[:2]) / 2)


def hand(image: Tensor, points: Tensor, by: float = 1.3) -> Tensor:
    """The mask of a hand."""
    low, high = points.amin(0), points.amax(0)
    return ellipse(image, (low + high) / 2, by * ((high - low) / 2).clamp(min=4))


def mixed(image: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    return image + mask * (other - image)


def turned(vectors: Tensor, angle: float) -> Tensor:
    """Vectors (..., 2) turned by an angle."""
    c, s = math.cos(angle), math.sin(angle)
    return vectors @ torch.tensor([[c, s], [-s, c]])


# Faces


def blur_face(scene: Scene, sigma: float) -> Tensor:
    return mixed(scene.image, blurred(scene.image, sigma), face(scene, 1.3))


def grain_face(scene: Scene, levels: float) -> Tensor:
    noise = torch.randn(scene.image.shape, generator=torch.Generator().manual_seed(scene.seed)) * levels / 127.5
    return mixed(scene.image, scene.image + noise, face(scene)).clamp(-1, 1)


def exchange_eyes(scene: Scene, opacity: float) -> Tensor:
    """Each eye moved, not mirrored, to the other's place."""
    left, right = scene.points[:2]
    apart, out = right - left, scene.image
    for eye, step in ((left, apart), (right, -apart)):
        mask = ellipse(out, eye, apart.norm() * torch.tensor([0.45, 0.3]))
        out = mixed(out, taken(scene.image, places(out) + step), opacity * mask)
    return out


def lower_eye(scene: Scene, share: float) -> Tensor:
    """One eye moved down by a share of the eyes' distance."""
    left, right = scene.points[:2]
    wide = (right - left).norm()
    down = torch.tensor([0.0, share * float(wide)])
    mask = ellipse(scene.image, right + down, wide * torch.tensor([0.5, 0.35]))
    return mixed(scene.image, taken(scene.image, places(scene.image) - down), mask)


def other_face(scene: Scene, opacity: float) -> Tensor:
    """Another person's face in the place of this one, its eyes on these."""
    assert scene.other is not None
    ours, theirs = (torch.view_as_complex(s.points[:2].contiguous()) for s in (scene, scene.other))
    at = torch.view_as_complex(places(scene.image))
    there = theirs[0] + (at - ours[0]) * (theirs[1] - theirs[0]) / (ours[1] - ours[0])
    return mixed(scene.image, taken(scene.other.image, torch.view_as_real(there)), opacity * face(scene))


def second_face(scene: Scene, share: float) -> Tensor:
    """Another person's face beside this one, its height a share of this one's."""
    assert scene.other is not None
    box, own = scene.other.box, scene.box
    scale = float(share * (own[3] - own[1]) / (box[3] - box[1]))
    half = scale * (box[2:] - box[:2]) / 2
    middle = 4 + 1.3 * half
    there = (box[:2] + box[2:]) / 2 + (places(scene.image) - middle) / scale
    smaller = blurred(scene.other.image, max(0.5 / scale - 0.5, 0.01))  # against the steps of few pixels out of many
    return mixed(scene.image, taken(smaller, there), ellipse(scene.image, middle, 1.3 * half))


# Hands and bodies


def sixth_finger(scene: Scene, kind: float) -> Tensor:
    """A copy of a finger beside the others: on the first hand, on both, or on both and twice as long."""
    out = scene.image
    for points in scene.hands[: 1 if kind == 1 else 2]:
        out = _with_finger(out, points, 2.0 if kind == 3 else 1.0)
    return out


def _with_finger(image: Tensor, points: Tensor, longer: float) -> Tensor:
    """The longest finger is spread by 40° to where no other is, as long as the palm and a fifth of it wide."""
    palm = float((points[9] - points[0]).norm())
    fingers = [points[root : root + 4] for root in (5, 9, 13, 17)]
    joints = max(fingers, key=lambda finger: float((finger[3] - finger[0]).norm()))
    root, length = joints[0], float((joints[3] - joints[0]).norm())
    scale = longer * min(max(0.9 * palm / max(length, 1), 1), 2)
    tips = {angle: root + turned(joints[3] - root, angle) for angle in (math.radians(40), math.radians(-40))}
    angle = max(tips, key=lambda one: float((tips[one] - points.mean(0)).norm()))
    back = turned(places(image) - root, -angle) / scale + root
    far = torch.stack([_to_line(back, a, b) for a, b in itertools.pairwise(joints)]).amin(0) * scale
    mask = ((0.1 * palm - far) / (0.04 * palm) + 0.5).clamp(0, 1)
    return mixed(image, taken(image, back), mask)


def _to_line(at: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The distance of places (..., 2) to the line from a to b."""
    along = b - a
    share = ((at - a) @ along / along.square().sum().clamp(min=1e-6)).clamp(0, 1)
    return (at - a - share[..., None] * along).norm(dim=-1)


def mirror_hands(scene: Scene, kind: float) -> Tensor:
    """Hands mirrored along their axis, so that the thumb is on the wrong side: one, both, or both and upside down."""
    out = scene.image
    for points in scene.hands[: 1 if kind == 1 else 2]:
        middle = (points.amin(0) + points.amax(0)) / 2
        axis = F.normalize(points[[5, 9, 13, 17]].mean(0) - points[0], dim=0)
        apart = places(out) - middle
        there = 2 * (apart @ axis)[..., None] * axis - apart
        out = mixed(out, taken(scene.image, middle + (-there if kind == 3 else there)), hand(out, points))
    return out


def blur_hands(scene: Scene, sigma: float) -> Tensor:
    mask = torch.stack([hand(scene.image, points, 1.8) for points in scene.hands]).amax(0)
    return mixed(scene.image, blurred(scene.image, sigma), mask)


def grow_hands(scene: Scene, times: float) -> Tensor:
    """Hands larger, the wrist where it was."""
    out = scene.image
    for points in scene.hands:
        wrist = points[0]
        there = wrist + (places(out) - wrist) / times
        out = mixed(out, taken(scene.image, there), hand(out, wrist + times * (points - wrist)))
    return out


def squeeze(scene: Scene, height: float) -> Tensor:
    """The whole body lower, its feet where they were; the picture's upper border is repeated above."""
    image = scene.image
    low = F.interpolate(image[None], (round(height * image.shape[1]), image.shape[2]), mode="bicubic", antialias=True)
    return F.pad(low, (0, 0, image.shape[1] - low.shape[2], 0), mode="replicate")[0].clamp(-1, 1)


# Whole pictures


def jpeg(scene: Scene, quality: float) -> Tensor:
    stream = io.BytesIO()
    as_image(scene.image).save(stream, "JPEG", quality=int(quality))
    return as_tensor(Image.open(stream))


def steps(form: str, *values: float) -> dict[str, float]:
    return {form.format(value): value for value in values}


OPACITY = {"a third": 0.33, "two thirds": 0.66, "whole": 1.0}
HANDS = {"one hand": 1.0, "both": 2.0}
FACES = {
    "blur": Degradation("blurred face", steps("σ {:g} px", 1, 2, 4), blur_face),
    "melt": Degradation("molten face", steps("σ {:g} px", 8, 16, 32), blur_face),
    "grain": Degradation("grainy face", steps("σ {:g} of 255", 4, 8, 16), grain_face),
    "eyes": Degradation("eyes exchanged", OPACITY, exchange_eyes),
    "eye": Degradation("one eye lower", steps("{:.0%} of their distance", 0.05, 0.1, 0.2), lower_eye),
    "other": Degradation("another's face", OPACITY, other_face),
    "second": Degradation("a second face", steps("{:.0%} as high", 0.15, 0.25, 0.4), second_face),
    "jpeg": Degradation("JPEG", steps("quality {:g}", 50, 20, 8), jpeg),
}
BODIES = {
    "finger": Degradation("sixth finger", {**HANDS, "both, twice as long": 3.0}, sixth_finger),
    "mirror": Degradation("mirrored hand", {**HANDS, "both, upside down": 3.0}, mirror_hands),
    "hands": Degradation("blurred hands", steps("σ {:g} px", 1, 3, 8), blur_hands),
    "large": Degradation("large hands", steps("{:g} times", 1.3, 1.6, 2), grow_hands),
    "squeeze": Degradation("squeezed body", steps("{:.0%} as high", 0.95, 0.85, 0.7), squeeze),
    "jpeg": Degradation("JPEG", steps("quality {:g}", 50, 20, 8), jpeg),
}
