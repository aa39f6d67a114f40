"""Photographs of a run's evaluation, small, as they were framed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mldm_plugin.errors import MldmError
from mldm_plugin.run_page.film import jpeg

SIDE = 192  # pixels; chosen: a third of a panel, sharp on a dense screen
_FAULTS = (MldmError, ImportError, OSError, ValueError, TypeError, IndexError)


class Album:
    """The photographs that were asked for, kept, so that a page that is written again reads each once.

    Args:
        arguments: what the run was started with, for the column of its pictures.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._column, self._cache = arguments.get("image_column") or "image", arguments.get("cache_dir")
        self._kept: dict[tuple[str, str, int, str], dict[str, str]] = {}

    def pictures(self, data: str, split: str, resolution: int, digests: Mapping[int, str]) -> dict[str, dict[str, str]]:
        """Row → `name` and `src` of the photographs that are on this machine as they were evaluated.

        Args:
            data, split, resolution: where they are, and the side they were framed to.
            digests: of the rows asked for; a row is another photograph once a file is added before it.
        """
        keys = {row: (data, split, resolution, digest) for row, digest in digests.items()}
        if missing := {row: digests[row] for row, key in keys.items() if key not in self._kept}:
            with suppress(*_FAULTS):  # a data set that is not here, or cannot be opened
                for row, picture in self._read(data, split, resolution, missing):
                    self._kept[keys[row]] = picture
        return {str(row): self._kept[key] for row, key in keys.items() if key in self._kept}

    def _read(
        self, data: str, split: str, resolution: int, digests: Mapping[int, str]
    ) -> Iterator[tuple[int, dict[str, str]]]:
        from mldm_plugin.data.load import open_held_out  # with `datasets`, which only such a run needs
        from mldm_plugin.data.training_set import Columns, TrainingSet

        if not Path(data).is_dir():  # `datasets` would look for it elsewhere
            raise FileNotFoundError(data)
        stored, now = open_held_out(data, self._cache)
        if now != split:
            raise ValueError(f"{data} has the split {now}, not {split}, any more")
        photographs = TrainingSet(stored, Columns(self._column, None, None), resolution=resolution)
        for row, digest in digests.items():
            with suppress(*_FAULTS):  # one that is not here, or cannot be read
                if photographs.digest(row) == digest:
                    name = _within(photographs.name(row), data)
                    yield row, {"name": name, "src": _small(photographs.picture(row, mirrored=False))}


def _small(picture: Any) -> str:
    """A picture (3, S, S) in [-1, 1] as a JPEG."""
    from torchvision.transforms.functional import to_pil_image

    small = to_pil_image((picture + 1) / 2)
    small.thumbnail((SIDE, SIDE))
    return jpeg(small)


def _within(name: str, data: str) -> str:
    """A file's name from the data set's folder on.

    >>> _within("/data/people/validation/7.png", "/data/people"), _within("row 7 of the data set", "/data/people")
    ('validation/7.png', 'row 7 of the data set')
    """
    path = Path(name)
    return path.relative_to(data).as_posix() if path.is_relative_to(data) else name
