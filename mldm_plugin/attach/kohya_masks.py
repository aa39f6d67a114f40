"""Masks, boxes and keypoints for the pictures of kohya's data sets, put where these put the pictures.

kohya's data sets read a picture as a numpy array, resize it, cut it by slicing and turn it by a slice with a negative
step. Arrays are followed through these steps (see `followed_array`), and torchvision's functions hand the frame on to
the tensor. So masks are warped once, from their source, by nearest neighbours,
and boxes and keypoints by the same map; kohya's own alpha channel, which is interpolated, is left alone, and a user's
masked_loss with it. Where latents were cached the picture is cut again, by the function that cut it for the cache.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from mldm_plugin.announce import announce
from mldm_plugin.attach import ledger
from mldm_plugin.attach.annotation import CHECKED_BATCHES, KEY, Annotation, annotate
from mldm_plugin.attach.followed_array import FollowedArray
from mldm_plugin.attach.frame import Frame, scaling
from mldm_plugin.attach.ledger import frame_of
from mldm_plugin.attach.on_record import Fault, Offers, SideFolder, Stored
from mldm_plugin.attach.planes import Planes
from mldm_plugin.errors import DataError

_LIBRARY = "library.train_util"
_NAMED = 5  # in a warning


def is_collator(collate: Any) -> bool:
    """Whether this is the collate function of kohya's scripts: their data set makes whole batches itself."""
    return type(collate).__module__ == _LIBRARY


class NoFolder:
    """No masks and no boxes; what `SideFolder` is without --mldm-mask-dir."""

    def __call__(self, example: Mapping[str, Any], frame: Frame | None, name: str) -> Stored:
        return Stored()

    def offers(self, example: Mapping[str, Any]) -> Offers:
        return Offers()


class _OfTraining:
    """The side folder for all but the regularisation pictures: those are of other people."""

    def __init__(self, folder: SideFolder | NoFolder) -> None:
        self._folder = folder
        self.offers = folder.offers

    def __call__(self, example: Mapping[str, Any], frame: Frame | None, name: str) -> Stored:
        return Stored() if example["is_reg"] else self._folder(example, frame, name)


class KohyaCollate:
    """kohya's collate function; its data sets are followed wherever it arrives, in a worker process too.

    In its first call it compares the pictures of all data sets with the side folder.
    """

    def __init__(self, collate: Callable[[Any], Any], folder: SideFolder | NoFolder) -> None:
        self._collate = collate
        self._folder = folder
        self._checked = False
        follow(folder)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        follow(self._folder)

    def __call__(self, examples: Any) -> Any:
        batch = self._collate(examples)
        if not self._checked and isinstance(self._folder, SideFolder):
            worker = torch.utils.data.get_worker_info()
            group = self._collate.dataset if worker is None else worker.dataset  # type: ignore[attr-defined]
            try:
                _compare(_pictures(group), self._folder, tell=worker is None or worker.id == 0)
            except DataError as error:
                batch[KEY] = Fault(str(error))
        self._checked = True
        return batch


def _pictures(group: Any) -> list[Path]:
    """The pictures to train on, regularisation left out."""
    parts = [d for d in getattr(group, "datasets", [group]) if getattr(d, "is_training_dataset", True)]
    infos = [info for part in parts for info in part.image_data.values()]
    return sorted({Path(info.absolute_path) for info in infos if not info.is_reg})


def _compare(pictures: Sequence[Path], folder: SideFolder, *, tell: bool) -> None:
    """Masks are found by the stem of a picture's name: no two pictures may share one, and some must have one.

    Raises:
        DataError: two do, or none has.
    """
    owners: dict[str, Path] = {}
    for path in (p for p in pictures if p.stem in folder.stems):
        if path.stem in owners:
            raise DataError(
                f"{path} and {owners[path.stem]} have the same name, so both would take the mask or labels "
                f"{path.stem} of --mldm-mask-dir: rename one of them."
            )
        owners[path.stem] = path
    without = [p for p in pictures if p.stem not in owners]
    if pictures and not owners:
        raise DataError(
            f"none of the {len(pictures)} pictures has a mask, boxes or keypoints in --mldm-mask-dir, among them "
            f"{without[0]}: they are found by the picture's file name, NAME.png and NAME.json for NAME.jpg."
        )
    if without and tell:
        more = f" and {len(without) - _NAMED} more" if len(without) > _NAMED else ""
        names = ", ".join(p.name for p in without[:_NAMED])
        announce(
            f"warning: {len(without)} of {len(pictures)} pictures have no mask, no boxes and no keypoints and are "
            f"trained on with the plain loss alone: {names}{more}."
        )


def follow(folder: SideFolder | NoFolder) -> None:
    """Have kohya's data sets put an `Annotation` into each batch, in this process; a second call changes the folder.

    Raises:
        DataError: this version of kohya's library is not laid out as expected.
    """
    library = sys.modules[_LIBRARY]
    missing = [n for n in ("load_image", "resize_image", "trim_and_resize_if_required") if not hasattr(library, n)]
    if missing:
        raise DataError(f"sd-scripts' {_LIBRARY} has no {', '.join(missing)}: use version 0.10 or later.")
    ledger.install()
    plain = getattr(library.BaseDataset.__getitem__, "__wrapped__", None)
    if plain is None:
        _follow_arrays(library)
        plain = library.BaseDataset.__getitem__
    library.BaseDataset.__getitem__ = _annotating(plain, library, _OfTraining(folder))


def _follow_arrays(library: Any) -> None:
    load, resize = library.load_image, library.resize_image

    @functools.wraps(load)
    def load_image(image_path: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        array = load(image_path, *args, **kwargs)
        with PIL.Image.open(image_path) as header:  # which the ledger has given a frame
            frame = frame_of(header)
        if frame is not None and frame.size != (array.shape[1], array.shape[0]):
            frame = frame.lose("a change of size while the picture was read")
        return array if frame is None else FollowedArray.of(array, Planes.of(frame, array.shape, 0, 1))

    @functools.wraps(resize)
    def resize_image(image: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        result, frame = resize(image, *args, **kwargs), frame_of(image)
        if frame is None:
            return result
        size = (result.shape[1], result.shape[0])
        moved = frame.then(scaling((0, 0, *frame.size), size), size)
        return FollowedArray.of(result, Planes.of(moved, result.shape, 0, 1))

    library.load_image, library.resize_image = load_image, resize_image


def _annotating(plain: Callable[..., Any], library: Any, folder: _OfTraining) -> Callable[..., Any]:
    """`BaseDataset.__getitem__` with the annotation in its batch; a fault too, for this may be a worker process."""
    checks_left = CHECKED_BATCHES

    @functools.wraps(plain)
    def getitem(dataset: Any, index: int) -> Any:
        nonlocal checks_left
        example, pictures = _with_pictures(dataset, index, plain)
        if dataset.caching_mode is not None:
            return example
        try:
            example[KEY] = _annotation(dataset, index, example, pictures, library, folder, check=checks_left > 0)
            checks_left -= 1
        except DataError as error:
            example[KEY] = Fault(str(error))
        return example

    return getitem


def _with_pictures(dataset: Any, index: int, plain: Callable[..., Any]) -> tuple[Any, list[Tensor]]:
    """A batch, and the pictures in it as they were before they were stacked, with their frames."""
    pictures: list[Tensor] = []
    transforms = dataset.image_transforms

    def noted(picture: Any) -> Tensor:
        pictures.append(transforms(picture))
        return pictures[-1]

    dataset.image_transforms = noted
    try:
        return plain(dataset, index), pictures
    finally:
        dataset.image_transforms = transforms


def _annotation(
    dataset: Any,
    index: int,
    example: Mapping[str, Any],
    pictures: list[Tensor],
    library: Any,
    folder: _OfTraining,
    *,
    check: bool,
) -> Annotation:
    infos, cached = _rows(dataset, index), example["images"] is None
    if cached:
        pictures = [_cut_again(dataset, library, example, row, info) for row, info in enumerate(infos)]
    if len(pictures) != len(infos):
        raise DataError(
            f"{len(pictures)} pictures were seen for a batch of {len(infos)}: some of its latents are cached and some "
            "are not, or this version of sd-scripts loads pictures in a way that cannot be followed."
        )
    examples = [{"pixel_values": p, "is_reg": i.is_reg} for p, i in zip(pictures, infos, strict=True)]
    stacked = torch.stack([p.detach() for p in pictures]).float() if cached else example["images"]
    annotation = annotate(examples, {"images": stacked}, folder, check=check)
    held = ((stacked + 1) * 127.5).round().to(torch.uint8) if cached else None
    return replace(annotation, pictures=held)


def _rows(dataset: Any, index: int) -> list[Any]:
    """What kohya knows of each picture of a batch."""
    place = dataset.buckets_indices[index]
    start = place.batch_index * place.bucket_batch_size
    keys = dataset.bucket_manager.buckets[place.bucket_index][start : start + place.bucket_batch_size]
    return [dataset.image_data[key] for key in keys]


def _cut_again(dataset: Any, library: Any, example: Mapping[str, Any], row: int, info: Any) -> Tensor:
    """The picture that cached latents were encoded from, with its frame.

    A cache knows neither random crops nor changes of colour, so the picture is a function of its file and its bucket.
    """
    path = Path(info.absolute_path)
    if info.resized_size is None or path.suffix == ".npz" or not path.is_file():
        raise DataError(
            f"{info.absolute_path}: the picture that these latents were encoded from cannot be read, so masks cannot "
            "be put on it: train from pictures."
        )
    interpolation = {"resize_interpolation": info.resize_interpolation}
    array = library.load_image(info.absolute_path)
    array, (width, height), _ = library.trim_and_resize_if_required(
        False, array, info.bucket_reso, info.resized_size, **interpolation
    )
    if (height, width) != tuple(example["original_sizes_hw"][row].tolist()):
        raise DataError(
            f"{info.absolute_path} is {width}x{height}, its cached latents are of a picture of another size: delete "
            "the cache (*.npz)."
        )
    if example["flippeds"][row]:
        array = array[:, ::-1].copy()
    return dataset.image_transforms(array[:, :, :3])
