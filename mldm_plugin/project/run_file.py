"""run.yaml: one file holds what is learnt from which photographs, with the reason of each unusual number beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mldm_plugin.errors import MldmError
from mldm_plugin.preset import NoDuplicates, describe_faults
from mldm_plugin.records.files import write_text

NAME = "run.yaml"
PROMPTS = "prompts.txt"
GIVEN = "given"  # of masks: the photographs are a training set, which has them
ELSEWHERE = {
    "max_train_steps": "is `steps:`",
    "pretrained_model_name_or_path": "is `model:`",
    "seed": "is `seed:`",
    "output_dir": "is the folder of this file",
    "train_data_dir": "is made from `photos:`",
    "push_to_hub": "would publish them unseen: `mldm sample --push-to-hub` afterwards",
}  # keys of `training:` that are said in another place
PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}  # of the pipelines, as they were trained
COUNTS = {"resolution", "train_batch_size", "gradient_accumulation_steps"}  # that the other commands need, too
FLAG = re.compile(r"[A-Za-z][\w.-]*")
WIDTH = 118  # of the file's lines; a longer reason goes above its key


class Run(BaseModel):
    """What `mldm train` carries out. Paths are relative to the file's folder, or absolute."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    photos: str = Field(description="folder of the photographs, which is only read")
    who: str = Field(min_length=1, description="how captions and prompts call the person")
    caption: str = Field(description="of photographs that have none of their own")
    leave_out: list[str] = Field(default=[], description="photographs that are not learnt")
    held_out: int = Field(default=0, ge=0, description="photographs that are kept back to judge with")
    masks: str = Field(
        default="auto",
        description="who finds the people (mldm data folder --help); given: they have masks",
    )
    faces: str = Field(default="auto", description="who finds the faces (mldm data folder --help)")
    model: str = Field(description="the pipeline: people-mini, a folder or a Hub name")
    script: str = Field(default="", description="diffusers' training script; empty for the trainer of this package")
    python: str = Field(default="", description="interpreter of the script's own environment; empty for this one")
    plugins: list[str] = Field(default=["mldm"], description="losses (--loss-plugin)")
    preset: str = Field(description="which losses, with their weights (mldm presets list)")
    set: list[str] = Field(default=[], description="changes to the preset, each a.b=c")
    training: dict[str, Any] = Field(description="flags of the training script; true and false are switches")
    steps: int = Field(ge=2, description="optimizer steps")
    compare: Literal["plain", "none"] = Field(
        default="plain", description="train with the plain loss, too, from the same seed, on the same batches"
    )
    prompts: str = Field(default=PROMPTS, description="file of the prompts that are drawn, one a line")
    pictures: int = Field(default=2, ge=1, description="pictures of each prompt")
    guidance: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="scale of guidance; null is the pipeline's own"
    )
    seed: int = Field(default=0, ge=0, description="of every random draw")

    @field_validator("training", mode="before")
    @classmethod
    def _own_flags(cls, training: Any) -> Any:
        """All lines may be taken out; what stands elsewhere in the file, or is the folder's, may not stand there."""
        elsewhere = sorted({*(training or {})} & ELSEWHERE.keys()) if isinstance(training, dict | None) else []
        if elsewhere:
            raise ValueError("; ".join(f"{name} {ELSEWHERE[name]}" for name in elsewhere))
        if isinstance(training, dict) and (wrong := [fault for one in training.items() if (fault := _fault_of(*one))]):
            raise ValueError("; ".join(wrong))
        return {} if training is None else training


def _fault_of(name: Any, value: Any) -> str:
    """What is wrong with a line of `training:`, whatever the script; empty if nothing is."""
    if not (isinstance(name, str) and FLAG.fullmatch(name)):
        return f"{name!r} is no flag, expected a name without dashes before it"
    values = value if isinstance(value, list) else [value]
    if not all(one is None or isinstance(one, str | int | float) for one in values):
        return f"{name} is {str(value)[:40]}, expected one value, or a list of them"
    if name in COUNTS and not (str(value).isdecimal() and int(value) > 0):
        return f"{name} is {value!r}, expected a whole number above 0"
    if name == "mixed_precision" and value not in (*PRECISIONS, None, False):  # YAML reads a bare no as false
        return f"{name} is {value!r}, expected {', '.join(PRECISIONS)}"
    return ""


def read_run(path: Path) -> Run:
    """The run of a file, or of the run.yaml in a folder.

    Raises:
        MldmError: no such file, no YAML, or any fault in it; all at once.
    """
    path = path / NAME if path.is_dir() else path
    try:
        contents = yaml.load(path.read_text(encoding="utf-8"), Loader=NoDuplicates)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise MldmError(f"{path} cannot be read ({reason}): `mldm start PHOTOS --who NAME` writes one.") from error
    if not isinstance(contents, dict):
        raise MldmError(f"{path} holds {str(contents)[:40]!r}, expected keys such as photos: and steps:.")
    try:
        return Run.model_validate(contents)
    except ValidationError as error:
        faults = describe_faults(error, lambda _: Run.model_fields)
        raise MldmError(
            f"{path} has {len(faults)} fault(s):\n" + "\n".join(f"  {fault}" for fault in faults)
        ) from error


def write_run(path: Path, run: Run, title: str, reasons: Mapping[str, str]) -> None:
    """Write a run with reasons beside its lines.

    Args:
        path: of the file.
        title: its first lines, without the #.
        reasons: of keys, those of `training:` as `training.NAME`; a key without one says what it is.
    """
    lines = [f"# {line}" for line in title.splitlines()]
    for key, field in Run.model_fields.items():
        value, reason = getattr(run, key), reasons.get(key) or str(field.description)
        if isinstance(value, dict):
            lines += _with_reason(f"{key}:", reason)
            for name, one in value.items():
                lines += _with_reason(f"  {name}: {_as_yaml(one)}", reasons.get(f"{key}.{name}", ""), indent="  ")
        else:
            lines += _with_reason(f"{key}: {_as_yaml(value)}", reason)
    write_text(path, "\n".join(lines) + "\n")


def _as_yaml(value: Any) -> str:
    """On one line."""
    return (
        yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    )


def _with_reason(line: str, reason: str, indent: str = "") -> list[str]:
    if not reason:
        return [line]
    beside = f"{line:<40} # {reason}"
    return [beside] if len(beside) <= WIDTH else [f"{indent}# {reason}", line]
