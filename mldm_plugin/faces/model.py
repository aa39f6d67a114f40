"""A trained model of faces: how it is opened, what it knows, and what it draws from which noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mldm_plugin.conditions.encoder import ConditionEncoder
from mldm_plugin.conditions.pipeline import ConditionalLDMPipeline
from mldm_plugin.errors import DataError, MldmError
from mldm_plugin.evaluation.cases import Case, Photographs, open_photographs
from mldm_plugin.evaluation.conditional import drawn, side_drawn
from mldm_plugin.evaluation.models import argument_of, load_pipeline, parse_models, set_sampler
from mldm_plugin.evaluation.sampling import noise_of


@dataclass(frozen=True)
class FacesModel:
    """A pipeline of `train_conditional_ldm.py`, sampled by DDIM.

    Args:
        name: of its run.
        pipeline: on its device.
        drops: whether it learnt what to draw without a condition; False where its run says that it always had all.
    """

    name: str
    pipeline: ConditionalLDMPipeline
    drops: bool = True

    @property
    def encoders(self) -> dict[str, ConditionEncoder]:
        """What it draws from, by name, in the order of its tokens."""
        return dict(self.pipeline.conditions.each())

    @property
    def side(self) -> int:
        """Of its pictures, in pixels."""
        return side_drawn(self.pipeline)

    def draw(
        self, given: Mapping[str, Tensor], noise: torch.Generator, steps: int, guidance: float, eta: float = 0.0
    ) -> Image.Image:
        """One face. Conditions that are not given, are absent; those that it does not know, are passed over."""
        options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance, "eta": eta}
        [picture] = drawn(self.pipeline, [given], [noise], **options)
        return picture


def open_model(run: Path) -> FacesModel:
    """The model of a run, or of one of its steps, on the GPU where there is one.

    Args:
        run: the output folder of `train_conditional_ldm.py`, or checkpoint-N/model in it.

    Raises:
        MldmError: it is none, or does not load.
    """
    [parsed] = parse_models([f"run={run}"], None)
    if len(parsed.runs) > 1 or parsed.runs[0].kind != "conditional":
        raise MldmError(
            f"{run} is no model of train_conditional_ldm.py: give its --output_dir, or checkpoint-N/model in it."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = load_pipeline(parsed.runs[0], device, torch.float32)
    set_sampler(pipeline, "ddim")
    return FacesModel(run.resolve().name, pipeline, not parsed.runs[0].never_without)


def held_out_of(run: Path, models: Sequence[FacesModel], data: Path | None) -> Photographs:
    """Held-out pictures with the conditions that the models know: of `data`, else of what the run was trained on.

    Raises:
        DataError: neither is here, or lacks a column; or the models draw pictures of several sizes.
    """
    sides = {model.name: model.side for model in models}
    if len({*sides.values()}) > 1:
        said = ", ".join(f"{name} draws {side} pixels" for name, side in sides.items())
        raise DataError(f"{said}: models of one size can stand beside each other.")
    told = argument_of(run, "evaluate_data_dir") or argument_of(run, "train_data_dir")
    if data is None and told is None:
        raise DataError(
            f"{run} does not say what it was trained on: give --data, what `mldm data celebamask-hq` wrote."
        )
    folder = data or Path(told)
    if not folder.is_dir():
        raise DataError(f"{folder} is not here: give --data, a folder that `mldm data celebamask-hq` wrote.")
    encoders = {name: encoder for model in reversed(models) for name, encoder in model.encoders.items()}
    return open_photographs(folder, models[0].side, conditions=encoders)


def noise_for(seed: int, what: str, number: int = 0) -> torch.Generator:
    """The noise of a picture: the same for the same words, whatever is drawn before it."""
    return noise_of(seed, Case(what, what), number)
