"""One command as several processes of this machine, which share its work."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO

LOOK = 0.1  # seconds between two looks at the processes
SPREAD = "MLDM_SPREAD"  # set in the processes that are started here
PATIENCE = 10.0  # seconds that the others have to say what is wrong, and again to end


def spread(words: Sequence[str], processes: int) -> int:
    """Run a command in so many processes, which find each other as those of `torchrun` do.

    The first speaks for all. What another says is shown where it failed and the first did not.

    Returns:
        the exit status of the first that failed, else 0.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), SPREAD: str(processes)}
    with ExitStack() as files:
        said = [None, *(files.enter_context(tempfile.TemporaryFile()) for _ in range(1, processes))]
        started = [
            subprocess.Popen(words, env={**shared, "RANK": str(k), "LOCAL_RANK": str(k)}, stdout=out, stderr=out)
            for k, out in enumerate(said)
        ]
        until = math.inf
        try:
            while None in (ended := [one.poll() for one in started]) and time.monotonic() < until:
                if any(ended):
                    until = min(until, time.monotonic() + PATIENCE)
                time.sleep(LOOK)
        finally:
            ended = [one.poll() for one in started]  # before the others are asked to end, which is no reason
            _end(started)
        return _status(ended, said)


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask those that still run for an end in order, then make them end."""
    for one in started:
        if one.poll() is None:
            one.terminate()
    end = time.monotonic() + PATIENCE
    for one in started:
        try:
            one.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            one.kill()
            one.wait()


def _status(ended: Sequence[int | None], said: Sequence[IO[bytes] | None]) -> int:
    """Of the first that failed by itself, else of the first that was killed; what it said is shown."""
    failed = sorted((status < 0, k) for k, status in enumerate(ended) if status)
    for killed, k in failed:
        if killed:
            sys.stderr.write(f"mldm: process {k} was ended by signal {-(ended[k] or 0)}, as where memory runs out\n")
    if not failed:
        return 0
    first = failed[0][1]
    if (out := said[first]) is not None:
        out.seek(0)
        sys.stderr.write(out.read().decode(errors="replace"))
    return abs(ended[first] or 0)
