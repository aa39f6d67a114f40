"""CMMD: the distance of two sets of pictures in the eyes of CLIP."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mldm_plugin import hookimpl
from mldm_plugin.perceptual.feature_sets import compared
from mldm_plugin.perceptual.picture_features import Picture, PictureFeatures

SIGMA, SCALE = 10, 1000  # google-research/cmmd, distance.py
ROWS = 1024  # of a kernel matrix at a time: 80 MB beside ten thousand pictures. Chosen.
LEAST = 100  # docs/metrics/cmmd.md


def clip_mmd(made: Tensor, real: Tensor) -> float:
    """1000 · MMD² of unit vectors with the kernel k(x, y) = exp(−‖x − y‖²/(2σ²)), σ = 10, in float64.

    mean_{i,j} k(x_i, x_j) + mean_{i,j} k(y_i, y_j) − 2 mean_{i,j} k(x_i, y_j)

    The means run over i = j, too, as in the authors' program: the biased estimator, whose mean over draws is above
    that of infinite sets by about 10 (tr Σ_x/n + tr Σ_y/m), less than 10/n + 10/m.

    Args:
        made: x, (n, d); its rows are brought to length 1.
        real: y, (m, d).

    Returns:
        ≥ 0, below 40; 0 for equal sets. So wide a kernel is nearly linear: up to terms of σ⁻⁶ this is
        9.9 ‖mean x − mean y‖² + 0.05 ‖mean xxᵀ − mean yyᵀ‖².

    Raises:
        DataError: see `compared`.

    Source: Jayasumana et al., "Rethinking FID: Towards a Better Evaluation Metric for Image Generation", section 4;
    Gretton et al., "A Kernel Two-Sample Test", eq. 5.

    Example:
        >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 3.0], [0.0, 1.0]])
        >>> round(clip_mmd(x, y), 4)  # 1000 · 2 (1 − e^−0.01)
        19.9003
    """
    x, y = (F.normalize(rows, dim=1) for rows in compared(made, real))
    return max(SCALE * (_mean(x, x) + _mean(y, y) - 2 * _mean(x, y)), 0.0)


def _mean(x: Tensor, y: Tensor) -> float:
    """mean k(x_i, y_j) of unit vectors, whose ‖x − y‖² is 2 − 2 xᵀy."""
    total = sum(torch.exp((some @ y.mT - 1) / SIGMA**2).sum().item() for some in x.split(ROWS))
    return total / (len(x) * len(y))


class CMMD:
    """CLIP's maximum mean discrepancy of two sets of pictures, of the people in them, or of their faces.

    Args:
        of: `picture`, `person` or `face`: what is compared.
        path: a folder with a CLIP, as transformers saves it; null takes ViT-L/14 at 336 px, the published one.

    Raises:
        WeightsError: CLIP is not on this machine.
    """

    better = "smaller"
    least = LEAST

    def __init__(self, *, of: Literal["picture", "person", "face"] = "picture", path: str | None = None) -> None:
        self._features = PictureFeatures("clip", of, path=path)
        self.networks = self._features.networks
        self.title = "CMMD" if of == "picture" else f"CMMD of {self._features.words}"

    def features(self, picture: Picture) -> Tensor:
        """(k, d), see `PictureFeatures`."""
        return self._features(picture)

    def distance(self, made: Tensor, real: Tensor) -> float:
        """`clip_mmd`."""
        return clip_mmd(made, real)


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("cmmd", CMMD)
    register("cmmd_person", functools.partial(CMMD, of="person"))
    register("cmmd_face", functools.partial(CMMD, of="face"))
