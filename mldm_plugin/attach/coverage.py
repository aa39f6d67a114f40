"""Which pictures have come by, and which of them had no mask."""

from __future__ import annotations

from pathlib import Path

from mldm_plugin import proof
from mldm_plugin.attach.annotation import Annotation
from mldm_plugin.errors import DataError

# So many different pictures in a row without any mask are no accident. Chosen.
_PATIENCE = 50
_NAMED = 5


class Coverage:
    """Counts pictures by name. After one pass over the data, says how many had no mask, and which.

    Args:
        by_stem: masks are found by the pictures' file names, so no two may have the same.

    Raises:
        DataError: not one of them had a mask, or two pictures share one.
    """

    def __init__(self, *, by_stem: bool = False) -> None:
        self._by_stem = by_stem
        self._seen: dict[str, bool] = {}
        self._owners: dict[str, str] = {}
        self._reported = False

    def add(self, annotation: Annotation) -> None:
        """The pictures of one step."""
        if self._by_stem:
            for name in annotation.names:
                owner = self._owners.setdefault(Path(name).stem, name)
                if owner != name:
                    raise DataError(
                        f"{owner} and {name} would share the mask {Path(name).stem}.png: rename one of them."
                    )
        if self._reported or annotation.person_mask is None:
            return
        unmasked = set(annotation.unmasked)
        again = any(name in self._seen for name in annotation.names)
        for name in annotation.names:
            self._seen[name] = name not in unmasked
        if again or (len(self._seen) >= _PATIENCE and not any(self._seen.values())):
            self.conclude()

    def conclude(self) -> None:
        """Report on what has been seen so far; later calls do nothing."""
        if self._reported or not self._seen:
            return
        self._reported = True
        without = [name for name, has in self._seen.items() if not has]
        if len(without) == len(self._seen):
            raise DataError(
                f"none of the first {len(without)} pictures has a mask, among them {without[0]}: masks are found by "
                "the picture's file name, NAME.png for NAME.jpg, or in the mask column of the data set."
            )
        if without:
            names = ", ".join(Path(name).name for name in without[:_NAMED])
            more = f" and {len(without) - _NAMED} more" if len(without) > _NAMED else ""
            proof.announce(
                f"warning: {len(without)} of {len(self._seen)} pictures have no mask and are trained on with the plain "
                f"loss alone: {names}{more}."
            )
