"""The processes of an evaluation: one, or those of `accelerate launch`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import PartialState


class Processes:
    """This process among the others.

    Attributes:
        rank, number: which one it is of how many.
        device: where it computes.
    """

    def __init__(self) -> None:
        self._state = PartialState()
        self.rank, self.number = self._state.process_index, self._state.num_processes
        self.device = self._state.device

    def wait(self) -> None:
        """Until all have come as far."""
        self._state.wait_for_everyone()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process goes through the block before the others."""
        with self._state.main_process_first():
            yield
