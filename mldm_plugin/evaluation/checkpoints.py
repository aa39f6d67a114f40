"""`mldm evaluate --checkpoints RUN`: the checkpoints of a run as models, and which is the best."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.best import TITLES, best_of
from mldm_plugin.evaluation.models import is_trained

FINAL = "final"
PLACES = ("", "controlnet", "unet", "model")  # where trainers put what they train inside a checkpoint
# sd-scripts' names: NAME-000002 after an epoch, NAME-step00000100, and NAME at the end; without --output_name others.
OF_KOHYA = re.compile(r"(?P<name>.+?)(-(?P<epoch>\d{6})|-step(?P<step>\d{8}))?")
UNNAMED = ("epoch", "at", "last")


def models_of_run(run: Path) -> list[str]:
    """`NAME=WHAT` of the final weights of a run of ours, of diffusers' scripts or of kohya's, then of each checkpoint.

    Raises:
        MldmError: no LoRA, no ControlNet and no conditional model in any of them, or files of several trainings.
    """
    steps = {int(p.name.removeprefix("checkpoint-")): p for p in run.glob("checkpoint-*") if _is_checkpoint(p)}
    found = {FINAL: run} if is_trained(run) else {}
    for step, checkpoint in sorted(steps.items()):
        inside = next((checkpoint / place for place in PLACES if is_trained(checkpoint / place)), None)
        if inside is not None:
            found[f"step-{step}"] = inside
    found = found or _of_kohya(run)
    if not found:
        raise MldmError(
            f"{run} has no checkpoint-N with a LoRA (pytorch_lora_weights.safetensors), a ControlNet "
            "(controlnet/config.json) or a conditional model (model/unet/config.json), no final weights, and no "
            "NAME-000001.safetensors of kohya's: give the folder of a run, its --output_dir."
        )
    return [f"{name}={path}" for name, path in found.items()]


def _of_kohya(run: Path) -> dict[str, Path]:
    """What sd-scripts leaves in its --output_dir, by the names that it gives: the end, then steps and epochs.

    Raises:
        MldmError: of several trainings, whose files cannot be told apart by epochs.
    """
    files = {path: OF_KOHYA.fullmatch(path.stem) for path in sorted(run.glob("*.safetensors"))}
    told = {path: match for path, match in files.items() if match}
    names = sorted({match["name"] for match in told.values()})
    if len({"" if name in UNNAMED else name for name in names}) > 1:
        raise MldmError(
            f"{run} holds LoRAs of {len(names)} names ({', '.join(names)}), and --checkpoints ranks those of "
            "one training: give each with --model NAME=FILE, or those of one name in a folder of their own."
        )
    named = [
        (bool(m["epoch"] or m["step"]), bool(m["epoch"]), int(m["epoch"] or m["step"] or 0), path)
        for path, m in told.items()
    ]
    return {
        (f"{'epoch' if epoch else 'step'}-{number}" if saved_before else FINAL): path
        for saved_before, epoch, number, path in sorted(named)
    }


def settings_of_run(run: Path) -> dict[str, Any]:
    """The `resolution` of a run of ours, and `data`, the folder it was evaluated on; without what it does not say."""
    try:
        arguments = json.loads((run / "arguments.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    data = arguments.get("evaluate_data_dir") or (arguments.get("evaluate_steps") and arguments.get("train_data_dir"))
    return {"resolution": arguments.get("resolution"), **({"data": Path(data)} if data else {})}


def ranking(results: dict[str, Any], models: list[str]) -> str:
    """Two lines for people: the models of `models_of_run` in their order, and whether the first is shown to be better
    than the last of the run.

    Args:
        results: as `evaluate` returns them.
        models: as `models_of_run` returns them.
    """
    rows = {row["name"]: row["values"] for row in results["metrics"] if row["kind"] == "one_step"}
    there = {model["name"] for model in results["models"]}
    names = [name for name in (text.partition("=")[0] for text in models) if name in there]
    names.sort(key=lambda name: name == FINAL)  # it comes last
    number = max((len(values) for of_models in rows.values() for values in of_models.values()), default=0)
    nothing: list[float | None] = [None] * number
    best = (
        best_of({name: {q: rows.get(q, {}).get(name, nothing) for q in TITLES} for name in names}) if number else None
    )
    if best is None:
        return "no photograph was looked at, so the checkpoints are not ranked: give --data and --photographs."
    means = best.means
    order = sorted((name for name in names if means[name] == means[name]), key=lambda name: means[name])
    listed = ", ".join(f"{name} {means[name]:.4g}" for name in order)
    return f"by {TITLES[best.criterion]}, best first: {listed}\n{best.in_words()}"


def _is_checkpoint(folder: Path) -> bool:
    return folder.is_dir() and folder.name.removeprefix("checkpoint-").isdecimal()
