"""Who a face is, as a unit vector: by a face network, of faces cut out by their boxes or by their landmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mldm_plugin.perceptual.face_crops import crop_faces
from mldm_plugin.perceptual.face_landmarks import FaceLandmarks, PlacedFaces, crop_placed
from mldm_plugin.perceptual.face_networks import FaceFeatures
from mldm_plugin.perceptual.face_networks import weight_files as of_network


class FaceEmbedding:
    """The last stage of a face network, by its mean over pixels where it has any, at length 1.

    Args:
        network: a key of `FACE_NETWORKS`.
        weights: "pretrained" (fetched on first use) or "random" (from a fixed seed), of the landmarks' network, too.
        align: "box", the square that the network was trained on around the box; "landmarks", the face turned, moved and
            scaled so that its eyes, nose and mouth lie where the network expects them.

    `networks` names what was loaded.

    Raises:
        WeightsError: an unknown network, or weights that cannot be had.
    """

    def __init__(
        self,
        network: str,
        weights: Literal["pretrained", "random"] = "pretrained",
        align: Literal["box", "landmarks"] = "box",
    ) -> None:
        self.features = FaceFeatures(network, weights)
        self.landmarks = FaceLandmarks(weights) if align == "landmarks" else None
        self.networks = (*self.features.networks, *(self.landmarks.networks if self.landmarks else ()))

    def place(self, photographs: Tensor, boxes: Sequence[Tensor]) -> PlacedFaces | None:
        """Where the landmarks of the faces of `photographs` (N, 3, H, W) lie; None where boxes alone say it."""
        if self.landmarks is None:
            return None
        return self.landmarks.place(photographs, boxes, self.features.crop, self.features.points)

    def __call__(self, images: Tensor, boxes: Sequence[Tensor], placed: PlacedFaces | None) -> Tensor:
        """(ΣK_i, D) of the faces of `images`, with gradient to them, at the places that `place` has found."""
        crop = self.features.crop
        crops = crop_faces(images, boxes, crop) if placed is None else crop_placed(images, boxes, placed, crop)
        last = self.features(crops)[-1]
        return F.normalize(last.flatten(2).mean(dim=2) if last.ndim > 2 else last, dim=1)

    def of(self, photographs: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """(ΣK_i, D) of photographs at the places of their own faces, without gradient."""
        with torch.no_grad():
            return self(photographs, boxes, self.place(photographs, boxes))


def weight_files(options: Mapping[str, Any]) -> list[str]:
    """The weights that a loss with these options `network`, `weights` and `align` asks for."""
    known = of_network(options)
    return [*known, *FaceLandmarks.weight_files] if known and options["align"] == "landmarks" else known
