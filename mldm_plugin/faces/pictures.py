"""Faces with their attributes and parts in memory, for networks that are trained in minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mldm_plugin.errors import DataError
from mldm_plugin.plugins import load_plugins
from mldm_plugin.prepare.stored import listed_rows


@dataclass(frozen=True)
class Faces:
    """Pictures of one size.

    Attributes:
        pixels: uint8 (N, 3, S, S).
        attributes: float32 (N, 40) of zeros and ones, in CelebA's order.
        parts: uint8 (N, S, S), labels of CelebAMask-HQ's parts, 0 elsewhere.
    """

    pixels: Tensor
    attributes: Tensor
    parts: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def floats(self, numbers: Tensor, device: torch.device | None = None) -> Tensor:
        """These pictures as float32 in [-1, 1], on the device, or where they lie."""
        return self.pixels[numbers].to(device).float() / 127.5 - 1

    def drawn(self, count: int, generator: torch.Generator) -> Tensor:
        """Numbers of so many of them at random, where they lie."""
        return torch.randint(len(self), (count,), generator=generator, device=generator.device).to(self.pixels.device)

    @property
    def varied(self) -> list[int]:
        """Which attributes are not the same for all: the others tell nothing of a picture."""
        means = self.attributes.mean(0)
        return [number for number, mean in enumerate(means.tolist()) if 0 < mean < 1]


def read_faces(folder: Path, split: str, side: int, at_most: int | None = None) -> Faces:
    """A split of a training set that `mldm data celebamask-hq` wrote, resized to side × side.

    Raises:
        DataError: no such split, or a row without attributes or parts.
    """
    rows = listed_rows(folder / split)[:at_most]
    if not rows:
        raise DataError(f"{folder / split} has no pictures: give a folder that `mldm data celebamask-hq` wrote.")
    encoder = load_plugins().condition_encoders["attributes"](1, hidden=1)
    pixels, attributes, parts = [], [], []
    for top, row in tqdm(rows, desc=f"reading {split}", unit="picture", mininterval=5):
        if not row.get("parts_file_name") or row.get("attributes") is None:
            raise DataError(f"{row['file_name']} in {top} has no parts or no attributes (mldm data celebamask-hq).")
        with Image.open(top / row["file_name"]) as picture, Image.open(top / row["parts_file_name"]) as labels:
            small = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            pixels.append(torch.from_numpy(np.array(small)).permute(2, 0, 1))
            parts.append(torch.from_numpy(np.array(labels.resize((side, side), Image.Resampling.NEAREST))))
        attributes.append(encoder.read(row["attributes"]))
    return Faces(torch.stack(pixels), torch.stack(attributes), torch.stack(parts))
