"""Two sets of vectors that are to be compared."""

from __future__ import annotations

import torch
from torch import Tensor

from mldm_plugin.errors import DataError


def compared(made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets in float64, after a look at them.

    Args:
        made: (n, d), a row for each generated picture, person or face.
        real: (m, d).

    Raises:
        DataError: fewer than two rows, rows of different widths, or numbers that are not finite.
    """
    sets = []
    for whose, rows in (("generated", made), ("real", real)):
        if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] < 1:
            raise DataError(
                f"features of the {whose} pictures: expected (n, d) with n at least 2, got {tuple(rows.shape)}; "
                "a distance of sets needs more pictures."
            )
        if bad := int((~torch.isfinite(rows).all(dim=1)).sum()):
            raise DataError(
                f"features of the {whose} pictures: {bad} of {len(rows)} rows are not finite; look at those pictures."
            )
        sets.append(rows.detach().double())
    if made.shape[1] != real.shape[1]:
        raise DataError(
            f"features of the generated pictures have {made.shape[1]} numbers each, of the real ones {real.shape[1]}: "
            "compute both with one network."
        )
    return sets[0], sets[1]
