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
