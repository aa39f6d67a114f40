"""Which pictures have come by, and which of them had nothing on record that the losses need."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mldm_plugin.announce import announce
from mldm_plugin.errors import DataError

# Chosen: so many different pictures with nothing on record are worth a warning, and so many are no accident.
_WORRYING, _HOPELESS = 50, 500
# No new picture among so many means that all have come by, though a script may repeat them in each pass. Chosen.
_ROUND = 100
_NAMED = 5


class Coverage:
    """Counts pictures by name. When all have come by, says how many lack what losses need, and which.

    Args:
        what: they need, "a mask" for example.
        by_stem: it is found by the pictures' file names, so no two may have the same.
        alone: this process sees all pictures; one of several that share them does not, and so only warns.

    Raises:
        DataError: not one of them had anything on record, or two pictures share it.
    """

    def __init__(self, what: str = "a mask", *, by_stem: bool = False, alone: bool = True) -> None:
        self._by_stem = by_stem
        self._alone = alone
        self._what = what
        self._seen: dict[str, bool] = {}
        self._owners: dict[str, str] = {}
        self._nameless = [0, 0]  # without a record, with one
        self._without_news = 0
        self._warned = False
        self._reported = False

    def add(self, pictures: Iterable[tuple[str, bool]]) -> None:
        """The pictures of one step: the name of each, and whether it has what is needed."""
        if self._reported:
            return
        for name, on_record in pictures:
            self._add(name, on_record)
        number, none_yet = self._number(), not self._any()
        if none_yet and number >= _WORRYING and not self._warned:
            self._warned = True
            announce(f"warning: none of the first {number} pictures has {self._what}.")
        if self._without_news >= max(_ROUND, len(self._seen)) or (none_yet and number >= _HOPELESS):
            self.conclude()

    def _add(self, name: str, on_record: bool) -> None:
        if not name:  # read from memory, so not known again
            self._nameless[on_record] += 1
            return
        if self._by_stem and self._owners.setdefault(Path(name).stem, name) != name:
            raise DataError(
                f"{self._owners[Path(name).stem]} and {name} would share the mask {Path(name).stem}.png: rename one."
            )
        self._without_news = self._without_news + 1 if name in self._seen else 0
        self._seen[name] = on_record

    def _number(self) -> int:
        return len(self._seen) + sum(self._nameless)

    def _any(self) -> bool:
        return self._nameless[True] > 0 or any(self._seen.values())

    def conclude(self) -> None:
        """Report on what has been seen so far; later calls do nothing."""
        if self._reported or not self._number():
            return
        self._reported = True
        names = [Path(name).name for name, has in self._seen.items() if not has]
        without = len(names) + self._nameless[False]
        if not self._any():
            text = (
                f"none of the {without} pictures that came by has {self._what}"
                f"{f', among them {names[0]}' if names else ''}: they are found by the picture's file name, NAME.png "
                "and NAME.json for NAME.jpg, or in columns of the data set."
            )
            if self._alone:
                raise DataError(text)
            announce(f"warning: {text}")
        elif without:
            kind = self._what.removeprefix("a ")
            more = f" and {without - _NAMED} more" if without > _NAMED else ""
            announce(
                f"warning: {without} of {self._number()} pictures have no {kind}, so losses that need it do "
                f"nothing there: {', '.join(names[:_NAMED])}{more}."
            )
