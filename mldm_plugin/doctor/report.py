"""The answer as a whole: a verdict, what is wrong, worth a look and fine, and the layers by how far they moved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mldm_plugin.doctor import losses, weights
from mldm_plugin.doctor.data import look_at_data
from mldm_plugin.doctor.layers import Changes, printable
from mldm_plugin.doctor.run import Run
from mldm_plugin.errors import MldmError
from mldm_plugin.prepare.check import Report, faults, told
from mldm_plugin.prepare.remarks import Remark, verdict


@dataclass(frozen=True)
class Answer:
    """All that was found.

    Args:
        said: the gravest first.
        changes: of the weights; None where there are none.
        data: the training set; None where it is not here.
        log: what was recorded; None where there are no records.
        of_data: those of `said` that are of the training set.
    """

    said: list[Remark]
    changes: Changes | None
    data: Report | None
    log: losses.Log | None
    of_data: list[Remark]

    def beside(self, data: Report | None, of_data: list[Remark]) -> Answer:
        """This answer, and what there is to say of a training set that was looked at before."""
        return Answer(_in_order([*self.said, *of_data]), self.changes, data, self.log, of_data)

    @property
    def verdict(self) -> str:
        """What it comes to."""
        done = "" if self.changes is None else f"{weights.verdict_on(self.changes)} "
        return done + verdict(self.said)

    @property
    def wrong(self) -> bool:
        return any(remark.grade == "wrong" for remark in self.said)

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        yield self.verdict
        yield from map(printable, map(told, self.said))
        if self.data is not None:
            yield from map(printable, faults(self.data))
        if self.changes is not None:
            yield from map(printable, weights.table(self.changes))


def examine(run: Run, *, pictures: bool = True) -> Answer:
    """Look at weights, records and training set.

    Args:
        pictures: whether to look at the training set, which takes a while.

    Raises:
        MldmError: a file that cannot be read, or is not what it should be.
    """
    try:
        return _examined(run, pictures)
    except (ValueError, TypeError, OverflowError, KeyError, RecursionError) as error:
        places = " or ".join(str(place) for place in (run.weights, run.records, run.data) if place is not None)
        what = f"{type(error).__name__}: {printable(str(error)[:200])}"
        raise MldmError(f"Something in {places} is not as a training writes it ({what}): is it whole?") from error


def _examined(run: Run, pictures: bool) -> Answer:
    changes = weights.read_changes(run)
    data, of_data = look_at_data(run) if pictures else (None, [])
    log = losses.read_log(run, None if data is None else data.counts["rows"])
    said = list(weights.remarks(changes, run.base)) if changes is not None else [_unfinished()]
    said += losses.remarks(log) if log is not None else [_no_records()]
    return Answer(_in_order([*said, *of_data]), changes, data, log, of_data)


def _in_order(said: list[Remark]) -> list[Remark]:
    order = ("wrong", "worth a look", "fine")
    return sorted(said, key=lambda remark: order.index(remark.grade))


def _unfinished() -> Remark:
    return Remark(
        "worth a look",
        "There are no weights of a LoRA or a ControlNet: no checkpoint was reached, or it is another kind.",
    )


def _no_records() -> Remark:
    return Remark(
        "worth a look",
        "What its losses saw is not known: no metrics.jsonl of our trainers or attached runs is beside it.",
    )
