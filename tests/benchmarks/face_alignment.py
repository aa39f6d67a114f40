"""How well `identity` tells people apart by boxes and by landmarks, upright and turned: docs/losses/identity.md.

    python tests/benchmarks/face_alignment.py [NETWORK] [--means]

Two hundred faces of openpeople's ten people, boxes by MTCNN, once as they are and once each turned by an angle of its
own within ±30 degrees, its box moved with it. Of the cosine of two embeddings, over all pairs of faces from different
pictures: the AUC, with an interval over people. Three minutes on two cores. With `--means` how far apart two people's
faces are, as they are, by boxes and by landmarks, in less than one.
"""

from __future__ import annotations

import argparse
import math
import sys

import face_auc
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mldm_plugin.perceptual.face_embedding import FaceEmbedding

TURNS = {"as they are": 0.0, "turned": 30.0}
DRAWS = 2000  # of people, for an interval


def turned(pixels: Tensor, box: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    """A picture (3, H, W) turned clockwise about the middle of a box (4,), which stays where it is."""
    height, width = pixels.shape[1:]
    middle = (box[:2] + box[2:]) / 2
    y, x = torch.meshgrid(torch.arange(height) + 0.5 - middle[1], torch.arange(width) + 0.5 - middle[0], indexing="ij")
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    places = torch.stack([x * cosine + y * sine, y * cosine - x * sine], dim=2) + middle
    normal = places / torch.tensor([width, height]) * 2 - 1
    return F.grid_sample(pixels[None], normal[None], padding_mode="border", align_corners=False)[0], box


def embeddings(by: FaceEmbedding, seen: list[face_auc.SeenFace], most: float) -> tuple[Tensor, int]:
    """(K, D), and how many of the faces have no landmarks."""
    generator, found, missed = torch.Generator().manual_seed(0), [], 0
    for _, _, pixels, box in seen:
        degrees = most * (2 * torch.rand(1, generator=generator).item() - 1)
        picture, moved = turned(pixels, box, degrees) if most else (pixels, box)
        placed = by.place(picture[None], [moved[None]])
        missed += 0 if placed is None else int((~placed.found).sum())
        with torch.no_grad():
            found.append(by(picture[None], [moved[None]], placed)[0])
    return torch.stack(found), missed


class Wins:
    """How often a pair of one person is nearer than one of two people, person by person."""

    def __init__(self, embedded: Tensor, seen: list[face_auc.SeenFace]) -> None:
        people, pictures = np.array([face[0] for face in seen]), np.array([face[:2] for face in seen])
        names, who = np.unique(people, return_inverse=True)
        self.people = len(names)
        near = (embedded @ embedded.T).numpy()
        a, b = np.triu_indices(len(seen), 1)
        other = (pictures[a] != pictures[b]).any(1)
        same = [near[a, b][other & (who[a] == p) & (who[b] == p)] for p in range(self.people)]
        self.pairs = [(p, q) for p in range(self.people) for q in range(p + 1, self.people)]
        between = [
            np.sort(near[a, b][((who[a] == p) & (who[b] == q)) | ((who[a] == q) & (who[b] == p))])
            for p, q in self.pairs
        ]
        self.wins = np.array([[np.searchsorted(far, near_).sum() for far in between] for near_ in same], dtype=float)
        self.all = np.array([[len(far) * len(near_) for far in between] for near_ in same], dtype=float)

    def auc(self, times: NDArray[np.float64]) -> float:
        """With each person counted so many times."""
        weights = times[:, None] * np.array([times[p] * times[q] for p, q in self.pairs])
        return float((weights * self.wins).sum() / (weights * self.all).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default="dlib_resnet")
    parser.add_argument("--means", action="store_true", help="mean angle of two people's faces, each way")
    given, seen = parser.parse_args(), face_auc.faces()
    network = given.network
    if given.means:
        for align in ("box", "landmarks"):
            two, _ = face_auc.mean_angles(embeddings(FaceEmbedding(network, align=align), seen, 0.0)[0], seen)
            sys.stdout.write(f"two people by {align} {two:.4f}\n")
            sys.stdout.flush()
        return
    generator = np.random.default_rng(0)
    for name, most in TURNS.items():
        wins = {}
        for align in ("box", "landmarks"):
            embedded, missed = embeddings(FaceEmbedding(network, align=align), seen, most)
            wins[align] = Wins(embedded, seen)
            tell(f"{name}, by {align} ({missed} of {len(seen)} by their box)", [wins[align]], generator)
        tell(f"{name}, landmarks less box", [wins["landmarks"], wins["box"]], generator)


def tell(name: str, of: list[Wins], generator: np.random.Generator) -> None:
    """The AUC of one, or the first one's less the second's, and the middle 95 % over people drawn anew."""
    people = of[0].people

    def value(times: NDArray[np.float64]) -> float:
        return of[0].auc(times) - (of[1].auc(times) if len(of) == 2 else 0)

    drawn = [
        value(np.bincount(generator.integers(people, size=people), minlength=people).astype(float))
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    sys.stdout.write(f"{name:<60} {value(np.ones(people)):+.4f}  [{low:+.4f}, {high:+.4f}]\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
