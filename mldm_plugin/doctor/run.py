"""What is looked at: the weights of a run, what they were trained from and on, and where its records lie."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.models import LORA, class_of, meant
from mldm_plugin.records.metrics import FILE_NAME as METRICS

Kind = Literal["LoRA", "ControlNet"]
CONTROLNET = "diffusion_pytorch_model.safetensors"
ARGUMENTS = "arguments.json"
ATTACHED = "mldm"  # the folder of an attached run's records, in that of the script
# What is asked of a trainer's arguments, anywhere in this package; the others are not looked at.
_TEXTS = (
    "train_data_dir",
    "dataset_name",
    "pretrained_model_name_or_path",
    "controlnet_model_name_or_path",
    "variant",
    "image_column",
    "cache_dir",
)
_COUNTS = ("resolution", "max_train_samples", "train_batch_size", "gradient_accumulation_steps", "num_processes")
WHAT = (
    "Expected the folder of a run (with metrics.jsonl), a LoRA (a .safetensors file, or a folder with "
    f"{LORA}) or a ControlNet (a folder with its config.json)."
)


@dataclass(frozen=True)
class Run:
    """A training that is looked at.

    Args:
        weights, kind: the file of what was trained, and what it is; None where there is none yet.
        records: the folder of metrics.jsonl and preset.yaml; None where there is none.
        arguments: what a trainer of ours was started with; empty where nothing says it.
        base: the pipeline or ControlNet that it was trained from; None where nothing says it.
        data: the training set; None where nothing says it.
    """

    weights: Path | None
    kind: Kind | None
    records: Path | None
    arguments: dict[str, Any]
    base: str | None
    data: Path | None


def find_run(what: Path, base: str | None = None, data: Path | None = None) -> Run:
    """The run that a path means; `base` and `data` go before what its own records say.

    Raises:
        MldmError: there is nothing, or nothing that is known.
    """
    weights, kind = _weights(what)
    folder = _run_folder(what.parent if what.is_file() else what)
    records = next((f for f in (folder, folder / ATTACHED) if (f / METRICS).is_file()), None)
    if weights is None and records is None:
        raise MldmError(f"{what} holds nothing that is known. {WHAT}{meant(what)}")
    arguments = _arguments(folder) if (folder / ARGUMENTS).is_file() else {}
    if data is None and (named := arguments.get("train_data_dir")):
        data = Path(named)
    start = arguments.get("controlnet_model_name_or_path") if kind == "ControlNet" else None
    base = base or start or arguments.get("pretrained_model_name_or_path")
    return Run(weights, kind, records, arguments, base, data)


def _run_folder(folder: Path) -> Path:
    """The run that a checkpoint, or a network inside one, is of; a run may itself be called like one of these."""
    folder = folder.resolve()
    while folder.name == "controlnet" or folder.name.startswith("checkpoint-"):
        if any((folder / name).is_file() for name in (METRICS, ARGUMENTS, f"{ATTACHED}/{METRICS}")):
            break
        folder = folder.parent
    return folder


def _arguments(folder: Path) -> dict[str, Any]:
    remedy = "mend it, or move it away and say --base and --data."
    try:
        arguments = dict(json.loads((folder / ARGUMENTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise MldmError(f"{folder / ARGUMENTS} cannot be read ({error}): {remedy}") from error
    for names, what, fits in ((_TEXTS, "text", _is_text), (_COUNTS, "a whole number, 0 or more", _is_count)):
        for name in names:
            if (value := arguments.get(name)) is not None and not fits(value):
                raise MldmError(f"{folder / ARGUMENTS} has {name}: {value!r:.60}, expected {what}: {remedy}")
    return arguments


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _weights(what: Path) -> tuple[Path | None, Kind | None]:
    if what.is_file():
        if what.suffix != ".safetensors":
            raise MldmError(f"{what} is no .safetensors file; others can hold code and are not opened. {WHAT}")
        return what, "ControlNet" if class_of(what.parent) == "ControlNetModel" else "LoRA"
    if not what.is_dir():
        raise MldmError(f"{what} is not here. {WHAT}{meant(what)}")
    for folder in _folders(what):
        if (folder / LORA).is_file():
            return folder / LORA, "LoRA"
        if class_of(folder) == "ControlNetModel" and (folder / CONTROLNET).is_file():
            return folder / CONTROLNET, "ControlNet"
    loose = sorted(what.glob("*.safetensors"))
    if len(loose) > 1:
        raise MldmError(f"{what} holds several files, say which one: {', '.join(map(str, loose))}.")
    return (loose[0], "LoRA") if loose else (None, None)


def _folders(run: Path) -> Iterator[Path]:
    """Where a run keeps its weights: in its own folder at the end, before that in its last checkpoint."""
    yield run
    yield run / "controlnet"
    numbers = [p.name.removeprefix("checkpoint-") for p in run.glob("checkpoint-*") if p.is_dir()]
    for number in sorted((n for n in numbers if n.isdecimal()), key=int, reverse=True):
        yield run / f"checkpoint-{number}"
        yield run / f"checkpoint-{number}" / "controlnet"
