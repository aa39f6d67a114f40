"""SIGTERM and a closed terminal (SIGHUP) end a command in order, as Ctrl-C does.

A terminal that is closed sends SIGHUP, often twice, and what is written to it from then on fails. Under `nohup`, which
has it ignored, it still is.
"""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


def asks_to_stop(*others: signal.Signals) -> list[signal.Signals]:
    """SIGTERM, SIGHUP unless it is ignored, and `others`."""
    heard = HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN
    return [signal.SIGTERM, *([signal.Signals(HANGUP)] if HANGUP is not None and heard else []), *others]


def leave_terminal(number: int) -> None:
    """After SIGHUP: only files are written to still, so that the end is as orderly as any other."""
    if number != HANGUP:
        return
    signal.signal(number, signal.SIG_IGN)
    for stream in (1, 2):
        with suppress(OSError):
            if not stat.S_ISREG(os.fstat(stream).st_mode):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


@contextmanager
def stopping_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does; a second SIGHUP is the same hang-up, and ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        leave_terminal(number)
        raise KeyboardInterrupt

    before = {which: signal.signal(which, stop) for which in asks_to_stop()}
    try:
        yield
    finally:
        for which, handler in before.items():
            if signal.getsignal(which) is stop:  # a terminal that is gone may say so again
                signal.signal(which, handler)
