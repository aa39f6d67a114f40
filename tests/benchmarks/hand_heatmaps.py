"""Which faults of drawn hands small heatmap networks order that were trained on drawn hands: docs/losses/keypoints.md.

    python tests/benchmarks/hand_heatmaps.py 500 128 [--networks FOLDER] [--photographs]

So many people, drawn in pictures of about that size, with the faults, orders and columns of docs/keypoints.py. A
network has a heat map for each of a hand's 21 points. Two are trained, unless FOLDER (runs/hand_heatmaps) has them: one
on hands as people are drawn, one on these and as many that are bent at random or missing, whose maps say so; a third
stays untrained. Printed first: how far their points lie from the true ones, of people whom they have not seen. Forty
minutes on one core, then five for 500 people. With `--photographs` also how far the points of hands in openpeople's
photographs, made small, lie from those that MediaPipe's network finds in the large ones.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mldm_plugin.hooks.keypoints import EXTENT, feature_distance
from mldm_plugin.perceptual.hands import WRIST, find_hands, hands_in
from mldm_plugin.perceptual.limb_squares import hand_squares
from mldm_plugin.perceptual.pose import as_coco, find_pose
from mldm_plugin.perceptual.turned_squares import around, cut_out
from mldm_plugin.prepare.synthetic.curve import Curve
from mldm_plugin.prepare.synthetic.hand import hand_points
from mldm_plugin.prepare.synthetic.part import KEYPOINTS, Part
from mldm_plugin.prepare.synthetic.person import Person
from mldm_plugin.prepare.synthetic.picture import FINER, Picture, draw_plan, paint

sys.path.append(str(Path(__file__).parents[2] / "docs"))

import hands_and_pose
import keypoints as limbs

STREAM = 78  # of drawings; docs/keypoints.py measures those of 77
TRAINED, TESTED = range(8000), range(100_000, 100_500)
SIZES = (128, 128, 256)  # of pictures, in turn
SIDE, CELLS = 64, 32  # of a square as the network sees it, and of its heat maps
# Of the Gaussians, in squares. Chosen: at 1/16 a hand bent by 15° costs a perfect network as much as a missing one.
SIGMA = 1 / 12
WIDTHS = (32, 64, 128)
EPOCHS, BATCH, RATE = 13, 64, 3e-3
NETWORKS = ("as drawn", "with faults")  # by what they learn from
SHRUNK = (1 / 4, 1 / 2)  # photographs of standing people 1024 pixels high, for `--photographs`
MIDDLE_TIP = 12
SMALLEST = 8.0  # pixels of a square, as the loss has it


@dataclass(frozen=True)
class Hand:
    """A hand to learn from.

    Args:
        window: uint8 (3, h, w), the picture around it.
        square: (4,), where the loss looks, in pixels of the window.
        points, seen: (21, 2) in the same pixels, and (21,) whether the picture shows each.
        there, drawn: whether there is a hand; whether it is as people are drawn, neither bent nor missing.
        length: in pixels.
    """

    window: Tensor
    square: Tensor
    points: Tensor
    seen: Tensor
    there: bool
    drawn: bool
    length: float


def spoilt(person: Person, rng: np.random.Generator) -> Person:
    """The same, both hands bent at random, in two of five people one of them missing."""
    angles = tuple(angle + math.radians(rng.normal(0, 20)) for angle in person.pose.hand_angles)
    person = replace(person, pose=replace(person.pose, hand_angles=angles))
    return limbs.with_fault(
        person, str(rng.choice(["left", "right"])), str(rng.choice(["none"] * 3 + ["hand missing"] * 2))
    )


def hands_of(seed: int) -> Iterator[Hand]:
    """The hands of a drawing at random that are seen or missing."""
    rng = np.random.default_rng([STREAM, seed])
    plan = draw_plan(rng, SIZES[seed % len(SIZES)])
    people = [spoilt(person, rng) if rng.random() < 0.5 else person for person in plan.people]
    picture = paint(replace(plan, people=people), rng)
    for i, item in enumerate(picture.items):
        if item.person is not None:
            for word in ("left", "right"):
                yield from hand_of(picture, i, item.person, word)


def hand_of(picture: Picture, index: int, person: Person, word: str) -> Iterator[Hand]:
    """One, or none where no square is or most of the hand is hidden."""
    size = np.array(picture.plan.size)
    keypoints = torch.zeros(1, len(KEYPOINTS), 3)
    for name in (f"{word}_shoulder", f"{word}_elbow", f"{word}_wrist"):
        at = np.array(person.frame.point(*person.pose.joints[name])) / FINER
        if (at >= 0).all() and (at < size).all():
            keypoints[0, KEYPOINTS.index(name)] = torch.tensor([*at, 2.0])
    squares = hand_squares(keypoints, EXTENT)
    if (
        not len(squares)
        or squares[0, 2] < SMALLEST
        or not 0 <= squares[0, 0] < size[0]
        or not 0 <= squares[0, 1] < size[1]
    ):
        return
    frame, wrong = person.hand_frame(word), isinstance(person, limbs.Faulty)
    points = hand_points(frame, person.pose.hands[word == "right"])
    there = not (isinstance(person, limbs.Faulty) and person.fault == "hand missing" and person.word == word)
    shown = (picture.top == index + 1) & (picture.parts == Part[f"{word}_hand".upper()])
    seen = shows(shown, points) if there else np.ones(len(points), bool)
    if seen.mean() < 0.5:
        return
    x, y, side, _ = squares[0].tolist()
    left, top = (max(0, int(v - side)) for v in (x, y))  # room for squares that are moved
    window = picture.pixels[top : int(y + side) + 1, left : int(x + side) + 1]
    corner = torch.tensor([left, top])
    square = torch.cat([squares[0, :2] - corner, squares[0, 2:]])
    at = torch.from_numpy(points / FINER).float() - corner
    pixels = torch.from_numpy(window).permute(2, 0, 1).clone()
    yield Hand(pixels, square, at, torch.from_numpy(seen), there, not wrong, frame.scale / FINER)


def shows(mask: np.ndarray, points: Curve) -> np.ndarray:
    """Which points (n, 2) lie on a mask of the working picture, give or take a pixel."""
    around = [mask[max(int(y) - 1, 0) : max(int(y) + 2, 0), max(int(x) - 1, 0) : max(int(x) + 2, 0)] for x, y in points]
    return np.array([bool(part.any()) for part in around])


def in_square(square: Tensor, points: Tensor) -> Tensor:
    """Points (n, 2) of a picture in a square (4,): (0, 0) is its top left, (1, 1) its bottom right."""
    x, y, side, angle = square
    dx, dy = (points - torch.stack([x, y])).unbind(1)
    across, down = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
    return torch.stack([across, down], dim=1) / side + 0.5


def gaussians(places: Tensor) -> Tensor:
    """Heat maps (..., CELLS, CELLS) of places (..., 2) in a square."""
    cells = (torch.arange(CELLS) + 0.5) / CELLS
    x, y = (torch.exp(-((cells - at[..., None]) ** 2) / (2 * SIGMA**2)) for at in places.unbind(-1))
    return y[..., :, None] * x[..., None, :]


def places_of(maps: Tensor) -> Tensor:
    """Where heat maps (..., CELLS, CELLS) have their middle, of their fourth powers since far cells are many."""
    cells = (torch.arange(CELLS) + 0.5) / CELLS
    heavy = maps.clamp_min(0) ** 4 + 1e-12
    heavy = heavy / heavy.sum((-2, -1), keepdim=True)
    return torch.stack([(heavy.sum(-2) * cells).sum(-1), (heavy.sum(-1) * cells).sum(-1)], dim=-1)


def block(given: int, made: int, stride: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels, step in ((given, stride), (made, 1)):
        layers += [nn.Conv2d(channels, made, 3, step, 1, bias=False), nn.BatchNorm2d(made), nn.ReLU()]
    return nn.Sequential(*layers)


class Heatmaps(nn.Module):
    """Three blocks down, two up, and a map for each of 21 points."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(block(a, b, 2) for a, b in zip((3, *WIDTHS), WIDTHS, strict=False))
        up = WIDTHS[::-1]
        self.up = nn.ModuleList(block(a + b, b) for a, b in pairwise(up))
        self.maps = nn.Conv2d(WIDTHS[0], 21, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Squares (K, 3, SIDE, SIDE) → maps (K, 21, CELLS, CELLS), and the stages before them, (K, C, h, w)."""
        stages = []
        for down in self.down:
            x = down(x)
            stages.append(x)
        for up, beside in zip(self.up, stages[len(self.up) - 1 :: -1], strict=True):
            x = up(torch.cat([F.interpolate(x, scale_factor=2.0), beside], dim=1))
            stages.append(x)
        return self.maps(x), stages


def batch(hands: Sequence[Hand], rng: np.random.Generator, degraded: float, jitter: float) -> tuple[Tensor, Tensor]:
    """Squares, moved a little if `jitter` is 1, that part of them degraded as estimates are, and their true maps."""
    squares, maps = [], []
    for hand in hands:
        image = hand.window.float() / 127.5 - 1
        if rng.random() < degraded:
            image = limbs.as_estimate(image, int(rng.integers(2**31)))
        x, y, side, angle = hand.square.tolist()
        moved = rng.normal(0, jitter, 4).clip(-2, 2) * (0.06 * side, 0.06 * side, 0.1, math.radians(10))
        square = torch.tensor([x + moved[0], y + moved[1], side * math.exp(moved[2]), angle + moved[3]]).float()
        squares.append(cut_out(image, square[None], SIDE))
        maps.append(gaussians(in_square(square, hand.points)) * hand.there)
    return torch.cat(squares), torch.stack(maps)


def train(hands: Sequence[Hand]) -> Heatmaps:
    torch.manual_seed(0)
    rng, steps = np.random.default_rng(0), EPOCHS * len(hands) // BATCH
    network = Heatmaps().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for step in range(steps):
        chosen = [hands[k] for k in rng.integers(len(hands), size=BATCH)]
        squares, true = batch(chosen, rng, degraded=0.5, jitter=1.0)
        seen = torch.stack([hand.seen for hand in chosen])[:, :, None, None]
        maps, _ = network(squares.contiguous(memory_format=torch.channels_last))
        loss = ((maps - true).square() * seen).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 249:
            click.echo(f"step {step + 1} of {steps}: {loss.item():.5f}, of zeros {true.square().mean().item():.5f}")
    return network.eval()


def ours(network: Heatmaps, squares: Tensor) -> Tensor:
    """The 21 points (K, 21, 2) in squares (K, 3, SIDE, SIDE)."""
    return torch.cat([places_of(network(part)[0]) for part in squares.split(BATCH)])


def mediapipes(squares: Tensor) -> Tensor:
    return torch.stack([hands_in(square, around(SIDE, SIDE))[0].points for square in squares]) / SIDE


@torch.no_grad()
def validate(name: str, answer: Callable[[Tensor], Tensor], hands: Sequence[Hand]) -> None:
    """Print how far points lie from the true ones, in pixels of the picture and in hands."""
    true = torch.stack([in_square(hand.square, hand.points) for hand in hands])
    side, length = (torch.tensor(v) for v in ([h.square[2] for h in hands], [h.length for h in hands]))
    seen, there = torch.stack([h.seen for h in hands]), torch.tensor([h.there for h in hands])
    for kind, degraded in (("sharp", 0.0), ("as estimates", 1.0)):
        squares, _ = batch(hands, np.random.default_rng(1), degraded, jitter=0.0)
        error = ((answer(squares) - true).norm(dim=2) * seen).sum(1) / seen.sum(1) * side
        for low, high in pairwise(limbs.SIZES):
            these = there & (length >= low) & (length < high)
            if these.any():
                of, share = error[these], (error / length)[these]
                click.echo(
                    f"{name}, {kind}, {low} to {high} px, {int(these.sum())} hands: mean {of.mean():.2f} px, median "
                    f"{of.median():.2f} px, mean {100 * share.mean():.1f} % of the hand's length"
                )


def photographs() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A photograph (3, H, W), keypoints (1, 17, 3) with one of the wrists, and the 21 points of its hand there."""
    wrists = [KEYPOINTS.index(f"{word}_wrist") for word in ("left", "right")]
    for person in range(1, 11):
        for body in map(hands_and_pose.as_tensor, islice(hands_and_pose.bodies(person), 2)):
            poses = find_pose(body)
            for hand in find_hands(body, poses):
                keypoints = as_coco(poses[0])[None].clone()
                far = (keypoints[0, wrists, :2] - hand.points[WRIST]).norm(dim=1)
                keypoints[0, wrists[int(far.argmax())]] = 0
                yield body, keypoints, hand.points


@torch.no_grad()
def tell_of_photographs(networks: dict[str, Heatmaps]) -> None:
    """Print errors of the networks, of MediaPipe's in the same small pictures, and of the best of constant guesses."""
    seen = list(photographs())
    for part in SHRUNK:
        true, found = [], {name: [] for name in (*networks, "MediaPipe's")}
        for image, keypoints, points in seen:
            small = F.interpolate(image[None], scale_factor=part, mode="bilinear", antialias=True)[0]
            squares = hand_squares(keypoints * torch.tensor([part, part, 1.0]), EXTENT)
            true.append(in_square(squares[0], points * part))
            for name, network in networks.items():
                found[name].append(ours(network, cut_out(small, squares, SIDE))[0])
            found["MediaPipe's"].append(in_square(squares[0], hands_in(small, squares)[0].points))
        truth = torch.stack(true)
        length = (truth[:, MIDDLE_TIP] - truth[:, WRIST]).norm(dim=1)
        pixels = torch.stack([points[MIDDLE_TIP] - points[WRIST] for *_, points in seen]).norm(dim=1).median() * part
        answered = {name: torch.stack(places) for name, places in found.items()}
        for name, places in (answered | {"always their mean": truth.mean(0)}).items():
            share = (places - truth).norm(dim=2).mean(1) / length
            click.echo(f"{len(seen)} hands of photographs, {pixels:.0f} px: {name} mean {100 * share.mean():.0f} %")


def seen_by(network: Heatmaps, case: limbs.Case) -> tuple[Tensor, list[Tensor], Tensor]:
    """Heat maps and stages of the photograph and the estimates, and the places (21, 2) of the true points."""
    squares = hand_squares(case.keypoints, EXTENT)
    maps, stages = network(torch.cat([cut_out(image, squares, SIDE) for image in (case.photo[0], *case.estimates)]))
    return maps, stages, in_square(squares[0], case.points)


def to_truth(network: Heatmaps, case: limbs.Case) -> list[float]:
    """The squared error between heat maps of an estimate and the Gaussians of the photograph's points."""
    maps, _, true = seen_by(network, case)
    return (maps[1:] - gaussians(true)).square().mean((1, 2, 3)).tolist()


def to_photograph(network: Heatmaps, case: limbs.Case) -> list[float]:
    """The squared error between heat maps of an estimate and of the photograph."""
    maps, _, _ = seen_by(network, case)
    return (maps[1:] - maps[:1]).square().mean((1, 2, 3)).tolist()


def by_features(network: Heatmaps, case: limbs.Case) -> list[float]:
    """As the loss compares MediaPipe's."""
    stages = [stage.permute(0, 2, 3, 1) for stage in seen_by(network, case)[1]]
    return feature_distance([s[1:] for s in stages], [s[:1].expand_as(s[1:]) for s in stages]).tolist()


def answers(network: Heatmaps, case: limbs.Case) -> list[float]:
    """How far the points that it answers are from the photograph's, in squares."""
    maps, _, true = seen_by(network, case)
    return (places_of(maps[1:]) - true).norm(dim=2).mean(1).tolist()


def trained(folder: Path) -> dict[str, Heatmaps]:
    """Both networks, made where they are not kept yet."""
    files = {name: folder / f"{name.replace(' ', '_')}.pt" for name in NETWORKS}
    missing = [name for name, file in files.items() if not file.exists()]
    hands = [hand for seed in TRAINED for hand in hands_of(seed)] if missing else []
    folder.mkdir(parents=True, exist_ok=True)
    for name in missing:
        own = [hand for hand in hands if hand.drawn or name != "as drawn"]
        click.echo(f"{name}: {len(own)} hands to learn from, {sum(not hand.there for hand in own)} of them missing")
        torch.save(train(own).state_dict(), files[name])
    networks = {name: Heatmaps().eval() for name in NETWORKS}
    for name, network in networks.items():
        network.load_state_dict(torch.load(files[name], weights_only=True))
    return networks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("size", type=int)
    parser.add_argument("--networks", type=Path, default=Path("runs/hand_heatmaps"), help="where they are kept")
    parser.add_argument("--photographs", action="store_true", help="how well they know hands of photographs")
    given = parser.parse_args()
    networks = trained(given.networks)
    if given.photographs:
        tell_of_photographs(networks)
    unseen = [hand for seed in TESTED for hand in hands_of(seed)]
    for name, network in networks.items():
        click.echo(f"{name}: a network of {sum(p.numel() for p in network.parameters())} numbers")
        validate(name, partial(ours, network), unseen)
    validate("MediaPipe's", mediapipes, unseen)
    told = {
        f"{name}, {of.__name__}": partial(of, network)
        for name, network in networks.items()
        for of in (to_truth, to_photograph, by_features, answers)
    }
    torch.manual_seed(0)
    told["untrained, by_features"] = partial(by_features, Heatmaps().eval())
    with torch.no_grad():
        limbs.main(given.count, given.size, told)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
