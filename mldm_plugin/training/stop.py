"""SIGTERM, SIGINT and a closed terminal ask for a checkpoint and a clean end, after the step that is under way."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from mldm_plugin.stopping import asks_to_stop, leave_terminal


class StopRequest:
    """A context in which the first of the signals is remembered in `received`; a second one acts as usual."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._remember) for s in asks_to_stop(signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._restore()
        leave_terminal(number)

    def _restore(self) -> None:
        for which, handler in self._previous.items():
            signal.signal(which, handler)
        self._previous = {}


def leave_to_parent(worker: int) -> None:
    """For the processes that load pictures: a signal sent to the whole group must not end them mid-step."""
    for which in asks_to_stop(signal.SIGINT):
        signal.signal(which, signal.SIG_IGN)
