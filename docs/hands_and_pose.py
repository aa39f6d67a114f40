"""The figures of docs/hands_and_pose.md and the statistics of mldm_plugin/perceptual/hand_shape.py.

python docs/hands_and_pose.py found        poses and hands in openpeople's pictures, and CPU time
python docs/hands_and_pose.py small        hands of people who are small in the picture, with and without their wrists
python docs/hands_and_pose.py statistics   lengths of P001 to P007's hands, as constants
python docs/hands_and_pose.py shapes       distances of P008 to P010's hands, and of points that are spoilt
python docs/hands_and_pose.py stretched    distances of hands whose fingers are made longer in the picture
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mldm_plugin.perceptual.hand_shape import hand_shape_distance, lengths
from mldm_plugin.perceptual.hands import Hand, find_hands
from mldm_plugin.perceptual.pose import find_pose

KINDS = ("studio_posture", "amateur_posture", "studio_portrait", "amateur_selfie")
FITTED, KEPT_BACK = range(1, 8), range(8, 11)


def picture(person: int, kind: str, longest: int) -> Image.Image:
    [package] = importlib.util.find_spec("openpeople").submodule_search_locations
    folder = Path(package) / "data" / "curated" / f"P{person:03}" / "assets"
    found = Image.open(folder / f"{kind}.jpg").convert("RGB")
    found.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return found


def as_tensor(found: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(found)).permute(2, 0, 1).float() / 127.5 - 1


def bodies(person: int) -> Iterator[Image.Image]:
    """Full bodies: two photographs, and the sheet's four views."""
    yield picture(person, "studio_posture", 1024)
    yield picture(person, "amateur_posture", 1024)
    sheet = picture(person, "character_sheet", 2400)
    for view in range(4):
        yield sheet.crop((600 * view, sheet.height // 2, 600 * view + 600, sheet.height))


def hands_of(people: range) -> list[Hand]:
    found = []
    for person in people:
        for body in map(as_tensor, bodies(person)):
            found += find_hands(body, find_pose(body))
    return found


def found() -> None:
    for kind in KINDS:
        poses, hands, seconds = [], [], np.zeros(2)
        for person in range(1, 11):
            image = as_tensor(picture(person, kind, 512))
            start = time.process_time()
            poses.append(find_pose(image))
            middle = time.process_time()
            hands.append(find_hands(image, poses[-1]))
            seconds += middle - start, time.process_time() - middle
        ms = (seconds * 100).round().astype(int)
        click.echo(f"{kind}: {sum(map(len, poses))} poses, hands {[len(h) for h in hands]}, ms {ms[0]} and {ms[1]}")


def small() -> None:
    for part in (1, 0.7, 0.5, 0.35):
        counts = np.zeros(3, int)
        for person in range(2, 11):
            image = as_tensor(picture(person, "amateur_posture", round(1024 * part)))
            left, top = (1024 - image.shape[2]) // 2, (1024 - image.shape[1]) // 2
            image = F.pad(image, (left, 1024 - image.shape[2] - left, top, 1024 - image.shape[1] - top))
            poses = find_pose(image)
            counts += len(poses), len(find_hands(image)), len(find_hands(image, poses))
        click.echo(f"picture shrunk to {part}: {counts[0]} poses, {counts[1]} hands, {counts[2]} with their wrists")


def statistics() -> None:
    sizes = torch.stack([lengths(hand.world) for hand in hands_of(FITTED)])
    click.echo(f"{len(sizes)} hands")
    click.echo(f"MEAN = {[[round(x, 2) for x in row] for row in sizes.mean(0).tolist()]}")
    click.echo(f"SPREAD = {[[round(x, 2) for x in row] for row in sizes.std(0).tolist()]}")


def longer(points: Tensor, finger: int) -> Tensor:
    """A finger twice as long."""
    base = points[4 * finger + 1]
    out = points.clone()
    out[4 * finger + 1 : 4 * finger + 5] = base + 2 * (points[4 * finger + 1 : 4 * finger + 5] - base)
    return out


def exchanged(points: Tensor, one: int, other: int) -> Tensor:
    """Two fingers in each other's place."""
    order = list(range(21))
    for i in range(1, 5):
        order[4 * one + i], order[4 * other + i] = 4 * other + i, 4 * one + i
    return points[order]


def shapes() -> None:
    worlds = [hand.world for hand in hands_of(KEPT_BACK)]
    said = {"as found": worlds}
    said |= {f"finger {f} twice as long": [longer(w, f) for w in worlds] for f in range(5)}
    pairs = ((0, 1), (1, 2), (2, 3), (3, 4), (1, 3), (2, 4), (1, 4))
    said |= {f"fingers {a} and {b} exchanged": [exchanged(w, a, b) for w in worlds] for a, b in pairs}
    for name, points in said.items():
        distances = hand_shape_distance(torch.stack(points)).sort().values
        low, middle, high = (distances.quantile(q).item() for q in (0.1, 0.5, 0.9))
        click.echo(f"{name}: median {middle:.2f}, tenths {low:.2f} to {high:.2f}, largest {distances[-1]:.2f}")


def stretch(photo: Image.Image, hand: Hand, times: float) -> Image.Image:
    """The picture with what lies below a hanging hand's knuckles made longer."""
    x0, _, x1, y1 = hand.box.tolist()
    knuckles = hand.points[[5, 9, 13, 17], 1].mean().item()
    below = photo.crop((int(2 * x0 - x1), int(knuckles), int(2 * x1 - x0), int(y1 + 0.3 * (y1 - knuckles))))
    out = photo.copy()
    out.paste(
        below.resize((below.width, int(below.height * times)), Image.Resampling.LANCZOS),
        (int(2 * x0 - x1), int(knuckles)),
    )
    return out


def stretched() -> None:
    for times in (1, 1.4, 2):
        distances = []
        for person in range(2, 11):
            photo = picture(person, "studio_posture", 1600)
            for hand in find_hands(as_tensor(photo)):
                wide = hand.box[2] - hand.box[0]
                again = find_hands(as_tensor(stretch(photo, hand, times)))
                same = [one.world for one in again if (one.points[0] - hand.points[0]).norm() < wide][:1]
                distances += [hand_shape_distance(world).item() for world in same]
        low, middle, high = np.quantile(distances, (0.1, 0.5, 0.9))
        click.echo(f"{times} times as long: {len(distances)} hands, {middle:.2f}, tenths {low:.2f} to {high:.2f}")


COMMANDS = {f.__name__: f for f in (found, small, statistics, shapes, stretched)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        COMMANDS[sys.argv[1]]()
