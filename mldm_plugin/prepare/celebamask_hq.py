"""CelebAMask-HQ as it is handed out: 30 000 aligned faces with masks of 18 parts and 40 attributes.

    CelebA-HQ-img/N.jpg                                    1024x1024, N from 0
    CelebAMask-HQ-mask-anno/{N // 2000}/{N:05d}_{part}.png 512x512, for each part that can be seen
    CelebAMask-HQ-attribute-anno.txt                       the number of pictures; the names; a line a picture

Source: Lee et al., MaskGAN, CVPR 2020. For non-commercial research and education alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from mldm_plugin.conditions.celeba import ATTRIBUTES, PARTS
from mldm_plugin.errors import DataError
from mldm_plugin.prepare.celeba_captions import caption as caption_of
from mldm_plugin.prepare.source import Face, People, RejectedError, Shown, Source

PICTURES = "CelebA-HQ-img"
MASKS = "CelebAMask-HQ-mask-anno"
ATTRIBUTES_FILE = "CelebAMask-HQ-attribute-anno.txt"
VALIDATION_LIST = "celebahqvalidation.txt"
NAME = r"(0|[1-9]\d{0,8})\.jpg"
PICTURES_A_FOLDER = 2000
TRAINING_PICTURES = 25_000  # of 30 000, the numbers of latent diffusion's split

# What the face box is drawn around. Without the ears: face detectors and those who annotate for them leave them out.
FACE_PARTS = ("skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "mouth", "u_lip", "l_lip")


def sources(folder: Path, caption: str | None = None) -> Iterator[Source]:
    """All pictures in the order of their numbers, as the splits `train` and `validation`.

    With a file `celebahqvalidation.txt` in the folder, the split is latent diffusion's: the file comes from
    CompVis/taming-transformers (data/), has 5 000 lines `imgHQ05953.npy`, and its numbers are those of the pictures.
    Without it the first 25 000 are for training and the rest for validation: as many as in latent diffusion's split,
    but not the same ones.

    Args:
        folder: of the data set, as it was unpacked.
        caption: of every picture; None makes one of its attributes.

    Yields:
        Sources whose `columns` have `attributes`, name → whether it is so. One whose picture is missing, or that
        has no line in the attributes' file, has a `fault`.

    Raises:
        DataError: not this data set's layout, or a file of it is at fault, named with its line and field.
    """
    _check_layout(folder)
    attributes = _read_attributes(folder / ATTRIBUTES_FILE)
    validation = _validation(folder / VALIDATION_LIST)
    present = {int(path.stem) for path in (folder / PICTURES).iterdir() if re.fullmatch(NAME, path.name, re.ASCII)}
    for number in sorted(attributes.keys() | present):
        path = folder / PICTURES / f"{number}.jpg"
        known = dict(zip(ATTRIBUTES, attributes.get(number, ()), strict=False))
        yield Source(
            name=f"{number:05d}",
            path=str(path),
            text=caption_of(known) if caption is None else caption,
            columns={"attributes": known} if known else {},
            split="validation" if number in validation else "train",
            fault=_fault(number in present, bool(known)),
        )


def _fault(present: bool, known: bool) -> str | None:
    if not present:
        return "is missing"
    return None if known else f"has no line in {ATTRIBUTES_FILE}"


@dataclass(frozen=True)
class CelebAMaskHQ:
    """The one person of a picture: all parts together; a face box around the parts of the face.

    The rows get a column `parts`, a label picture of the 18 parts in the order of `PARTS`. Masks are enlarged to the
    picture with the nearest neighbour.
    """

    def __call__(self, source: Source, picture: Shown) -> People:
        """Label 1 and its face.

        Raises:
            RejectedError: no part has a mask, one cannot be read, or their sizes differ.
        """
        parts = read_parts(Path(source.path))
        width, height = picture.size
        if parts.shape[1] * height != parts.shape[0] * width:
            raise RejectedError(f"is {width}x{height}, its part masks are {parts.shape[1]}x{parts.shape[0]}")
        drawn = Image.fromarray(parts).resize(picture.size, Image.Resampling.NEAREST)
        enlarged = np.asarray(drawn)
        box = _face_box(enlarged)
        return People(
            labels=(enlarged > 0).astype(np.uint8),
            count=1,
            faces=[] if box is None else [Face(box)],
            columns={"parts": drawn},
        )


def read_parts(picture: Path) -> np.ndarray:
    """The label map of parts of `CelebA-HQ-img/N.jpg`, uint8 (H, W), in the size of its masks.

    Raises:
        RejectedError: as `CelebAMaskHQ`.
    """
    number = int(picture.stem)
    folder = picture.parent.parent / MASKS / str(number // PICTURES_A_FOLDER)
    parts: np.ndarray | None = None
    for label, part in enumerate(PARTS, 1):
        path = folder / f"{number:05d}_{part}.png"
        if not path.is_file():
            continue  # a part that cannot be seen has no file
        inside = _read_mask(path)
        if parts is None:
            parts = np.zeros(inside.shape, np.uint8)
        if inside.shape != parts.shape:
            raise RejectedError(
                f"has a mask {path.name} of {inside.shape[1]}x{inside.shape[0]}, "
                f"others are {parts.shape[1]}x{parts.shape[0]}"
            )
        parts[inside] = label
    if parts is None or not parts.any():
        raise RejectedError(f"has no part masks, expected some like {folder / f'{number:05d}_skin.png'}")
    return parts


def _read_mask(path: Path) -> np.ndarray:
    """Where a part is, bool (H, W): what is not black, in whichever mode it was stored."""
    try:
        with Image.open(path) as opened:
            return np.asarray(opened.convert("RGB")).max(axis=2) > 0
    except Exception as error:
        raise RejectedError(f"has a mask {path.name} that cannot be read: {error}") from error


def _face_box(parts: np.ndarray) -> tuple[float, float, float, float] | None:
    face = np.isin(parts, [PARTS.index(part) + 1 for part in FACE_PARTS])
    rows, columns = face.nonzero()
    if not len(rows):
        return None
    return float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)


def _check_layout(folder: Path) -> None:
    missing = [f"{name}/" for name in (PICTURES, MASKS) if not (folder / name).is_dir()]
    if not (folder / ATTRIBUTES_FILE).is_file():
        missing.append(ATTRIBUTES_FILE)
    if missing:
        raise DataError(
            f"{folder} is not CelebAMask-HQ: {', '.join(missing)} is missing. Give the folder that was unpacked, with "
            f"{PICTURES}/0.jpg, {MASKS}/0/00000_skin.png and {ATTRIBUTES_FILE} in it."
        )


def _read_attributes(path: Path) -> dict[int, list[bool]]:
    """Of each picture's number the values, in the order of `ATTRIBUTES`."""
    lines = _lines(path)
    count = lines[0].strip() if lines else ""
    if not count.isdecimal():
        raise DataError(f"{path}, line 1: {count!r}, expected the number of pictures.")
    names = lines[1].split() if len(lines) > 1 else []
    for at, (name, expected) in enumerate(zip_longest(names, ATTRIBUTES, fillvalue="the line's end"), 1):
        if name != expected:
            raise DataError(f"{path}, line 2: field {at} is {name}, expected {expected}.")
    attributes: dict[int, list[bool]] = {}
    for at, line in enumerate(lines[2:], 3):
        if not line.strip():
            continue
        picture, *values = line.split()
        where = f"{path}, line {at}"
        if not re.fullmatch(NAME, picture, re.ASCII):
            raise DataError(f"{where}: field 1 is {picture!r}, expected the name of a picture like 0.jpg.")
        number = int(picture.removesuffix(".jpg"))
        if number in attributes:
            raise DataError(f"{where}: {picture} has a line before this one; remove one of them.")
        attributes[number] = _values(values, where)
    if len(attributes) != int(count):
        raise DataError(f"{path}: line 1 says {count} pictures, {len(attributes)} lines follow: is the file whole?")
    return attributes


def _values(fields: list[str], where: str) -> list[bool]:
    if len(fields) != len(ATTRIBUTES):
        raise DataError(f"{where}: {len(fields)} values, expected {len(ATTRIBUTES)}.")
    for at, (value, name) in enumerate(zip(fields, ATTRIBUTES, strict=True), 2):
        if value not in ("1", "-1"):
            raise DataError(f"{where}: field {at} ({name}) is {value!r}, expected 1 or -1.")
    return [value == "1" for value in fields]


def _validation(path: Path) -> range | set[int]:
    """The numbers for validation: those of the list where there is one, else all from 25 000 on."""
    if not path.is_file():
        return range(TRAINING_PICTURES, 10**9)
    numbers = set()
    for at, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        found = re.fullmatch(r"imgHQ(\d{5})\.npy", line.strip(), re.ASCII)
        if not found:
            raise DataError(f"{path}, line {at}: {line.strip()!r}, expected a name like imgHQ05953.npy.")
        numbers.add(int(found[1]))
    return numbers


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error}): unpack the data set again.") from error
