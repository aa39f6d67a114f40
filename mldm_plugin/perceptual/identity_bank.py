"""Reference photographs of people, as embeddings: who a face is, and how alike one person's photographs are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mldm_plugin.errors import DataError
from mldm_plugin.perceptual.face_crops import largest

Photograph = tuple[Tensor, Tensor]  # (3, H, W) in [-1, 1], and the face's box (1, 4)
_PICTURES = PurePosixPath("images")  # where `mldm data` puts them, in the folders that it found them in
_MAKE_IT = (
    "put each person's photographs into a folder of their name, and make a bank of these: mldm data folder PHOTOS "
    "--out BANK --faces mtcnn"
)


class IdentityBank:
    """The people of a bank.

    Args:
        people: name → unit embeddings (R, D) of R ≥ 2 photographs of that person.

    Attributes:
        names: of the P people.
        references: (ΣR, D), all photographs, and owner (ΣR,), whose each is.
        means: (P, D), the mean embedding of each; a face's scalar product with it is its mean likeness to them.
        reach: (P,), how alike the two most alike photographs of each are.
        least: (P,), how like the others on average the least like photograph of each is.

    Raises:
        DataError: nobody, or a single photograph of somebody.
    """

    def __init__(self, people: Mapping[str, Tensor]) -> None:
        if few := [name for name, known in people.items() if len(known) < 2]:
            raise DataError(f"the identity bank has one photograph of {few[0]}, expected two or more with a face.")
        if not people:
            raise DataError("the identity bank has no face, expected two photographs or more of each person.")
        self.names = tuple(people)
        self.references = torch.cat(list(people.values()))
        self.owner = torch.cat([torch.full((len(known),), i) for i, known in enumerate(people.values())])
        self.means = torch.stack([known.mean(dim=0) for known in people.values()])
        between = [known @ known.T for known in people.values()]
        apart = [alike[~torch.eye(len(alike), dtype=torch.bool)].view(len(alike), -1) for alike in between]
        self.reach = torch.stack([alike.max() for alike in apart])
        self.least = torch.stack([alike.mean(dim=1).min() for alike in apart])

    def to(self, like: Tensor) -> IdentityBank:
        """Itself, on the device and in the precision of `like`."""
        if self.references.device != like.device or self.references.dtype != like.dtype:
            for name in ("references", "means", "reach", "least"):
                setattr(self, name, getattr(self, name).to(like))
            self.owner = self.owner.to(like.device)
        return self

    def recognised(self, faces: Tensor, image: Tensor) -> Tensor:
        """Who each face is, (K,) index of a person, −1 for somebody else. Waits for nothing.

        A face is the person whom it is most like, if it is at least as like them as their own least like photograph.
        Nobody is twice in an image: of two such faces the one that is less like the person is somebody else.

        Args:
            faces: unit embeddings (K, D).
            image: (K,) the image that each is in.
        """
        likeness, who = (faces @ self.means.T).max(dim=1)
        certain = likeness >= self.least[who]
        rivals = (image[:, None] == image) & (who[:, None] == who)
        place = torch.arange(len(faces), device=faces.device)
        first = (likeness[:, None] < likeness) | ((likeness[:, None] == likeness) & (place[:, None] > place))
        return torch.where(certain & ~(rivals & first).any(dim=1), who, -1)

    def copied(self, faces: Tensor, true: Tensor, who: Tensor) -> Tensor:
        """By how much faces are more like a reference of their person than real pictures of that person are.

        Real pictures are the photograph itself, and two references beside each other.

        Args:
            faces, true: unit embeddings (K, D) of the estimate and of the photograph.
            who: as `recognised` tells.

        Returns:
            (K,) ≥ 0, cosines; 0 for somebody else.
        """
        foreign = who[:, None] != self.owner
        nearest, real = ((x @ self.references.T).masked_fill(foreign, -1).amax(dim=1) for x in (faces, true))
        excess = nearest - real.maximum(self.reach[who.clamp_min(0)])
        return torch.where(who >= 0, excess.clamp_min(0), 0)


def load_bank(folder: str | Path, embed: Callable[[Photograph], Tensor]) -> IdentityBank:
    """The bank in a folder as `mldm data` writes it: `metadata.jsonl` with `file_name` and `face_boxes`.

    A person is called as the folder that their photographs are in. Of each photograph the largest face counts; one
    without a face is passed over.

    Args:
        embed: a photograph's face → its unit embedding (D,).

    Raises:
        DataError: no such folder, a file that cannot be read, photographs in no person's folder, boxes that are none,
            or too few photographs of somebody.
    """
    people: dict[str, list[Tensor]] = {}
    for path, boxes in _rows(Path(folder)):
        of_person = people.setdefault(path.parent.name, [])
        if len(boxes):
            of_person.append(embed((_picture(path), largest(boxes, 1))))
    return IdentityBank({name: torch.stack(known) if known else torch.zeros(0, 1) for name, known in people.items()})


def _rows(folder: Path) -> list[tuple[Path, Tensor]]:
    """Each photograph and its face boxes, (K, 4)."""
    file = folder / "metadata.jsonl"
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        named = [(PurePosixPath(row["file_name"]), row.get("face_boxes") or []) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"the identity bank {folder} cannot be read ({type(error).__name__}: {error}): {_MAKE_IT}"
        ) from error
    if flat := [name for name, _ in named if name.parent in (PurePosixPath(), _PICTURES)]:
        raise DataError(
            f"{flat[0]} of the identity bank {folder} lies in no person's folder, so whose face it is is not known; "
            f"expected {_PICTURES}/anna/{flat[0].name}: {_MAKE_IT}"
        )
    return [(folder / name, _boxes(boxes, folder / name)) for name, boxes in named]


def _boxes(given: object, path: Path) -> Tensor:
    try:
        boxes = torch.tensor(given, dtype=torch.float32)
        if boxes.numel() == 0:
            return torch.zeros(0, 4)
        if boxes.ndim == 2 and boxes.shape[1] == 4 and boxes.isfinite().all():
            return boxes
    except (ValueError, TypeError, RuntimeError, OverflowError):  # ragged, or no numbers
        pass
    raise DataError(
        f"face_boxes of {path} of the identity bank are {str(given)[:80]}, expected a list of [x0, y0, x1, y1] in "
        "pixels: mend its line of metadata.jsonl."
    )


def _picture(path: Path) -> Tensor:
    try:
        with Image.open(path) as opened:
            pixels = np.array(opened.convert("RGB"), dtype=np.float32)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} of the identity bank cannot be read as a picture ({error}): replace it.") from error
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
