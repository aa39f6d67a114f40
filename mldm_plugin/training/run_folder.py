"""The folder of a run: whose it is, and what it was started with."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mldm_plugin.errors import RunFolderError
from mldm_plugin.training.metrics import FILE_NAME as METRICS

ARGUMENTS = "arguments.json"
PRESET = "preset.yaml"
WEIGHTS = "diffusion_pytorch_model.safetensors"

# Flags that may change when a run is resumed: they alter no number of the steps that both runs have in common.
FREE_ON_RESUME = frozenset(
    {
        *("cache_dir", "output_dir", "logging_dir", "resume_from_checkpoint", "loss_plugin", "preset", "set"),
        *("checkpointing_steps", "checkpoints_total_limit", "gradient_checkpointing", "set_grads_to_none"),
        *("validation_prompt", "validation_image", "validation_steps", "num_validation_images", "panel_steps"),
        *("report_to", "tracker_project_name", "push_to_hub", "hub_model_id", "hub_token"),
    }
)
LENGTH = frozenset({"max_train_steps", "num_train_epochs"})  # free too, while the learning rate is constant
CONSTANT = ("constant", "constant_with_warmup")
PLACES = ("pretrained_model_name_or_path", "controlnet_model_name_or_path", "tokenizer_name", "train_data_dir")


class RunFolder:
    """A run folder, claimed for one run.

    Args:
        path: the folder; it need not exist.
        arguments: the resolved flags.
        processes: number of processes that train.
        preset: the resolved preset as YAML, None without a plugin.
    """

    def __init__(self, path: Path, arguments: argparse.Namespace, processes: int, preset: str | None = None) -> None:
        self.path = path
        self._preset = preset
        flags = {k: v for k, v in vars(arguments).items() if k != "hub_token"}
        flags |= {k: str(Path(flags[k]).resolve()) for k in PLACES if flags[k] and Path(flags[k]).exists()}
        self._arguments = {**flags, "num_processes": processes}

    def check(self, *, resuming: bool) -> None:
        """Refuse a folder that another run has written to. Writes nothing.

        Raises:
            RunFolderError: the folder holds a run and this one does not resume it, or resumes it with other flags
                or another preset.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"--output_dir {self.path} is a file; choose a folder.")
        trained = [p.name for p in (self.path / METRICS, *checkpoints_in(self.path), self.path / WEIGHTS) if p.exists()]
        if resuming and (differences := self._differences()):
            raise RunFolderError(
                f"{self.path} holds a run with other settings: {'; '.join(differences)}. Resume it with its own, or "
                "choose another --output_dir."
            )
        if not (self.path / ARGUMENTS).exists() and (self.path / PRESET).exists():
            trained.append(PRESET)  # not ours, or not from a run that we know; never overwritten
        if not resuming and trained:
            way_on = "continue that run with --resume_from_checkpoint latest"
            if trained[0] == WEIGHTS:  # nothing to resume, and whoever trained them wants them kept
                way_on = f"start from those weights with --controlnet_model_name_or_path {self.path}"
            raise RunFolderError(
                f"{self.path} holds another run ({trained[0]}); choose another --output_dir, or {way_on}."
            )

    def write(self) -> None:
        """Record the flags and the preset, before the first step."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / ARGUMENTS, json.dumps(self._arguments, indent=2) + "\n")
        if self._preset is not None:
            write_text(self.path / PRESET, self._preset)

    def _differences(self) -> list[str]:
        if not any((self.path / name).exists() for name in (ARGUMENTS, PRESET, METRICS)):
            return []
        try:
            stored = json.loads((self.path / ARGUMENTS).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return [f"{ARGUMENTS} is missing or damaged"]
        own = json.loads(json.dumps(self._arguments))
        free = FREE_ON_RESUME | (LENGTH if own["lr_scheduler"] in CONSTANT else frozenset())
        found = [
            f"--{name} was {stored.get(name)!r}, is {own[name]!r}"
            for name in own
            if name not in free and stored.get(name) != own[name]
        ]
        return found + self._preset_differences()

    def _preset_differences(self) -> list[str]:
        path = self.path / PRESET
        stored = dict(_flat(yaml.safe_load(path.read_text(encoding="utf-8")))) if path.exists() else {}
        own = dict(_flat(yaml.safe_load(self._preset))) if self._preset is not None else {}
        return [
            f"preset: {key} was {stored.get(key)!r}, is {own.get(key)!r}"
            for key in dict.fromkeys([*stored, *own])
            if not key.startswith("training.") and stored.get(key) != own.get(key)
        ]


def checkpoints_in(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.is_dir() and step_of(p) is not None]
    return sorted(found, key=lambda p: step_of(p) or 0)


def step_of(checkpoint: Path) -> int | None:
    """The step in a checkpoint's name; None if it is not named like one."""
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else None


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def save_weights(model: Any, folder: Path) -> None:
    """`model.save_pretrained(folder)`, each file whole or not there, the configuration last."""
    partial = folder / ".weights.partial"
    model.save_pretrained(partial)
    for file in sorted(partial.iterdir(), key=lambda p: p.name == "config.json"):
        file.replace(folder / file.name)
    partial.rmdir()


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), value
