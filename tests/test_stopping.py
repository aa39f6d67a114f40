"""A terminal that is closed: the end is in order although nothing can be written to it any more."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from mldm_plugin.stopping import stopping_in_order
from mldm_plugin.training.stop import StopRequest

COMMAND = """
import fcntl, pathlib, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from mldm_plugin.stopping import stopping_in_order
try:
    with stopping_in_order():
        pathlib.Path(sys.argv[1], "ready").touch()
        time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.3)  # the hang-up comes twice
    print("stopped", flush=True)
    print("stopped", file=sys.stderr, flush=True)
    pathlib.Path(sys.argv[1], "in order").touch()
"""


def wait_for(path):
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_closed_terminal_ends_a_command_in_order(tmp_path):
    mine, its = pty.openpty()
    words = [sys.executable, "-c", COMMAND, str(tmp_path)]
    process = subprocess.Popen(words, stdin=its, stdout=its, stderr=its, start_new_session=True)
    os.close(its)
    wait_for(tmp_path / "ready")
    os.close(mine)
    time.sleep(0.1)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
    assert (tmp_path / "in order").exists()


def test_under_nohup_a_closed_terminal_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_in_order(), StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_put_back():
    before = [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(KeyboardInterrupt), stopping_in_order():
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGHUP)] == before
