"""The training set: captions, pictures, hints, masks and boxes, row by row."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import torch
from datasets import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from mldm_plugin.data.annotations import (
    check_boxes_inside,
    check_mask_mode,
    check_mask_size,
    check_upright,
    name_of,
    parse_boxes,
    read_header,
    read_mask,
    read_picture,
)
from mldm_plugin.data.batch import Example, Failed
from mldm_plugin.data.geometry import Cut, Framing, upright_size
from mldm_plugin.errors import DataError, nearest

GeneratorState = tuple[Any, Tensor]  # Python's and torch's


@dataclass(frozen=True)
class Columns:
    """Where in the data set things are. `conditioning`, `mask` and `boxes` may be None: not read."""

    picture: str = "image"
    caption: str = "text"
    conditioning: str | None = "conditioning_image"
    mask: str | None = None
    boxes: str | None = None

    def check(self, present: Sequence[str]) -> None:
        """Raise DataError for a column that the data set does not have."""
        flags = {
            "image_column": self.picture,
            "caption_column": self.caption,
            "conditioning_image_column": self.conditioning,
            "mask_column": self.mask,
            "face_boxes_column": self.boxes,
        }
        for flag, column in flags.items():
            if column is not None and column not in present:
                hint = " Or train without a hint: --conditioning none." if flag.startswith("conditioning") else ""
                raise DataError(f"the data set has no column {column!r} (--{flag}); {nearest(column, present)}{hint}")

    @property
    def pictures(self) -> list[str]:
        return [c for c in (self.picture, self.conditioning, self.mask) if c is not None]


class TrainingSet(Dataset[Any]):
    """Rows of a `datasets.Dataset` as examples.

    The random draws are those of diffusers' scripts, in their order: for each picture of a batch its crop and flip
    from torch's generator, then for each caption from Python's generator a `random()` where captions may be left
    empty, and a `choice` where it is a list. A resumed run lets `skip_batches` pass: their draws are made, nothing
    is decoded.

    Args:
        rows: the data set.
        columns: where things are in it.
        resolution: side of the framed pictures.
        tokenizer: of the pipeline; None for looking at pictures only.
        empty_prompts: share of captions replaced by an empty one; None draws nothing for it.
        framing: options of `Framing`.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        columns: Columns,
        *,
        resolution: int,
        tokenizer: Any = None,
        empty_prompts: float | None = None,
        framing: Mapping[str, Any] | None = None,
    ) -> None:
        columns.check(rows.column_names)
        if len(rows) == 0:
            raise DataError("the data set has no rows; add pictures to it.")
        for column in columns.pictures:
            if not isinstance(rows.features[column], Image):
                raise DataError(f"column {column!r} holds {rows.features[column]}, expected pictures (datasets.Image).")
            rows = rows.cast_column(column, Image(decode=False))
        self.columns = columns
        self._rows = rows
        self._captions = rows.select_columns([columns.caption])
        self._framing = Framing(resolution, **(framing or {}))
        self._tokenizer = tokenizer
        self._empty_prompts = empty_prompts
        self._skip = 0
        self._calls = 0
        self._drawn_from: GeneratorState | None = None
        self.before_last_batch: GeneratorState | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def skip_batches(self, number: int, drawn_from: GeneratorState | None = None) -> None:
        """Let the first `number` batches of the next pass go by without loading them. Call before each pass.

        `drawn_from` is what `before_last_batch` was when the batch after them was loaded in this process: a training
        step may have drawn from the same generators in between. Processes that load for this one keep their own.
        """
        self._skip = number
        self._calls = 0
        self._drawn_from = drawn_from

    def __getitem__(self, index: int) -> Example:
        """One example, with its crop and caption drawn."""
        example = self._load(index, self._framing.draw)
        return replace(example, input_ids=self._tokenize([self._draw_caption(index)])[0])

    def __getitems__(self, indices: Sequence[int]) -> list[Example] | Failed:
        """One batch; nothing for a batch that is skipped. What cannot be loaded is reported in its turn."""
        worker = get_worker_info()
        batch = self._calls if worker is None else worker.id + self._calls * worker.num_workers
        self._calls += 1
        try:
            if batch < self._skip:
                self._draw_only(indices)
                return []
            if worker is None:
                self._mark_generators()
            examples = [self._load(index, self._framing.draw) for index in indices]
            tokens = self._tokenize([self._draw_caption(index) for index in indices])
        except DataError as error:
            return Failed(str(error))
        return [replace(e, input_ids=t) for e, t in zip(examples, tokens, strict=True)]

    def look(self, index: int) -> Example:
        """The middle of one picture, without a caption. Draws nothing."""
        return self._load(index, self._framing.middle)

    def _load(self, index: int, place: Callable[[tuple[int, int]], Cut]) -> Example:
        row = self._rows[index]
        name = name_of(row[self.columns.picture], index)
        picture = read_picture(row[self.columns.picture], name).convert("RGB")
        mask, boxes = self._annotation(row, index)
        if mask is not None or (boxes is not None and len(boxes)):
            check_upright(read_header(row[self.columns.picture], name), name)
        if mask is not None:
            check_mask_size((mask.shape[2], mask.shape[1]), picture.size, self._mask_name(row, index), name)
        if boxes is not None:
            check_boxes_inside(boxes, picture.size, name)
        framed = self._framing(picture, mask, torch.zeros(0, 4) if boxes is None else boxes, place(picture.size))
        size = framed.picture.shape[-2:]
        return Example(
            pixel_values=(framed.picture - 0.5) / 0.5,
            conditioning_pixel_values=self._hint(row, index),
            person_mask=self._mask_or_nobody(framed.mask, size),
            face_boxes=None if boxes is None else framed.boxes,
        )

    def _draw_only(self, indices: Sequence[int]) -> None:
        """Draw what loading a batch would draw; sizes come from the files' headers."""
        for index in indices if self._framing.random_crop or self._framing.random_flip else ():
            stored = self._rows[index][self.columns.picture]
            self._framing.draw(upright_size(read_header(stored, name_of(stored, index))))
        for index in indices:
            self._draw_caption(index)

    def _mark_generators(self) -> None:
        """Remember what the next batch is drawn from; for the first one after those skipped, put it back."""
        if self._drawn_from is not None:
            random.setstate(self._drawn_from[0])
            torch.set_rng_state(self._drawn_from[1])
            self._drawn_from = None
        self.before_last_batch = (random.getstate(), torch.get_rng_state())

    def stored_boxes(self, index: int) -> Tensor:
        """The face boxes of a row as they are stored, checked; none where they are not read."""
        if self.columns.boxes is None:
            return torch.zeros(0, 4)
        row = self._rows.select_columns([self.columns.picture, self.columns.boxes])[index]
        return parse_boxes(row[self.columns.boxes], name_of(row[self.columns.picture], index))

    def check_row(self, index: int) -> str | None:
        """Check what can be known of a row without decoding anything; raises DataError.

        Returns the picture's name if a face box of it is left out, less than half visible; a crop that is drawn
        anew in each pass leaves out none for good.
        """
        row = self._rows[index]
        name = name_of(row[self.columns.picture], index)
        picture = read_header(row[self.columns.picture], name)
        boxes = parse_boxes(row[self.columns.boxes], name) if self.columns.boxes else torch.zeros(0, 4)
        mask = row[self.columns.mask] if self.columns.mask else None
        if mask is not None or len(boxes):
            check_upright(picture, name)
        check_boxes_inside(boxes, picture.size, name)
        if mask is not None:
            mask_name = name_of(mask, index)
            header = read_header(mask, mask_name)
            check_mask_mode(header.mode, mask_name)
            check_mask_size(header.size, picture.size, mask_name, name)
        left_out = (
            len(boxes) > 0 and not self._framing.random_crop and not self._framing.boxes(boxes, picture.size)[1].all()
        )
        return name if left_out else None

    def _annotation(self, row: dict[str, Any], index: int) -> tuple[Tensor | None, Tensor | None]:
        mask = read_mask(row[self.columns.mask], self._mask_name(row, index)) if self.columns.mask else None
        name = name_of(row[self.columns.picture], index)
        return mask, parse_boxes(row[self.columns.boxes], name) if self.columns.boxes else None

    def _mask_name(self, row: dict[str, Any], index: int) -> str:
        return name_of(row[self.columns.mask] if self.columns.mask else None, index)

    def _mask_or_nobody(self, mask: Tensor | None, size: torch.Size) -> Tensor | None:
        if self.columns.mask is None:
            return None
        return torch.zeros(1, *size, dtype=torch.uint8) if mask is None else mask

    def _hint(self, row: dict[str, Any], index: int) -> Tensor | None:
        column = self.columns.conditioning
        if column is None:
            return None
        return self._framing.picture(read_picture(row[column], name_of(row[column], index)).convert("RGB"))

    def _draw_caption(self, index: int) -> str:
        caption = self._captions[index][self.columns.caption]
        if self._empty_prompts is not None and random.random() < self._empty_prompts:
            return ""
        if isinstance(caption, list) and caption:
            caption = random.choice(caption)
        if not isinstance(caption, str):
            raise DataError(
                f"row {index} of the data set: the caption is {caption!r}, expected a text or a list of texts."
            )
        return caption

    def _tokenize(self, captions: list[str]) -> Tensor:
        return self._tokenizer(
            captions,
            max_length=self._tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids
