"""The demo's photographs: where they lie, the windows cut from them, and the training set they become.

The four photographs come with the demo's dependencies (scikit-image, insightface, matplotlib), so nothing is
downloaded. `annotations.json` beside this file holds, in COCO's instances format, one polygon for the visible
silhouette of each person and, as an extra key, the box of the face.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import warnings
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mldm_plugin.demo.folders import replaced_folder
from mldm_plugin.errors import DataError

SIZE = 512  # the longest side of a stored picture
RESOLUTION = 256  # what the demo trains at; a smaller window is enlarged to it
SMALLEST_PERSON = 200  # pixels of a stored picture; less is a sliver at its border
SMALLEST_FACE = 0.6  # the part of a face box that the window must show

# File name in annotations.json -> package that carries it, path inside the package.
PHOTOS = {
    "astronaut.png": ("skimage", "data/astronaut.png"),
    "grace_hopper.jpg": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    "Tom_Hanks_54745.png": ("insightface", "data/images/Tom_Hanks_54745.png"),
    "t1.jpg": ("insightface", "data/images/t1.jpg"),
}


@dataclass(frozen=True)
class Window:
    """A square cut from a photograph: its corner and side in pixels of the photograph, and its caption."""

    name: str
    photo: str
    x: int
    y: int
    side: int
    text: str


WINDOWS = (
    Window("astronaut", "astronaut.png", 0, 0, 512, "a smiling astronaut in an orange suit holding a helmet"),
    Window("astronaut_face", "astronaut.png", 90, 0, 290, "portrait of a smiling astronaut"),
    Window("hopper", "grace_hopper.jpg", 0, 10, 512, "a naval officer in uniform in front of a flag"),
    Window("hopper_face", "grace_hopper.jpg", 90, 15, 340, "portrait of a naval officer with glasses"),
    Window("hanks", "Tom_Hanks_54745.png", 0, 0, 112, "black and white portrait of a man"),
    Window("left_woman", "t1.jpg", 0, 215, 330, "a blonde woman holding cards"),
    Window("left_two", "t1.jpg", 0, 90, 440, "two women at the table, one holding cards"),
    Window("two_middle", "t1.jpg", 230, 90, 460, "a woman in black and a man in a grey shirt"),
    Window("grey_man", "t1.jpg", 340, 200, 350, "portrait of a smiling man in a grey shirt"),
    Window("two_men", "t1.jpg", 330, 180, 600, "two smiling men at the poker table"),
    Window("red_man", "t1.jpg", 640, 265, 330, "portrait of a smiling man in a red shirt"),
    Window("right_three", "t1.jpg", 640, 0, 640, "two men and a woman at the poker table"),
    Window("right_two", "t1.jpg", 860, 0, 420, "a man standing and a woman sitting on the right"),
    Window("right_woman", "t1.jpg", 970, 215, 310, "a blonde woman in black sitting on the right"),
)


@cache
def photo(name: str) -> Image.Image:
    """The photograph as RGB.

    Raises:
        DataError: the package that carries it is not installed, or the file is not in it.
    """
    package, inside = PHOTOS[name]
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / inside if spec and spec.origin else None
    if path is None or not path.is_file():
        raise DataError(
            f"the demo expected the photograph {name} in the package {package}, but "
            f"{'the package is not installed' if path is None else 'it is not there'}; "
            "install the demo's packages: pip install 'mldm-plugin[demo]'"
        )
    with Image.open(path) as opened:
        return opened.convert("RGB")


def stored_side(window: Window) -> int:
    """The side of the stored picture: the window's own, within RESOLUTION and SIZE."""
    return min(max(window.side, RESOLUTION), SIZE)


def cut(window: Window) -> Image.Image:
    """The window's picture as the training set stores it."""
    box = (window.x, window.y, window.x + window.side, window.y + window.side)
    side = stored_side(window)
    picture = photo(window.photo).crop(box)
    return picture if picture.width == side else picture.resize((side, side), Image.Resampling.LANCZOS)


def load_annotations() -> Any:
    """The annotation as a `pycocotools.coco.COCO`, which does the decoding."""
    from pycocotools.coco import COCO

    path = Path(str(resources.files("mldm_plugin.demo"))) / "annotations.json"
    coco = COCO()
    coco.dataset = json.loads(path.read_text(encoding="utf-8"))
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def decoded(coco: Any, person: dict[str, Any]) -> np.ndarray:
    """The person's mask, of the photograph's size. pycocotools 2.0 still asks numpy in the old way."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return coco.annToMask(person)


def labels(window: Window, coco: Any) -> tuple[Image.Image, list[list[float]]]:
    """The label picture of a window (0 background, k the k-th person) and its face boxes, both as stored.

    A person of whom fewer than SMALLEST_PERSON pixels are visible is left out, and so is a face of which the
    window shows less than SMALLEST_FACE; other boxes are clipped to the picture.
    """
    side = stored_side(window)
    scale = side / window.side
    label, boxes = np.zeros((side, side), np.uint8), []
    [image] = [i for i in coco.dataset["images"] if i["file_name"] == window.photo]
    count = 0
    for person in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
        mask = _resized(_cropped(decoded(coco, person), window), side)
        if mask.sum() < SMALLEST_PERSON:
            continue
        count += 1
        label[mask] = count
        x0, y0, x1, y1 = person["face_box"]
        corners = np.array([x0 - window.x, y0 - window.y, x1 - window.x, y1 - window.y])
        inside = corners.clip(0, window.side)
        if _area(inside) >= SMALLEST_FACE * _area(corners):
            boxes.append([round(float(v), 2) for v in inside * scale])
    return Image.fromarray(label), boxes


def _cropped(mask: np.ndarray, window: Window) -> np.ndarray:
    return mask[window.y : window.y + window.side, window.x : window.x + window.side]


def _resized(mask: np.ndarray, side: int) -> np.ndarray:
    """A binary mask at another size, its outline halfway between the old pixels."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(picture) >= 128


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def write_training_set(folder: str | Path) -> Path:
    """Write all windows as an imagefolder (pictures, masks, `metadata.jsonl`) and return the folder.

    The same files come out byte for byte each time; an earlier set in `folder` is replaced as a whole.

    Raises:
        DataError: a photograph is missing, or `folder` holds something else.
    """
    coco, rows = load_annotations(), []
    with replaced_folder(Path(folder), "metadata.jsonl") as made:
        (made / "masks").mkdir()
        for window in WINDOWS:
            file_name = f"{window.name}.png"
            picture = cut(window)
            label, boxes = labels(window, coco)
            picture.save(made / file_name)
            label.save(made / "masks" / file_name)
            row = {
                "file_name": file_name,
                "text": window.text,
                "mask_file_name": f"masks/{file_name}",
                "face_boxes": boxes,
            }
            rows.append(json.dumps(row))
        (made / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return Path(folder)
