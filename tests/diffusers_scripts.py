"""diffusers' eleven main training scripts: the command line with which each runs for four steps on a CPU.

The scripts are not part of this repository: the environment variable MLDM_DIFFUSERS_EXAMPLES names the `examples/`
folder of a checkout of diffusers. They run unmodified, in processes of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_families import build
from tiny_people import (
    CLASS_SIZES,
    write_captions,
    write_class_pictures,
    write_dreambooth,
    write_imagefolder,
    write_realfill,
)
from torch import Tensor

VARIABLE = "MLDM_DIFFUSERS_EXAMPLES"
EXAMPLES = Path(os.environ.get(VARIABLE, "examples-of-diffusers"))
needs_examples = pytest.mark.skipif(not EXAMPLES.is_dir(), reason=f"{VARIABLE} names no folder")

COMMON = "--resolution 64 --train_batch_size 2 --max_train_steps 4 --seed 0 --dataloader_num_workers 0"
CONTROLNET = (
    "--learning_rate 1e-3 --image_column image --caption_column text --conditioning_image_column conditioning_image"
)
DREAMBOOTH = ["--instance_prompt", "a person"]
PRIOR = f"--with_prior_preservation --class_prompt person --num_class_images {len(CLASS_SIZES)}".split()


@dataclass(frozen=True)
class Variant:
    """What differs from a script's own flags.

    `pipeline` is given to `tiny_families.build`; `data` replaces the form of the script's data.
    """

    flags: tuple[str, ...] = ()
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None


@dataclass(frozen=True)
class Script:
    """One script.

    Attributes:
        path: relative to `examples/`.
        family: of the tiny pipeline that it trains.
        data: `imagefolder` (--train_data_dir), `dataset` (the same folder as --dataset_name), `captions` (the same
            pictures without annotation), `dreambooth`, `concept` (the same pictures as --train_data_dir), or
            `realfill`.
        flags: apart from `COMMON`, the model, the data and the output. PIPELINE stands for the folder of the model.
        weights: the files it writes, relative to --output_dir.
        variants: by name; `plain` is the script's own flags.
        without: flags of `COMMON`, or the model's, that the script does not have.
    """

    path: str
    family: str
    data: str
    flags: tuple[str, ...]
    weights: tuple[str, ...]
    variants: Mapping[str, Variant]
    without: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return Path(self.path).stem


def _variants(**variants: str | Variant) -> dict[str, Variant]:
    made = {name: v if isinstance(v, Variant) else Variant(tuple(v.split())) for name, v in variants.items()}
    return {"plain": Variant(), **made}


def _controlnet(suffix: str, family: str, variants: Mapping[str, Variant], flags: str = "") -> Script:
    return Script(
        path=f"controlnet/train_controlnet{suffix}.py",
        family=family,
        data="dataset" if family == "flux" else "imagefolder",
        flags=(
            *CONTROLNET.split(),
            *flags.split(),
        ),
        weights=("diffusion_pytorch_model.safetensors",),
        variants=variants,
    )


def _text_to_image(suffix: str, family: str, variants: Mapping[str, Variant], flags: str, weights: str) -> Script:
    return Script(
        path=f"text_to_image/train_text_to_image{suffix}.py",
        family=family,
        data="imagefolder",
        flags=("--image_column", "image", "--caption_column", "text", *flags.split()),
        weights=(weights,),
        variants=variants,
    )


def _dreambooth(suffix: str, family: str, variants: Mapping[str, Variant], flags: str = "") -> Script:
    return Script(
        path=f"dreambooth/train_dreambooth_lora{suffix}.py",
        family=family,
        data="dreambooth",
        flags=(*DREAMBOOTH, "--learning_rate", "1e-2", *flags.split()),
        weights=(LORA,),
        variants=variants,
    )


LORA = "pytorch_lora_weights.safetensors"
V = {"prediction_type": "v_prediction"}
CAPTIONS = Variant(("--image_column", "image", "--caption_column", "text"), data="dataset")
T2I = {"centre_crop": "--center_crop", "flip": "--random_flip", "snr_gamma": "--snr_gamma 5"}
T2I |= {"v_prediction": "--prediction_type v_prediction", "v_snr_gamma": "--prediction_type v_prediction --snr_gamma 5"}
T2I |= {"noise_offset": "--noise_offset 0.1", "bf16": "--mixed_precision bf16 --random_flip"}
FLOW = {"sigma_sqrt": "--weighting_scheme sigma_sqrt", "cosmap": "--weighting_scheme cosmap"}
CACHED = {"cache_latents": "--cache_latents --random_flip", "flip": "--random_flip", "centre_crop": "--center_crop"}
ALONE = ("--train_batch_size", "1")  # SD3 with prior preservation makes one prompt embedding of either kind a batch
SHORT = "--max_sequence_length 16"

SCRIPTS: dict[str, Script] = {
    script.name: script
    for script in (
        _controlnet(
            "",
            "sd",
            _variants(v_prediction=Variant(pipeline=V), accumulate="--gradient_accumulation_steps 2"),
        ),
        _controlnet("_sdxl", "sdxl", _variants(v_prediction=Variant(pipeline=V))),
        _controlnet("_sd3", "sd3", _variants(velocity="--precondition_outputs 0", **FLOW), SHORT),
        _controlnet(
            "_flux", "flux", _variants(uniform="--weighting_scheme none"), "--num_double_layers 1 --num_single_layers 1"
        ),
        _text_to_image(
            "",
            "sd",
            _variants(
                **T2I,
                input_perturbation="--input_perturbation 0.1",
                dream="--dream_training",
                accumulate="--gradient_accumulation_steps 2",
            ),
            "--learning_rate 1e-3",
            "unet/diffusion_pytorch_model.safetensors",
        ),
        _text_to_image("_lora", "sd", _variants(**T2I), "--learning_rate 1e-2", LORA),
        _text_to_image("_lora_sdxl", "sdxl", _variants(**T2I), "--learning_rate 1e-2", LORA),
        _dreambooth(
            "",
            "sd",
            _variants(centre_crop="--center_crop", v_prediction=Variant(pipeline=V), prior=Variant(tuple(PRIOR))),
        ),
        _dreambooth(
            "_sdxl",
            "sdxl",
            _variants(
                centre_crop="--center_crop",
                flip="--random_flip",
                snr_gamma="--snr_gamma 5",
                v_prediction=Variant(pipeline=V),
                prior=Variant(tuple(PRIOR)),
                edm_euler="--do_edm_style_training",
                edm_euler_v=Variant(("--do_edm_style_training",), V),
                edm=Variant(pipeline={"edm": True}),
                captions=CAPTIONS,
            ),
        ),
        _dreambooth(
            "_sd3",
            "sd3",
            _variants(
                **FLOW,
                **CACHED,
                velocity="--precondition_outputs 0",
                prior=Variant((*PRIOR, *ALONE)),
                prior_cache_latents=Variant((*PRIOR, *ALONE, "--cache_latents")),
                captions=CAPTIONS,
            ),
            SHORT,
        ),
        _dreambooth(
            "_flux",
            "flux",
            _variants(
                **FLOW,
                **CACHED,
                prior=Variant(tuple(PRIOR)),
                prior_cache_latents=Variant((*PRIOR, "--cache_latents")),
                captions=CAPTIONS,
            ),
            SHORT,
        ),
    )
}


def command(
    script: Script, variant: str, out: Path, launcher: str | None = None, extra: Iterable[Any] = ()
) -> list[str]:
    """The command that trains into `out`, through `-m launcher` if one is given; `extra` flags come last.

    Models and data are made once and kept beside `out`, in `ground/`, so runs under one folder share them.
    """
    chosen = script.variants[variant]
    ground = out.parent / "ground"
    write_data(ground)
    model = pipeline(script, variant, ground)
    flags: list[Any] = [*_common(script, model), "--output_dir", out]
    flags += _data_flags(chosen.data or script.data, chosen, ground)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["-m", launcher] if launcher else []
    own = [flag.replace("PIPELINE", str(model)) for flag in (*script.flags, *chosen.flags)]
    return [str(x) for x in (*launch, EXAMPLES / script.path, *flags, *own, *extra)]


def run(
    script: Script,
    variant: str,
    out: Path,
    launcher: str | None = None,
    extra: Iterable[Any] = (),
    *,
    timeout: float = 240,
) -> tuple[subprocess.CompletedProcess[str], dict[str, Tensor]]:
    """Train into `out`; the finished process and all tensors it saved, named `file:key`.

    The tensors are those of the files that exist: none after a run that failed.
    """
    done = subprocess.run(
        command(script, variant, out, launcher, extra),
        env=environment(out),
        cwd=out.parent,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done, saved(script, out)


def saved(script: Script, out: Path) -> dict[str, Tensor]:
    """All tensors that `script` saved into `out`, named `file:key`."""
    files = [file for file in script.weights if (out / file).is_file()]
    return {f"{file}:{key}": value for file in files for key, value in load_file(out / file).items()}


def environment(out: Path) -> dict[str, str]:
    """One thread, no network, and no cache of `datasets` that another run has filled."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(out.parent / "ground" / "huggingface"),
        "HF_DATASETS_CACHE": str(out.parent / f"{out.name}-datasets"),
        "TOKENIZERS_PARALLELISM": "false",
    }


def pipeline(script: Script, variant: str, ground: Path) -> Path:
    """The tiny pipeline of this variant, made if it is not there."""
    changes = script.variants[variant].pipeline
    folder = ground / "-".join([script.family, *(f"{key}-{value}" for key, value in changes.items())])
    return folder if (folder / "model_index.json").is_file() else build(script.family, folder, **changes)


def masks_folder(out: Path) -> Path:
    """Where the masks of the DreamBooth pictures lie, for `--mldm-mask-dir`."""
    return out.parent / "ground" / "masks"


def write_data(ground: Path) -> None:
    """All data sets, if they are not there: `imagefolder`, `captions`, `pictures` with `masks`, and `class`."""
    if not (ground / "class").is_dir():
        write_imagefolder(ground / "imagefolder")
        write_captions(ground / "captions")
        write_dreambooth(ground / "pictures", ground / "masks")
        write_realfill(ground / "realfill")
        write_class_pictures(ground / "class")


def _common(script: Script, model: Path) -> list[str]:
    """`COMMON` and the model, without the flags that the script does not have; each has one value."""
    words = [*COMMON.split(), "--pretrained_model_name_or_path", str(model)]
    flags = zip(words[::2], words[1::2], strict=True)
    return [word for flag in flags if flag[0] not in script.without for word in flag]


def _data_flags(form: str, variant: Variant, ground: Path) -> list[str]:
    if form == "imagefolder":
        return ["--train_data_dir", str(ground / "imagefolder")]
    if form == "captions":
        return ["--train_data_dir", str(ground / "captions")]
    if form == "concept":
        return ["--train_data_dir", str(ground / "pictures")]
    if form == "realfill":
        return ["--train_data_dir", str(ground / "realfill")]
    if form == "dataset":
        return ["--dataset_name", str(ground / "imagefolder")]
    prior = ["--class_data_dir", str(ground / "class")] if "--with_prior_preservation" in variant.flags else []
    return ["--instance_data_dir", str(ground / "pictures"), *prior]
