"""What makes one trainer; all else the trainers share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image
import torch

from mldm_plugin.training.flags import FlagTable
from mldm_plugin.training.networks import Networks
from mldm_plugin.training.objective import Outcome
from mldm_plugin.training.weights_format import WeightsFormat

if TYPE_CHECKING:
    from mldm_plugin.training.run import Run


@dataclass(frozen=True)
class Reading:
    """How a script reads its data set.

    Args:
        conditioning: the column of hints, None for a trainer without.
        empty_prompts: as for `TrainingSet`.
        framing: options of `Framing`.
        every_file: as for `open_rows`.
    """

    conditioning: str | None
    empty_prompts: float | None
    framing: Mapping[str, Any]
    every_file: bool


@dataclass(frozen=True)
class Prompt:
    """A validation prompt, with its hint where the trainer has hints."""

    text: str
    hint: PIL.Image.Image | None = None


@dataclass(frozen=True)
class Trainer:
    """One trainer, as the shared code sees it.

    Args:
        what: what it trains, for people.
        flags: its command line.
        load_networks: from the arguments, the device and the precision of frozen networks. Draws what the script
            draws.
        weights: how its weights are stored.
        read: how it reads its data set.
        training_step: one micro-batch, gradient and optimizer's step included.
        prompts: what to sample; raises DataError for a hint that cannot be read.
        make_pipeline: a pipeline to sample with, from the networks in training, or from the weights that were
            stored in the given folder.
        inference_steps: of the sampling, as in the script.
        samples_after_step: whether to sample now that `run.step` is done.
        samples_after_pass: whether to sample now that the pass of this number is done.
    """

    what: str
    flags: FlagTable
    load_networks: Callable[[argparse.Namespace, torch.device, torch.dtype], Networks]
    weights: WeightsFormat
    read: Callable[[argparse.Namespace], Reading]
    training_step: Callable[[Run, dict[str, Any]], Outcome]
    prompts: Callable[[argparse.Namespace], list[Prompt]]
    make_pipeline: Callable[[Run, Path | None], Any]
    inference_steps: int
    samples_after_step: Callable[[Run], bool] = lambda run: False
    samples_after_pass: Callable[[Run, int], bool] = lambda run, epoch: False
