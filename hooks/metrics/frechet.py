"""Fréchet distances: FID, and its kin in other networks and on people and faces."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from mldm_plugin import hookimpl
from mldm_plugin.perceptual.feature_sets import compared
from mldm_plugin.perceptual.picture_features import Picture, PictureFeatures

POINTS = 15  # Chong and Forsyth
# Of each set, in the smallest draw. Measured, docs/metrics/frechet.md: with a tenth, as published, the line fits from
# ten times as many pictures as features on; with a half from twice as many.
SMALLEST = 0.5


def frechet_distance(made: Tensor, real: Tensor) -> float:
    """‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½, the Fréchet distance of two Gaussians, in float64.

    μ and Σ (divided by n − 1) are those of the rows. With Σ = AᵀA the nonzero eigenvalues of Σ₁Σ₂ are the squared
    singular values of A₁A₂ᵀ, so the last trace is their sum, exactly and without a matrix root. A is the centred rows
    over √(n − 1), or R of their QR decomposition where there are more rows than columns.

    Args:
        made: (n, d), n ≥ 2.
        real: (m, d), m ≥ 2.

    Returns:
        ≥ 0, in squared units of the features; 0 for equal sets. Too large for small sets (`extrapolated`).

    Raises:
        DataError: see `compared`.

    Source: Dowson and Landau, "The Fréchet distance between multivariate normal distributions"; Heusel et al., "GANs
    Trained by a Two Time-Scale Update Rule", for its use.

    Example:
        >>> round(frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [7.0]])), 6)  # 4² + (√2 − √8)²
        18.0
    """
    one, two = compared(made, real)
    apart = (one.mean(dim=0) - two.mean(dim=0)).square().sum()
    a, b = _factor(one), _factor(two)
    common = torch.linalg.svdvals(a @ b.mT).sum()
    return max((apart + a.square().sum() + b.square().sum() - 2 * common).item(), 0.0)


def _factor(rows: Tensor) -> Tensor:
    """A, (min(n, d), d), with AᵀA = Σ."""
    n, d = rows.shape
    centred = (rows - rows.mean(dim=0)) / (n - 1) ** 0.5
    return centred if n <= d else torch.linalg.qr(centred, mode="r").R


def extrapolated(made: Tensor, real: Tensor, seed: int = 0) -> float:
    """The Fréchet distance of infinitely many pictures: FID∞.

    A distance of finite sets is too large by about c/N. It is computed of `POINTS` parts of both sets, each within the
    next, from `SMALLEST` of each to all of it, a line is fitted to it over 1/N, and its value at 1/N = 0 taken.

    A part is the first rows in an order that each row's own numbers give it, as good as random. So a set with some rows
    left out has the same parts without those rows, and a jackknife measures what the rows do; parts that are drawn anew
    for each set differ by the draw, too, and so does their distance.

    Args:
        made: (n, d).
        real: (m, d).
        seed: of the order.

    Returns:
        About 0 for sets of one distribution; a little below it, too.

    Raises:
        DataError: see `compared`.

    Source: Chong and Forsyth, "Effectively Unbiased FID and Inception Score and where to find them", section 3. There
    the generated set alone is drawn from, and its smallest part is a tenth; here real pictures are few, too. There each
    part is drawn by itself.
    """
    one, two = (_shuffled(rows, seed) for rows in compared(made, real))
    over, values = [], []
    for share in torch.linspace(SMALLEST, 1, POINTS).tolist():
        parts = [rows[: max(2, round(len(rows) * share))] for rows in (one, two)]
        over.append(1 / share)
        values.append(frechet_distance(*parts))
    x, y = torch.tensor(over, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return (y.mean() - slope * x.mean()).item()


def _shuffled(rows: Tensor, seed: int) -> Tensor:
    """Rows by a hash of their own numbers."""
    key = seed.to_bytes(8, "little", signed=True)
    digests = [hashlib.blake2b(row.tobytes(), key=key, digest_size=8).digest() for row in rows.cpu().numpy()]
    return rows[sorted(range(len(rows)), key=digests.__getitem__)]


class FrechetDistance:
    """Fréchet distance of two sets of pictures, of the people in them, or of their faces.

    Args:
        network: `vgg16`, `alexnet`, `inception` (FID's own), `dinov2`, `clip`; `dlib` or `faceres` for faces alone.
        of: `picture`, `person` or `face`: what is compared.
        extrapolate: whether the distance of infinitely many pictures is estimated (FID∞), which costs `POINTS` times
            as much.
        weights: `pretrained`, or `random` (seeded), for tests.
        path: a folder with a network of the kind of `clip` or `dinov2`; null takes the published one.

    Raises:
        PresetError: options that do not go together.
        WeightsError: weights that cannot be had.
    """

    better = "smaller"

    def __init__(
        self,
        *,
        network: Literal["vgg16", "alexnet", "inception", "dinov2", "clip", "dlib", "faceres"] = "vgg16",
        of: Literal["picture", "person", "face"] = "picture",
        extrapolate: bool = False,
        weights: Literal["pretrained", "random"] = "pretrained",
        path: str | None = None,
    ) -> None:
        self._features, self.extrapolate = PictureFeatures(network, of, weights, path), extrapolate
        self.networks = self._features.networks
        of_fid = network == "inception" and of == "picture"
        self.title = f"F{'I' if of_fid else ''}D{'∞' if extrapolate else ''}"
        if not of_fid:
            self.title += f" of {self._features.words}"
        # Fewer rows than columns leave the covariance without its rank; the line needs that of its smallest part.
        self.least = self._features.network.width * (round(1 / SMALLEST) if extrapolate else 1)

    def features(self, picture: Picture) -> Tensor:
        """(k, d), see `PictureFeatures`."""
        return self._features(picture)

    def distance(self, made: Tensor, real: Tensor) -> float:
        """`frechet_distance`, or `extrapolated`."""
        return extrapolated(made, real) if self.extrapolate else frechet_distance(made, real)


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("fd_vgg16", FrechetDistance)
    register("fd_vgg16_person", functools.partial(FrechetDistance, of="person"))
    register("fd_vgg16_face", functools.partial(FrechetDistance, of="face"))
    register("fd_face", functools.partial(FrechetDistance, network="dlib", of="face"))
    register("fd_dinov2", functools.partial(FrechetDistance, network="dinov2"))
    register("fd_dinov2_person", functools.partial(FrechetDistance, network="dinov2", of="person"))
    register("fd_dinov2_face", functools.partial(FrechetDistance, network="dinov2", of="face"))
    register("fid", functools.partial(FrechetDistance, network="inception"))
    register("fid_person", functools.partial(FrechetDistance, network="inception", of="person"))
    register("fid_face", functools.partial(FrechetDistance, network="inception", of="face"))
    register("fid_infinite", functools.partial(FrechetDistance, network="inception", extrapolate=True))
