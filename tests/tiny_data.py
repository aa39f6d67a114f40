"""What a trainer reads, as small as can be: pictures of noise, a pipeline and a preset without weight files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mldm_plugin.conditions.celeba import ATTRIBUTES

SIZES = [(80, 96), (70, 64), (64, 64), (100, 75), (128, 90)]


def write_data(
    folder: Path,
    pictures: int = 7,
    *,
    captions: Sequence[str] | None = None,
    annotated: bool = True,
    rows: dict[int, dict[str, Any]] | None = None,
) -> Path:
    """An imagefolder of noise: hints, and if `annotated` a person in each picture and a face in every other.

    `captions` are given to each picture as a list; `rows` changes fields of the metadata, None removes one.
    """
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(pictures):
        width, height = SIZES[i % len(SIZES)]
        for name in (f"{i}.png", f"{i}_hint.png"):
            Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / name)
        row: dict[str, Any] = {
            "file_name": f"{i}.png",
            "text": list(captions) if captions else f"a person number {i}",
            "conditioning_image_file_name": f"{i}_hint.png",
        }
        if annotated:
            mask = np.zeros((height, width), np.uint8)
            mask[20:60, 20:44] = 1 + i % 2
            Image.fromarray(mask).save(folder / f"{i}_mask.png")
            row["mask_file_name"] = f"{i}_mask.png"
            row["face_boxes"] = [[24, 26, 40.5, 44]] if i % 2 == 0 else []
        row |= (rows or {}).get(i, {})
        lines.append(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def write_pipeline(folder: Path) -> Path:
    """The architecture and files of Stable Diffusion 1.x, with seeded random weights."""
    from mldm_plugin.people_mini.architecture import Size, build_tiny_pipeline

    size = Size(unet_channels=(8, 16, 16, 16), text_width=16, groups=4, heads=2)
    return build_tiny_pipeline(folder, size=size)


def write_preset(path: Path) -> Path:
    """A preset whose gate is often open; a random VAE resembles nothing."""
    path.write_text(
        "losses:\n"
        "  masked_lpips: {weight: 0.2, max_timestep: 600, weights: random}\n"
        "checks: {picture: warn}\n"
        "training: {train_controlnet: {resolution: 64}, train_text_to_image_lora: {resolution: 64}}\n",
        encoding="utf-8",
    )
    return path


def add_conditions(folder: Path, pictures: int = 7) -> dict[int, dict[str, Any]]:
    """Attributes and parts for each row of `write_data`, at random."""
    random, rows = np.random.default_rng(1), {}
    for i in range(pictures):
        width, height = SIZES[i % len(SIZES)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 19, (height, width), dtype=np.uint8)).save(folder / f"{i}_parts.png")
        said = {name: bool(random.random() < 0.5) for name in ATTRIBUTES}
        rows[i] = {"attributes": said, "parts_file_name": f"{i}_parts.png"}
    return rows
