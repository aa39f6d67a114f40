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
from torch import Tensor

from mldm_plugin.attach.onetrainer import FRAME, PICTURE
from mldm_plugin.errors import DataError

IMAGE, LATENTS, GRID = "image", "latent_image", "mldm_grid"
_LISTS = ("names", "additional_names", "split_names", "input_names", "output_names")  # of values that a module hands on
_MOVES = {"ScaleCropImage", "RandomFlip", "RandomRotate", "RandomMaskRotateCrop"}
_COLOURS = {"RandomBrightness", "RandomContrast", "RandomSaturation", "RandomHue"}
_WHOLE = 0.999  # of a pixel: less, and rotation has mixed it with nothing
_BORDER = 3  # pixels; bilinear filters reach no further
_FEWEST = 16  # pixels to read a map of six numbers from


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
    """Keeps what the grid has become, ten numbers, and the picture, uint8 (3, h, w).

    The numbers: the map from picture to source, x = a u + b v + c, y = d u + e v + f; then width and height of the
    source and of the picture.
    """

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


def read_grid(grid: Tensor) -> list[float]:
    """The map from picture to source that a picture of coordinates (3, h, w) shows: a, b, c, d, e, f.

    By least squares, in which what interpolation adds to single pixels averages out. Its border is left out, where
    resizing has fewer neighbours to mix, and what rotation has filled with nothing.

    Raises:
        DataError: too little of the source is left.
    """
    whole = grid[2] > _WHOLE
    for axis in (0, 1):
        if grid.shape[1 + axis] > 4 * _BORDER:
            for edge in (slice(_BORDER), slice(-_BORDER, None)):
                whole[edge if axis == 0 else (slice(None), edge)] = False
    rows, columns = whole.nonzero(as_tuple=True)
    if len(rows) < _FEWEST:
        raise DataError("OneTrainer has cut nearly all of a picture away: widen its crop.")
    places = torch.stack([columns + 0.5, rows + 0.5, torch.ones_like(rows, dtype=torch.float32)], dim=1).double()
    found = torch.linalg.lstsq(places.cpu(), grid[:2, rows, columns].T.double().cpu()).solution
    return found.T.flatten().tolist()


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
