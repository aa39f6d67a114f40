"""`mldm evaluate --checkpoints RUN`: the checkpoints of a run as models, and which is the best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.best import TITLES, best_of
from mldm_plugin.evaluation.models import is_trained

FINAL = "final"
PLACES = ("", "controlnet", "unet", "model")  # where trainers put what they train inside a checkpoint


def models_of_run(run: Path) -> list[str]:
    """`NAME=WHAT` of the final weights of a run of ours or of diffusers' scripts, then of each checkpoint.

    Raises:
        MldmError: no LoRA, no ControlNet and no conditional model in any of them.
    """
    steps = {int(p.name.removeprefix("checkpoint-")): p for p in run.glob("checkpoint-*") if _is_checkpoint(p)}
    found = {FINAL: run} if is_trained(run) else {}
    for step, checkpoint in sorted(steps.items()):
        inside = next((checkpoint / place for place in PLACES if is_trained(checkpoint / place)), None)
        if inside is not None:
            found[f"step-{step}"] = inside
    if not found:
        raise MldmError(
            f"{run} has no checkpoint-N with a LoRA (pytorch_lora_weights.safetensors), a ControlNet "
            "(controlnet/config.json) or a conditional model (model/unet/config.json), and no final weights: give the "
            "folder of a run, its --output_dir."
        )
    return [f"{name}={path}" for name, path in found.items()]


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
