"""What `mldm start` decides: the run for these photographs and this model, and why."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mldm_plugin.errors import MldmError
from mldm_plugin.people_mini.words import words
from mldm_plugin.prepare.folder import splits
from mldm_plugin.prepare.stored import listed_rows
from mldm_plugin.preset import load_preset, task_preset
from mldm_plugin.project.models import PEOPLE_MINI, REPEATS, KnownModel, is_kohyas, script_of
from mldm_plugin.project.photos import Photo, left_out
from mldm_plugin.project.run_file import GIVEN, Run

HELD_OUT = 5  # one photograph of so many is kept back where both losses are compared; chosen
LEAST_HELD_OUT_OF = 6  # below that each is worth more in the training; chosen
# What is drawn: near, half and far, faces and hands, and places that the photographs do not show. Twelve, for with
# fewer than nine no difference could be shown in ten metrics (Holm).
PROMPTS = (
    "a photo of {who}, portrait, soft window light",
    "a photo of {who} smiling, close-up",
    "a photo of {who} in a garden, half body",
    "a photo of {who} walking on a city street, full body",
    "a photo of {who} reading a book at a desk",
    "a photo of {who} waving with one hand",
    "a photo of {who} in a red coat, snow",
    "a photo of {who} laughing with closed eyes, close-up",
    "a photo of {who} in profile, grey background",
    "a photo of {who} holding a cup with both hands",
    "a photo of {who} far away on a beach, full body",
    "a painting of {who}",
)
# people-mini knows the words of its captions and no others.
MINI_PROMPTS = (
    "photo of {who}, calm, bust, in a studio",
    "photo of {who}, smiling, bust, in a studio",
    "photo of {who}, surprised, bust, in a studio",
    "photo of {who}, angry, bust, in a studio",
    "photo of {who}, sad, bust, in a studio",
    "photo of {who}, smug, bust, in a studio",
    "photo of {who}, scared, bust, in a studio",
    "photo of {who}, thoughtful, bust, in a studio",
    "photo of {who}, exhausted, bust, in a studio",
    "photo of {who}, confused, bust, in a studio",
    "photo of {who}, playful, bust, in a studio",
    "photo of {who}, determined, bust, in a studio",
)


@dataclass(frozen=True)
class Decided:
    """A run, the reasons of its numbers, and the prompts.

    Args:
        run: for run.yaml.
        reasons: by key, as `write_run` takes them.
        prompts: one a line.
        resolution: pixels of the short side in training.
        kept_back: names of the photographs that are held out.
    """

    run: Run
    reasons: dict[str, str]
    prompts: list[str]
    resolution: int
    kept_back: list[str]


def decide(
    folder: Path,
    photos: Sequence[Photo],
    who: str,
    model: KnownModel,
    pipeline: str,
    *,
    script: str | None = None,
    python: str | None = None,
    compare: bool = True,
) -> Decided:
    """The run for these photographs.

    Args:
        folder: of the photographs.
        photos: what `look_at` saw in it.
        who: how the person is called.
        model: which kind it is.
        pipeline: folder or Hub name; the model's own or one of that kind.
        script: a training script, in place of the model's own.
        python: the interpreter that runs it, in place of this one.
        compare: whether the plain loss is trained, too.

    Raises:
        MldmError: no photograph is left to learn.
        PresetError: the model's preset cannot be read.
    """
    annotated = is_annotated(folder)
    out = {} if annotated else left_out(photos)  # a training set is trained on as it is
    count = len(photos) - len(out)
    if not count:
        raise MldmError(f"none of the {len(photos)} photographs in {folder} can be learnt: {next(iter(out.values()))}.")
    kept_back = _kept_back(folder, [photo.name for photo in photos if photo.name not in out], annotated, compare)
    trainer = Path(script).stem if script else model.script
    preset = model.preset if trainer in load_preset(model.preset).training else task_preset(trainer)
    training, steps, reasons = _training(preset, trainer, model, count, len(kept_back))
    mini = model.name == PEOPLE_MINI
    reasons |= _reasons(script or model.example, preset, out, kept_back, annotated)
    run = Run(
        photos=os.path.abspath(folder),  # noqa: PTH100 - a link stays what it is called
        who=who,
        caption=f"photo of {who}, bust" if mini else f"a photo of {who}",
        leave_out=list(out),
        held_out=len(kept_back),
        masks=GIVEN if annotated else "auto",
        model=pipeline,
        script=str(Path(script).resolve()) if script else script_of(model),
        python=os.path.abspath(python) if python else "",  # noqa: PTH100 - resolved, it would leave its environment
        preset=preset,
        training=training,
        steps=steps,
        compare="plain" if compare else "none",
        guidance=model.guidance,
    )
    prompts = [prompt.format(who=who) for prompt in (MINI_PROMPTS if mini else PROMPTS)]
    return Decided(run, reasons, prompts, int(training["resolution"]), kept_back)


def _kept_back(folder: Path, names: Sequence[str], annotated: bool, compare: bool) -> list[str]:
    """Which photographs are kept back: those of a training set's own split, else one in five, by their places,
    as `mldm data folder` chooses them."""
    if annotated:
        return [f"validation/{row['file_name']}" for _, row in listed_rows(folder / "validation")]
    held_out = len(names) // HELD_OUT if compare and len(names) >= LEAST_HELD_OUT_OF else 0
    return [name for name, split in zip(names, splits(len(names), held_out), strict=True) if split == "validation"]


def _reasons(
    script: str | None, preset: str, out: Mapping[str, str], kept_back: Sequence[str], annotated: bool
) -> dict[str, str]:
    given = {"masks": "the folder is a training set with masks, and is trained on as it is"} if annotated else {}
    return given | {
        "leave_out": "; ".join(f"{name}: {why}" for name, why in out.items())
        or "nothing; every photograph can be learnt",
        "held_out": f"kept back, so that both are judged on photographs that neither has seen: {', '.join(kept_back)}"
        if kept_back
        else "none: there are few, or nothing is compared",
        "script": "somebody else's training script, which is not edited" if script else "the trainer of this package",
        "preset": f"T and λ, with their sources: mldm presets show {preset}",
    }


def _training(
    preset: str, script: str, model: KnownModel, count: int, held_out: int
) -> tuple[dict[str, Any], int, dict[str, str]]:
    """The script's flags, the number of steps, and the reasons."""
    training = {"resolution": model.resolution, **load_preset(preset).training[script]}
    batch = int(training.get("train_batch_size", 1)) * int(training.get("gradient_accumulation_steps", 1))
    epochs = [training.pop(name, None) for name in ("num_train_epochs", "max_train_epochs")]
    if "max_train_steps" in training:
        meant = int(training.pop("max_train_steps"))
        steps = meant if model.photos == count else max(round(meant * count / model.photos), meant // 2)
        why = f"{meant} for {model.photos} photographs in that preset, here are {count}"
    else:
        times = int(epochs[0] or epochs[1] or 1) * (REPEATS if is_kohyas(script) else 1)
        steps = max(math.ceil(times * count / batch), 2)
        why = f"each of {count} photographs {times} times, as that preset has it"
    views = steps * batch / max(count - held_out, 1)
    reasons = {
        "training": f"from preset {preset}, whose file names the source of each",
        "steps": f"{why}; {views:.0f} views of each that is learnt",
    }
    return training, steps, reasons


def taken_words(who: str) -> list[str]:
    """Words of a name that people-mini's captions have: it would draw what they mean there."""
    return sorted(set(who.lower().split()) & set(words().split()) - {"woman", "man"})


def is_annotated(folder: Path) -> bool:
    """Whether a folder is a training set with masks already, made by `mldm data` or by hand."""
    return any(row.get("mask_file_name") for _, row in listed_rows(folder))
