"""A picture as metrics see it: pixels, and what detectors find in it, each looked for once and only if asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mldm_plugin.data.batch import Example
from mldm_plugin.errors import DataError
from mldm_plugin.evaluation.cases import Case
from mldm_plugin.perceptual.hands import Hand, find_hands
from mldm_plugin.perceptual.pose import Pose, find_pose
from mldm_plugin.prepare.faces.mtcnn import Mtcnn, load_network

# MTCNN's smallest face is 20 pixels, so a small picture is enlarged, and a large one reduced as in `Mtcnn`.
LEAST_SIDE, LARGEST_SIDE = 256, 1024


@dataclass(frozen=True)
class FoundFace:
    """A face that a detector found.

    Args:
        box: (4,) x0, y0, x1, y1 in pixels, inside the picture.
        score: of the detector, in [0, 1].
        points: (5, 2) eyes, nose, corners of the mouth.
    """

    box: Tensor
    score: float
    points: Tensor


class Picture:
    """One picture.

    Args:
        image: float (3, H, W) RGB in [-1, 1].
        case: what it was to show.
        known: its annotation, for a photograph.
        photo: makes the photograph that the caption belongs to, for a picture that a model drew.
        repetition: which of the pictures of its case it is.
        repetitions: make all pictures of its case by the same model, this one among them.
    """

    def __init__(
        self,
        image: Tensor,
        case: Case,
        *,
        known: Example | None = None,
        photo: Callable[[], Picture] | None = None,
        repetition: int = 0,
        repetitions: Sequence[Callable[[], Picture]] = (),
    ) -> None:
        self.image, self.case, self.known, self._photo = image, case, known, photo
        self.repetition, self._repetitions = repetition, repetitions
        self.features: dict[Any, Tensor] = {}

    @cached_property
    def photo(self) -> Picture | None:
        """The photograph that the caption belongs to, if there is one."""
        return None if self._photo is None else self._photo()

    @property
    def repetitions(self) -> PictureList:
        """All pictures of its case by the same model, each read when it is looked at."""
        return PictureList(self._repetitions or [lambda: self])

    @property
    def conditions(self) -> Mapping[str, Tensor]:
        """What it was to be made from, name → value: its own of a photograph, else those of the case's photograph."""
        of = self if self.known is not None else self.photo
        return {} if of is None or of.known is None else of.known.conditions

    @cached_property
    def faces(self) -> list[FoundFace]:
        """The faces that MTCNN finds, the largest first; where a photograph's are annotated, those."""
        if self.known is not None and self.known.face_boxes is not None:
            return [FoundFace(box, 1.0, torch.full((5, 2), torch.nan)) for box in self.known.face_boxes]
        return find_faces(self.image)

    @cached_property
    def poses(self) -> list[Pose]:
        """The bodies that are found, the surest first."""
        with torch.no_grad():
            return find_pose(self.image)

    @cached_property
    def hands(self) -> list[Hand]:
        """The hands that are found, the surest first."""
        with torch.no_grad():
            return find_hands(self.image, self.poses)

    @cached_property
    def people(self) -> list[Tensor]:
        """A box (4,) of each person: those of a photograph's mask, else of the bodies that are found in the picture."""
        if self.known is not None and self.known.person_mask is not None:
            return [_around(self.known.person_mask[0] == k) for k in self.known.person_mask.unique() if k]
        limit = torch.tensor([self.image.shape[2], self.image.shape[1]] * 2)
        boxes = [pose.box.clamp(min=0).minimum(limit) for pose in self.poses]
        return [box for box in boxes if bool((box[2:] > box[:2]).all())]  # others lie outside of it


def _around(mask: Tensor) -> Tensor:
    """The box (4,) around the true pixels of a mask (H, W)."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).flatten().float()


class PictureList(Sequence[Picture]):
    """Pictures that are made when they are looked at, so that thousands of them fit.

    Args:
        makers: one for each.
    """

    def __init__(self, makers: Sequence[Callable[[], Picture]]) -> None:
        self._makers = makers

    def __len__(self) -> int:
        return len(self._makers)

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> PictureList: ...
    def __getitem__(self, index: int | slice) -> Picture | PictureList:
        return PictureList(self._makers[index]) if isinstance(index, slice) else self._makers[index]()


@torch.no_grad()
def find_faces(image: Tensor) -> list[FoundFace]:
    """Faces in a picture (3, H, W) in [-1, 1], the largest first."""
    sides = image.shape[-2:]
    scale = min(max(LEAST_SIDE / min(sides), 1.0), LARGEST_SIDE / max(sides))
    shown = image[None]
    if scale != 1:
        shown = F.interpolate(shown, scale_factor=scale, mode="bicubic", antialias=True).clamp(-1, 1)
    ratio = torch.tensor([sides[1] / shown.shape[-1], sides[0] / shown.shape[-2]])
    boxes, scores, points = load_network()((shown[0] + 1) * 127.5, Mtcnn.least_face)
    limit = torch.tensor([sides[1], sides[0], sides[1], sides[0]], dtype=torch.float32)
    found = [
        FoundFace((box * ratio.repeat(2)).clamp(min=0).minimum(limit), float(score), of_face * ratio)
        for box, score, of_face in zip(boxes, scores, points, strict=True)
        if score >= Mtcnn.least_score
    ]
    found = [face for face in found if bool((face.box[2:] > face.box[:2]).all())]
    return sorted(found, key=lambda face: -float((face.box[2:] - face.box[:2]).prod()))


def read_image(path: Path) -> Tensor:
    """A picture of a file, (3, H, W) in [-1, 1].

    Raises:
        DataError: no picture, or a damaged one.
    """
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as a picture: {error}") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 127.5 - 1
