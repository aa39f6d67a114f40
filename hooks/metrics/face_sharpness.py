"""face_sharpness: how far the detail of the largest face is from that of faces in photographs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mldm_plugin import hookimpl
from mldm_plugin.perceptual.face_crops import FaceCrop, crop_faces
from mldm_plugin.perceptual.laplacian import laplacian

CROP = FaceCrop(size=96, extent=1.0)
NOT_FOUND = 4.0  # octaves: as far from photographs as a blur that leaves a sixteenth of the detail


def detail(faces: Tensor) -> Tensor:
    """The root mean square of the Laplacian of the luma, (K,), for faces (K, 3, S, S) in [-1, 1]."""
    return laplacian(faces).square().mean((1, 2, 3)).sqrt()


class FaceSharpness:
    """Sharpness of the largest face against photographs, |log₂(detail / their median)|, in octaves.

    Both a blurred and a grainy face are far from a photograph's. A face that is not found counts 4.

    Args:
        photographs: with faces, which the detail is compared with.

    Source: chosen; `detail` has the measure's own.
    """

    title = "sharpness of faces, distance to photographs"
    better = "smaller"
    asks = "cases with people"

    def __init__(self, *, photographs: Sequence[Any]) -> None:
        found = [value for photo in photographs if (value := self._detail(photo)) is not None]
        self.usual = float(torch.tensor(found).median()) if found else None

    def __call__(self, picture: Any) -> float | None:
        """The distance ≥ 0; None for a case that asks for nobody, or where no photograph shows a face."""
        if not picture.case.people or self.usual is None:
            return None
        value = self._detail(picture)
        return NOT_FOUND if value is None else min(abs(float(torch.tensor(value / self.usual).log2())), NOT_FOUND)

    def _detail(self, picture: Any) -> float | None:
        if not picture.faces:
            return None
        crop = crop_faces(picture.image[None], [picture.faces[0].box[None]], CROP)
        return max(float(detail(crop)), 1e-6)


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("face_sharpness", FaceSharpness)
