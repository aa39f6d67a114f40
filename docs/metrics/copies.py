"""How like a picture altered copies of it are to `copying`, beside other photographs: the table of copying.md."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from measures import write
from photographs import PEOPLE, SHOWN, face_scene
from planted import Scene, blur_face, jpeg, other_face
from torch import Tensor

from mldm_plugin.evaluation.cases import Case
from mldm_plugin.evaluation.picture import Picture
from mldm_plugin.plugins import load_plugins

FOUR = PEOPLE[-4:]
WAYS: dict[str, Callable[[Scene], Tensor]] = {
    "half the size": lambda scene: F.interpolate(scene.image[None], scale_factor=0.5, mode="area")[0],
    "JPEG, quality 50": lambda scene: jpeg(scene, 50),
    "JPEG, quality 20": lambda scene: jpeg(scene, 20),
    "JPEG, quality 8": lambda scene: jpeg(scene, 8),
    "face blurred, σ 4 of 256 px": lambda scene: blur_face(scene, 4),
    "another's face": lambda scene: other_face(scene, 1),
    "shifted by 12 of 256 px": lambda scene: F.pad(scene.image[None], (12, 0, 0, 0), mode="replicate")[0, :, :, :-12],
    "mirrored": lambda scene: scene.image.flip(2),
}


def copies() -> None:
    make = load_plugins().metrics["copying"]
    scenes = {(person, panel): face_scene(person, panel) for person in FOUR for panel in SHOWN}
    pictures = {key: Picture(scene.image, Case(" ".join(key), "", 1)) for key, scene in scenes.items()}
    metric = make(train_data=list(pictures.values()))
    found = {way: [metric(Picture(change(s), Case("", ""))) for s in scenes.values()] for way, change in WAYS.items()}
    alike = {key: metric.known @ known for key, known in zip(pictures, metric.known, strict=True)}
    same, other = [], []
    for (person, panel), values in alike.items():
        for key, value in zip(pictures, values.tolist(), strict=True):
            if key != (person, panel):
                (same if key[0] == person else other).append(value)
    found |= {"the same person, another expression": same, "another person": other}
    rounded = {way: [round(float(torch.tensor(v).quantile(q)), 3) for q in (0, 0.5, 1)] for way, v in found.items()}
    write("copies", {"pictures": len(pictures), "likeness": rounded})
