"""One vector for a picture, or for each person or face in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mldm_plugin.errors import DataError, PresetError
from mldm_plugin.perceptual.face_crops import FaceCrop, crop_faces
from mldm_plugin.perceptual.image_networks import Weights, image_network

Of = Literal["picture", "person", "face"]
PLURAL = {"picture": "pictures", "person": "people", "face": "faces"}


class Picture(Protocol):
    """A picture and what was found in it.

    Attributes:
        image: (3, H, W) RGB in [-1, 1].
        faces: each with its `box`, pixel x0, y0, x1, y1.
        people: boxes (4,) in pixels.
    """

    image: Tensor
    faces: Sequence[Any]
    people: Sequence[Tensor]


def resized(image: Tensor, size: int) -> Tensor:
    """`image` (3, H, W) stretched to a square (3, size, size).

    Antialiased bicubic in float32, cut off at -1 and 1, not rounded to whole grey levels, as Pillow resizes single
    channels. The program that FID was first computed with took one pixel of several instead when it shrank a picture,
    so that sharpness and JPEG's blocks counted more than content.

    Source: Parmar et al., "On Aliased Resizing and Surprising Subtleties in GAN Evaluation" (clean-fid).
    """
    if image.shape[-2:] == (size, size):
        return image
    return F.interpolate(image[None], size=(size, size), mode="bicubic", antialias=True)[0].clamp(-1, 1)


class PictureFeatures:
    """The vectors of a picture in the eyes of a network.

    Args:
        network: a name that `image_network` knows.
        of: `picture`, the whole of it stretched to a square; `person`, the square on the longer side of each person's
            box; `face`, the square around each face that the network is used to, 1.3 of the box for those that were
            not trained on faces alone. Outside the picture its border is repeated.
        weights, path: see `image_network`.

    Raises:
        PresetError: a network of faces for something else.
        WeightsError: weights that cannot be had.
    """

    def __init__(
        self, network: str, of: Of = "picture", weights: Weights = "pretrained", path: str | None = None
    ) -> None:
        self.network, self.of = image_network(network, weights, path), of
        if self.network.faces_only and of != "face":
            raise PresetError(f"{network} knows faces only, got of: {of}; take of: face, or another network.")
        self.networks = self.network.networks
        self.words = f"{PLURAL[of]} ({self.network.title})"

    @torch.no_grad()
    def __call__(self, picture: Picture) -> Tensor:
        """(k, d) float32 on the CPU; k is 1 for a picture, else the number of people or faces, which may be 0."""
        image = picture.image.float()
        if image.ndim != 3 or image.shape[0] != 3:
            raise DataError(f"expected a picture (3, H, W), got {tuple(image.shape)}: convert it to RGB.")
        shown = resized(image, self.network.size)[None] if self.of == "picture" else self._cut(image, picture)
        if len(shown) == 0:
            return torch.zeros(0, self.network.width)
        return self.network.embed(shown).float().cpu()

    def _cut(self, image: Tensor, picture: Picture) -> Tensor:
        found = picture.people if self.of == "person" else [face.box for face in picture.faces]
        boxes = torch.stack([torch.as_tensor(box, dtype=torch.float32).cpu() for box in found] or [torch.zeros(0, 4)])
        boxes = boxes.reshape(-1, 4)
        if bool((boxes[:, 2:] - boxes[:, :2] <= 0).any()):
            raise DataError(f"a {self.of}'s box has no area: {boxes.tolist()}; expected x0 < x1 and y0 < y1.")
        square = FaceCrop(self.network.size, extent=1.0)
        if self.of == "face":
            square = replace(self.network.face, size=self.network.size)
        return crop_faces(image[None], [boxes], square)
