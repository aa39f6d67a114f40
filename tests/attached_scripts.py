"""Scripts of tests/scripts/, run through the launcher in processes of their own.

`attach_ground` and `run_attached` are fixtures, which conftest hands on.
"""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import forked
import pytest
import torch
from make_step import tiny_vae
from run_trainer import records
from safetensors.torch import load_file
from tiny_people import (
    check_eyes,
    face_pixels,
    person_pixels,
    second_person_pixels,
    write_class_pictures,
    write_dreambooth,
    write_imagefolder,
)

SCRIPTS = Path(__file__).parent / "scripts"
RECORDER = SCRIPTS / "recorder.py"
LAUNCHER = ("-m", "mldm_plugin")
COLUMNS, DREAMBOOTH, IMPORTED = (SCRIPTS / name for name in ("columns.py", "dreambooth.py", "imported.py"))
# The smallest networks: what matters here is what reaches a loss, not how it judges.
PRESET = """
combine: convex
checks: {picture: warn}
losses:
  masked_lpips: {weight: 0.2, max_timestep: 999, form: spatial, network: alex, weights: random}
  face: {weight: 0.3, max_timestep: 999, form: spatial, network: dlib_resnet, weights: random}
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


class Run(NamedTuple):
    """A script that has ended: what it told, trained, showed to the recorder, and its output folder."""

    process: subprocess.CompletedProcess[str]
    weights: dict[str, torch.Tensor]
    steps: list[dict[str, torch.Tensor]]
    folder: Path

    @property
    def records(self) -> list[dict[str, Any]]:
        """What the plugin logged, a dict for each optimizer step."""
        return records(self.folder / "mldm")


@pytest.fixture(scope="session")
def run_attached(attach_ground, tmp_path_factory):
    """Run a script, through the launcher unless `plain`; a command that has run already is not run again.

    It is forked from a server (see forked) unless it has to be `real`, as so many `ranks`.
    """

    @functools.cache
    def run_attached(script, *flags, plain=False, plugin=True, launcher=LAUNCHER, real=False, ranks=1):
        folder = tmp_path_factory.mktemp(Path(script).stem)
        out, steps = folder / "out", folder / "steps"
        data = ["--instance_data_dir", attach_ground / "pictures"] if script == DREAMBOOTH else []
        data = data or ["--train_data_dir", attach_ground / "people"]
        command = [*([] if plain else launcher), script, *data, "--vae", attach_ground / "vae"]
        command += ["--output_dir", out, *flags]
        if plugin and not plain:
            command += ["--loss-plugin", "mldm", "--loss-plugin", RECORDER, "--preset", attach_ground / "preset.yaml"]
            command += ["--mldm-mask-dir", attach_ground / "masks"] if script == DREAMBOOTH else []
        environment = {"STEP_FOLDER": str(steps), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        if ranks > 1:
            done = run_ranks(*command, env=environment, ranks=ranks)
        else:
            done = (run_for_real if real else forked.run)(*command, env=environment)
        weights = load_file(out / "weights.safetensors") if (out / "weights.safetensors").exists() else {}
        return Run(done, weights, [load_file(f) for f in sorted(steps.glob("*"))], out)

    return run_attached


def run_for_real(*arguments, env):
    """`python arguments…` as a user starts it."""
    return subprocess.run(
        [sys.executable, *(str(a) for a in arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, **env},
    )


def run_ranks(*arguments, env, ranks):
    """`python arguments…` as torchrun starts it so often; what they print, one after the other."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(s.getsockname()[1])}
    place |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    started = [
        forked.Forked(*arguments, env={**env, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(ranks)
    ]
    status = max(abs(process.wait()) for process in started)
    told, said = ("".join(getattr(process, name) for process in started) for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(arguments, status, told, said)


def iou(one, other):
    """Intersection over union; 1 where there is nobody."""
    union = (one | other).sum()
    return ((one & other).sum() / union).item() if union else 1.0


def check_annotation(step):
    """Masks, labels, boxes and keypoints of a recorded step lie where the pixels say."""
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
        for person in step[f"keypoints.{row}"]:
            check_eyes(person, faces[row, 0])
