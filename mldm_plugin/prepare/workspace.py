"""The folder in which a data set grows, and how it becomes the output: as a whole, at the end.

    OUT.partial/
        command.json        what was asked for; another command is refused
        lock                held while somebody works here
        index.sqlite        the sources
        done/00012.json     a shard that is finished: its rows, and what was rejected of it
        images/ …           what the shards wrote

At the end the rows are joined, the rest is cleared away and the folder gets its name.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mldm_plugin.errors import DataError
from mldm_plugin.records.files import write_text

# In the output: the command that made it, and its counts. Hidden, or `datasets` would take a small folder for JSON.
RECORD = ".prepared.json"
_FIRST_FILES = {"lock", ".command.json.partial"}  # what a run that was killed at once may leave


@dataclass
class Counts:
    """What became of the pictures. `left_out` gives a few of the reasons."""

    pictures: int = 0
    rejected: int = 0
    people: int = 0
    faces: int = 0
    left_out: list[str] = field(default_factory=list)

    def add(self, done: Mapping[str, Any]) -> None:
        """Count a finished shard in."""
        self.pictures += done["pictures"]
        self.people += done["people"]
        self.faces += done["faces"]
        self.rejected += len(done["rejected"])
        self.left_out += [f"{r['file']}: {r['reason']}" for r in done["rejected"]][: 3 - len(self.left_out)]


class Workspace:
    """OUT.partial while it is locked. Made by `opened`."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.with_name(f"{out.name}.partial")
        self.index = self.folder / "index.sqlite"
        self._done = self.folder / "done"

    def is_joined(self) -> bool:
        """Whether an interrupted run had come as far as clearing away."""
        return (self.folder / RECORD).is_file()

    def is_done(self, shard: int) -> bool:
        return self._shard(shard).is_file()

    def write_done(self, shard: int, done: Mapping[str, Any]) -> None:
        """Say that all files of a shard are written."""
        self._done.mkdir(exist_ok=True)
        write_text(self._shard(shard), json.dumps(done, ensure_ascii=False))

    def done(self) -> Iterator[dict[str, Any]]:
        """The finished shards, in order."""
        for path in sorted(self._done.glob("*.json")):
            yield json.loads(path.read_text(encoding="utf-8"))

    def discard(self) -> None:
        """Forget the work: the folder goes when it is let go of."""
        shutil.rmtree(self._done, ignore_errors=True)
        self.index.unlink(missing_ok=True)

    def is_begun(self) -> bool:
        """Whether there is work in it that another command must not go on with."""
        return self.index.exists() or self._done.exists() or self.is_joined()

    def publish(self, command: Mapping[str, Any], join: Callable[[Workspace], Counts]) -> Counts:
        """Join the shards, clear away what was needed for working only, and give the folder its name."""
        if not self.is_joined():
            record = {"command": command, "counts": vars(join(self))}
            write_text(self.folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        shutil.rmtree(self._done, ignore_errors=True)
        for name in ("index.sqlite", "coco.sqlite", "command.json", "lock"):
            (self.folder / name).unlink(missing_ok=True)
        self.folder.replace(self.out)
        return recorded_counts(self.out)

    def _shard(self, shard: int) -> Path:
        return self._done / f"{shard:06d}.json"


def recorded_counts(folder: Path) -> Counts:
    """The counts of a finished output."""
    return Counts(**json.loads((folder / RECORD).read_text(encoding="utf-8"))["counts"])


def is_made(out: Path, command: Mapping[str, Any]) -> bool:
    """Whether `out` is there and was made by the same command.

    Raises:
        DataError: something else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        made_by = json.loads((out / RECORD).read_text(encoding="utf-8"))["command"]
    except (OSError, ValueError, KeyError, TypeError):
        made_by = None
    if made_by != command:
        raise DataError(f"{out} exists already and is not what this command makes: name another --out, or remove it.")
    return True


@contextlib.contextmanager
def opened(out: Path, command: Mapping[str, Any]) -> Iterator[Workspace]:
    """The workspace of `out`, new or as an interrupted run of the same command left it.

    Raises:
        DataError: another run works there, or another command's unfinished work lies there.
    """
    space = Workspace(out)
    try:
        space.folder.mkdir(parents=True, exist_ok=True)
        others = {path.name for path in space.folder.iterdir()} - _FIRST_FILES
    except OSError as error:
        raise DataError(f"--out {out} cannot be made: {error}") from error
    if others and not (space.is_joined() or (space.folder / "command.json").exists()):
        raise DataError(f"{space.folder} is there and not ours: it would hold {out} until that is complete. Rename it.")
    lock = FileLock(space.folder / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise DataError(f"another run is writing {out}: wait for it, or name another --out.") from None
    try:
        _check_command(space, command)
        yield space
    except (OSError, sqlite3.OperationalError) as error:
        raise DataError(
            f"{space.folder} cannot be written ({error}): make room, and give the same command again; it goes on "
            "where it was."
        ) from error
    finally:
        if space.folder.exists() and not space.is_begun():
            shutil.rmtree(space.folder)
        lock.release()


def _check_command(space: Workspace, command: Mapping[str, Any]) -> None:
    path = space.folder / "command.json"
    if space.is_joined():
        stored = json.loads((space.folder / RECORD).read_text(encoding="utf-8"))["command"]
    elif space.is_begun():
        stored = json.loads(path.read_text(encoding="utf-8"))
    else:
        write_text(path, json.dumps(command, indent=1))
        return
    if stored != command:
        differing = sorted(k for k in {*stored, *command} if stored.get(k) != command.get(k))
        raise DataError(
            f"{space.folder} holds the unfinished work of another command (other {', '.join(differing)}): give that "
            "command again, or remove the folder."
        )
