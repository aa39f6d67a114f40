"""The conditions of a training set: which columns they stand in, and how a row of them is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mldm_plugin.conditions.encoder import ConditionEncoder
from mldm_plugin.data.annotations import check_mask_mode, check_mask_size, name_of, read_header, read_mask
from mldm_plugin.data.geometry import Cut, Framing
from mldm_plugin.errors import DataError, nearest


@dataclass(frozen=True)
class ConditionColumns:
    """What is read of each row beside picture and caption.

    Args:
        encoders: by name; each knows its column and how to read a value.
    """

    encoders: Mapping[str, ConditionEncoder] = field(default_factory=dict)

    def check(self, present: Sequence[str]) -> None:
        """Raises DataError for a column that the data set does not have."""
        for name, encoder in self.encoders.items():
            if encoder.column not in present:
                raise DataError(
                    f"the data set has no column {encoder.column!r}, which the condition {name} is read from; "
                    f"{nearest(encoder.column, present)} `mldm data celebamask-hq` writes attributes and parts."
                )

    @property
    def pictures(self) -> list[str]:
        """Columns that hold pictures of labels."""
        return [encoder.column for encoder in self.encoders.values() if encoder.is_label_map]

    def read(
        self, row: Mapping[str, Any], size: tuple[int, int], framing: Framing, cut: Cut, name: str
    ) -> dict[str, Tensor]:
        """The values of a row by condition, as the encoders take them; one whose column is empty is left out.

        Args:
            row: of the data set, pictures not decoded.
            size: of the stored picture, (width, height), which a label map must have, too.
            framing, cut: of the picture; a label map goes the same way.
            name: of the picture, for errors.

        Raises:
            DataError: a value that cannot be used.
        """
        found = {}
        for condition, encoder in self.encoders.items():
            value = row[encoder.column]
            if value is None:
                continue
            try:
                read = encoder.read(framing.mask(_labels(value, size, name), cut) if encoder.is_label_map else value)
            except DataError as error:
                raise DataError(f"{name}: {error}") from error
            found[condition] = encoder.mirrored(read) if cut.mirrored else read
        return found

    def check_row(self, row: Mapping[str, Any], size: tuple[int, int], name: str) -> None:
        """Check what can be known of a row without decoding anything; raises DataError."""
        for encoder in self.encoders.values():
            value = row[encoder.column]
            if value is None:
                continue
            if encoder.is_label_map:
                header = read_header(value, label_name := name_of(value, 0))
                check_mask_mode(header.mode, label_name)
                check_mask_size(header.size, size, label_name, name)
                continue
            try:
                encoder.read(value)
            except DataError as error:
                raise DataError(f"{name}: {error}") from error


def _labels(value: Any, size: tuple[int, int], name: str) -> Tensor:
    """A stored label map, uint8 (1, H, W) of its picture's size."""
    label_name = name_of(value, 0)
    labels = read_mask(value, label_name)
    if labels is None:
        raise DataError("the mask is missing; add the file.")
    check_mask_size((labels.shape[2], labels.shape[1]), size, label_name, name)
    return labels
