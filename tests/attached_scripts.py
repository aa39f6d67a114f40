"""Scripts of tests/scripts/, run through the launcher in processes of their own, as a user would.

`attach_ground` and `run_attached` are fixtures, which conftest hands on.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from make_step import tiny_vae
from safetensors.torch import load_file
from tiny_people import (
    face_pixels,
    person_pixels,
    second_person_pixels,
    write_class_pictures,
    write_dreambooth,
    write_imagefolder,
)

SCRIPTS = Path(__file__).parent / "scripts"
RECORDER = SCRIPTS / "recorder.py"
COLUMNS, DREAMBOOTH, IMPORTED = (SCRIPTS / name for name in ("columns.py", "dreambooth.py", "imported.py"))
PRESET = """
combine: convex
checks: {picture: warn}
losses:
  masked_lpips: {weight: 0.2, max_timestep: 999, form: spatial, network: vgg, weights: random}
  face: {weight: 0.3, max_timestep: 999, form: spatial, network: vggface2_resnet50, weights: random}
"""
ZERO = ["--set", "losses.masked_lpips.weight=0", "--set", "losses.face.weight=0"]


@pytest.fixture(scope="session")
def attach_ground(tmp_path_factory):
    """Data, VAE and preset, made once."""
    folder = tmp_path_factory.mktemp("attach_ground")
    write_imagefolder(folder / "people")
    write_dreambooth(folder / "pictures", folder / "masks")
    write_class_pictures(folder / "class")
    tiny_vae(downscale=4).save_pretrained(folder / "vae")
    (folder / "preset.yaml").write_text(PRESET, encoding="utf-8")
    return folder


@pytest.fixture
def run_attached(attach_ground, tmp_path):
    """Run a script, through the launcher unless `plain`; returns the process, its weights and the steps it recorded."""

    def run_attached(script, *flags, plain=False, plugin=True, launcher=("-m", "mldm_plugin"), name="out"):
        out, steps = tmp_path / name, tmp_path / f"{name}-steps"
        data = ["--instance_data_dir", attach_ground / "pictures"] if script == DREAMBOOTH else []
        data = data or ["--train_data_dir", attach_ground / "people"]
        command = [sys.executable, *([] if plain else launcher), script, *data, "--vae", attach_ground / "vae"]
        command += ["--output_dir", out, *flags]
        if plugin and not plain:
            command += ["--loss-plugin", "mldm", "--loss-plugin", RECORDER, "--preset", attach_ground / "preset.yaml"]
            command += ["--mldm-mask-dir", attach_ground / "masks"] if script == DREAMBOOTH else []
        done = subprocess.run(
            [str(c) for c in command],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            env={**os.environ, "STEP_FOLDER": str(steps), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        weights = load_file(out / "weights.safetensors") if (out / "weights.safetensors").exists() else {}
        return done, weights, [load_file(f) for f in sorted(steps.glob("*"))]

    return run_attached


def iou(one, other):
    """Intersection over union; 1 where there is nobody."""
    union = (one | other).sum()
    return ((one & other).sum() / union).item() if union else 1.0


def check_annotation(step):
    """Masks, labels and boxes of a recorded step lie where the pixels say."""
    pixels, mask = step["pixel_values"], step["person_mask"]
    assert iou(mask > 0, person_pixels(pixels)) > 0.95
    second = second_person_pixels(pixels)
    if second.sum() > 50:
        assert iou(mask == 2, second) > 0.95
    faces = face_pixels(pixels)
    for row in range(len(pixels)):
        drawn = torch.zeros(pixels.shape[-2:], dtype=torch.bool)
        for x0, y0, x1, y1 in step[f"face_boxes.{row}"].round().int().tolist():
            drawn[y0:y1, x0:x1] = True
        if drawn.any():  # a face that is half cut off has lost its box
            assert iou(drawn & faces[row, 0], drawn) > 0.8
