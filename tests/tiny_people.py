"""A few small pictures of people in which the masks can be read off the pixels.

The background is blue everywhere; people are not blue at all: the first is red with an orange face, the second green
with a lime face. So `person_pixels`, `second_person_pixels` and `face_pixels` recover from `pixel_values` what the
annotation should be after any resize, crop and flip. Everybody stands off the middle, so that a flip or crop that is
missed shows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

Box = tuple[int, int, int, int]
BODIES = ((220, 40, 25), (40, 210, 25))
FACES = ((225, 130, 25), (130, 225, 25))


@dataclass(frozen=True)
class Person:
    """A body and a head, as x0, y0, x1, y1 in pixels of the stored picture; `face` is False for a back of a head."""

    body: Box
    head: Box
    face: bool = True


@dataclass(frozen=True)
class Scene:
    """One picture: its (width, height), and the people in it, in the order of their labels."""

    name: str
    size: tuple[int, int]
    people: tuple[Person, ...]
    text: str

    def labels(self) -> np.ndarray:
        """uint8 (height, width): 0 background, k the k-th person."""
        width, height = self.size
        labels = np.zeros((height, width), np.uint8)
        for k, person in enumerate(self.people, start=1):
            for x0, y0, x1, y1 in (person.body, person.head):
                labels[y0:y1, x0:x1] = k
        return labels

    def face_boxes(self) -> list[list[int]]:
        return [list(person.head) for person in self.people if person.face]

    def keypoints(self) -> list[list[float]]:
        """Nose and eyes of each person, COCO's first three; the left eye is on the right of who looks out of the
        picture. None is labelled on the back of a head."""
        people = []
        for person in self.people:
            x0, y0, x1, y1 = person.head
            places = [((x0 + x1) / 2, (y0 + y1) / 2), (0.2 * x0 + 0.8 * x1, 0.7 * y0 + 0.3 * y1)]
            places.append((0.8 * x0 + 0.2 * x1, 0.7 * y0 + 0.3 * y1))
            known = [number for x, y in places for number in (x, y, 2)] if person.face else [0.0] * 9
            people.append(known + [0.0] * 3 * 14)
        return people

    def pixels(self) -> np.ndarray:
        """uint8 (height, width, 3)."""
        width, height = self.size
        y, x = np.mgrid[0:height, 0:width]
        waves = np.sin(x / 9 + width) + np.cos(y / 7 + height)
        pixels = np.stack([40 + 12 * waves, 45 - 10 * waves, 190 + 20 * waves], axis=-1)
        labels = self.labels()
        for k, person in enumerate(self.people, start=1):
            pixels[labels == k] = BODIES[k - 1]
            x0, y0, x1, y1 = person.head
            pixels[y0:y1, x0:x1] = FACES[k - 1] if person.face else BODIES[k - 1]
        return pixels.round().astype(np.uint8)


SCENES = (
    Scene("anna", (112, 88), (Person((8, 40, 52, 88), (18, 10, 42, 40)),), "a woman with a red jacket"),
    Scene(
        "ben_and_cleo",
        (84, 120),
        (Person((4, 44, 40, 116), (12, 18, 34, 44)), Person((46, 70, 80, 120), (54, 46, 74, 70))),
        "a man with a red jacket and a woman in a green suit",
    ),
    Scene("dora", (140, 96), (Person((70, 44, 120, 96), (82, 12, 108, 44)),), "a woman in red"),
    Scene(
        "emil_and_finn",
        (96, 132),
        (Person((50, 50, 92, 132), (58, 22, 82, 50)), Person((6, 84, 40, 132), (14, 60, 34, 84))),
        "a man in red and a man in green",
    ),
    Scene("gina_from_behind", (120, 80), (Person((60, 30, 100, 80), (70, 4, 90, 30), face=False),), "a person"),
    Scene("hugo", (100, 148), (Person((10, 70, 60, 148), (20, 34, 48, 70)),), "a man in uniform, smiling"),
    Scene("ida", (132, 100), (Person((20, 52, 66, 100), (30, 20, 56, 52)),), "a woman in a red suit, standing"),
    Scene("nobody", (90, 104), (), "a blue background"),
)

CLASS_SIZES = ((96, 80), (80, 104), (110, 90), (88, 88))


def person_pixels(pixel_values: Tensor) -> Tensor:
    """(N, 3, H, W) in [-1, 1] → bool (N, 1, H, W), true on people: not blue."""
    return pixel_values[:, 2:3] < -0.2


def second_person_pixels(pixel_values: Tensor) -> Tensor:
    """(N, 3, H, W) in [-1, 1] → bool (N, 1, H, W), true on the second person: not blue, and more green than red."""
    return person_pixels(pixel_values) & (pixel_values[:, 1:2] > pixel_values[:, 0:1])


def face_pixels(pixel_values: Tensor) -> Tensor:
    """(N, 3, H, W) in [-1, 1] → bool (N, 1, H, W), true on annotated faces: not blue, but red and green at once."""
    return person_pixels(pixel_values) & (pixel_values[:, :2].amin(1, keepdim=True) > -0.35)


def check_eyes(person, face):
    """Nose and eyes lie on a face, and the left eye is on the right, in a mirror, too."""
    assert not person[3:].any()
    for x, y, v in person[:3].tolist():
        if v:
            column, row = (min(int(at), side - 1) for at, side in ((x, face.shape[1]), (y, face.shape[0])))
            assert face[row, column]
    if person[1:3, 2].all():
        assert person[1, 0] > person[2, 0]


def write_imagefolder(folder: Path) -> Path:
    """Pictures, masks, silhouettes as hints, and metadata.jsonl in the layout of docs/data.md."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for scene in SCENES:
        Image.fromarray(scene.pixels()).save(folder / f"{scene.name}.png")
        Image.fromarray(scene.labels()).save(folder / f"{scene.name}_mask.png")
        Image.fromarray(_silhouette(scene)).save(folder / f"{scene.name}_hint.png")
        row = {
            "file_name": f"{scene.name}.png",
            "text": scene.text,
            "mask_file_name": f"{scene.name}_mask.png",
            "face_boxes": scene.face_boxes(),
            "keypoints": scene.keypoints(),
            "conditioning_image_file_name": f"{scene.name}_hint.png",
        }
        lines.append(json.dumps(row) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def write_captions(folder: Path) -> Path:
    """Pictures and their texts, without any annotation."""
    folder.mkdir(parents=True, exist_ok=True)
    for scene in SCENES:
        Image.fromarray(scene.pixels()).save(folder / f"{scene.name}.png")
    lines = [json.dumps({"file_name": f"{scene.name}.png", "text": scene.text}) + "\n" for scene in SCENES]
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def write_dreambooth(folder: Path, masks_folder: Path) -> Path:
    """Pictures alone in `folder`; for each a mask `<stem>.png`, boxes and keypoints `<stem>.json` in `masks_folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    masks_folder.mkdir(parents=True, exist_ok=True)
    for scene in SCENES:
        Image.fromarray(scene.pixels()).save(folder / f"{scene.name}.png")
        Image.fromarray(scene.labels()).save(masks_folder / f"{scene.name}.png")
        labels = json.dumps({"face_boxes": scene.face_boxes(), "keypoints": scene.keypoints()})
        (masks_folder / f"{scene.name}.json").write_text(labels + "\n", encoding="utf-8")
    return folder


def write_realfill(folder: Path) -> Path:
    """All pictures but the last as references, the last as the one whose left half is to be filled."""
    *references, last = SCENES
    for part in ("ref", "target"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for scene in references:
        Image.fromarray(scene.pixels()).save(folder / "ref" / f"{scene.name}.png")
    target = Image.fromarray(last.pixels())
    target.save(folder / "target" / "target.png")
    hole = Image.new("L", target.size)
    hole.paste(255, (0, 0, target.width // 2, target.height))
    hole.save(folder / "target" / "mask.png")
    return folder


def write_class_pictures(folder: Path) -> Path:
    """Pictures for prior preservation, grey noise, without any annotation."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i, (width, height) in enumerate(CLASS_SIZES):
        grey = random.integers(0, 255, (height, width, 1), dtype=np.uint8)
        Image.fromarray(np.repeat(grey, 3, axis=2)).save(folder / f"class_{i}.png")
    return folder


def _silhouette(scene: Scene) -> np.ndarray:
    """uint8 (height, width, 3): people white, the rest black."""
    return np.repeat(np.where(scene.labels() > 0, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
