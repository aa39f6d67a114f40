"""What a data set says about a picture: its person mask, face boxes and keypoints, read and checked."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from PIL.ExifTags import Base as Exif
from torch import Tensor

from mldm_plugin.errors import DataError

MASK_MODES = ("L", "P", "1")  # one byte or bit a pixel; a palette's numbers are the labels
LARGEST = 1e7  # pixels, chosen: beyond any picture
KEYPOINTS = 17  # of a person, in COCO


def name_of(value: Any, row: int) -> str:
    """How an error names a picture: its file if it has one, else its row."""
    path = value.get("path") if isinstance(value, Mapping) else None
    return str(path) if path else f"row {row} of the data set"


def read_picture(value: Any, name: str) -> PIL.Image.Image:
    """A stored picture, decoded as `datasets` decodes it, and upright.

    Raises:
        DataError: it is missing, or cannot be read.
    """
    if not isinstance(value, Mapping):
        raise DataError(f"{name}: the picture is missing; add the file or remove the row.")
    from datasets import Image  # not at the top: kohya's environment has no datasets, and no need of this function

    content, path = value.get("bytes"), value.get("path") or ""
    try:
        if content is None and Path(path).is_file():
            content = Path(path).read_bytes()  # so that a broken file is not left open
        return Image().decode_example({"path": path, "bytes": content})
    except Exception as error:
        raise DataError(
            f"{name} cannot be read as a picture ({type(error).__name__}: {error}); replace it or remove its row."
        ) from error


def read_header(value: Any, name: str) -> PIL.Image.Image:
    """The picture opened but not decoded: its size, mode and orientation are known, its pixels are not."""
    if not isinstance(value, Mapping):
        raise DataError(f"{name}: the picture is missing; add the file or remove the row.")
    content, path = value.get("bytes"), value.get("path") or ""
    if content is None and not Path(path).is_file():
        return read_picture(value, name)
    try:
        with PIL.Image.open(path if content is None else io.BytesIO(content)) as picture:
            picture.getexif()
            return picture
    except Exception as error:
        raise DataError(
            f"{name} cannot be read as a picture ({type(error).__name__}: {error}); replace it or remove its row."
        ) from error


def read_mask(value: Any, name: str) -> Tensor | None:
    """A stored label mask as uint8 (1, H, W); None where the picture has none."""
    if value is None:
        return None
    mask = read_picture(value, name)
    check_mask_mode(mask.mode, name)
    return torch.from_numpy(np.array(mask, dtype=np.uint8)).unsqueeze(0)


def check_mask_mode(mode: str, name: str) -> None:
    if mode not in MASK_MODES:
        raise DataError(
            f"mask {name} is a picture of mode {mode}, expected 8-bit labels (mode L): 0 is background, k the "
            "k-th person."
        )


def check_mask_size(mask: tuple[int, int], picture: tuple[int, int], mask_name: str, name: str) -> None:
    """Sizes are (width, height)."""
    if mask != picture:
        raise DataError(
            f"mask {mask_name} is {mask[0]}x{mask[1]}, its picture {name} is {picture[0]}x{picture[1]}: "
            "a mask has the size of the stored picture."
        )


def check_upright(picture: PIL.Image.Image, name: str) -> None:
    """Refuse a picture that is stored turned: whether its annotation was made before or after is not known."""
    orientation = picture.getexif().get(Exif.Orientation, 1)
    if orientation not in (0, 1):
        raise DataError(
            f"{name} has a mask, boxes or keypoints and is stored turned (EXIF orientation {orientation}), so their "
            "frame is ambiguous: store it upright (PIL.ImageOps.exif_transpose) and annotate that."
        )


def parse_boxes(value: Any, name: str) -> Tensor:
    """Face boxes of one picture as float32 (K, 4), checked as far as that goes without the picture.

    Raises:
        DataError: not four numbers each, not finite, reversed, or without area.
    """
    if value is None:
        return torch.zeros(0, 4)
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise DataError(f"{name}: face_boxes is {value!r}, expected a list of [x0, y0, x1, y1].")
    for box in value:
        _check_box(box, name)
    return torch.tensor([list(box) for box in value], dtype=torch.float32).reshape(-1, 4)


def _check_box(box: Any, name: str) -> None:
    if not isinstance(box, (list, tuple, np.ndarray)) or len(box) != 4:
        raise DataError(f"{name}: face box {box!r} is not four numbers; give [x0, y0, x1, y1] in pixels.")
    if not all(_is_pixel(v) for v in box):
        raise DataError(f"{name}: face box {box!r} is not four finite numbers; give [x0, y0, x1, y1] in pixels.")
    x0, y0, x1, y1 = box
    if x1 < x0 or y1 < y0:
        raise DataError(f"{name}: face box {box!r} is reversed; give x0 < x1 and y0 < y1, not x, y, width, height.")
    if x1 == x0 or y1 == y0:
        raise DataError(f"{name}: face box {box!r} is empty; remove it or give it an area.")


def _is_pixel(value: Any) -> bool:
    """A finite number of a size that a picture may have; larger ones become infinite in float32."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return number and bool(-LARGEST <= value <= LARGEST)


def check_boxes_inside(boxes: Tensor, size: tuple[int, int], name: str) -> None:
    """Refuse a box that lies wholly outside its picture of `size` (width, height)."""
    width, height = size
    for x0, y0, x1, y1 in boxes.tolist():
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise DataError(
                f"{name}: face box {[x0, y0, x1, y1]} lies outside the picture, which is {width}x{height}; give "
                "pixels of the stored picture."
            )


def parse_keypoints(value: Any, name: str) -> Tensor:
    """Keypoints of the people of one picture as float32 (K, 17, 3): x, y in pixels, v 0, 1 or 2, in COCO's order.

    Raises:
        DataError: not 51 numbers each, not finite, or another v.
    """
    if value is None:
        return torch.zeros(0, KEYPOINTS, 3)
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise DataError(
            f"{name}: keypoints is {value!r}, expected a list with {KEYPOINTS * 3} numbers for each person."
        )
    for k, person in enumerate(value, start=1):
        _check_person(person, f"{name}: the keypoints of person {k}")
    return torch.tensor([list(person) for person in value], dtype=torch.float32).reshape(-1, KEYPOINTS, 3)


def _check_person(person: Any, whose: str) -> None:
    if not isinstance(person, (list, tuple, np.ndarray)) or len(person) != KEYPOINTS * 3:
        many = len(person) if isinstance(person, (list, tuple, np.ndarray)) else repr(person)
        raise DataError(
            f"{whose} are {many}, expected {KEYPOINTS * 3} numbers: x, y, v of COCO's {KEYPOINTS} keypoints."
        )
    for number in person:
        if not _is_pixel(number):
            raise DataError(f"{whose} hold {number!r}, expected finite numbers.")
    for v in person[2::3]:
        if v not in (0, 1, 2):
            raise DataError(f"{whose} have v = {v!r}, expected 0 (not labelled), 1 (labelled, hidden) or 2 (visible).")


def check_keypoints_inside(keypoints: Tensor, size: tuple[int, int], name: str) -> None:
    """Refuse a person all of whose labelled keypoints lie outside its picture of `size` (width, height)."""
    for k, person in enumerate(keypoints, start=1):
        points = person[person[:, 2] > 0, :2]
        if len(points) and not ((points >= 0) & (points <= torch.tensor(size))).all(dim=1).any():
            raise DataError(
                f"{name}: the keypoints of person {k} all lie outside the picture, which is {size[0]}x{size[1]}; give "
                "pixels of the stored picture."
            )
