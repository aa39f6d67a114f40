"""diversity: how different the faces are that a model draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mldm_plugin import hookimpl
from mldm_plugin.errors import DataError
from mldm_plugin.perceptual.face_crops import crop_faces
from mldm_plugin.perceptual.face_networks import FaceFeatures


def mean_angle_apart(embeddings: Tensor) -> float:
    """The mean cosine distance of all pairs of rows (n, d) of unit length, in [0, 2].

    1 − (‖Σ e‖² − n) / (n (n − 1)), the sum over pairs without making them.

    >>> mean_angle_apart(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    0.6666...
    """
    n = len(embeddings)
    total = embeddings.double().sum(0)
    return float(1 - (total @ total - embeddings.double().square().sum()) / (n * (n - 1)))


class Diversity:
    """How far apart the largest faces of a model's pictures are, the mean cosine distance of their embeddings.

    A model that draws one face for every prompt is near 0; photographs of many people say what is usual. For a LoRA of
    one person small is meant: read it beside `identity`.

    Raises:
        WeightsError: weights that cannot be had.
    """

    title = "diversity of faces"
    better = "larger"
    alone = True

    def __init__(self) -> None:
        self.network = FaceFeatures("dlib_resnet")
        self.networks = self.network.networks

    def features(self, picture: Any) -> Tensor:
        """(1, 128) of the largest face, (0, 128) without one."""
        if not picture.faces:
            return torch.zeros(0, 128)
        crop = crop_faces(picture.image[None], [picture.faces[0].box[None]], self.network.crop)
        with torch.no_grad():
            return F.normalize(self.network(crop)[-1].flatten(1), dim=1)

    def distance(self, made: Tensor, real: Tensor) -> float:
        """The diversity of `made` (n, 128); photographs do not enter.

        Raises:
            DataError: fewer than two faces.
        """
        if len(made) < 2:
            raise DataError(f"diversity needs two faces or more, got {len(made)}: draw more pictures.")
        return mean_angle_apart(made)


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("diversity", Diversity)
