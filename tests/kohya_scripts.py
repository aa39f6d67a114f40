"""kohya's training scripts: the command line with which each runs for a few steps on a CPU.

The scripts are not part of this repository: MLDM_SD_SCRIPTS names the folder of a checkout of kohya-ss/sd-scripts, and
MLDM_SD_SCRIPTS_PYTHON the interpreter of its environment, in which mldm-plugin is installed too (default: the running
one). They run unmodified, in processes of their own; `scripts/kohya_small` makes the networks of its library small.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from tiny_people import SCENES
from torch import Tensor

VARIABLE, PYTHON_VARIABLE = "MLDM_SD_SCRIPTS", "MLDM_SD_SCRIPTS_PYTHON"
SD_SCRIPTS = Path(os.environ.get(VARIABLE, "checkout-of-sd-scripts"))
PYTHON = os.environ.get(PYTHON_VARIABLE, sys.executable)
needs_sd_scripts = pytest.mark.skipif(not SD_SCRIPTS.is_dir(), reason=f"{VARIABLE} names no folder")
HELPERS = Path(__file__).parent / "scripts"
ENLARGED = 3  # the pictures of tiny_people, so that a mask has few pixels of edge

COMMON = (
    "--max_train_steps 4 --train_batch_size 2 --resolution 128,128 --enable_bucket --min_bucket_reso 64 "
    "--max_bucket_reso 256 --seed 1 --max_data_loader_n_workers 0 --save_model_as safetensors --save_precision float "
    "--learning_rate 1e-2 --optimizer_type SGDNesterov --lr_scheduler constant --mixed_precision no"
)
LORA = ["--network_module", "networks.lora", "--network_dim", "2", "--network_train_unet_only"]
AUGMENTED = ["--random_crop", "--flip_aug", "--color_aug"]
CACHED = ("--cache_latents",)  # without it these two fail at this commit, with or without the plugin


@dataclass(frozen=True)
class Script:
    """One script: its file, the family of its models, and its flags apart from `COMMON`."""

    path: str
    family: str
    flags: tuple[str, ...] = ()
    data: str = "dreambooth"  # or `metadata`, or `conditioning`

    @property
    def name(self) -> str:
        return Path(self.path).stem


FLUX = """--network_module networks.lora_flux --network_dim 2 --network_train_unet_only --cache_text_encoder_outputs
--guidance_scale 1 --timestep_sampling shift --model_prediction_type raw --loss_type l2 --t5xxl_max_token_length 16"""
SCRIPTS = {
    script.name: script
    for script in (
        Script("train_network.py", "sd", tuple(LORA)),
        Script("sdxl_train_network.py", "sdxl", tuple(LORA)),
        Script("flux_train_network.py", "flux", tuple(FLUX.split())),
        Script("train_db.py", "sd"),
        Script("fine_tune.py", "sd", CACHED, data="metadata"),
        Script("sdxl_train.py", "sdxl", CACHED, data="metadata"),
        Script("train_controlnet.py", "sd", data="conditioning"),
        Script("train_control_net.py", "sd", data="conditioning"),
    )
}


def write_data(ground: Path) -> None:
    """`pictures/4_person/` and `class/1_person/` as DreamBooth wants them, `hints/`, `metadata.json` and `masks/`."""
    if (ground / "metadata.json").is_file():
        return
    pictures, masks, hints, class_ = (
        ground / name for name in ("pictures/4_person", "masks", "hints", "class/1_person")
    )
    for folder in (pictures, masks, hints, class_):
        folder.mkdir(parents=True)
    metadata = {}
    for scene in SCENES:
        labels = _enlarged(scene.labels())
        Image.fromarray(_enlarged(scene.pixels())).save(pictures / f"{scene.name}.png")
        Image.fromarray(labels).save(masks / f"{scene.name}.png")
        Image.fromarray(np.repeat((labels > 0).astype(np.uint8)[..., None] * 255, 3, axis=2)).save(
            hints / f"{scene.name}.png"
        )
        boxes = [[ENLARGED * x for x in box] for box in scene.face_boxes()]
        scale = ENLARGED, ENLARGED, 1
        people = [[x * scale[i % 3] for i, x in enumerate(person)] for person in scene.keypoints()]
        known = json.dumps({"face_boxes": boxes, "keypoints": people})
        (masks / f"{scene.name}.json").write_text(known, encoding="utf-8")
        (pictures / f"{scene.name}.txt").write_text(scene.text, encoding="utf-8")
        metadata[f"{scene.name}.png"] = {"caption": scene.text, "image_size": [labels.shape[1], labels.shape[0]]}
    for scene in SCENES[:3]:
        nobody = replace(scene, people=(), size=scene.size[::-1])
        Image.fromarray(_enlarged(nobody.pixels())).save(class_ / f"nobody_like_{scene.name}.png")
    (ground / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")


def _enlarged(array: np.ndarray) -> np.ndarray:
    return array.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)


def build_models(family: str, ground: Path, small: bool = True) -> Path:
    """The models of a family, made once by the environment of sd-scripts."""
    folder = ground / (f"{family}-small" if small else family)
    if not folder.is_dir():
        from tiny_families import build_vae

        vae = ground / f"vae-{family}"
        if family != "flux" and not vae.is_dir():
            build_vae(family).save_pretrained(vae)
        subprocess.run(
            [PYTHON, str(HELPERS / "kohya_models.py"), family, str(folder), str(vae)],
            env=environment(small),
            check=True,
            timeout=200,
        )
    return folder


def command(
    script: Script, out: Path, launcher: str | None = None, extra: Iterable[Any] = (), *, small: bool = True
) -> list[str]:
    """The command that trains into `out`, through `-m launcher` if one is given; `extra` flags come last.

    Models and data are made once and kept beside `out`, in `ground/`, so runs under one folder share them.
    """
    ground = out.parent / "ground"
    write_data(ground)
    models = build_models(script.family, ground, small)
    flags: list[Any] = [*COMMON.split(), "--output_dir", out, "--output_name", "out"]
    flags += ["--tokenizer_cache_dir", ground / "tokenizers"]
    if script.family == "flux":
        flags += ["--pretrained_model_name_or_path", models / "flux.safetensors"]
        flags += [x for name in ("clip_l", "t5xxl", "ae") for x in (f"--{name}", models / f"{name}.safetensors")]
    else:
        flags += ["--pretrained_model_name_or_path", models]
    pictures = ground / "pictures"
    if script.data == "dreambooth":
        flags += ["--train_data_dir", pictures]
    else:
        flags += ["--train_data_dir", pictures / "4_person"]
    if script.data == "metadata":
        flags += ["--in_json", ground / "metadata.json"]
    if script.data == "conditioning":
        flags += ["--conditioning_data_dir", ground / "hints", "--caption_extension", ".txt"]
    launch = [PYTHON, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["-m", launcher] if launcher else []
    return [str(x) for x in (*launch, SD_SCRIPTS / script.path, *flags, *script.flags, *extra)]


def run(
    script: Script,
    out: Path,
    launcher: str | None = None,
    extra: Iterable[Any] = (),
    *,
    small: bool = True,
    timeout: float = 280,
) -> tuple[subprocess.CompletedProcess[str], dict[str, Tensor]]:
    """Train into `out`; the finished process and all tensors that it saved."""
    done = subprocess.run(
        command(script, out, launcher, extra, small=small),
        env={**environment(small), "STEP_FOLDER": str(out.parent / f"{out.name}-steps")},
        cwd=out.parent,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    files = sorted(p for p in out.rglob("*.safetensors") if "mldm" not in p.parts)
    return done, {f"{f.relative_to(out)}:{key}": value for f in files for key, value in load_file(f).items()}


def environment(small: bool) -> dict[str, str]:
    """One thread, no network, the checkout's modules, and small networks."""
    path = [str(SD_SCRIPTS)] + ([str(HELPERS / "kohya_small")] if small else [])
    return {
        **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(path),
        "TOKENIZERS_PARALLELISM": "false",
    }
