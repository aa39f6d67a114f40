"""Kernel distances: KID, and its kin in other networks and on faces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from mldm_plugin import hookimpl
from mldm_plugin.perceptual.feature_sets import compared
from mldm_plugin.perceptual.picture_features import Picture, PictureFeatures

ROWS = 1024  # of a kernel matrix at a time: 80 MB beside ten thousand pictures. Chosen.
LEAST = 50  # docs/metrics/kernel.md


def kernel_distance(made: Tensor, real: Tensor) -> float:
    """MMD² with the kernel k(x, y) = (xᵀy/d + 1)³, unbiased, in float64.

    Σ_{i≠j} k(x_i, x_j)/(n(n − 1)) + Σ_{i≠j} k(y_i, y_j)/(m(m − 1)) − 2 Σ_{i,j} k(x_i, y_j)/(nm)

    Over all pictures at once; programs that average over random subsets estimate the same with more noise.

    Args:
        made: x, (n, d), n ≥ 2.
        real: y, (m, d), m ≥ 2.

    Returns:
        Its mean over draws is 0 for sets of one distribution, whatever their size, so it is often below 0.

    Raises:
        DataError: see `compared`.

    Source: Bińkowski et al., "Demystifying MMD GANs", section 4 (KID); Gretton et al., "A Kernel Two-Sample Test",
    eq. 3.

    Example:
        >>> import torch
        >>> kernel_distance(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [1.0]]))  # 1 + 8 − 2·(8 + 8 + 1 + 1)/4
        0.0
    """
    x, y = compared(made, real)
    n, m = len(x), len(y)
    within = _sum(x, x, diagonal=False) / (n * (n - 1)) + _sum(y, y, diagonal=False) / (m * (m - 1))
    return within - 2 * _sum(x, y) / (n * m)


def _sum(x: Tensor, y: Tensor, diagonal: bool = True) -> float:
    """Σ k(x_i, y_j), with or without i = j."""
    d = x.shape[1]
    total = sum(((some @ y.mT / d + 1) ** 3).sum().item() for some in x.split(ROWS))
    return total if diagonal else total - ((x.square().sum(dim=1) / d + 1) ** 3).sum().item()


class KernelDistance:
    """Kernel distance of two sets of pictures, of the people in them, or of their faces.

    Args:
        network: `vgg16`, `alexnet`, `inception` (KID's own), `dinov2`, `clip`; `dlib` or `faceres` for faces alone.
        of: `picture`, `person` or `face`: what is compared.
        weights: `pretrained`, or `random` (seeded), for tests.
        path: a folder with a network of the kind of `clip` or `dinov2`; null takes the published one.

    Raises:
        PresetError: options that do not go together.
        WeightsError: weights that cannot be had.
    """

    better = "smaller"
    least = LEAST

    def __init__(
        self,
        *,
        network: Literal["vgg16", "alexnet", "inception", "dinov2", "clip", "dlib", "faceres"] = "vgg16",
        of: Literal["picture", "person", "face"] = "picture",
        weights: Literal["pretrained", "random"] = "pretrained",
        path: str | None = None,
    ) -> None:
        self._features = PictureFeatures(network, of, weights, path)
        self.networks = self._features.networks
        self.title = "KID" if network == "inception" and of == "picture" else f"KD of {self._features.words}"

    def features(self, picture: Picture) -> Tensor:
        """(k, d), see `PictureFeatures`."""
        return self._features(picture)

    def distance(self, made: Tensor, real: Tensor) -> float:
        """`kernel_distance`."""
        return kernel_distance(made, real)


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("kd_vgg16", KernelDistance)
    register("kd_vgg16_face", functools.partial(KernelDistance, of="face"))
    register("kd_face", functools.partial(KernelDistance, network="dlib", of="face"))
    # Of networks that no loss here uses: models that VGG16 or dlib's network trained may please those.
    register("kd_alexnet_person", functools.partial(KernelDistance, network="alexnet", of="person"))
    register("kd_faceres", functools.partial(KernelDistance, network="faceres", of="face"))
    register("kid", functools.partial(KernelDistance, network="inception"))
    register("kid_person", functools.partial(KernelDistance, network="inception", of="person"))
    register("kid_face", functools.partial(KernelDistance, network="inception", of="face"))
