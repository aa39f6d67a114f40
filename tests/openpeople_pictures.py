"""Photographs of openpeople, as networks take them."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


def photograph(person: str, kind: str, longest: int = 512) -> torch.Tensor:
    """(3, H, W) RGB in [-1, 1], shrunk to `longest`; a test without the package is skipped."""
    package = importlib.util.find_spec("openpeople")
    if package is None or not package.submodule_search_locations:
        pytest.skip("pip install --no-deps openpeople==0.1.2")
    folder = Path(next(iter(package.submodule_search_locations)))
    with Image.open(folder / "data" / "curated" / person / "assets" / f"{kind}.jpg") as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return as_tensor(np.array(picture))


def as_tensor(picture: np.ndarray) -> torch.Tensor:
    """(H, W, 3) of 0–255 as (3, H, W) in [-1, 1]."""
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 127.5 - 1
