"""A calibration from what the command line names: the model, the photographs, the losses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mldm_plugin.calibration.measure import Calibration
from mldm_plugin.calibration.propose import Telling
from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.cases import open_photographs
from mldm_plugin.evaluation.claims import claim, stamp
from mldm_plugin.evaluation.models import load_pipeline, parse_models, side_of
from mldm_plugin.evaluation.notes import Notes
from mldm_plugin.evaluation.predicting import Asker
from mldm_plugin.plugins import load_plugins
from mldm_plugin.preset import Preset, load_preset
from mldm_plugin.weights_first import fetch_needed


@dataclass(frozen=True)
class Calibrated:
    """What was found, and with what."""

    preset: Preset
    schedule: NoiseSchedule
    timesteps: Sequence[int]
    tellings: Mapping[str, Telling]


def calibration(
    model: str,
    data: Path,
    others: Path | None,
    *,
    base: str | None,
    name: str,
    overrides: Sequence[str],
    names: Sequence[str],
    photographs: int,
    draws: int,
    resolution: int | None,
    out: Path | None = None,
) -> Calibrated:
    """Look at `photographs` rows of `data`, evenly over all; with `out`, go on where it was left.

    Raises:
        MldmError: a model, preset, data set or network that cannot be used.
    """
    plugins = load_plugins(names)
    preset = load_preset(name, overrides, plugins=plugins)
    if not any(loss.weight > 0 for loss in preset.losses.values()):
        raise MldmError(
            f"preset {name} has no loss of positive weight: name one that has, or --set losses.face.weight=1."
        )
    fetch_needed(preset, plugins)
    run, *more = parse_models([f"model={model}"], base)[0].runs
    if more:
        raise MldmError(f"--model {model} is {1 + len(more)} models: name one of them.")
    if run.kind in ("pictures", "conditional"):
        raise MldmError(f"--model {model} draws nothing from captions: expected a pipeline, a LoRA or a ControlNet.")
    side = resolution or side_of(run.base or run.what)
    shown = open_photographs(data, side, held_out=False)
    same = others is None or others.resolve() == data.resolve()  # else a photograph would be told from itself
    further = shown if same or others is None else open_photographs(others, side, held_out=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = load_pipeline(run, device, torch.float32)
    calibration = Calibration(preset, plugins, pipeline.vae, pipeline.scheduler, draws=draws)
    number = min(photographs, len(shown))
    rows = [round(i * (len(shown) - 1) / max(number - 1, 1)) for i in range(number)]
    how = {"run": asdict(run), "digest": run.digest, "preset": preset.model_dump(), "draws": draws, "side": side}
    how |= {"data": stamp(data), "others": stamp(others), "plugins": {name: _digest(name) for name in names}}
    notes = None if out is None else Notes(claim(out / "measured", how))
    tellings = calibration(Asker(pipeline), shown, rows, further, device, notes)
    return Calibrated(preset, calibration.schedule, calibration.timesteps, tellings)


def _digest(plugin: str) -> str:
    """Of the text of a plugin that is a file."""
    return hashlib.sha256(Path(plugin).read_bytes()).hexdigest()[:16] if Path(plugin).is_file() else ""
