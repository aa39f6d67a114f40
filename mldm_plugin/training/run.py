"""Everything that a run is made of, put together in the order of diffusers' script."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration, set_seed
from torch import Tensor

from mldm_plugin.data.load import check_rows, open_rows
from mldm_plugin.data.training_set import Columns, TrainingSet
from mldm_plugin.engine.numbers import StepMeter
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.errors import DataError, MldmError, RunFolderError
from mldm_plugin.plugins import Plugins
from mldm_plugin.preset import Preset
from mldm_plugin.records.metrics import MetricsFile
from mldm_plugin.training import generators
from mldm_plugin.training.agreement import together
from mldm_plugin.training.batches import Batches, make_dataloader
from mldm_plugin.training.caching import cache_latents
from mldm_plugin.training.checkpoints import Checkpoints
from mldm_plugin.training.hub import make_repository
from mldm_plugin.training.networks import Networks
from mldm_plugin.training.objective import PlainObjective, PluginObjective, needs_of, prove
from mldm_plugin.training.optimisation import Length, make_lr_scheduler, make_optimizer
from mldm_plugin.training.run_folder import RunFolder
from mldm_plugin.training.timesteps import Timesteps
from mldm_plugin.training.trainer import Reading, Trainer

log = get_logger(__name__)

WEIGHT_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Run:
    """A run, ready for its next step.

    `model` is what is trained as accelerate prepared it, `networks.trained` the same bare. `step` counts optimizer
    steps that are done.
    """

    trainer: Trainer
    arguments: argparse.Namespace
    accelerator: Accelerator
    networks: Networks
    dtype: torch.dtype
    model: Any
    optimizer: Any
    lr_scheduler: Any
    batches: Batches
    objective: PlainObjective | PluginObjective
    length: Length
    folder: Path
    step: int = 0
    repository: str | None = None
    timesteps: Timesteps = field(init=False)
    checkpoints: Checkpoints = field(init=False)
    metrics: MetricsFile = field(init=False)
    meter: StepMeter = field(init=False)

    def __post_init__(self) -> None:
        levels = self.networks.noise_scheduler.config.num_train_timesteps
        self.timesteps = Timesteps(self.accelerator, self.arguments, levels)
        limit, trained = self.arguments.checkpoints_total_limit, self.networks.trained
        self.checkpoints = Checkpoints(self.accelerator, self.folder, limit, trained, self.trainer.weights)
        self.metrics = MetricsFile(self.folder)
        self.meter = StepMeter(self.objective.terms)

    @classmethod
    def assemble(
        cls, trainer: Trainer, arguments: argparse.Namespace, preset: Preset | None, plugins: Plugins | None
    ) -> Run:
        """Load, check, prove, encode ahead and resume if asked. Nothing is written before but a cache of latents.

        Raises:
            MldmError: anything that the user can mend, on every process alike.
        """
        accelerator = make_accelerator(arguments)
        if arguments.seed is not None:
            set_seed(arguments.seed)
        dtype = WEIGHT_DTYPES.get(accelerator.mixed_precision, torch.float32)
        folder = claim_folder(trainer, arguments, preset, accelerator)
        with together(accelerator):
            if accelerator.is_main_process:
                trainer.prompts(arguments)  # a hint that cannot be read is found now
            networks = trainer.load_networks(arguments, accelerator.device, dtype)
            optimizer = make_optimizer(arguments, networks.trainable(), accelerator.num_processes)
        reading = trainer.read(arguments)
        training_set = open_training_set(reading, arguments, accelerator, networks.tokenizer, preset is not None)
        loader = make_dataloader(training_set, arguments.train_batch_size, arguments.dataloader_num_workers)
        with together(accelerator):
            scheduler = make_lr_scheduler(arguments, optimizer, len(loader), accelerator.num_processes)
        model, optimizer, loader, scheduler = accelerator.prepare(networks.trained, optimizer, loader, scheduler)
        objective = make_objective(arguments, preset, plugins, training_set.columns, networks, accelerator)
        networks.move_frozen(accelerator.device, dtype)
        prove_objective(objective, training_set, networks, accelerator)
        if arguments.cache_latents:
            cache_latents(training_set, networks, arguments, accelerator, objective)
        run = cls(
            trainer=trainer,
            arguments=arguments,
            accelerator=accelerator,
            networks=networks,
            dtype=dtype,
            model=model,
            optimizer=optimizer,
            lr_scheduler=scheduler,
            batches=Batches(loader, training_set),
            objective=objective,
            length=Length.of(arguments, len(loader)),
            folder=folder.path,
        )
        run.begin(folder)
        return run

    def begin(self, folder: RunFolder) -> None:
        """Resume if asked to; then record the run, and open its logs."""
        self.resume()
        if self.accelerator.is_main_process:
            folder.write()
            self.metrics.truncate(self.step)
            self.start_trackers()
            if self.arguments.push_to_hub:
                self.repository = make_repository(self.arguments)

    def resume(self) -> None:
        """Take up the checkpoint that the flags name, if there is one."""
        name = self.arguments.resume_from_checkpoint
        if not name:
            return
        with together(self.accelerator):
            checkpoint = self.checkpoints.find(name)
        if checkpoint is None:
            log.info(f"no checkpoint in {self.folder}: starting from the beginning.")
            return
        position = self.checkpoints.load(checkpoint)
        self.step = int(checkpoint.name.removeprefix("checkpoint-"))
        if position is not None:
            self.batches.resume(position)
        else:
            updates = -(-len(self.batches) // self.arguments.gradient_accumulation_steps)
            self.batches.epoch = self.step // updates
            log.warning(
                f"{checkpoint} does not say where in its pass it was (diffusers' script wrote it): resuming at the "
                f"start of epoch {self.batches.epoch}, as that script does."
            )
        log.info(f"resuming from {checkpoint}")

    def draw_timesteps(self, latents: Tensor) -> Tensor:
        """t of each of the `latents` (N, …) of the batch that was taken last, (N,)."""
        before = self.batches.used - 1
        return self.timesteps.draw(len(latents), latents.device, step=self.step, micro_batch=before)

    def start_trackers(self) -> None:
        """Open the trackers, with every flag that is a single value."""
        flags = {k: v for k, v in vars(self.arguments).items() if not isinstance(v, list) and k != "hub_token"}
        options = {"tensorboard": {"purge_step": self.step + 1}} if self.step else {}
        self.accelerator.init_trackers(self.arguments.tracker_project_name, config=flags, init_kwargs=options)


def make_accelerator(arguments: argparse.Namespace) -> Accelerator:
    """The accelerator, and logging to standard error.

    `arguments` then say what is in effect: precision and accumulation may come from `accelerate config` or the
    environment, and a run is resumed only with the same.
    """
    folder = Path(arguments.output_dir)
    try:
        accelerator = Accelerator(
            gradient_accumulation_steps=arguments.gradient_accumulation_steps,
            mixed_precision=arguments.mixed_precision,
            log_with=None if arguments.report_to == "none" else arguments.report_to,
            project_config=ProjectConfiguration(
                project_dir=str(folder), logging_dir=str(folder / arguments.logging_dir)
            ),
        )
    except (ValueError, ImportError) as error:  # for example an unknown tracker
        raise MldmError(f"accelerate cannot start: {error}") from error
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise MldmError("--mixed_precision fp16 needs a GPU; on a CPU use bf16 or no.")
    arguments.mixed_precision = accelerator.mixed_precision
    arguments.gradient_accumulation_steps = accelerator.gradient_accumulation_steps
    if torch.backends.mps.is_available():
        accelerator.native_amp = False
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    logging.getLogger("accelerate.checkpointing").setLevel(logging.WARNING)  # `Checkpoints` says what was saved
    processes, precision = accelerator.num_processes, accelerator.mixed_precision
    log.info(f"{processes} process(es), this one on {accelerator.device}, mixed precision {precision}")
    for library in (transformers, diffusers):
        if accelerator.is_local_main_process:
            library.utils.logging.set_verbosity_warning()
        else:
            library.utils.logging.set_verbosity_error()
    if arguments.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    return accelerator


def claim_folder(
    trainer: Trainer, arguments: argparse.Namespace, preset: Preset | None, accelerator: Accelerator
) -> RunFolder:
    """The run folder, unless it is another run's, or a resume in it could not be exact. Writes nothing."""
    resuming = arguments.resume_from_checkpoint is not None
    path, text = Path(arguments.output_dir), None if preset is None else preset.dump()
    folder = RunFolder(path, arguments, accelerator.num_processes, trainer.weights, text)
    with together(accelerator):
        if accelerator.is_main_process:
            folder.check(resuming=resuming)
        if resuming and arguments.max_train_samples is not None and arguments.seed is None:
            raise RunFolderError(
                "--max_train_samples without --seed draws other pictures each time, so the run cannot be resumed; "
                "start again with --seed."
            )
    return folder


def open_training_set(
    reading: Reading, arguments: argparse.Namespace, accelerator: Accelerator, tokenizer: Any, annotated: bool
) -> TrainingSet:
    """The training set; with a plugin its annotation is checked, each process looking over its share of rows."""
    if accelerator.num_processes > 1:  # one process downloads and converts, the others find it done
        with together(accelerator):
            if accelerator.is_local_main_process:
                _open_rows(arguments, reading)
    with together(accelerator):
        rows = _open_rows(arguments, reading)
        columns = Columns(
            picture=arguments.image_column,
            caption=arguments.caption_column,
            conditioning=reading.conditioning,
            mask=_if_present(arguments.mask_column, rows, annotated),
            boxes=_if_present(arguments.face_boxes_column, rows, annotated),
            keypoints=_if_present(arguments.keypoints_column, rows, annotated),
        )
        training_set = TrainingSet(
            rows,
            columns,
            resolution=arguments.resolution,
            tokenizer=tokenizer,
            empty_prompts=reading.empty_prompts,
            framing={**reading.framing, "color_jitter": arguments.color_jitter},
        )
        if annotated:
            log.info(f"checking the annotation of {len(rows)} pictures")
            own = range(accelerator.process_index, len(rows), accelerator.num_processes)
            if cut := check_rows(training_set, own):
                log.warning(
                    f"{len(cut)} of {len(own)} pictures have a face box that is left out, because the crop leaves less "
                    f"than half of it visible; the first is {cut[0]}."
                )
    return training_set


def make_objective(
    arguments: argparse.Namespace,
    preset: Preset | None,
    plugins: Plugins | None,
    columns: Columns,
    networks: Networks,
    accelerator: Accelerator,
) -> PlainObjective | PluginObjective:
    """The plain loss, or the preset's losses. Draws no random numbers.

    Called before the VAE is rounded to half precision: the losses look through a float32 copy of it.
    """
    if preset is None or plugins is None:
        return PlainObjective()
    with together(accelerator), generators.untouched():
        stack = LossStack.from_preset(
            preset, vae=networks.vae, noise_scheduler=networks.noise_scheduler, plugins=plugins
        )
        _check_columns(needs_of(stack), columns)
        objective = PluginObjective(stack)
        if arguments.panel_steps:
            objective.allow_panels(networks.vae)
    return objective


def prove_objective(
    objective: PlainObjective | PluginObjective,
    training_set: TrainingSet,
    networks: Networks,
    accelerator: Accelerator,
) -> None:
    """Show that each loss reaches the network, once that is where and as it is trained. Draws no random numbers."""
    if isinstance(objective, PluginObjective):
        with together(accelerator), generators.untouched():
            prove(objective.stack, training_set, networks, accelerator.device)


def _open_rows(arguments: argparse.Namespace, reading: Reading) -> Any:
    return open_rows(
        arguments.dataset_name,
        config=arguments.dataset_config_name,
        folder=arguments.train_data_dir,
        cache=arguments.cache_dir,
        at_most=arguments.max_train_samples,
        seed=arguments.seed,
        every_file=reading.every_file,
    )


def _if_present(column: str, rows: Any, annotated: bool) -> str | None:
    return column if annotated and column in rows.column_names else None


def _check_columns(needs: frozenset[str], columns: Columns) -> None:
    for need, column, flag, what in (
        ("person_mask", columns.mask, "mask_column", "mask_file_name, an 8-bit label picture"),
        ("face_boxes", columns.boxes, "face_boxes_column", "face_boxes, a list of [x0, y0, x1, y1]"),
        ("keypoints", columns.keypoints, "keypoints_column", "keypoints, 51 numbers for each person"),
    ):
        if need in needs and column is None:
            raise DataError(
                f"a loss of the preset needs {need}, but the data set has no such column (--{flag}): add {what}, to "
                "metadata.jsonl, or set that loss's weight to 0."
            )
