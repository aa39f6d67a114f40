"""Optimizer, learning rate, and how many steps there are."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import nn

from mldm_plugin.errors import MldmError


@dataclass(frozen=True)
class Length:
    """How long a run is, counted in optimizer steps and in passes over the data."""

    steps: int
    epochs: int

    @classmethod
    def of(cls, arguments: argparse.Namespace, batches: int) -> Length:
        """From the flags and the number of batches a pass has on each process."""
        updates = math.ceil(batches / arguments.gradient_accumulation_steps)
        steps = arguments.max_train_steps or arguments.num_train_epochs * updates
        return cls(steps, math.ceil(steps / updates))


def make_optimizer(
    arguments: argparse.Namespace, parameters: list[nn.Parameter], processes: int
) -> torch.optim.Optimizer:
    """AdamW, in 8 bits if asked for."""
    optimizer: Any = torch.optim.AdamW
    if arguments.use_8bit_adam:
        try:
            import bitsandbytes
        except ImportError as error:
            raise MldmError("--use_8bit_adam needs bitsandbytes: `pip install bitsandbytes`.") from error
        optimizer = bitsandbytes.optim.AdamW8bit
    rate = arguments.learning_rate
    if arguments.scale_lr:
        rate = rate * arguments.gradient_accumulation_steps * arguments.train_batch_size * processes
    return optimizer(
        parameters,
        lr=rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        weight_decay=arguments.adam_weight_decay,
        eps=arguments.adam_epsilon,
    )


def make_lr_scheduler(
    arguments: argparse.Namespace, optimizer: torch.optim.Optimizer, batches: int, processes: int
) -> Any:
    """The course of the learning rate; accelerate advances it once per process and optimizer step.

    `batches` counts a pass of the loader before it is shared among processes.
    """
    length = Length.of(arguments, math.ceil(batches / processes))
    try:
        return get_scheduler(
            arguments.lr_scheduler,
            optimizer=optimizer,
            num_warmup_steps=arguments.lr_warmup_steps * processes,
            num_training_steps=length.steps * processes,
            num_cycles=arguments.lr_num_cycles,
            power=arguments.lr_power,
        )
    except ValueError as error:
        raise MldmError(f"--lr_scheduler {arguments.lr_scheduler}: {error}.") from error
