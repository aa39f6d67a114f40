"""Pictures that are followed: two people as rectangles of one colour each, and what is left of them after a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mldm_plugin.attach import ledger
from mldm_plugin.attach.followed_array import FollowedArray
from mldm_plugin.attach.frame import Frame
from mldm_plugin.attach.ledger import frame_of
from mldm_plugin.attach.planes import Planes


@contextmanager
def ledger_installed() -> Iterator[None]:
    """The ledger, and afterwards everything as it was: another test's pictures are not followed."""
    ledger.install()
    try:
        yield
    finally:
        ledger.uninstall()


def people_labels() -> Tensor:
    """(1, 96, 140) uint8 labels."""
    labels = np.zeros((96, 140), np.uint8)
    labels[30:90, 12:60], labels[8:50, 84:130] = 1, 2
    return torch.from_numpy(labels)[None]


def people_picture(path: Path) -> Image.Image:
    """The picture of `people_labels`, written to `path` if it is not there, and opened."""
    if not path.exists():
        colours = np.array([[0, 0, 255], [255, 0, 0], [0, 255, 0]], np.uint8)
        Image.fromarray(colours[people_labels()[0].numpy()]).save(path)
    return Image.open(path).convert("RGB")


def labels_of(picture: Tensor) -> Tensor:
    """What the labels of a picture (3, h, w) in [0, 1] are, from its colours: 1 red, 2 green."""
    red, green, blue = picture
    nobody = (blue > torch.maximum(red, green)) | (picture.amax(0) < 0.3)  # what is padded is black
    return torch.where(nobody, 0, torch.where(red > green, 1, 2))[None]


def agreement(one: Tensor, other: Tensor) -> float:
    return (one == other).float().mean().item()


def coordinates_picture() -> FollowedArray:
    """An array (40, 60, 3) whose pixels say where they come from, (row, column, 0), with the frame of a.png."""
    rows, columns = np.mgrid[0:40, 0:60]
    array = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    return FollowedArray.of(array, Planes.of(Frame("a.png", (60, 40), (60, 40)), array.shape, 0, 1))


def check_places(array: np.ndarray) -> None:
    """Every pixel of `array`, (H, W, C) or (H, W), lies where its frame says that it came from."""
    frame = frame_of(array)
    assert not frame.lost
    assert frame.size == (array.shape[1], array.shape[0])
    rows, columns = np.mgrid[0:40, 0:60].astype(np.uint8)
    for channel, source in enumerate((rows, columns)[: array.shape[2] if array.ndim == 3 else 1]):
        found = np.asarray(array if array.ndim == 2 else array[..., channel])
        assert np.array_equal(frame.warp_labels(torch.from_numpy(source)[None])[0], found)
