"""Pictures and their frames through OneTrainer's data pipeline, a chain of mgds modules that hand on named values.

A picture of coordinates goes along with each picture, through OneTrainer's own scaling, cropping and flipping; what has
become of it says where the picture was cut. So no transform is imitated, and no random number drawn. Ten numbers of it
are kept, in OneTrainer's cache too, with the picture in 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from mgds.PipelineModule import PipelineModule
from mgds.pipelineModuleTypes.RandomAccessPipelineModule import (
    RandomAccessPipelineModule,
)

from mldm_plugin.attach.onetrainer_frame import FRAME, PICTURE, read_grid
from mldm_plugin.errors import DataError

IMAGE, LATENTS, GRID = "image", "latent_image", "mldm_grid"
_LISTS = ("names", "additional_names", "split_names", "input_names", "output_names")  # of values that a module hands on
_MOVES = {"ScaleCropImage", "RandomFlip", "RandomRotate", "RandomMaskRotateCrop"}
_COLOURS = {"RandomBrightness", "RandomContrast", "RandomSaturation", "RandomHue"}


class Grid(PipelineModule, RandomAccessPipelineModule):
    """Makes the picture of coordinates: x and y of each pixel's centre, and 1, (3, H, W)."""

    def length(self) -> int:
        return self._get_previous_length(IMAGE)

    def get_inputs(self) -> list[str]:
        return [IMAGE]

    def get_outputs(self) -> list[str]:
        return [GRID]

    def get_item(self, variation: int, index: int, requested_name: str | None = None) -> dict[str, Any]:
        image = self._get_previous_item(variation, IMAGE, index)
        y, x = (torch.arange(n, dtype=torch.float32, device=image.device) + 0.5 for n in image.shape[-2:])
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        return {GRID: torch.stack([columns, rows, torch.ones_like(rows)])}


class Placed(PipelineModule, RandomAccessPipelineModule):
    """Keeps what the grid has become, ten numbers (see `onetrainer_frame`), and the picture, uint8 (3, h, w)."""

    def __init__(self, first: Grid) -> None:
        super().__init__()
        self._first = first

    def length(self) -> int:
        return self._get_previous_length(GRID)

    def get_inputs(self) -> list[str]:
        return [IMAGE, GRID]

    def get_outputs(self) -> list[str]:
        return [FRAME, PICTURE]

    def get_item(self, variation: int, index: int, requested_name: str | None = None) -> dict[str, Any]:
        image = self._get_previous_item(variation, IMAGE, index)
        grid = self._get_previous_item(variation, GRID, index)
        source = self._first.get_item(variation, index)[GRID]
        sizes = [source.shape[-1], source.shape[-2], image.shape[-1], image.shape[-2]]
        if image.ndim == 4 and image.shape[1] == 1:  # a film of one picture
            image = image[:, 0]
        picture = (image[:3].float() * 255).round().clamp(0, 255).to(torch.uint8)
        return {FRAME: torch.tensor([*read_grid(grid), *sizes]), PICTURE: picture}


def carrying(definition: Iterable[Any]) -> list[Any]:
    """A pipeline's modules, with ours among them.

    What hands latents on hands ours on, too, and what moves the picture moves the grid. A cache with our values in it
    lies in a folder of its own, `mldm/` in OneTrainer's, so that one without them is not taken for it.

    Raises:
        DataError: a module does something with pictures that is not known, or there are no pictures.
    """
    modules = list(_flat(definition))
    held = [i for i, m in enumerate(modules) if IMAGE in (*_list(m, "names"), *_list(m, "additional_names"))]
    loads = [i for i, m in enumerate(modules) if getattr(m, "image_out_name", None) == IMAGE]
    if not held or not loads:
        raise DataError("OneTrainer's data pipeline loads no pictures where it was expected: it is another version.")
    for index in held:
        _check_known(modules[index])
        if type(modules[index]).__name__ in _MOVES:
            _extend(modules[index], IMAGE, [GRID])
    for module in modules:
        _extend(module, LATENTS, [FRAME, PICTURE])
        if LATENTS in _list(module, "split_names"):
            module.cache_dir = str(Path(module.cache_dir) / "mldm")
    first, last = min(held), max(held)
    grid = Grid()
    return [[*modules[:first], grid, *modules[first : last + 1], Placed(grid), *modules[last + 1 :]]]


def _check_known(module: Any) -> None:
    name = type(module).__name__
    if name not in _MOVES | _COLOURS:
        raise DataError(
            f"OneTrainer's {name} changes pictures in a way that is not known, so masks would not follow: expected "
            f"{', '.join(sorted(_MOVES | _COLOURS))}."
        )


def _flat(definition: Iterable[Any]) -> Iterator[Any]:
    for part in definition:
        if isinstance(part, (list, tuple)):
            yield from _flat(part)
        elif part is not None:
            yield part


def _list(module: Any, name: str) -> list[Any]:
    found = getattr(module, name, None)
    return found if isinstance(found, list) else []


def _extend(module: Any, beside: str, ours: list[str]) -> None:
    """Add our names to each list of the module that has `beside`; the list may be another module's, too."""
    for name in _LISTS:
        if beside in (found := _list(module, name)):
            setattr(module, name, [*found, *ours])
