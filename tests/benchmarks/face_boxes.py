"""How the boxes of a detector lie to MTCNN's, and how well a face network tells people apart in them.

    python tests/benchmarks/face_boxes.py DIR --faces insightface

DIR has a folder of pictures for each person, one face a picture (the largest counts), or is openpeople's
`data/curated`. Printed: MTCNN's longer side in longer sides of the detector's box and how far its centre lies below,
medians over the faces, the numbers of a `Placement`; and the chance that two faces of one person are nearer than two of
different people, with boxes as they come and as they are placed. `keypoints` is measured with eyes and nose by MTCNN.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mldm_plugin.perceptual.face_crops import crop_faces
from mldm_plugin.perceptual.face_networks import FaceFeatures
from mldm_plugin.prepare.faces import resolve
from mldm_plugin.prepare.faces.boxes import Box, Placement
from mldm_plugin.prepare.faces.keypoints import face_box
from mldm_plugin.prepare.faces.mtcnn import Mtcnn
from mldm_plugin.prepare.source import Face, Source

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SHEETS = ("emotions_sheet", "character_sheet")  # of openpeople: many faces in one picture


@dataclass
class Shown:
    """A picture in memory."""

    picture: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        return self.picture.size

    def rgb(self) -> Image.Image:
        return self.picture


@dataclass
class Seen:
    """One face: whose, in which picture, the picture itself, MTCNN's box and the other detector's."""

    person: str
    path: Path
    picture: Image.Image
    mtcnn: Box
    other: Box


def faces(folder: Path, detector: str) -> Iterator[Seen]:
    """The faces that both detectors find."""
    other = None if detector == "keypoints" else resolve(detector, annotated=False)[0]
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and "character" not in p.stem):
        shown = Shown(Image.open(path).convert("RGB"))
        found = Mtcnn()(Source(path.stem, str(path), ""), shown, None)
        found = found if path.stem in SHEETS else found[:1]
        others = [] if other is None else other(Source(path.stem, str(path), ""), shown, None)
        for face in found:
            box = from_points(face) if other is None else nearest(face.box, [o.box for o in others])
            if box is not None:
                yield Seen(path.relative_to(folder).parts[0], path, shown.picture, face.box, box)


def from_points(face: Face) -> Box | None:
    """The box that COCO's nose and eyes give, these being MTCNN's."""
    left, right, nose = (face.points or ())[:3]
    return face_box([*nose, 2, *right, 2, *left, 2, *[0] * 6])


def nearest(box: Box, others: list[Box]) -> Box | None:
    """Of the others the one whose centre is nearest, if it lies inside."""
    x, y = centre(box)
    inside = [o for o in others if box[0] < centre(o)[0] < box[2] and box[1] < centre(o)[1] < box[3]]
    return min(inside, key=lambda o: (centre(o)[0] - x) ** 2 + (centre(o)[1] - y) ** 2, default=None)


def centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def longer(box: Box) -> float:
    return max(box[2] - box[0], box[3] - box[1])


def auc(seen: list[Seen], network: FaceFeatures, box_of: Callable[[Seen], Box]) -> float:
    """Over pairs of faces in different pictures."""
    distances = torch.cdist(*[torch.cat([embedded(s, network, box_of(s)) for s in seen])] * 2).numpy()
    a, b = np.triu_indices(len(seen), 1)
    apart = np.array([seen[i].path != seen[j].path for i, j in zip(a, b, strict=True)])
    same = np.array([seen[i].person == seen[j].person for i, j in zip(a, b, strict=True)])
    between = distances[a, b]
    return float((between[apart & same][:, None] < between[apart & ~same][None]).mean())


@torch.no_grad()
def embedded(seen: Seen, network: FaceFeatures, box: Box) -> Tensor:
    x, y = centre(box)
    reach = 2 * longer(box)
    edges = (max(int(x - reach), 0), max(int(y - reach), 0), int(x + reach) + 1, int(y + reach) + 1)
    near = seen.picture.crop((*edges[:2], min(edges[2], seen.picture.width), min(edges[3], seen.picture.height)))
    pixels = torch.from_numpy(np.array(near)).permute(2, 0, 1)[None].float() / 127.5 - 1
    inside = torch.tensor([box]) - torch.tensor(edges[:2] * 2)
    return network(crop_faces(pixels, [inside], network.crop))[-1].flatten(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faces", default="keypoints", help="keypoints, mtcnn or insightface")
    parser.add_argument("--network", default="dlib_resnet")
    given = parser.parse_args()
    seen = list(faces(given.folder, given.faces))
    extents = [longer(s.mtcnn) / longer(s.other) for s in seen]
    downs = [(centre(s.mtcnn)[1] - centre(s.other)[1]) / longer(s.other) for s in seen]
    placed = Placement(round(float(np.median(extents)), 3), round(float(np.median(downs)), 3))
    network = FaceFeatures(given.network)
    ways: dict[str, Callable[[Seen], Box]] = {
        "as they come": lambda one: one.other,
        "placed": lambda one: placed(one.other),
        "MTCNN's": lambda one: one.mtcnn,
    }
    print(f"{len(seen)} faces of {len({s.person for s in seen})} people, boxes of {given.faces}: {placed}")  # noqa: T201
    for name, box_of in ways.items():
        print(f"AUC {auc(seen, network, box_of):.4f} {name}")  # noqa: T201


if __name__ == "__main__":
    main()
