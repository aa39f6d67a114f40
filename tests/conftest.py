"""Fixtures that several test modules share: a tiny pipeline, a tiny data set, and the trainer run on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attached_scripts import attach_ground, run_attached  # noqa: F401
from PIL import Image
from run_trainer import command, run_here

SIZES = [(80, 96), (70, 64), (64, 64), (100, 75), (128, 90)]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than half a minute")


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


@pytest.fixture(scope="session")
def make_data() -> Callable[..., Path]:
    """`write_data`, for tests that want a data set of their own."""
    return write_data


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "people")


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The architecture and files of Stable Diffusion 1.x, with seeded random weights."""
    from mldm_plugin.demo.pipeline import Size, build_tiny_pipeline

    size = Size(unet_channels=(8, 16, 16, 16), text_width=16, groups=4, heads=2)
    return build_tiny_pipeline(tmp_path_factory.mktemp("model") / "tiny", size=size)


@pytest.fixture(scope="session")
def random_preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preset that needs no weight files and opens its gate often; a random VAE resembles nothing."""
    path = tmp_path_factory.mktemp("preset") / "random.yaml"
    path.write_text(
        "losses:\n"
        "  masked_lpips: {weight: 0.2, max_timestep: 600, weights: random}\n"
        "checks: {picture: warn}\n"
        "training: {resolution: 64}\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="session")
def train(tiny_pipeline: Path, tiny_data: Path) -> Callable[..., int]:
    """`train(output, "--flag", value, …)` runs the ControlNet trainer in this process and returns its exit status.

    The tiny pipeline and data set, resolution 64, seed 3 and no tracker are given unless the flags say otherwise.
    """
    from mldm_plugin.training.controlnet import main

    return lambda output, *flags: run_here(main, command(output, tiny_pipeline, tiny_data, *flags))


@pytest.fixture(scope="session")
def train_lora(tiny_pipeline: Path, tiny_data: Path) -> Callable[..., int]:
    """The same for the LoRA trainer."""
    from mldm_plugin.training.text_to_image_lora import main

    return lambda output, *flags: run_here(main, command(output, tiny_pipeline, tiny_data, *flags))


@pytest.fixture
def the_error(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """`the_error()` is the one line that the user was shown since the last call."""

    def read() -> str:
        err = capfd.readouterr().err
        assert "Traceback" not in err
        (line,) = [x for x in err.splitlines() if x.startswith("error: ")]
        return line

    return read


@pytest.fixture
def weights_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of weights, and a hub folder of nobody's."""
    import torch

    folder = tmp_path / "cache"
    monkeypatch.setenv("MLDM_WEIGHTS", str(folder))
    monkeypatch.delenv("MLDM_WEIGHTS_SOURCE", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return folder
