"""A run: what it is made of, in the order of diffusers' script, and the loop."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import set_seed
from torch import Tensor
from tqdm.auto import tqdm

from mldm_plugin.announce import announce
from mldm_plugin.engine.numbers import StepMeter
from mldm_plugin.engine.report import LossReport
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import MldmError, NonFiniteLossError, RunFolderError
from mldm_plugin.plugins import Plugins
from mldm_plugin.preset import Preset
from mldm_plugin.records.crops import write_crops
from mldm_plugin.records.metrics import MetricsFile
from mldm_plugin.records.run_files import RunFiles
from mldm_plugin.run_page.write import leave_page
from mldm_plugin.training import hub
from mldm_plugin.training.agreement import ReportedElsewhereError, together
from mldm_plugin.training.asked import Asked, read
from mldm_plugin.training.batches import Batches, make_dataloader
from mldm_plugin.training.caching import cache_latents
from mldm_plugin.training.checkpoints import Checkpoints
from mldm_plugin.training.evaluating import Evaluating
from mldm_plugin.training.evaluation_file import forget_after
from mldm_plugin.training.flags import TrainerFlags
from mldm_plugin.training.objective import Objective, annotation_is_looked_at
from mldm_plugin.training.run_folder import RunFolder
from mldm_plugin.training.start import (
    make_accelerator,
    make_lr_scheduler,
    make_optimizer,
    open_training_set,
    optimizer_steps,
    refuse_sharding,
)
from mldm_plugin.training.stop import StopRequest
from mldm_plugin.training.timesteps import Timesteps
from mldm_plugin.training.trainer import Trainer
from mldm_plugin.training.validation import Sampled, sample

log = get_logger(__name__)

WEIGHT_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def main(kind: type[Trainer], asked: Asked | Sequence[str] | None = None) -> int:
    """The command of a trainer: 0 when trained or stopped in good order, 1 with one line on what to mend.

    Args:
        asked: the command line, read or not; None for that of this process.
    """
    try:
        asked = asked if isinstance(asked, Asked) else read(kind.flags_type, asked)
        refuse_sharding()
    except MldmError as error:  # all processes fail alike
        announce(f"mldm: {error}")
        return 1
    try:
        Run(kind, asked.flags, asked.preset, asked.plugins).train()
    except ReportedElsewhereError:
        return 1
    except MldmError as error:
        sys.stderr.write(f"mldm: {error}\n")
        return 1
    return 0


class Run:
    """A run, ready for its next step once it is made. `steps_done` counts optimizer steps."""

    def __init__(
        self, kind: type[Trainer], flags: TrainerFlags, preset: Preset | None, plugins: Plugins | None
    ) -> None:
        """Load, check, prove, encode ahead and resume if asked. Nothing is written before but a cache of latents.

        Raises:
            MldmError: anything that the user can mend, on every process alike.
        """
        self.flags, self.folder, self.steps_done = flags, Path(flags.output_dir), 0
        self.accelerator = accelerator = make_accelerator(flags)
        processes = accelerator.num_processes
        if flags.seed is not None:
            set_seed(flags.seed)
        record = self.claim_folder(kind, preset)
        with together(accelerator):
            dtype = WEIGHT_DTYPES.get(accelerator.mixed_precision, torch.float32)
            self.trainer = trainer = kind(flags, accelerator.device, dtype)
            if accelerator.is_main_process:
                trainer.prompts()  # a hint that cannot be read is found now
            optimizer = make_optimizer(trainer, processes)
        looked_at = annotation_is_looked_at(preset, plugins, flags)
        training_set, losing = open_training_set(trainer, accelerator, annotated=looked_at)
        loader = make_dataloader(training_set, flags.train_batch_size, flags.dataloader_num_workers)
        with together(accelerator):
            scheduler = make_lr_scheduler(trainer, optimizer, len(loader), processes)
        prepared = accelerator.prepare(trainer.trained, optimizer, loader, scheduler)
        self.model, self.optimizer, loader, self.lr_scheduler = prepared
        self.objective = Objective.of(preset, plugins, training_set.columns, trainer, accelerator)
        self.evaluating = Evaluating(trainer, accelerator, preset) if flags.evaluate_steps else None
        trainer.move_frozen()
        if self.evaluating is not None:
            self.evaluating.read_captions()
        self.objective.prove(training_set, trainer, accelerator)
        if flags.cache_latents:
            cache_latents(training_set, trainer, accelerator, self.objective)
        self.batches = Batches(loader, training_set)
        self.steps = optimizer_steps(flags, len(loader))
        self.timesteps = Timesteps(accelerator, flags, trainer.noise_scheduler.config.num_train_timesteps)
        self.checkpoints = Checkpoints(accelerator, trainer, self.folder)
        self.meter = StepMeter(self.objective.names)
        self.resume()
        self.begin(record)
        if losing is not None and accelerator.is_main_process:
            write_crops(self.folder, len(training_set), losing)

    def train(self) -> None:
        """Train to the end, or until a signal asks to stop; then save."""
        accelerator, trainer, flags = self.accelerator, self.trainer, self.flags
        stopped = False
        quiet = not accelerator.is_local_main_process
        with StopRequest() as stop, tqdm(total=self.steps, initial=self.steps_done, desc="steps", disable=quiet) as bar:
            if self.steps_done == 0 and (before := self.evaluate()):
                accelerator.log(before, step=0)
            while self.steps_done < self.steps and not stopped:
                epoch = self.batches.epoch
                for batch in self.batches.one_pass():
                    with accelerator.accumulate(self.model):
                        step = trainer.diffusion_step(self.model, batch, self.draw_timesteps)
                        report = self.objective(step)
                        accelerator.backward(report.loss)
                        if accelerator.sync_gradients and trainer.clips_gradients:
                            accelerator.clip_grad_norm_(trainer.trainable(), flags.max_grad_norm)
                        self.optimizer.step()
                        self.lr_scheduler.step()
                        self.optimizer.zero_grad(set_to_none=trainer.frees_gradients)
                    if accelerator.sync_gradients:
                        trainer.after_update()
                    self.meter.add(report.numbers())
                    if accelerator.sync_gradients:
                        stopped = self.finish_step(step, report, stop, bar)
                        if stopped or self.steps_done >= self.steps:
                            break
                if not stopped and trainer.samples_after_pass(epoch):
                    self.sample()
        self.finish(stopped)

    def draw_timesteps(self, latents: Tensor) -> Tensor:
        """t of each of the `latents` (N, …) of the batch that was taken last, (N,)."""
        before = self.batches.used - 1
        return self.timesteps.draw(len(latents), latents.device, step=self.steps_done, micro_batch=before)

    def finish_step(self, step: DiffusionStep, report: LossReport, stop: StopRequest, bar: tqdm) -> bool:
        """Log, look, save. Returns whether some process was asked to stop."""
        flags, accelerator = self.flags, self.accelerator
        self.steps_done += 1
        failure = self.objective.failure
        raised = [stop.received is not None, failure is not None, isinstance(failure, NonFiniteLossError)]
        numbers, (stopped, failed, nonfinite) = self.meter.mean(accelerator, raised)
        if not failed:
            numbers |= self.objective.measured(self.steps_done, accelerator)
            numbers |= self.evaluate(at_end=self.steps_done >= self.steps and not stopped)
        if not failed or nonfinite:
            self.log(numbers, bar)
        if not failed:
            if accelerator.is_main_process and flags.panel_steps and self.steps_done % flags.panel_steps == 0:
                self.objective.draw(step, report, self.folder / "panels" / f"step-{self.steps_done:06d}.png")
            if self.trainer.samples_after_step(self.steps_done):
                self.sample()
        if stopped or nonfinite or (not failed and self.steps_done % flags.checkpointing_steps == 0):
            self.checkpoints.save(self.steps_done, {**self.batches.state(), **self.objective.state()})
            if self.evaluating is not None and accelerator.is_main_process:
                self.evaluating.file.write()  # which checkpoints there are has changed
        if failed:
            with together(accelerator):
                if failure is not None:
                    raise failure
        if stopped:
            accelerator.print(
                f"stopped by a signal after step {self.steps_done}; checkpoint-{self.steps_done} is saved, "
                "continue with --resume_from_checkpoint latest"
            )
        return stopped

    def log(self, numbers: dict[str, Any], bar: tqdm) -> None:
        """One optimizer step in metrics.jsonl, in the trackers and on the progress bar."""
        rate = self.lr_scheduler.get_last_lr()[0]
        record = {"step": self.steps_done, "loss": numbers["loss"], "lr": rate, "ldm": numbers["ldm"], **numbers}
        if self.accelerator.is_main_process:
            self.files.add(record, self.objective.proof)
        shown = {k: v for k, v in record.items() if v is not None and k != "step"}
        self.accelerator.log(shown, step=self.steps_done)
        bar.update(1)
        bar.set_postfix({k: v for k, v in shown.items() if "/" not in k})  # counts and details are in the file

    def evaluate(self, *, at_end: bool = False) -> dict[str, float | None]:
        """What photographs that are held out say of the network as it is, if it is time to ask."""
        if self.evaluating is None or (self.steps_done % (self.flags.evaluate_steps or 1) and not at_end):
            return {}
        return self.evaluating(self.steps_done)

    def sample(self, *, final: bool = False) -> list[Sampled]:
        """Validation pictures, if any are asked for; at the end of a run by the weights that were stored."""
        if not self.accelerator.is_main_process:
            return []
        return sample(self.trainer, self.accelerator, self.folder, self.steps_done, final=final)

    def finish(self, stopped: bool) -> None:
        """Save the trained weights, sample them once more and upload them, unless the run was only interrupted."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.files.close()
        if not stopped:
            self.checkpoints.require_finite(self.steps_done)
        if self.accelerator.is_main_process and not stopped:
            self.checkpoints.save_weights()
            sampled = self.sample(final=True)
            if self.repository is not None:
                hub.upload(self.trainer.what, self.flags, self.repository, sampled)
        if not stopped and (table := self.objective.table()):
            self.accelerator.print(table)
        if self.evaluating is not None and self.accelerator.is_main_process and not stopped:
            self.accelerator.print(self.evaluating.file.conclusion())
        self.accelerator.end_training()
        if self.accelerator.is_main_process and not stopped:
            leave_page(self.folder)

    def claim_folder(self, kind: type[Trainer], preset: Preset | None) -> RunFolder:
        """The run folder, unless it is another run's, or a resume in it could not be exact. Writes nothing."""
        flags, resuming = self.flags, self.flags.resume_from_checkpoint is not None
        text = None if preset is None else preset.dump()
        folder = RunFolder(self.folder, flags, self.accelerator.num_processes, kind, text)
        with together(self.accelerator):
            if self.accelerator.is_main_process:
                folder.check(resuming=resuming)
            if resuming and flags.max_train_samples is not None and flags.seed is None:
                raise RunFolderError(
                    "--max_train_samples without --seed draws other pictures each time, so the run cannot be resumed; "
                    "start again with --seed."
                )
        return folder

    def resume(self) -> None:
        """Take up the checkpoint that the flags name, if there is one."""
        if not self.flags.resume_from_checkpoint:
            return
        with together(self.accelerator):
            checkpoint = self.checkpoints.find(self.flags.resume_from_checkpoint)
        if checkpoint is None:
            log.info(f"no checkpoint in {self.folder}: starting from the beginning.")
            return
        position = self.checkpoints.load(checkpoint)
        self.steps_done = int(checkpoint.name.removeprefix("checkpoint-"))
        if position is not None:
            self.batches.resume(position)
            self.objective.resume(position)
        else:
            updates = -(-len(self.batches) // self.flags.gradient_accumulation_steps)
            self.batches.epoch = self.steps_done // updates
            log.warning(
                f"{checkpoint} does not say where in its pass it was (diffusers' script wrote it): resuming at the "
                f"start of epoch {self.batches.epoch}, as that script does."
            )
        log.info(f"resuming from {checkpoint}")

    def begin(self, record: RunFolder) -> None:
        """Record the run, and open its logs and its repository."""
        flags = self.flags
        self.repository = None
        if not self.accelerator.is_main_process:
            return
        record.write()
        MetricsFile(self.folder).truncate(self.steps_done)
        self.files = RunFiles(self.folder, self.steps_done, self.accelerator.num_processes)
        self.files.keep(self.objective.proof)
        if self.evaluating is not None:
            self.evaluating.file.take_up(self.steps_done)
        else:
            forget_after(self.folder, self.steps_done)
        single = {k: v for k, v in flags.model_dump().items() if not isinstance(v, list) and k != "hub_token"}
        options = {"tensorboard": {"purge_step": self.steps_done + 1}} if self.steps_done else {}
        self.accelerator.init_trackers(self.trainer.project, config=single, init_kwargs=options)
        if flags.push_to_hub:
            self.repository = hub.make_repository(flags)
