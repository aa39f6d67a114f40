"""mask_accuracy and mask_miou: whether the parts of a face are where the mask that it was drawn from has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mldm_plugin import hookimpl
from mldm_plugin.conditions.judges import (
    LABELS,
    PartsJudge,
    at_side,
    iou_by_label,
    mask_accuracy,
    mean_iou,
    names_of_labels,
    overlaps,
    parts_seen,
    read_judge,
)
from mldm_plugin.errors import DataError


class _OfMasks:
    """What both share: the parser, and how many pixels of each label agree.

    Args:
        judges: folder of `mldm faces judges`.

    Raises:
        DataError: no judge in it.
    """

    better = "larger"

    def __init__(self, *, judges: Path) -> None:
        self.judge, self.side, words = read_judge(PartsJudge, judges)
        self.networks = (words,)

    def features(self, picture: Any) -> Tensor:
        """(1, 38) pixels: of each label in both masks, then in either; (0, 38) without a mask."""
        wanted = picture.conditions.get("semantic_mask")
        if wanted is None:
            return torch.zeros(0, 2 * LABELS)
        if int(wanted.max()) >= LABELS:
            raise DataError(f"the mask has label {int(wanted.max())}, the judge knows CelebAMask-HQ's {LABELS - 1}.")
        if self.networks not in picture.features:  # the other metric has asked already
            seen = parts_seen(self.judge, at_side(picture.image[None], self.side))
            wanted = F.interpolate(wanted[None].float(), (self.side, self.side), mode="nearest-exact")[0]
            picture.features[self.networks] = overlaps(seen, wanted).float().flatten(1)
        return picture.features[self.networks]


class MaskAccuracy(_OfMasks):
    """Share of the pixels that a parser of real faces gives the label of the mask that they were drawn from.

    Source: "Conditioning Diffusion Models via Attributes and Semantic Masks for Face Generation", section 4.3.
    """

    title = "pixels of the part that was asked for"

    def distance(self, made: Tensor, real: Tensor) -> float:
        """Of rows (n, 38), in [0, 1]; the photographs do not enter."""
        return mask_accuracy(_counts(made))


class MaskMeanIoU(_OfMasks):
    """Mean intersection over union, by part, of what a parser of real faces sees and the mask that was drawn from.

    Over all pictures at once; a part that is in no mask and is seen in no picture does not count, one that is seen
    without being asked for counts 0.

    Source: "Conditioning Diffusion Models via Attributes and Semantic Masks for Face Generation", section 4.3.
    """

    title = "mIoU of parts"

    def distance(self, made: Tensor, real: Tensor) -> float:
        """Of rows (n, 38), in [0, 1]; the photographs do not enter."""
        return mean_iou(_counts(made))

    def parts(self, made: Tensor, real: Tensor) -> dict[str, float]:
        """The intersection over union of each part that is there."""
        names = names_of_labels()
        return {names[label]: share for label, share in iou_by_label(_counts(made)).items()}


def _counts(rows: Tensor) -> Tensor:
    """(n, 2, 19); raises DataError without any."""
    if not len(rows):
        raise DataError("no case has a mask: compare models that draw from one, on --data with that column.")
    return rows.unflatten(1, (2, LABELS))


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("mask_accuracy", MaskAccuracy)
    register("mask_miou", MaskMeanIoU)
