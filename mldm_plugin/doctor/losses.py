"""What a run's records say of its losses: how many pictures each was applied to, and whether it could do anything."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import yaml

from mldm_plugin.doctor.run import Run
from mldm_plugin.engine.heard import LEAST_PICTURES, LEAST_SHARE, REACHED
from mldm_plugin.prepare.remarks import Remark
from mldm_plugin.records.metrics import FILE_NAME as METRICS
from mldm_plugin.records.run_files import PROOF

PRESET = "preset.yaml"
_LEVELS = 1000  # of Stable Diffusion's schedule, in which T is written
# Of a loss that was applied to no picture, how many its T alone would have let through for that to be no accident.
# Chosen: by chance less than one run in 10^13 of ours, in which timesteps are uniform.
CERTAIN = 30
_PROOF = re.compile(r"\s+(?P<loss>\S+)\s+\S+\s+(?:\d+|all)\s+\S+\s+(?P<gradient>\S+)\s\s")


@dataclass(frozen=True)
class Log:
    """What metrics.jsonl and the files beside it hold.

    Args:
        steps: its lines.
        images: that the run saw, as far as its flags tell; None where they are not known.
        losses: `losses:` of its preset, by name; None without a preset.
        gradients: of the start-up proof, by loss.
        unread: lines of metrics.jsonl that cannot be read, but for the last, which is cut in a run that was killed.
    """

    steps: Sequence[Mapping[str, Any]]
    images: int | None
    losses: Mapping[str, Mapping[str, Any]] | None
    gradients: Mapping[str, float]
    unread: int = 0

    def sum(self, key: str) -> int:
        return int(sum(step.get(key) or 0 for step in self.steps))

    def values(self, key: str) -> list[Any]:
        return [step[key] for step in self.steps if key in step]


def read_log(run: Run, rows: int | None) -> Log | None:
    """The records of a run; None where there are none. What is not finite becomes None, as in what we write.

    Args:
        rows: of the training set, None where it is not here.
    """
    if run.records is None:
        return None
    lines = (run.records / METRICS).read_text(encoding="utf-8", errors="replace").splitlines()
    read = [_step(line) for line in lines if line.strip()]
    steps = [step for step in read if step is not None]
    images = images_of(len(steps), run.arguments, rows)
    return Log(steps, images, _losses(run.records / PRESET), _gradients(run.records / PROOF), read[:-1].count(None))


def _step(line: str) -> dict[str, float | None] | None:
    """The numbers of one line, None where that is not what it holds; a number that is not finite is none."""
    try:
        found = json.loads(line)
        if not isinstance(found, dict) or not all(isinstance(v, (int, float, NoneType)) for v in found.values()):
            return None
        return {key: value if value is not None and math.isfinite(value) else None for key, value in found.items()}
    except (ValueError, RecursionError, OverflowError):  # the last of an integer that no float holds
        return None


def images_of(steps: int, flags: Mapping[str, Any], rows: int | None) -> int | None:
    """About how many images a run of ours has seen in so many optimizer steps; None where its flags are not known.

    A pass ends with what is left of its rows: with a smaller batch, and a step of fewer batches.

    >>> one = {"train_batch_size": 4, "gradient_accumulation_steps": 1, "num_processes": 1}
    >>> images_of(6, one, 10), images_of(6, one, None)  # batches of 4, 4 and 2, twice
    (20, 24)
    """
    names = ("train_batch_size", "gradient_accumulation_steps", "num_processes")
    known = [n for name in names if isinstance(n := flags.get(name), int) and n > 0]
    if len(known) < len(names):
        return None
    batch, accumulated, processes = known
    if not rows:
        return steps * batch * accumulated * processes
    rows = min(rows, flags.get("max_train_samples") or rows)
    batches = math.ceil(rows / (batch * processes))
    seen = rows if processes == 1 else batches * batch * processes  # accelerate repeats rows, so that all have the same
    return round(steps / math.ceil(batches / accumulated) * seen)


def _losses(preset: Path) -> Mapping[str, Mapping[str, Any]] | None:
    """Read without the plugins that it was written with, which need not be there."""
    try:
        losses = yaml.safe_load(preset.read_text(encoding="utf-8")).get("losses") or {}
        return {str(name): dict(settings or {}) for name, settings in losses.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
        return None


def _gradients(proof: Path) -> dict[str, float]:
    try:
        rows = map(_PROOF.match, proof.read_text(encoding="utf-8").splitlines())
        return {row["loss"]: float(row["gradient"]) for row in rows if row}
    except (OSError, ValueError):
        return {}


def remarks(log: Log) -> Iterator[Remark]:
    """All there is to say."""
    if log.unread:
        few = "1 line" if log.unread == 1 else f"{log.unread} lines"
        yield Remark(
            "worth a look", f"{few} of metrics.jsonl cannot be read: no numbers by name, as a run writes them."
        )
        if not log.steps:
            return
    if not log.steps:
        yield Remark("wrong", "metrics.jsonl has no line: the run made no step.")
        return
    whole = len(log.steps)
    rates = log.values("lr")
    if rates and not any(rates):
        yield Remark("wrong", f"The learning rate was 0 in all of the {whole} steps: nothing was trained.")
    if lost := sum(value is None for value in log.values("loss")):
        text = f"The loss was NaN or infinite in {lost} of {whole} steps."
        yield Remark("wrong" if lost == whole else "worth a look", text)
    terms = [key.removesuffix("/gated") for key in log.steps[0] if key.endswith("/gated") and key.count("/") == 1]
    if not terms:
        with_weight = [name for name, settings in (log.losses or {}).items() if settings.get("weight")]
        why = f" ({', '.join(with_weight)} of the preset left no trace)" if with_weight else ""
        text = f"The run trained with the plain loss alone{why}: no mask, face or hand was looked at."
        yield Remark("worth a look", text)
    for term in terms:
        yield _of_term(term, log)


def _of_term(term: str, log: Log) -> Remark:
    settings = (log.losses or {}).get(term, {})
    gated = log.sum(f"{term}/gated")
    left_out = log.sum(f"{term}/nonfinite") + log.sum(f"{term}/nonfinite_gradient")
    if not gated:
        return _never(term, log, settings)
    if settings.get("detach"):
        return Remark("worth a look", f"{term} is detached by the preset: it was logged and trained nothing.")
    if log.gradients.get(term) == 0:
        return Remark("wrong", f"{term} had no gradient at the start ({PROOF}): it trained nothing.")
    if (factors := log.values(f"{term}/balance")) and factors[-1] == 0:
        text = f"{term} is to be balanced by its gradient, and none was ever measured: the run trained without it."
        return Remark("wrong", text)
    if left_out >= gated:
        return Remark("wrong", f"{term} or its gradient was NaN or infinite each time: it trained nothing.")
    if not any(log.values(term)):
        return Remark("worth a look", f"{term} was 0 whenever it was applied: there was nothing to learn from it.")
    if (share := _heard(term, log)) < LEAST_SHARE:
        of = f"its gradient was at most {share:.2%} of that of the pictures it reaches"
        text = f"{term} is hardly heard: {of}. Raise its weight, or use `balance: gradient`."
        return Remark("worth a look", text)
    text = f"{term} was applied to {_of_images(gated, log)}"
    if left_out:
        return Remark("worth a look", f"{text}; {left_out} of them were left out, for NaN or infinity.")
    return Remark("fine", f"{text}{_expected(settings)}.")


def _heard(term: str, log: Log) -> float:
    """The largest of its last shares in the gradient, of all ranges of t; 1 where too little was measured, or where its
    share is what was asked for."""
    readings = [step for step in log.steps if f"{term}/{REACHED[0]}" in step]
    measured = sum(
        value or 0 for step in readings for key, value in step.items() if key.startswith(f"{term}/measured/")
    )
    if measured < LEAST_PICTURES or log.values(f"{term}/balance"):
        return 1.0
    last = {key: value for step in readings for key, value in step.items() if key.startswith(f"{term}/share/")}
    return max((share for share in last.values() if share is not None), default=1.0)


def _never(term: str, log: Log, settings: Mapping[str, Any]) -> Remark:
    share, images = _let_through(settings), log.images or len(log.steps)
    text = f"{term} was applied to no picture in {len(log.steps)} steps"
    if share is None or share * images < CERTAIN:
        few = "" if share is None else f": its T lets through {share:.0%} of all timesteps, so that may be chance"
        return Remark("worth a look", f"{text}{few}.")
    return Remark(
        "wrong", f"{text}: no picture had what it looks at (a mask, a face, a hand), or the gate never opened."
    )


def _of_images(gated: int, log: Log) -> str:
    steps = f"in {len(log.steps)} steps"
    if not log.images:
        return f"{gated} {'picture' if gated == 1 else 'pictures'} {steps}"
    return f"{gated} of about {log.images} pictures ({gated / log.images:.0%}) {steps}"


def _expected(settings: Mapping[str, Any]) -> str:
    share = _let_through(settings)
    return "" if share is None or share >= 1 else f"; its T = {settings['max_timestep']} lets through about {share:.0%}"


def _let_through(settings: Mapping[str, Any]) -> float | None:
    """The part of uniform timesteps up to T; None where the preset does not say."""
    limit = settings.get("max_timestep", "unknown")
    if limit is None:
        return 1.0
    return min((limit + 1) / _LEVELS, 1.0) if isinstance(limit, int) and limit >= 0 else None
