"""Trainings and evaluations as the command lines that a user would type, each in a process of its own."""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import psutil

from mldm_plugin.errors import MldmError
from mldm_plugin.records.metrics import FILE_NAME as METRICS
from mldm_plugin.threads import SETTINGS as WAITING

SETTINGS = {**WAITING, "TOKENIZERS_PARALLELISM": "false"}
LAUNCHER = "accelerate.commands.launch"
PATIENCE = 60.0  # seconds that a program has for its end in order; chosen: a checkpoint on a slow disk
IN_A_LOG = {"TQDM_MININTERVAL": "30"}  # seconds between two states of a bar
# What a finished run has: a LoRA, a ControlNet, or a pipeline.
FINAL = ("pytorch_lora_weights.safetensors", "diffusion_pytorch_model.safetensors", "model_index.json")


@dataclass(frozen=True)
class Command:
    """A command that makes a file.

    Args:
        words: as they are typed; `mldm` is this program.
        made: what is there when it is done.
    """

    words: tuple[str, ...]
    made: Path

    def __str__(self) -> str:
        return shlex.join(self.words).replace(sys.executable, "python")

    def over(self, processes: int) -> Command:
        """`mldm evaluate` with its work shared by so many processes."""
        return self if processes == 1 else replace(self, words=(*self.words, "--processes", str(processes)))

    def call(self) -> None:
        """Run it, and show what it prints.

        Raises:
            MldmError: it fails.
        """
        words = list(self.words)
        if words[0] == "mldm":
            words = [sys.executable, "-m", "mldm_plugin.cli", *words[1:]]
        process = subprocess.Popen(
            words, env={**SETTINGS, **os.environ}, start_new_session=True
        )  # Ctrl-C in a terminal is for us alone
        try:
            status = process.wait()
        finally:
            kill(process)
        if status or not self.made.is_file():
            raise MldmError(f"ended with status {status}: {self}")


@dataclass(frozen=True)
class Training:
    """One run of a trainer.

    Args:
        name: in tables and of its log.
        folder: of the run.
        trainer: `controlnet`, `text_to_image_lora`, `conditional_ldm`, or the file of somebody else's script, to which
            we attach.
        steps: its length, None where the preset's epochs say it.
        flags: all others, in order.
        python: the interpreter that runs it, where the script has an environment of its own; empty for this one.
    """

    name: str
    folder: Path
    trainer: str
    steps: int | None
    flags: tuple[str, ...]
    python: str = ""

    def __str__(self) -> str:
        launch = f"{shlex.quote(self.python)} -m {LAUNCHER}" if self.python else "accelerate launch"
        return f"{launch} {shlex.join(self.words)}"

    @property
    def words(self) -> list[str]:
        """What follows `accelerate launch`."""
        length = [] if self.steps is None else ["--max_train_steps", str(self.steps)]
        program = ["mldm_plugin", self.trainer] if self.is_attached else [f"mldm_plugin.training.{self.trainer}"]
        return ["-m", *program, *self.flags, *length, "--output_dir", str(self.folder)]

    @property
    def is_attached(self) -> bool:
        """Whether the script is somebody else's."""
        return self.trainer.endswith(".py")

    @property
    def is_done(self) -> bool:
        """Whether the final weights are there."""
        return any((self.folder / name).is_file() for name in FINAL)

    @property
    def records(self) -> Path:
        """Where its steps and its preset are written."""
        return self.folder / "mldm" if self.is_attached else self.folder

    @property
    def steps_done(self) -> int:
        """How many steps are logged."""
        try:
            return (self.records / METRICS).read_bytes().count(b"\n")
        except OSError:
            return 0

    def start(self, threads: int, out: IO[Any] | None = None) -> subprocess.Popen[bytes]:
        """Begin, or go on at the last checkpoint, in a group of processes of its own; `out` gets what is printed."""
        options = ("--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
        launch = [self.python or sys.executable, "-m", LAUNCHER, "--quiet", *options]
        launch += ["--num_cpu_threads_per_process", str(threads), *self.words]
        settings = SETTINGS if out is None else {**SETTINGS, **IN_A_LOG}
        return subprocess.Popen(launch, stdout=out, stderr=out, env={**settings, **os.environ}, start_new_session=True)


def processes_here() -> int:
    """How many programs to run at a time: one with a GPU, else one a core."""
    import torch

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


def threads_each(processes: int) -> int:
    """Threads of each of so many processes on this machine."""
    return max((os.cpu_count() or 1) // processes, 1)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a command that has not ended, and all that it started, without a word: what it makes bears it."""
    if process.poll() is None:
        for one in (*_started_by(process.pid, whole=True), process):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask programs that were started here for an end in order, then wait for each."""
    asked = [process for process in processes if process.poll() is None]
    for process in asked:
        for one in _who_answers(process):
            with suppress(psutil.NoSuchProcess):
                one.terminate()
    end = time.monotonic() + PATIENCE
    for process in asked:
        try:
            process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _who_answers(process: subprocess.Popen[bytes]) -> Sequence[psutil.Process | subprocess.Popen[bytes]]:
    """The program itself, but the trainer in place of its launcher, which would end at once and leave it behind."""
    trainers = _started_by(process.pid) if LAUNCHER in list(process.args) else []  # type: ignore[arg-type]
    return trainers or [process]


def _started_by(pid: int, whole: bool = False) -> list[psutil.Process]:
    """The processes that a living one has started, and with `whole` theirs in turn.

    psutil's `children` compares times of the wall clock, and overlooks one when the clock is set between two looks.
    """
    parents = {one.pid: (one, one.info["ppid"]) for one in psutil.process_iter(["ppid"])}
    found = [one for one, parent in parents.values() if parent == pid]
    return found + [each for one in found if whole for each in _started_by(one.pid, whole=True)]


def seconds_a_step(folder: Path) -> float:
    """The mean time between two steps that a training logged, over each process that it took.

    Raises:
        MldmError: no two steps are logged.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    gaps: list[float] = []
    for file in sorted((folder / "logs").rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file))
        events.Reload()
        if "loss" in events.Tags()["scalars"]:
            gaps += [b - a for a, b in itertools.pairwise(event.wall_time for event in events.Scalars("loss"))]
    if not gaps:
        raise MldmError(f"{folder} logged no two steps, from which their time could be told.")
    return statistics.fmean(gaps)
