"""Which pictures have come by, and which of them had no mask."""

from __future__ import annotations

from pathlib import Path

from mldm_plugin import proof
from mldm_plugin.attach.annotation import Annotation
from mldm_plugin.errors import DataError

# Chosen: so many different pictures without any mask are worth a warning, and so many are no accident.
_WORRYING, _HOPELESS = 50, 500
# No new picture among so many means that all have come by, though a script may repeat them in each pass. Chosen.
_ROUND = 100
_NAMED = 5


class Coverage:
    """Counts pictures by name. When all have come by, says how many had no mask, and which.

    Args:
        by_stem: masks are found by the pictures' file names, so no two may have the same; and the script may repeat a
            picture before all have come by.

    Raises:
        DataError: not one of them had a mask, or two pictures share one.
    """

    def __init__(self, *, by_stem: bool = False) -> None:
        self._by_stem = by_stem
        self._seen: dict[str, bool] = {}
        self._owners: dict[str, str] = {}
        self._nameless = 0
        self._without_news = 0
        self._warned = False
        self._reported = False

    def add(self, annotation: Annotation) -> None:
        """The pictures of one step."""
        if self._reported or annotation.person_mask is None:
            return
        for name, masked in zip(annotation.names, annotation.masked, strict=True):
            self._add(name, masked)
        none_yet = not any(self._seen.values())
        if none_yet and len(self._seen) >= _WORRYING and not self._warned:
            self._warned = True
            proof.announce(f"warning: none of the first {len(self._seen)} pictures has a mask.")
        whole_pass = self._without_news >= (max(_ROUND, len(self._seen)) if self._by_stem else 1)
        if whole_pass or (none_yet and len(self._seen) >= _HOPELESS):
            self.conclude()

    def _add(self, name: str, masked: bool) -> None:
        if not name:  # read from memory, so not known again
            self._nameless += 1
            name = f"picture {self._nameless} of those without a file name"
        elif self._by_stem and self._owners.setdefault(Path(name).stem, name) != name:
            raise DataError(
                f"{self._owners[Path(name).stem]} and {name} would share the mask {Path(name).stem}.png: rename one."
            )
        self._without_news = self._without_news + 1 if name in self._seen else 0
        self._seen[name] = masked

    def conclude(self) -> None:
        """Report on what has been seen so far; later calls do nothing."""
        if self._reported or not self._seen:
            return
        self._reported = True
        without = [name for name, has in self._seen.items() if not has]
        if len(without) == len(self._seen):
            raise DataError(
                f"none of the {len(without)} pictures that came by has a mask, among them {without[0]}: masks are "
                "found by the picture's file name, NAME.png for NAME.jpg, or in the mask column of the data set."
            )
        if without:
            names = ", ".join(Path(name).name for name in without[:_NAMED])
            more = f" and {len(without) - _NAMED} more" if len(without) > _NAMED else ""
            proof.announce(
                f"warning: {len(without)} of {len(self._seen)} pictures have no mask and are trained on with the plain "
                f"loss alone: {names}{more}."
            )
