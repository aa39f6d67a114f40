"""Several processes, one outcome: an error of one is an error of all, reported once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from accelerate import Accelerator
from accelerate.utils import gather_object

from mldm_plugin.errors import MldmError


class ReportedElsewhereError(MldmError):
    """An error that the first process reports."""


@contextlib.contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """A block that every process enters. If it fails in one, it fails in all, and nobody waits for the dead.

    The block must not make processes wait for each other. The first process raises the error itself; the others
    raise `ReportedElsewhereError`.
    """
    error: MldmError | None = None
    try:
        yield
    except MldmError as raised:
        error = raised
    if accelerator.num_processes == 1:
        if error is not None:
            raise error
        return
    messages = [m for m in gather_object([str(error) if error else None]) if m is not None]
    if messages and not accelerator.is_main_process:
        raise ReportedElsewhereError(messages[0])
    if error is not None:
        raise error
    if messages:
        raise MldmError(messages[0])
