"""Pictures of musubi-tuner, which trains on a cache of latents: read again, as they were when they were encoded.

A cached item knows its name and the size of its picture. Scaling and cropping follow from that size and the bucket's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from mldm_plugin.attach.annotation import CHECKED_BATCHES, KEY, Annotation, annotate_frames
from mldm_plugin.attach.frame import Frame, scaling
from mldm_plugin.attach.on_record import ExampleColumns, Fault, SideFolder
from mldm_plugin.errors import DataError

_ORIENTATION = 0x0112  # EXIF


class Batches:
    """A `BucketBatchManager` whose batches come with the annotation of their pictures.

    Args:
        manager: musubi-tuner's.
        datasource: of the same data set; it knows where the pictures lie.
        stored_of: what is on record of a picture.
        resize: musubi-tuner's `resize_image_to_bucket`.
    """

    def __init__(
        self, manager: Any, datasource: Any, stored_of: SideFolder | ExampleColumns, resize: Callable[..., Any]
    ) -> None:
        self._manager, self._stored_of, self._resize = manager, stored_of, resize
        self._paths = paths_of(datasource)
        self._checks_left = CHECKED_BATCHES

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._manager, name)

    def __len__(self) -> int:
        return len(self._manager)

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch: dict[str, Any] = self._manager[index]
        bucket, number = self._manager.bucket_batch_indices[index]
        start = number * self._manager.batch_size
        items = self._manager.buckets[bucket][start : start + self._manager.batch_size]
        try:
            batch[KEY] = self._annotated(items, batch["latents"])
        except DataError as error:
            batch[KEY] = Fault(str(error))
        return batch

    def _annotated(self, items: Any, latents: Tensor) -> Annotation:
        if len(items) != len(latents):
            raise DataError("musubi-tuner's batch is of other pictures than its bucket lists: it is another version.")
        frames, pictures = [], []
        for item in items:
            frame, picture = self._read(item)
            frames.append(frame)
            pictures.append(picture)
        shown = torch.stack(pictures)
        check = shown.float() / 127.5 - 1 if self._checks_left > 0 else None
        self._checks_left -= 1
        annotation = annotate_frames(frames, self._stored_of, check)
        return replace(annotation, pictures=shown)

    def _read(self, item: Any) -> tuple[Frame, Tensor]:
        """Where an item's picture was cut, and the picture, uint8 (3, h, w)."""
        path = self._paths.get(item.item_key)
        if path is None:
            raise DataError(
                f"{item.latent_cache_path} is of a picture {item.item_key} that the data set does not list any more: "
                "put it back, or cache its latents again."
            )
        bucket = (int(item.bucket_size[0]), int(item.bucket_size[1]))
        try:
            with PIL.Image.open(path) as picture:
                frame = frame_of_item(path, picture.size, bucket, picture.getexif().get(_ORIENTATION, 1))
                pixels = picture.convert("RGB")
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error}): the losses look at the picture, too.") from error
        if frame.source_size != tuple(item.original_size):
            raise DataError(
                f"{path} is {frame.source_size[0]} × {frame.source_size[1]}, and was {item.original_size[0]} × "
                f"{item.original_size[1]} when its latents were cached: cache them again."
            )
        return frame, torch.from_numpy(np.array(self._resize(pixels, bucket))).permute(2, 0, 1)


def paths_of(datasource: Any) -> Mapping[str, str]:
    """Paths of a data set's pictures by their names without suffix, as its cache names them.

    Raises:
        DataError: two of them share a name.
    """
    listed = getattr(datasource, "image_paths", None)
    if listed is None:
        listed = [row["image_path"] for row in datasource.data]
    found: dict[str, str] = {}
    for path in map(str, listed):
        stem = Path(path).stem
        if found.setdefault(stem, path) != path:
            raise DataError(f"{found[stem]} and {path} share their cached latents, and masks: rename one.")
    return found


def frame_of_item(path: str, size: tuple[int, int], bucket: tuple[int, int], orientation: int = 1) -> Frame:
    """Where a picture was cut: scaled until it covers its bucket, then cropped in the middle.

    Args:
        path: of the picture.
        size, bucket: width and height.
        orientation: EXIF's, which musubi-tuner leaves alone.
    """
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    scaled = (int(size[0] * scale + 0.5), int(size[1] * scale + 0.5))
    left, top = (scaled[0] - bucket[0]) // 2, (scaled[1] - bucket[1]) // 2
    frame = Frame(path, size, size, orientation=orientation)
    return frame.then(scaling((0, 0, *size), scaled), scaled).then((1, 0, -left, 0, 1, -top), bucket)
