"""Python commands in processes of their own without the seconds that their imports take.

A command such as `python -m mldm_plugin script.py` is forked from a server that has imported third-party modules and
nothing of ours; all else is as a new interpreter has it. The server is this file, run as a script: it reads one request
a line from its standard input and answers each with a line.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

# What the commands of the tests import sooner or later. Reading a command's own modules anew takes tenths of a second.
PRELOADED = (
    *("accelerate", "click", "datasets", "diffusers", "filelock", "lpips", "numpy", "pluggy", "pyarrow", "pydantic"),
    *("safetensors.torch", "scipy.stats", "torch.distributed.fsdp", "torchvision.models", "torchvision.transforms"),
    *("tqdm", "yaml", "PIL.ImageOps", "PIL.JpegImagePlugin", "PIL.PngImagePlugin", "torch.utils.tensorboard"),
    *("diffusers.models.autoencoders", "diffusers.training_utils", "diffusers.schedulers.scheduling_ddpm"),
    *("pydantic.main", "pydantic.plugin._schema_validator", "torch.utils.serialization"),
)
POLL = 0.01  # seconds


class Forked:
    """A command that runs, with the methods of a subprocess.Popen; what it prints is kept in files."""

    def __init__(self, *arguments: Any, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        self.args = [str(a) for a in arguments]
        self._printed = tempfile.mkdtemp(dir=_folder())
        self.returncode: int | None = None
        environment = {**os.environ, **(env or {}), "OMP_NUM_THREADS": "1"}
        request = {"arguments": self.args, "env": environment, "cwd": str(cwd or Path.cwd())}
        self.pid: int = _ask(**request, printed=self._printed)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _ask(pid=self.pid)
        return self.returncode

    def wait(self, timeout: float = 200) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(self.args, timeout, self.stdout, self.stderr)
            time.sleep(POLL)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    @property
    def has_begun(self) -> bool:
        """Whether it can have printed anything."""
        return Path(self._printed, "1").exists()

    @property
    def stdout(self) -> str:
        return Path(self._printed, "1").read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return Path(self._printed, "2").read_text(encoding="utf-8")


def run(*arguments: Any, timeout: float = 200, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python arguments…` to its end, as subprocess.run would."""
    process = Forked(*arguments, **options)
    process.wait(timeout)
    return subprocess.CompletedProcess(process.args, process.returncode or 0, process.stdout, process.stderr)


@functools.cache
def _folder() -> str:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return folder


@functools.cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, __file__, *PRELOADED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Both are read when a module is imported, too early for the environment of a command.
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    atexit.register(server.communicate)  # which closes its input, and so ends it
    return server


def _ask(**request: Any) -> Any:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    if not answer:
        raise RuntimeError("the server of tests/forked.py has ended")
    return json.loads(answer)


# The server's side


def serve() -> dict[str, Any] | None:
    """Answer requests until there are no more; in a forked child, return the request that it is to carry out."""
    for line in sys.stdin:
        request = json.loads(line)
        if "pid" in request:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                return request
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return None


def become(request: Mapping[str, Any]) -> None:
    """Make this process what a new interpreter with these arguments would be."""
    os.setsid()  # a group of its own, so that whoever waits in vain can end all of it
    for number, path in ((0, os.devnull), *((n, Path(request["printed"], str(n))) for n in (1, 2))):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.orig_argv = [sys.executable, *request["arguments"]]
    random.seed()
    sys.modules["numpy"].random.seed()


def execute(arguments: Sequence[str]) -> None:
    """`python arguments…`, with `-m module` or a script; the frames of this file are not in its traceback."""
    try:
        if arguments[0] == "-m":
            sys.argv, sys.path[0] = list(arguments[1:]), str(Path.cwd())
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = list(arguments), str(Path(arguments[0]).resolve().parent)
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            leave(stop.code or 0)
        sys.stderr.write(f"{stop.code}\n")
        leave(1)
    except BaseException as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename in (__file__, runpy.run_path.__code__.co_filename):
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        leave(1)
    leave(0)


def leave(status: int) -> NoReturn:
    """End as an interpreter does, but for taking the imported modules apart, which takes seconds."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        import_module(name)
    if asked := serve():
        become(asked)
        execute(asked["arguments"])
