"""What a run starts from: the accelerator, the data set, the optimizer and the course of its learning rate."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration
from diffusers.optimization import get_scheduler

from mldm_plugin.data.load import check_rows, open_rows
from mldm_plugin.data.training_set import Columns, TrainingSet
from mldm_plugin.errors import MldmError
from mldm_plugin.training.agreement import together
from mldm_plugin.training.flags import TrainerFlags
from mldm_plugin.training.trainer import Trainer

log = get_logger(__name__)

LOG_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LogLine(logging.Formatter):
    """Without the number of the process, where there is one only."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace(": [RANK 0] ", ": ", 1)


def refuse_sharding() -> None:
    """Refuse what `accelerate launch` may be set to that splits the trained weights among processes.

    Raises:
        MldmError: such a setting, on every process alike. The gradient is clipped and weights are stored of the whole
            network, so it would clip and store a part.
    """
    for variable, name, version in (
        ("ACCELERATE_USE_FSDP", "FSDP", "FSDP_VERSION"),
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed ZeRO ", "ACCELERATE_DEEPSPEED_ZERO_STAGE"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM", ""),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism_config", ""),
    ):
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise MldmError(
                f"accelerate is set to {name}{os.environ.get(version, '')}, which splits the network among processes; "
                "this trainer needs it whole on each: use DDP (`accelerate launch --multi_gpu`), with "
                "--gradient_checkpointing, --use_8bit_adam and --mixed_precision where memory is short."
            )


def make_accelerator(flags: TrainerFlags) -> Accelerator:
    """The accelerator, and logging to standard error.

    `flags` then say what is in effect: precision and accumulation may come from `accelerate config` or the
    environment, and a run is resumed only with the same.
    """
    folder = Path(flags.output_dir)
    try:
        accelerator = Accelerator(
            gradient_accumulation_steps=flags.gradient_accumulation_steps,
            mixed_precision=flags.mixed_precision,
            log_with=None if flags.report_to == "none" else flags.report_to,
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / flags.logging_dir)),
        )
    except (ValueError, ImportError) as error:  # for example an unknown tracker
        raise MldmError(f"accelerate cannot start: {error}") from error
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise MldmError("--mixed_precision fp16 needs a GPU; on a CPU use bf16 or no.")
    flags.mixed_precision = accelerator.mixed_precision
    flags.gradient_accumulation_steps = accelerator.gradient_accumulation_steps
    if torch.backends.mps.is_available():
        accelerator.native_amp = False
    handler = logging.StreamHandler()
    handler.setFormatter((LogLine if accelerator.num_processes == 1 else logging.Formatter)(LOG_LINE))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.getLogger("accelerate.checkpointing").setLevel(logging.WARNING)  # `Checkpoints` says what was saved
    processes, precision = accelerator.num_processes, accelerator.mixed_precision
    log.info(f"{processes} process(es), this one on {accelerator.device}, mixed precision {precision}")
    for library in (transformers, diffusers):
        library.utils.logging.disable_progress_bar()
        if accelerator.is_local_main_process:
            library.utils.logging.set_verbosity_warning()
        else:
            library.utils.logging.set_verbosity_error()
    if flags.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    return accelerator


def open_training_set(trainer: Trainer, accelerator: Accelerator, *, annotated: bool) -> tuple[TrainingSet, int | None]:
    """The training set; if `annotated` its annotation is checked, each process looking over its share of rows.

    Returns:
        it, and how many of its pictures lose a face to the crop, over all processes; None where no boxes were read.
    """
    flags = trainer.flags

    def open_all() -> Any:
        return open_rows(
            flags.dataset_name,
            config=flags.dataset_config_name,
            folder=flags.train_data_dir,
            cache=flags.cache_dir,
            at_most=flags.max_train_samples,
            seed=flags.seed,
            every_file=trainer.every_file,
        )

    if accelerator.num_processes > 1:  # one process downloads and converts, the others find it done
        with together(accelerator):
            if accelerator.is_local_main_process:
                open_all()
    with together(accelerator):
        rows = open_all()
        own = (flags.mask_column, flags.face_boxes_column, flags.keypoints_column)
        mask, boxes, keypoints = (c if annotated and c in rows.column_names else None for c in own)
        training_set = TrainingSet(
            rows,
            Columns(flags.image_column, trainer.captions, trainer.hints, mask, boxes, keypoints),
            resolution=flags.resolution,
            tokenizer=trainer.tokenizer,
            empty_prompts=trainer.empty_prompts,
            framing={**trainer.framing, "color_jitter": flags.color_jitter},
            conditions=trainer.conditions,
        )
        cut = _looked_over(training_set, accelerator) if annotated or trainer.conditions else []
    if training_set.columns.boxes is None or training_set.framing.random_crop:  # random ones lose others each time
        return training_set, None
    losing = torch.tensor(len(cut), device=accelerator.device)
    return training_set, int(accelerator.reduce(losing, "sum"))


def _looked_over(training_set: TrainingSet, accelerator: Accelerator) -> list[str]:
    """The pictures of this process's share that lose a face to the crop; all annotation of it is checked."""
    log.info(f"checking the annotation of {len(training_set)} pictures")
    share = range(accelerator.process_index, len(training_set), accelerator.num_processes)
    if cut := check_rows(training_set, share):
        log.warning(
            f"{len(cut)} of {len(share)} pictures have a face box that is left out, because the crop leaves "
            f"less than half of it visible; the first is {cut[0]}."
        )
    return cut


def make_optimizer(trainer: Trainer, processes: int) -> torch.optim.Optimizer:
    """AdamW of all that is trained, in 8 bits if asked for."""
    flags = trainer.flags
    optimizer: Any = torch.optim.AdamW
    if flags.use_8bit_adam:
        try:
            import bitsandbytes
        except ImportError as error:
            raise MldmError("--use_8bit_adam needs bitsandbytes: `pip install bitsandbytes`.") from error
        optimizer = bitsandbytes.optim.AdamW8bit
    rate = flags.learning_rate
    if flags.scale_lr:
        rate = rate * flags.gradient_accumulation_steps * flags.train_batch_size * processes
    return optimizer(
        trainer.trainable(),
        lr=rate,
        betas=(flags.adam_beta1, flags.adam_beta2),
        weight_decay=flags.adam_weight_decay,
        eps=flags.adam_epsilon,
    )


def make_lr_scheduler(trainer: Trainer, optimizer: torch.optim.Optimizer, batches: int, processes: int) -> Any:
    """The course of the learning rate; accelerate advances it once per process and optimizer step.

    `batches` counts a pass of the loader before it is shared among processes.
    """
    flags = trainer.flags
    try:
        return get_scheduler(
            flags.lr_scheduler,
            optimizer=optimizer,
            num_warmup_steps=flags.lr_warmup_steps * processes,
            num_training_steps=optimizer_steps(flags, math.ceil(batches / processes)) * processes,
            **trainer.lr_options,
        )
    except ValueError as error:
        raise MldmError(f"--lr_scheduler {flags.lr_scheduler}: {error}.") from error


def optimizer_steps(flags: TrainerFlags, batches: int) -> int:
    """How long a run is, from the number of batches that a pass has on each process."""
    return flags.max_train_steps or flags.num_train_epochs * math.ceil(batches / flags.gradient_accumulation_steps)
