"""What a step minimises: the plain loss, or that of a plugin's losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mldm_plugin.data.batch import Example, collate
from mldm_plugin.data.load import find_examples
from mldm_plugin.data.training_set import Columns, TrainingSet
from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.engine.report import LossReport
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import DataError, MldmError, NonFiniteLossError
from mldm_plugin.plugins import Plugins
from mldm_plugin.preset import Preset
from mldm_plugin.records.curves import Curves
from mldm_plugin.records.panels import draw_panel, save_panel
from mldm_plugin.training import generators
from mldm_plugin.training.agreement import together
from mldm_plugin.training.flags import TrainerFlags
from mldm_plugin.training.trainer import Trainer, annotation_of


class Objective:
    """The plain loss of diffusers' script, or what a `LossStack` makes of it.

    An error of a loss is kept in `failure` instead of being raised, and the step ends with the plain loss: other
    processes are in the same step and wait for this one's gradient. The loop raises it after the step, everywhere.

    Args:
        stack: None for the plain loss alone.
        curve_steps: optimizer steps between two means of the losses by range of t; 0 takes none.
    """

    def __init__(self, stack: LossStack | None = None, curve_steps: int = 0) -> None:
        self.stack = stack
        self.curve_steps = curve_steps
        self.curves = Curves([t.name for t in stack.terms], stack.plain) if stack is not None and curve_steps else None
        self.failure: MldmError | None = None
        self.draws_with: LatentDecoder | None = None

    @classmethod
    def of(
        cls,
        preset: Preset | None,
        plugins: Plugins | None,
        columns: Columns,
        trainer: Trainer,
        accelerator: Accelerator,
    ) -> Objective:
        """The plain loss, or the preset's losses. Draws no random numbers.

        Called before the VAE is rounded to half precision: the losses look through a float32 copy of it.

        Raises:
            DataError: a loss needs a column that the data set does not have.
        """
        if preset is None or plugins is None:
            return cls()
        with together(accelerator), generators.untouched():
            scheduler = trainer.noise_scheduler
            stack = LossStack.from_preset(preset, vae=trainer.vae, noise_scheduler=scheduler, plugins=plugins)
            objective = cls(stack, trainer.flags.curve_steps or 0)
            objective.check_columns(columns)
            if trainer.flags.panel_steps and stack.decoder is None:  # panels are drawn where no loss decodes, too
                objective.draws_with = LatentDecoder(trainer.vae)
                objective.draws_with.settle()
        return objective

    @property
    def names(self) -> list[str]:
        """The losses, in the order of the preset, each with what it logs beside its value."""
        terms = [] if self.stack is None else self.stack.terms
        return [name for term in terms for name in (term.name, *(f"{term.name}/{log}" for log in term.logs))]

    @property
    def needs(self) -> frozenset[str]:
        """All that the losses need together."""
        return frozenset() if self.stack is None else self.stack.needs

    @property
    def needs_pictures(self) -> bool:
        """Whether a loss compares with the pictures themselves."""
        return self.stack is not None and self.stack.pictures.target == "image" and "pred_images" in self.needs

    def __call__(self, step: DiffusionStep) -> LossReport:
        """The loss to train with, with gradient, and its parts. `step.base_loss` is the script's own loss."""
        try:
            if self.stack is not None:
                report = self.stack(step)
                if self.curves is not None:
                    self.curves.add(step, report)
                return report
        except NonFiniteLossError as error:
            self.failure = error
            return error.report
        except MldmError as error:
            self.failure = error
        plain: Any = step.base_loss
        return LossReport(plain, plain.detach(), {})

    def check_columns(self, columns: Columns) -> None:
        """Raise DataError if a loss needs what the data set has no column for."""
        for need, column, flag, what in (
            ("person_mask", columns.mask, "mask_column", "mask_file_name, an 8-bit label picture"),
            ("face_boxes", columns.boxes, "face_boxes_column", "face_boxes, a list of [x0, y0, x1, y1]"),
            ("keypoints", columns.keypoints, "keypoints_column", "keypoints, 51 numbers for each person"),
        ):
            if need in self.needs and column is None:
                raise DataError(
                    f"a loss of the preset needs {need}, but the data set has no such column (--{flag}): add {what}, "
                    "to metadata.jsonl, or set that loss's weight to 0."
                )

    def prove(self, training_set: TrainingSet, trainer: Trainer, accelerator: Accelerator) -> None:
        """Show before the first step, on pictures of the data set, that each loss reaches the network.

        The network is where and as it is trained by then. Draws no random numbers.

        Raises:
            DataError: no picture has what a loss needs.
            CheckError: a loss that does not, or a VAE that does not give the picture back.
        """
        if self.stack is None or not self.stack.terms:
            return
        with together(accelerator), generators.untouched():
            person, face, keypoints = (n in self.needs for n in ("person_mask", "face_boxes", "keypoints"))
            examples = find_examples(training_set, person=person, face=face, keypoints=keypoints)
            self.stack.prove(_probe(examples, trainer))

    @property
    def proof(self) -> str:
        """The start-up tables that were told so far; empty without losses."""
        return "" if self.stack is None else self.stack.proof

    def measured(self, step: int, accelerator: Accelerator) -> dict[str, float]:
        """What was measured of the losses and their gradients, if so many optimizer steps are time for it; see
        `Curves.mean` and `Audit.read`. Every process calls it at the same step."""
        by_range = {} if self.curves is None or step % self.curve_steps else self.curves.mean(accelerator)
        return by_range if self.stack is None else by_range | self.stack.audit.read(step, accelerator)

    def table(self) -> str:
        """What was measured in the run so far, for people; empty where nothing was."""
        return "" if self.stack is None else self.stack.audit.table()

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs of this process, to go on to the bit."""
        state: dict[str, Any] = {} if self.stack is None else {"audit": self.stack.audit.state()}
        return state if self.curves is None else {**state, "curves": self.curves.state()}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a state that was saved; checkpoints of before there were audits and curves have none."""
        if self.stack is not None and "audit" in state:
            self.stack.audit.resume(state["audit"])
        if self.curves is not None and "curves" in state:
            self.curves.resume(state["curves"])

    def draw(self, step: DiffusionStep, report: LossReport, path: Path) -> None:
        """Save the panel of a finished micro-batch: what the losses saw."""
        if self.stack is not None:
            save_panel(draw_panel(self.stack, step, report, self.draws_with), path)


def annotation_is_looked_at(preset: Preset | None, plugins: Plugins | None, flags: TrainerFlags) -> bool:
    """Whether masks, boxes and keypoints go to anybody: a loss, a panel, or a plugin that looks at finished steps."""
    if preset is None or plugins is None:
        return False
    return bool(preset.losses or flags.panel_steps or plugins.manager.hook.after_loss.get_hookimpls())


def _probe(examples: list[Example], trainer: Trainer) -> DiffusionStep:
    batch = collate(examples)
    pixel_values = batch["pixel_values"].to(trainer.device)
    with torch.no_grad():
        latents = trainer.most_likely_latents(pixel_values)
    noise = torch.zeros_like(latents)
    timesteps = torch.zeros(len(examples), dtype=torch.long, device=trainer.device)
    noisy = trainer.noise_scheduler.add_noise(latents.float(), noise.float(), timesteps).to(latents.dtype)
    return DiffusionStep(
        latents=latents,
        noise=noise,
        noisy_latents=noisy,
        timesteps=timesteps,
        model_pred=noise,
        target=noise,
        **annotation_of({**batch, "pixel_values": pixel_values}),
    )
