"""Photographs of a run's evaluation, small, as they were framed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mldm_plugin.errors import MldmError
from mldm_plugin.run_page.film import jpeg

SIDE = 192  # pixels; chosen: a third of a panel, sharp on a dense screen


class Album:
    """The photographs that were asked for, kept, so that a page that is written again reads each once.

    Args:
        arguments: what the run was started with, for the column of its pictures.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._column, self._cache = arguments.get("image_column") or "image", arguments.get("cache_dir")
        self._kept: dict[tuple[str, str, int, int], dict[str, str]] = {}

    def pictures(self, data: str, split: str, resolution: int, rows: Sequence[int]) -> dict[str, dict[str, str]]:
        """Row → `name` and `src`; empty where they are not on this machine, or cannot be read."""
        keys = [(data, split, resolution, row) for row in rows]
        if missing := [key[-1] for key in keys if key not in self._kept]:
            try:
                found = self._read(data, split, resolution, missing)
            except (MldmError, ImportError, OSError, ValueError, TypeError, IndexError):
                return {}
            self._kept |= {(data, split, resolution, row): picture for row, picture in found.items()}
        return {str(key[-1]): self._kept[key] for key in keys}

    def _read(self, data: str, split: str, resolution: int, rows: Sequence[int]) -> dict[int, dict[str, str]]:
        from torchvision.transforms.functional import to_pil_image

        from mldm_plugin.data.load import open_held_out  # with `datasets`, which only such a run needs
        from mldm_plugin.data.training_set import Columns, TrainingSet

        if not Path(data).is_dir():  # `datasets` would look for it elsewhere
            raise FileNotFoundError(data)
        stored, now = open_held_out(data, self._cache)
        if now != split:
            raise ValueError(f"{data} has the split {now}, not {split}, any more")
        photographs = TrainingSet(stored, Columns(self._column, None, None), resolution=resolution)
        found = {}
        for row in rows:
            picture = to_pil_image((photographs.picture(row, mirrored=False) + 1) / 2)
            picture.thumbnail((SIDE, SIDE))
            found[row] = {"name": _within(photographs.name(row), data), "src": jpeg(picture)}
        return found


def _within(name: str, data: str) -> str:
    """A file's name from the data set's folder on.

    >>> _within("/data/people/validation/7.png", "/data/people"), _within("row 7 of the data set", "/data/people")
    ('validation/7.png', 'row 7 of the data set')
    """
    path = Path(name)
    return path.relative_to(data).as_posix() if path.is_relative_to(data) else name
