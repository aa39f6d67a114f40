"""evaluation.json: what a run's evaluations found, and which of its steps is the best."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mldm_plugin.evaluation.best import Best, best_of
from mldm_plugin.records.files import write_text
from mldm_plugin.training.run_folder import EVALUATION, checkpoints_in, step_of

log = logging.getLogger(__name__)

VERSION = 1


class EvaluationFile:
    """The file of a run, written whole each time. One process has it.

    Args:
        folder: the run folder.
        about: what is looked at and how; what was found in another way is not gone on with.

    Attributes:
        steps: step → `values`, quantity → its value on each photograph, averaged over timesteps, and `by_timestep`,
            quantity → its mean over photographs at each timestep.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.path, self._folder = folder / EVALUATION, folder
        self._about: dict[str, Any] = json.loads(json.dumps({"version": VERSION, **about}))
        self.steps: dict[int, dict[str, Any]] = {}

    def take_up(self, step: int) -> None:
        """Keep what an earlier part of this run found up to `step`; forget what is not of this run."""
        self.steps = {}
        if step and self.path.is_file():
            stored = _stored(self.path)
            if {name: stored.get(name) for name in self._about} == self._about:
                self.steps = {s: found for s, found in stored["steps"].items() if s <= step}
            else:
                log.warning(f"{self.path} is of other photographs, another way to look, or damaged: begun anew.")
        if self.path.is_file():
            self.write()

    def add(self, step: int, found: dict[str, Any]) -> None:
        """One more evaluation."""
        self.steps[step] = _plain(found)
        self.write()

    @property
    def best(self) -> Best[int] | None:
        return best_of({step: found["values"] for step, found in sorted(self.steps.items())})

    def write(self) -> None:
        """Write what is known, with the checkpoints that are there now."""
        steps = {str(step): found for step, found in sorted(self.steps.items())}
        content = {**self._about, "best": self._best(), "steps": steps}
        write_text(self.path, json.dumps(content, allow_nan=False) + "\n")

    def conclusion(self) -> str:
        """Which step is the best and where its weights are, in a line."""
        if (best := self.best) is None:
            return "no step could be evaluated: nothing was finite"
        line = best.in_words()
        if best.step in (0, best.last):
            return line
        kept = self._kept(best.step)
        return f"{line}; {f'{kept} has its weights' if kept else 'no checkpoint has its weights any more, or ever had'}"

    def _best(self) -> dict[str, Any] | None:
        if (best := self.best) is None:
            return None
        return {
            "criterion": best.criterion,
            "step": best.step,
            "checkpoint": self._kept(best.step),
            "last": best.last,
            "difference_to_last": None if best.difference is None else _plain(asdict(best.difference)),
            "p_corrected": _plain(best.p),
            "better_than_last": best.shown,
            "by_quantity": best.by,
        }

    def _kept(self, step: int) -> str | None:
        return next((path.name for path in checkpoints_in(self._folder) if step_of(path) == step), None)


def forget_after(folder: Path, step: int) -> None:
    """Of a run that goes on from `step` without looking: what was found later is not of it. Of one that begins, nothing
    is; a file that cannot be read is left as it is."""
    path = folder / EVALUATION
    if not step:
        path.unlink(missing_ok=True)
    stored = _stored(path) if path.is_file() else {}
    if any(found > step for found in stored.get("steps", ())):
        EvaluationFile(folder, {k: v for k, v in stored.items() if k not in ("best", "steps")}).take_up(step)


def _stored(path: Path) -> dict[str, Any]:
    """The file, its steps by number; empty where it is damaged."""
    try:
        stored = dict(json.loads(path.read_text(encoding="utf-8")))
        return {**stored, "steps": {int(step): dict(found) for step, found in stored["steps"].items()}}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _plain(value: Any) -> Any:
    """What JSON can hold; what is not finite is null."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
