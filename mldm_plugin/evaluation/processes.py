"""The processes of an evaluation: one, or those of `accelerate launch`, which may be more than there are GPUs."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, str_to_bool

from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.spreading import SPREAD

T = TypeVar("T")
LOOK = 0.5  # seconds between two looks at the process that started this one
# Whose processes have one that waits for them: ours, those of torchrun and of `accelerate launch`. A shell that started
# them one by one may be left.
WAITED_FOR = (SPREAD, "TORCHELASTIC_RUN_ID")


class Processes:
    """This process among the others.

    Attributes:
        rank, number: which one it is of how many.
        device: where it computes.
    """

    def __init__(self) -> None:
        self._state = PartialState(cpu=True)  # they tell each other words, for which no GPU is needed
        self.rank, self.number = self._state.process_index, self._state.num_processes
        if self.number > 1:
            atexit.register(
                self._state.destroy_process_group
            )  # left to the interpreter, its threads abort now and then
            if any(name in os.environ for name in WAITED_FOR):
                end_with(os.getppid())
        self.device = torch.device("cpu")
        on_cpu = bool(str_to_bool(os.environ.get("ACCELERATE_USE_CPU", "false")))
        if torch.cuda.is_available() and not on_cpu:
            self.device = torch.device("cuda", self._state.local_process_index % torch.cuda.device_count())
            torch.cuda.set_device(self.device)

    def gather(self, value: T) -> list[T]:
        """What each process gives, in their order; all wait for it."""
        return gather_object([value]) if self.number > 1 else [value]

    def together(self, work: Callable[[], None]) -> str | None:
        """Do something in every process. An error in one is everybody's: its message, None if there was none."""
        error = None
        try:
            work()
        except MldmError as failure:
            error = str(failure)
        except Exception as failure:  # of diffusers, or of a file of somebody else
            error = f"{type(failure).__name__}: {next(iter(str(failure).splitlines()), '')[:300]}"
        return next((one for one in self.gather(error) if one is not None), None)

    def first(self, work: Callable[[], object]) -> None:
        """Do something in the first process, while the others wait.

        Raises:
            MldmError: it failed, in all processes alike.
        """
        error = self.together(lambda: None if self.rank else _done(work))
        if error is not None:
            raise MldmError(error)


def end_with(parent: int) -> None:
    """End this process at once, and say so, when the one that started it is gone, even by a kill that it could not pass
    on.

    Else it would draw on unseen, beside the processes of the next call, into the same files. On Windows nobody notices.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        try:
            sys.stderr.write(f"mldm: process {os.getpid()} ends, for the one that started it ({parent}) is gone.\n")
            sys.stderr.flush()
        finally:  # whoever was to read it may be gone, too
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _done(work: Callable[[], object]) -> None:
    work()
