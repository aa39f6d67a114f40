"""How well a face network tells people apart, by size and place of the boxes: docs/losses/face.md, docs/judge.md.

    python tests/benchmarks/face_auc.py [NETWORK] [--cosine | --means]

Two hundred faces of openpeople's ten people, boxes by MTCNN; of the distance, or the angle, of two embeddings, over all
pairs of faces from different pictures, the AUC, and which part of the pairs of one person is nearer than all but 1 % of
those of different people. Two minutes on two cores, four with faceres. With `--means` how far apart two people's faces
are, and one person's, in a few seconds: docs/losses/identity.md.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from mldm_plugin.people_mini.photos import openpeople_folder, photo_rows
from mldm_plugin.perceptual.face_crops import crop_faces
from mldm_plugin.perceptual.face_networks import FaceFeatures

SCALES = (0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.6, 2)
SHIFTS = {"left": (-0.1, 0), "right": (0.1, 0), "far right": (0.2, 0), "lower": (0, 0.1), "higher": (0, -0.1)}
SHEETS = ("studio_portrait", "studio_posture", "amateur_selfie", "amateur_posture", "emotions_sheet")
OF_MEANS = ("studio_portrait", "amateur_selfie", "emotions_sheet")
FALSE_POSITIVES = 0.01

SeenFace = tuple[str, str, Tensor, Tensor]


def faces(sheets: tuple[str, ...] = SHEETS) -> list[SeenFace]:
    """Person, picture, pixels (3, H, W) in [-1, 1] around the face, and its box."""
    found = []
    for person, picture, _, _, box in photo_rows():
        if picture not in sheets or box is None:
            continue
        with Image.open(openpeople_folder() / person / "assets" / f"{picture}.jpg") as whole:
            room = 2 * max(box[2] - box[0], box[3] - box[1])
            middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            corners = [max(0, middle[0] - room), max(0, middle[1] - room)]
            corners += [min(whole.width, middle[0] + room), min(whole.height, middle[1] + room)]
            cut = whole.convert("RGB").crop(tuple(round(c) for c in corners))
        pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1).float() / 127.5 - 1
        left, top = round(corners[0]), round(corners[1])
        found.append((person, picture, pixels, torch.tensor(box).float() - torch.tensor([left, top] * 2)))
    return found


@torch.no_grad()
def embedded(network: FaceFeatures, seen: list[SeenFace], scale: float, shift: tuple[float, float]) -> Tensor:
    """The embeddings, (K, C), with boxes of another size and place."""
    embeddings = []
    for _, _, pixels, box in seen:
        size = box[2:] - box[:2]
        middle = (box[:2] + box[2:]) / 2 + torch.tensor(shift) * size.max()
        changed = torch.cat([middle - size * scale / 2, middle + size * scale / 2])
        crop = crop_faces(pixels[None], [changed[None]], network.crop)
        embeddings.append(network(crop)[-1].flatten())
    return torch.stack(embeddings)


def told_apart(embeddings: Tensor, seen: list[SeenFace]) -> tuple[float, float]:
    """The chance that two faces of one person are nearer than two of different people; the share of the pairs of one
    person that is found where 1 % of the others is taken for one."""
    people, pictures = np.array([face[0] for face in seen]), np.array([face[:2] for face in seen])
    a, b = np.triu_indices(len(seen), 1)
    apart = (pictures[a] != pictures[b]).any(1)  # two expressions of one sheet are too much alike
    between = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist").numpy()[a, b]
    same, other = between[apart & (people[a] == people[b])], np.sort(between[people[a] != people[b]])
    return 1 - _share_below(other, same), float((same < np.quantile(other, FALSE_POSITIVES)).mean())


def _share_below(other: NDArray[np.float32], same: NDArray[np.float32]) -> float:
    return float(np.searchsorted(other, same).mean() / len(other))


def mean_angles(embeddings: Tensor, seen: list[SeenFace]) -> tuple[float, float]:
    """Mean 1 − cosine of all pairs of two people's faces, and of one person's in different pictures."""
    people, pictures = np.array([face[0] for face in seen]), np.array([face[:2] for face in seen])
    a, b = np.triu_indices(len(seen), 1)
    unit = F.normalize(embeddings)
    apart = 1 - (unit @ unit.T).numpy()[a, b]
    same = people[a] == people[b]
    return float(apart[~same].mean()), float(apart[same & (pictures[a] != pictures[b]).any(1)].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default="dlib_resnet")
    parser.add_argument("--cosine", action="store_true", help="the angle of two embeddings, not their distance")
    parser.add_argument("--means", action="store_true", help="mean angles of two people's faces and of one person's")
    given = parser.parse_args()
    network = FaceFeatures(given.network)
    if given.means:
        seen = faces(OF_MEANS)
        two, one = mean_angles(embedded(network, seen, 1.0, (0.0, 0.0)), seen)
        tqdm.write(f"{len(seen)} faces: two people {two:.4f}, one person, two pictures {one:.4f}")
        return
    seen = faces()
    settings = [(f"scale {s:g}", s, (0.0, 0.0)) for s in SCALES] + [(name, 1.0, s) for name, s in SHIFTS.items()]
    for name, scale, shift in tqdm(settings, desc=f"{len(seen)} faces"):
        embeddings = embedded(network, seen, scale, shift)
        auc, found = told_apart(F.normalize(embeddings) if given.cosine else embeddings, seen)
        tqdm.write(f"{name:<12} AUC {auc:.4f}  TPR at 1 % FPR {found:.3f}")


if __name__ == "__main__":
    main()
