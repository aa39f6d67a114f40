"""identity: how like a person the face is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mldm_plugin import hookimpl
from mldm_plugin.errors import DataError
from mldm_plugin.perceptual.face_crops import crop_faces
from mldm_plugin.perceptual.face_networks import FaceFeatures


class Identity:
    """Likeness of the nearest face to a person: the mean cosine of its embedding with those of photographs.

    A picture without a face counts 0: nobody is like nobody.

    Args:
        person: photographs of that person.
        network: the face network that judges.

    Raises:
        DataError: no face in any of the photographs.
        WeightsError: weights that cannot be had.
    """

    better = "larger"
    asks = "cases with people"

    def __init__(self, *, person: Sequence[Any], network: Literal["dlib_resnet", "faceres"] = "dlib_resnet") -> None:
        self.features = FaceFeatures(network)
        self.networks, self.title = self.features.networks, f"likeness ({network})"
        known = [self._embedded(photo)[:1] for photo in person if photo.faces]
        if not known:
            raise DataError("no face was found in the photographs of --person, expected at least one that shows it.")
        self.known = torch.cat(known)

    def __call__(self, picture: Any) -> float | None:
        """The likeness in [-1, 1], of whichever face is nearest; None for a case that asks for nobody."""
        if not picture.case.people:
            return None
        if not picture.faces:
            return 0.0
        return float((self._embedded(picture) @ self.known.T).mean(1).max())

    def _embedded(self, picture: Any) -> Tensor:
        """Unit embeddings of the K faces of a picture, (K, D), the largest first."""
        boxes = torch.stack([face.box for face in picture.faces])
        with torch.no_grad():
            faces = crop_faces(picture.image[None], [boxes], self.features.crop)
            return F.normalize(self.features(faces)[-1].flatten(1), dim=1)


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("identity", partial(Identity, network="faceres"))
    register("identity_dlib", Identity)
