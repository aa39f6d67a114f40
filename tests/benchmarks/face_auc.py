"""How well a face network tells people apart, by size and place of the boxes: the tables of docs/losses/face.md.

    python tests/benchmarks/face_auc.py [dlib_resnet]

Two hundred faces of openpeople's ten people, boxes by MTCNN; AUC of the distance of two embeddings, over all pairs of
faces from different pictures. Two minutes on two cores.
"""

from __future__ import annotations

import sys
from itertools import combinations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mldm_plugin.people_mini.photos import openpeople_folder, photo_rows
from mldm_plugin.perceptual.face_crops import crop_faces
from mldm_plugin.perceptual.face_networks import FaceFeatures

SCALES = (0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.6, 2)
SHIFTS = {"left": (-0.1, 0), "right": (0.1, 0), "far right": (0.2, 0), "lower": (0, 0.1), "higher": (0, -0.1)}
SHEETS = ("studio_portrait", "studio_posture", "amateur_selfie", "amateur_posture", "emotions_sheet")


def faces() -> list[tuple[str, str, Tensor, Tensor]]:
    """Person, picture, pixels (3, H, W) in [-1, 1] around the face, and its box."""
    found = []
    for person, picture, _, _, box in photo_rows():
        if picture not in SHEETS or box is None:
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
def auc(network: FaceFeatures, seen: list[tuple[str, str, Tensor, Tensor]], scale: float, shift: tuple[float, float]):
    """The chance that two faces of one person are nearer than two of different people."""
    embeddings = []
    for _, _, pixels, box in seen:
        size = box[2:] - box[:2]
        middle = (box[:2] + box[2:]) / 2 + torch.tensor(shift) * size.max()
        changed = torch.cat([middle - size * scale / 2, middle + size * scale / 2])
        crop = crop_faces(pixels[None], [changed[None]], network.crop)
        embeddings.append(network(crop)[-1].flatten())
    distances = torch.cdist(torch.stack(embeddings), torch.stack(embeddings))
    same, other = [], []
    for a, b in combinations(range(len(seen)), 2):
        if seen[a][:2] != seen[b][:2]:  # two expressions of one sheet are too much alike
            (same if seen[a][0] == seen[b][0] else other).append(float(distances[a, b]))
    order = np.argsort(np.argsort(same + other))[: len(same)]
    return 1 - (order.sum() - len(same) * (len(same) - 1) / 2) / (len(same) * len(other))


def main() -> None:
    network, seen = FaceFeatures(*sys.argv[1:] or ["dlib_resnet"]), faces()
    settings = [(f"scale {s:g}", s, (0.0, 0.0)) for s in SCALES] + [(name, 1.0, s) for name, s in SHIFTS.items()]
    for name, scale, shift in tqdm(settings, desc=f"{len(seen)} faces"):
        tqdm.write(f"{name:<12} {auc(network, seen, scale, shift):.3f}")


if __name__ == "__main__":
    main()
