"""The folder of a run: whose it is, and what it was started with."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mldm_plugin.errors import RunFolderError
from mldm_plugin.records.files import write_text
from mldm_plugin.records.metrics import FILE_NAME as METRICS
from mldm_plugin.training.flags import TrainerFlags
from mldm_plugin.training.trainer import Trainer

ARGUMENTS = "arguments.json"
PRESET = "preset.yaml"
EVALUATION = "evaluation.json"

# Flags that may change when a run is resumed: they alter no number of the steps that both runs have in common.
FREE_ON_RESUME = frozenset(
    {
        *("cache_dir", "output_dir", "logging_dir", "resume_from_checkpoint", "loss_plugin", "preset", "set"),
        *("checkpointing_steps", "checkpoints_total_limit", "gradient_checkpointing", "set_grads_to_none"),
        *("validation_prompt", "validation_image", "validation_steps", "num_validation_images"),
        *("panel_steps", "curve_steps", "validation_epochs", "validation_scheduler", "local_rank", "latents_cache_dir"),
        *("evaluate_steps", "evaluate_data_dir", "evaluate_photographs"),
        *("report_to", "tracker_project_name", "push_to_hub", "hub_model_id", "hub_token"),
    }
)
LENGTH = frozenset({"max_train_steps", "num_train_epochs"})  # free too, while the learning rate is constant
CONSTANT = ("constant", "constant_with_warmup")
PLACES = (
    *("pretrained_model_name_or_path", "controlnet_model_name_or_path", "tokenizer_name"),
    *("train_data_dir", "evaluate_data_dir"),
)


class RunFolder:
    """A run folder, claimed for one run.

    Args:
        path: the folder; it need not exist.
        flags: those of the run.
        processes: number of processes that train.
        kind: what is trained, for how it is stored.
        preset: the resolved preset as YAML, None without a plugin.
    """

    def __init__(
        self,
        path: Path,
        flags: TrainerFlags,
        processes: int,
        kind: type[Trainer],
        preset: str | None = None,
    ) -> None:
        self.path = path
        self._kind = kind
        self._preset = preset
        given = {k: v for k, v in flags.model_dump().items() if k != "hub_token"}
        given |= {k: str(Path(given[k]).resolve()) for k in PLACES if given.get(k) and Path(given[k]).exists()}
        self._arguments = {**given, "num_processes": processes}
        self._unasked = {name: field.default for name, field in type(flags).model_fields.items()}

    def check(self, *, resuming: bool) -> None:
        """Refuse a folder that another run has written to. Writes nothing.

        Raises:
            RunFolderError: the folder holds a run and this one does not resume it, or resumes it with other flags
                or another preset.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"--output_dir {self.path} is a file; choose a folder.")
        weights = self.path / self._kind.weights_file
        trained = [p.name for p in (self.path / METRICS, *checkpoints_in(self.path), weights) if p.exists()]
        if resuming and (differences := self._differences()):
            raise RunFolderError(
                f"{self.path} holds a run with other settings: {'; '.join(differences)}. Resume it with its own, or "
                "choose another --output_dir."
            )
        if not (self.path / ARGUMENTS).exists():  # not ours, or not from a run that we know; never overwritten
            trained += [name for name in (PRESET, EVALUATION) if (self.path / name).exists()]
        if not resuming and trained:
            way_on = ", or continue that run with --resume_from_checkpoint latest"
            if trained[0] == weights.name:  # nothing to resume, and whoever trained them wants them kept
                flag = self._kind.start_flag
                way_on = f", or start from those weights with {flag} {self.path}" if flag else ""
            raise RunFolderError(f"{self.path} holds another run ({trained[0]}); choose another --output_dir{way_on}.")

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
            f"--{name} was {was!r}, is {own[name]!r}"
            for name in own
            for was in [stored.get(name, self._unasked.get(name))]  # a run may be older than a flag
            if name not in free and was != own[name]
        ]
        path = self.path / PRESET
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        return found + preset_changes(before, self._preset or "")


def preset_changes(before: str, now: str, script: str = "", given: Collection[str] = ()) -> list[str]:
    """What differs between two presets as YAML, a line each; of the trainers' settings only those of `script` that are
    not `given` as flags."""
    stored, own = (dict(_flat(yaml.safe_load(text))) if text else {} for text in (before, now))
    return [
        f"preset: {key} was {stored.get(key)!r}, is {own.get(key)!r}"
        for key in dict.fromkeys([*stored, *own])
        if stored.get(key) != own.get(key) and _counts(key, script, given)
    ]


def _counts(key: str, script: str, given: Collection[str]) -> bool:
    section, *names = key.split(".")
    return section != "training" or (len(names) > 1 and names[0] == script and names[1] not in given)


def checkpoints_in(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.is_dir() and step_of(p) is not None]
    return sorted(found, key=lambda p: step_of(p) or 0)


def step_of(checkpoint: Path) -> int | None:
    """The step in a checkpoint's name; None if it is not named like one."""
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else None


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), value
