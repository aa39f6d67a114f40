"""The models that `mldm start` knows: their names, and what their own community trains them with."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from mldm_plugin.errors import MldmError, nearest
from mldm_plugin.people_mini import PIPELINE

EXAMPLES = "MLDM_DIFFUSERS_EXAMPLES"  # environment variable: the folder examples/ of diffusers' repository
OURS = "train_text_to_image_lora"
PEOPLE_MINI = "people-mini"
REPEATS = 10  # of each photograph in an epoch of kohya's, the number that folders like 10_anna usually have


@dataclass(frozen=True)
class KnownModel:
    """A model and how a few photographs of a person are learnt with it.

    Args:
        name: as it is typed.
        pipeline: folder or Hub name.
        preset: whose `training:` has settings for `script`.
        script: the trainer, without .py.
        example: where diffusers keeps that script below examples/; None for the trainer of this package.
        photos: how many photographs the preset's number of steps is meant for.
        guidance: scale when pictures are drawn; None for the pipeline's own.
        resolution: side of the pictures, where a preset does not say it.
    """

    name: str
    pipeline: str
    preset: str
    script: str
    example: str | None
    photos: int
    guidance: float | None
    resolution: int = 1024


MODELS = {
    model.name: model
    for model in (
        KnownModel(PEOPLE_MINI, str(PIPELINE), "demo", OURS, None, 10, 3.0, 128),
        KnownModel(
            "sd15",
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "dreambooth-sd15",
            OURS,
            None,
            5,
            None,
            512,
        ),
        KnownModel(
            "sdxl",
            "stabilityai/stable-diffusion-xl-base-1.0",
            "dreambooth-sdxl",
            "train_dreambooth_lora_sdxl",
            "dreambooth",
            5,
            None,
        ),
        KnownModel(
            "sd3",
            "stabilityai/stable-diffusion-3-medium-diffusers",
            "dreambooth-sd3",
            "train_dreambooth_lora_sd3",
            "dreambooth",
            5,
            None,
        ),
        KnownModel(
            "flux",
            "black-forest-labs/FLUX.1-dev",
            "dreambooth-flux",
            "train_dreambooth_lora_flux",
            "dreambooth",
            5,
            None,
        ),
    )
}


def known_model(name: str) -> KnownModel:
    """The entry of a name.

    Raises:
        MldmError: there is none; the nearest are given.
    """
    if name not in MODELS:
        raise MldmError(
            f"--model {name}: {nearest(name, MODELS)} A folder goes with the name of its kind: sdxl=FOLDER."
        )
    return MODELS[name]


def is_kohyas(script: str) -> bool:
    """Whether a script, by its name, is one of sd-scripts' for LoRAs, which read a data set of their own."""
    return Path(script).stem.endswith("train_network")


def script_of(model: KnownModel) -> str:
    """The file of diffusers' script where it is at hand, else its name alone; empty for the trainer of this package."""
    if model.example is None:
        return ""
    name = f"{model.script}.py"
    for folder in (Path.cwd(), Path(os.environ.get(EXAMPLES, "")) / model.example):
        if (folder / name).is_file():
            return str((folder / name).resolve())
    return name


def pipeline_of(model: str) -> str:
    """The folder or Hub name of what run.yaml calls its model: a name of the table, or already that."""
    return MODELS[model].pipeline if model in MODELS else model


def how_to_get(script: str) -> str:
    """A command that fetches diffusers' script to the path `script`, as it fits the installed diffusers."""
    from importlib.metadata import version

    name = Path(script).name
    example = next((model.example for model in MODELS.values() if f"{model.script}.py" == name), None) or "dreambooth"
    address = f"https://raw.githubusercontent.com/huggingface/diffusers/v{version('diffusers')}/examples"
    return shlex.join(["curl", "-o", script, f"{address}/{example}/{name}"])
