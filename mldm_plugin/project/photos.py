"""What a handful of photographs shows: faces, hands, blur, the same photograph twice, and who is in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mldm_plugin.errors import DataError
from mldm_plugin.evaluation.cases import Case
from mldm_plugin.evaluation.picture import Picture
from mldm_plugin.perceptual.face_crops import FaceCrop, crop_faces
from mldm_plugin.perceptual.face_networks import FaceFeatures
from mldm_plugin.perceptual.laplacian import laplacian
from mldm_plugin.prepare import picture as files
from mldm_plugin.prepare.folder import pictures_in
from mldm_plugin.prepare.source import RejectedError
from mldm_plugin.prepare.stored import listed_pictures

WEIGHTS = ("mtcnn", "faceres", "mediapipe_palm", "mediapipe_hand", "mediapipe_person", "mediapipe_pose")
LOOKED_AT = 1600  # pixels of the longer side that is looked at; chosen: a face of a fiftieth is still found
# Cosine distance of two groups of FaceRes's embeddings, on average, up to which they are one person's: in the middle
# of one person's faces (.20) and two people's (.54), docs/judge.md.
SAME_PERSON = 0.37
# Two small grey pictures are of one photograph where 99 % of their pixels differ by less, in spreads of the picture.
# Chosen: shrunk, enlarged and compressed copies of openpeople's P008 to P010 differ by up to .38; their expressions, in
# frames up to five times as wide as the sheet's, by .57 and more.
SAME_PICTURE, THUMB = 0.45, 64
BLURRED = 2.0  # octaves of detail below the median of the faces; chosen: openpeople's sharp ones spread over 1.5
SMALL_FACE = 40  # pixels of its longer side at the training's resolution; chosen: five latents of Stable Diffusion


@dataclass
class Photo:
    """One photograph.

    Args:
        name: of its file, below the folder.
        size: (width, height) in pixels, upright.
        faces: longer side of each face found, in pixels, the largest first.
        people: number of the person that each face is, in the same order; 0 is who is in most photographs.
        hands: how many are found.
        detail: of the largest face, the root mean square of its Laplacian; None without a face.
        thumb: small and grey, (64, 64) in spreads around its mean.
        fault: why it cannot be used.
        like: the larger photograph that it is a copy of.
    """

    name: str
    size: tuple[int, int] = (0, 0)
    faces: list[float] = field(default_factory=list)
    people: list[int] = field(default_factory=list)
    hands: int = 0
    detail: float | None = None
    thumb: np.ndarray | None = None
    fault: str | None = None
    like: str | None = None

    def face_at(self, resolution: int) -> float | None:
        """The longer side of its largest face when its short side has `resolution` pixels."""
        return self.faces[0] * resolution / min(self.size) if self.faces else None


def look_at(folder: Path) -> list[Photo]:
    """All photographs below a folder, in the order of their names; of a training set those that it lists.

    Raises:
        DataError: there are none.
        WeightsError: networks that look at them cannot be had.
    """
    paths = listed_pictures(folder) or pictures_in(folder)
    if not paths:
        raise DataError(f"{folder} has no pictures.")
    features = FaceFeatures("faceres")
    photos, embeddings = [], []
    for path in tqdm(paths, desc="photos", unit="photo"):
        photo, found = _looked_at(path, path.relative_to(folder.resolve()).as_posix(), features)
        photos.append(photo)
        embeddings.append(found)
    _name_people(photos, embeddings)
    _mark_copies(photos)
    return photos


def _looked_at(path: Path, name: str, features: FaceFeatures) -> tuple[Photo, Tensor]:
    """A photograph and the embeddings (K, D) of its faces."""
    try:
        opened = files.Picture(path)
        rgb = opened.rgb()
        opened.stored()  # decodes it to its end
    except RejectedError as error:
        return Photo(name, fault=str(error)), torch.zeros(0, 1)
    scale = max(max(rgb.size) / LOOKED_AT, 1.0)
    small = (
        rgb.resize((round(rgb.width / scale), round(rgb.height / scale)), Image.Resampling.BOX) if scale > 1 else rgb
    )
    image = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 127.5 - 1
    picture = Picture(image, Case("", "", 1))
    faces, found = picture.faces, torch.zeros(0, 1)
    photo = Photo(name, rgb.size, thumb=thumb_of(rgb), hands=len(picture.hands))
    if faces:
        boxes = torch.stack([face.box for face in faces])
        photo.faces = [float((box[2:] - box[:2]).max()) * scale for box in boxes]
        photo.detail = face_detail(image, boxes[:1])
        with torch.no_grad():
            crops = crop_faces(image[None], [boxes], features.crop)
            found = F.normalize(features(crops)[-1].flatten(1), dim=1)
    return photo, found


def face_detail(image: Tensor, box: Tensor) -> float:
    """The root mean square of the Laplacian of a face (1, 4) of a picture (3, H, W), at 96 pixels."""
    face = crop_faces(image[None], [box], FaceCrop(size=96, extent=1.0))
    return float(laplacian(face).square().mean().sqrt())


def thumb_of(picture: Image.Image) -> np.ndarray:
    """The picture small and grey, (64, 64), less its mean, over its spread; four levels of grey are noise."""
    grey = np.asarray(picture.convert("L").resize((THUMB, THUMB), Image.Resampling.BOX), np.float32)
    return (grey - grey.mean()) / (grey.std() + 4)


def are_copies(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two thumbs are of one photograph: hardly a pixel differs."""
    return float(np.percentile(np.abs(one - other), 99)) <= SAME_PICTURE


def _name_people(photos: Sequence[Photo], embeddings: Sequence[Tensor]) -> None:
    """Say of each face who it is: groups of embeddings near each other, those in most photographs first."""
    from scipy.cluster.hierarchy import fcluster, linkage

    owners = [i for i, found in enumerate(embeddings) for _ in found]
    if not owners:
        return
    groups = [0] * len(owners)
    if len(owners) > 1:
        together = torch.cat([found for found in embeddings if len(found)]).double().numpy()
        tree = linkage(together, method="average", metric="cosine")
        groups = fcluster(tree, SAME_PERSON, criterion="distance").tolist()
    seen = Counter(group for group, _ in {(group, owner) for group, owner in zip(groups, owners, strict=True)})
    rank = {group: number for number, (group, _) in enumerate(sorted(seen.items(), key=lambda one: (-one[1], one[0])))}
    for group, owner in zip(groups, owners, strict=True):
        photos[owner].people.append(rank[group])


def _mark_copies(photos: Sequence[Photo]) -> None:
    """Say of each copy what it is of: the largest is kept."""
    kept: list[Photo] = []
    for photo in sorted(photos, key=lambda photo: -photo.size[0] * photo.size[1]):
        thumb = photo.thumb
        if thumb is None:
            continue
        first = next((one for one in kept if one.thumb is not None and are_copies(thumb, one.thumb)), None)
        if first is None:
            kept.append(photo)
        else:
            photo.like = first.name


def left_out(photos: Sequence[Photo]) -> dict[str, str]:
    """Photographs that should not be learnt, and why: damaged, there already, or without the person."""
    reasons = {}
    for photo in photos:
        if photo.fault is not None:
            reasons[photo.name] = photo.fault
        elif photo.like is not None:
            reasons[photo.name] = f"the same picture as {photo.like}"
        elif photo.faces and 0 not in photo.people:
            reasons[photo.name] = "the person who is in most photographs is not in it"
    return reasons


def remarks(photos: Sequence[Photo], resolution: int) -> Iterator[str]:
    """What a photographer would want to know of those that are learnt, a line each."""
    kept = [photo for photo in photos if photo.fault is None]
    details = [photo.detail for photo in kept if photo.detail]
    usual = median(details) if len(details) > 3 else None
    for photo in kept:
        face = photo.face_at(resolution)
        if face is None:
            yield f"{photo.name}: no face is found; the face loss sees nothing of it"
        elif face < SMALL_FACE:
            yield f"{photo.name}: the face is {face:.0f} pixels wide at {resolution} px; a closer crop would teach more"
        if usual and photo.detail and np.log2(usual / photo.detail) > BLURRED:
            yield f"{photo.name}: the face has much less detail than those of the other photographs; blurred?"
    if small := [photo.name for photo in kept if min(photo.size) < resolution]:
        yield f"smaller than {resolution} px, and will be enlarged: {', '.join(small)}"
    others = Counter(person for photo in kept for person in set(photo.people) if person)
    if others:
        yield (
            f"{len(others)} other {'person is' if len(others) == 1 else 'people are'} in "
            f"{sum(bool(set(photo.people) - {0}) for photo in kept)} of the photographs, and will be learnt with them"
        )
