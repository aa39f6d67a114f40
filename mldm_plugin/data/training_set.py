"""The training set: captions, pictures, hints, masks, boxes and keypoints, row by row."""

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

from mldm_plugin.conditions.encoder import ConditionEncoder
from mldm_plugin.data.annotations import (
    check_boxes_inside,
    check_keypoints_inside,
    check_mask_mode,
    check_mask_size,
    check_upright,
    name_of,
    parse_boxes,
    parse_keypoints,
    read_header,
    read_mask,
    read_picture,
)
from mldm_plugin.data.batch import NOT_LOADED, Example, Failed
from mldm_plugin.data.condition_columns import ConditionColumns
from mldm_plugin.data.geometry import Cut, Framing, upright_size
from mldm_plugin.data.latents_cache import LatentsCache, picture_digest
from mldm_plugin.errors import DataError, nearest

GeneratorState = tuple[Any, Tensor]  # Python's and torch's


@dataclass(frozen=True)
class Columns:
    """Where in the data set things are. All but the picture may be None: not read."""

    picture: str = "image"
    caption: str | None = "text"
    conditioning: str | None = "conditioning_image"
    mask: str | None = None
    boxes: str | None = None
    keypoints: str | None = None

    def check(self, present: Sequence[str]) -> None:
        """Raise DataError for a column that the data set does not have."""
        flags = {
            "image_column": self.picture,
            "caption_column": self.caption,
            "conditioning_image_column": self.conditioning,
            "mask_column": self.mask,
            "face_boxes_column": self.boxes,
            "keypoints_column": self.keypoints,
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
    (and, which they do not have, its colours) from torch's generator, then for each caption from Python's generator a
    `random()` where captions may be left empty, and a `choice` where it is a list. A resumed run lets `skip_batches`
    pass: their draws are made, nothing is decoded.

    Args:
        rows: the data set.
        columns: where things are in it.
        resolution: side of the framed pictures.
        tokenizer: of the pipeline; None for looking at pictures only.
        empty_prompts: share of captions replaced by an empty one; None draws nothing for it.
        framing: options of `Framing`.
        conditions: what else is read, by name.
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
        conditions: Mapping[str, ConditionEncoder] | None = None,
    ) -> None:
        columns.check(rows.column_names)
        self._conditions = ConditionColumns(conditions or {})
        self._conditions.check(rows.column_names)
        if len(rows) == 0:
            raise DataError("the data set has no rows; add pictures to it.")
        for column in [*columns.pictures, *self._conditions.pictures]:
            if not isinstance(rows.features[column], Image):
                raise DataError(f"column {column!r} holds {rows.features[column]}, expected pictures (datasets.Image).")
            rows = rows.cast_column(column, Image(decode=False))
        self.columns = columns
        self._rows = rows
        self._captions = None if columns.caption is None else rows.select_columns([columns.caption])
        self.framing = Framing(resolution, **(framing or {}))
        self._tokenizer = tokenizer
        self._empty_prompts = empty_prompts
        self._latents: LatentsCache | None = None
        self._digests: Sequence[str] = ()
        self._loads_pictures = True
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
        example = self._load(index, self.framing.draw)
        return example if self._captions is None else self._with_text(example, self.tokens(self._draw_caption(index)))

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
            examples = [self._load(index, self.framing.draw) for index in indices]
            if self._captions is None:
                return examples
            tokens = self._tokenize([self._draw_caption(index) for index in indices])
            return [self._with_text(e, t) for e, t in zip(examples, tokens, strict=True)]
        except DataError as error:
            return Failed(str(error))

    def read_latents(self, cache: LatentsCache, digests: Sequence[str], *, pictures: bool) -> None:
        """From now on give each example what the cache holds of it, and its picture only if `pictures`.

        `digests` are those of all rows. Crops and colours must not be drawn: an entry is of one transform.
        """
        self._latents, self._digests, self._loads_pictures = cache, digests, pictures

    @property
    def transform(self) -> dict[str, Any]:
        """All that is done to every picture, but for its mirroring."""
        framing = self.framing
        return {"resolution": framing.resolution, "interpolation": framing.interpolation, "crop": "middle"}

    @property
    def mirrors(self) -> bool:
        return self.framing.random_flip

    def name(self, index: int) -> str:
        """How an error names a picture."""
        return name_of(self._rows[index][self.columns.picture], index)

    def digest(self, index: int) -> str:
        """The `picture_digest` of a row."""
        return picture_digest(self._rows[index][self.columns.picture], self.name(index))

    def picture(self, index: int, *, mirrored: bool) -> Tensor:
        """The middle of a picture alone, float (3, S, S) in [-1, 1]."""
        picture = read_picture(self._rows[index][self.columns.picture], self.name(index)).convert("RGB")
        cut = replace(self.framing.middle(picture.size), mirrored=mirrored)
        return (self.framing.picture(picture, cut) - 0.5) / 0.5

    def captions(self) -> list[str]:
        """Every caption that may be drawn, once, and the empty one."""
        captions = {"": None}
        for index, given in enumerate([] if self._captions is None else self._captions[self.columns.caption]):
            for caption in given if isinstance(given, list) and given else [given]:
                captions[_checked_caption(caption, index)] = None
        return list(captions)

    def tokens(self, caption: str) -> Tensor:
        """A caption as `input_ids`, (L,)."""
        return self._tokenize([caption])[0]

    def look(self, index: int) -> Example:
        """The middle of one picture, without a caption. Draws nothing."""
        return self._load(index, self.framing.middle)

    def _load(self, index: int, place: Callable[[tuple[int, int]], Cut]) -> Example:
        row = self._rows[index]
        stored, name = row[self.columns.picture], name_of(row[self.columns.picture], index)
        picture = read_picture(stored, name).convert("RGB") if self._loads_pictures else None
        size = upright_size(read_header(stored, name)) if picture is None else picture.size
        mask, boxes, keypoints = self._annotation(row, index)
        drawn_on = mask is not None or bool(self._conditions.pictures)
        if drawn_on or any(labels is not None and len(labels) for labels in (boxes, keypoints)):
            check_upright(read_header(stored, name), name)
        if mask is not None:
            check_mask_size((mask.shape[2], mask.shape[1]), size, self._mask_name(row, index), name)
        if boxes is not None:
            check_boxes_inside(boxes, size, name)
        if keypoints is not None:
            check_keypoints_inside(keypoints, size, name)
        cut = place(size)
        return Example(
            pixel_values=NOT_LOADED if picture is None else (self.framing.picture(picture, cut) - 0.5) / 0.5,
            conditioning_pixel_values=self._hint(row, index, size, cut),
            person_mask=self._framed_mask(mask, cut),
            face_boxes=None if boxes is None else self.framing.kept_boxes(boxes, size, cut),
            keypoints=None if keypoints is None else self.framing.keypoints(keypoints, size, cut),
            posterior=self._posterior(index, cut),
            conditions=self._conditions.read(row, size, self.framing, cut, name),
        )

    def _posterior(self, index: int, cut: Cut) -> Tensor | None:
        if self._latents is None:
            return None
        return self._latents.read(self._latents.posterior_key(self._digests[index], cut.mirrored))

    def _with_text(self, example: Example, tokens: Tensor) -> Example:
        text = None if self._latents is None else self._latents.read(self._latents.text_key(tokens))
        return replace(example, input_ids=tokens, text=text)

    def _draw_only(self, indices: Sequence[int]) -> None:
        """Draw what loading a batch would draw; sizes come from the files' headers."""
        for index in indices if self.framing.draws else ():
            stored = self._rows[index][self.columns.picture]
            self.framing.draw(upright_size(read_header(stored, name_of(stored, index))))
        for index in indices if self._captions is not None else ():
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
        boxes = parse_boxes(row[self.columns.boxes] if self.columns.boxes else None, name)
        keypoints = parse_keypoints(row[self.columns.keypoints] if self.columns.keypoints else None, name)
        mask = row[self.columns.mask] if self.columns.mask else None
        if mask is not None or len(boxes) or len(keypoints):
            check_upright(picture, name)
        check_boxes_inside(boxes, picture.size, name)
        check_keypoints_inside(keypoints, picture.size, name)
        self._conditions.check_row(row, picture.size, name)
        if mask is not None:
            mask_name = name_of(mask, index)
            header = read_header(mask, mask_name)
            check_mask_mode(header.mode, mask_name)
            check_mask_size(header.size, picture.size, mask_name, name)
        left_out = (
            len(boxes) > 0 and not self.framing.random_crop and not self.framing.boxes(boxes, picture.size)[1].all()
        )
        return name if left_out else None

    def _annotation(self, row: dict[str, Any], index: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Mask, boxes and keypoints as they are stored; None for what is not read."""
        columns, name = self.columns, name_of(row[self.columns.picture], index)
        return (
            read_mask(row[columns.mask], self._mask_name(row, index)) if columns.mask else None,
            parse_boxes(row[columns.boxes], name) if columns.boxes else None,
            parse_keypoints(row[columns.keypoints], name) if columns.keypoints else None,
        )

    def _mask_name(self, row: dict[str, Any], index: int) -> str:
        return name_of(row[self.columns.mask] if self.columns.mask else None, index)

    def _framed_mask(self, mask: Tensor | None, cut: Cut) -> Tensor | None:
        """Zeros for a picture without a mask."""
        if self.columns.mask is None:
            return None
        side = self.framing.resolution
        return torch.zeros(1, side, side, dtype=torch.uint8) if mask is None else self.framing.mask(mask, cut)

    def _hint(self, row: dict[str, Any], index: int, size: tuple[int, int], cut: Cut) -> Tensor | None:
        """The hint, cut out and mirrored as its picture of `size` is, in its own colours; in the middle, any size."""
        column = self.columns.conditioning
        if column is None:
            return None
        name = name_of(row[column], index)
        hint = read_picture(row[column], name).convert("RGB")
        if not self.framing.random_crop:
            cut = replace(self.framing.middle(hint.size), mirrored=cut.mirrored)
        elif self.framing.resized(hint.size) != self.framing.resized(size):
            raise DataError(
                f"hint {name} is {hint.width}x{hint.height}, its picture {size[0]}x{size[1]}: to be cropped alike they "
                "must have the same shape; mend the hint, or train without --random_crop."
            )
        return self.framing.picture(hint, replace(cut, colour=None))

    def _draw_caption(self, index: int) -> str:
        caption = None if self._captions is None else self._captions[index][self.columns.caption]
        if self._empty_prompts is not None and random.random() < self._empty_prompts:
            return ""
        if isinstance(caption, list) and caption:
            caption = random.choice(caption)
        return _checked_caption(caption, index)

    def _tokenize(self, captions: list[str]) -> Tensor:
        return self._tokenizer(
            captions,
            max_length=self._tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids


def _checked_caption(caption: Any, index: int) -> str:
    if not isinstance(caption, str):
        raise DataError(f"row {index} of the data set: the caption is {caption!r}, expected a text or a list of texts.")
    return caption
