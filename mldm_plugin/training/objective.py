"""What a step minimises: the plain loss, or that of a plugin's losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mldm_plugin.data.batch import Example, collate
from mldm_plugin.data.load import find_examples
from mldm_plugin.data.training_set import TrainingSet
from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.engine.numbers import Numbers
from mldm_plugin.engine.report import LossReport
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import MldmError, NonFiniteLossError
from mldm_plugin.records.panels import draw_panel, save_panel
from mldm_plugin.training.networks import Networks


@dataclass
class Outcome:
    """One micro-batch: what to call backward on, the numbers to log, and with a plugin the step and its report."""

    loss: Tensor
    numbers: Numbers
    step: DiffusionStep | None = None
    report: LossReport | None = None


class PlainObjective:
    """The mean squared error of diffusers' script."""

    failure: MldmError | None = None
    needs_pictures = False
    terms: tuple[str, ...] = ()

    def __call__(self, plain: Tensor, make_step: Callable[[], DiffusionStep]) -> Outcome:
        return Outcome(plain, Numbers.plain(plain))

    def draw(self, outcome: Outcome, path: Path) -> None:
        """There is nothing to draw: panels show what losses saw."""


class PluginObjective:
    """A `LossStack`.

    An error of a loss is kept in `failure` instead of being raised, and the step ends with the plain loss: other
    processes are in the same step and wait for this one's gradient. The loop raises it after the step, everywhere.
    """

    def __init__(self, stack: LossStack) -> None:
        self.stack = stack
        self.failure: MldmError | None = None
        self.terms = tuple(term.name for term in stack.terms)

    @property
    def needs_pictures(self) -> bool:
        """Whether a loss compares with the pictures themselves."""
        return self.stack.pictures.target == "image" and "pred_images" in needs_of(self.stack)

    def allow_panels(self, vae: nn.Module) -> None:
        """Have a decoder for panels, even where no loss needs one."""
        if self.stack.decoder is None:
            self.stack.decoder = LatentDecoder(vae)

    def draw(self, outcome: Outcome, path: Path) -> None:
        """Save the panel of a finished micro-batch."""
        if outcome.step is not None and outcome.report is not None:
            save_panel(draw_panel(self.stack, outcome.step, outcome.report), path)

    def __call__(self, plain: Tensor, make_step: Callable[[], DiffusionStep]) -> Outcome:
        step = make_step()
        try:
            report = self.stack(step)
        except NonFiniteLossError as error:
            self.failure, report = error, error.report
        except MldmError as error:
            self.failure = error
            return Outcome(plain, Numbers.plain(plain))
        return Outcome(report.loss, report.numbers(), step, report)


def needs_of(stack: LossStack) -> frozenset[str]:
    """All that the active losses need together."""
    return frozenset().union(*(term.needs for term in stack.terms))


def prove(stack: LossStack, training_set: TrainingSet, networks: Networks, device: torch.device) -> None:
    """Show before the first step, on pictures of the data set, that each active loss reaches the network.

    Raises:
        DataError: no picture has what a loss needs.
        CheckError: a loss that does not, or a VAE that does not give the picture back.
    """
    needs = needs_of(stack)
    if not stack.terms:
        return
    examples = find_examples(
        training_set, person="person_mask" in needs, face="face_boxes" in needs, keypoints="keypoints" in needs
    )
    stack.prove(_probe(examples, networks, device))


def _probe(examples: list[Example], networks: Networks, device: torch.device) -> DiffusionStep:
    batch, vae = collate(examples), networks.vae
    pixel_values = batch["pixel_values"].to(device)
    with torch.no_grad():
        latents = vae.encode(pixel_values.to(vae.dtype)).latent_dist.mode() * vae.config.scaling_factor
    noise = torch.zeros_like(latents)
    timesteps = torch.zeros(len(examples), dtype=torch.long, device=device)
    noisy = networks.noise_scheduler.add_noise(latents.float(), noise.float(), timesteps).to(latents.dtype)
    return DiffusionStep(
        latents=latents,
        noise=noise,
        noisy_latents=noisy,
        timesteps=timesteps,
        model_pred=noise,
        target=noise,
        **annotation_of({**batch, "pixel_values": pixel_values}),
    )


def annotation_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a batch that losses look at, by the names of `DiffusionStep`."""
    names = ("pixel_values", "person_mask", "face_boxes", "keypoints")
    return {name: batch.get(name) for name in names}
