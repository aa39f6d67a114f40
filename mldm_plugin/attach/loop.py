"""What an attachment asks of accelerate's `Accelerator`, for trainers that have none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Loop:
    """Where a trainer's loop stands.

    Args:
        sync_gradients: whether its optimizer steps after this micro-batch.
        is_main_process: whether this process writes metrics.jsonl and the panels; each has numbers of its own.
    """

    sync_gradients: bool
    is_main_process: bool = True
    num_processes: int = 1

    def log(self, values: Mapping[str, float], step: int) -> None:
        """The trainer's own trackers get nothing; metrics.jsonl has it all."""
