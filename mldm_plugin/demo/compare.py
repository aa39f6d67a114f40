"""What each training learnt, on the same noise: pictures, and their distances to photographs that no training saw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mldm_plugin.demo.photos import SIDE, Photo
from mldm_plugin.perceptual.face_crops import FaceCrop, crop_faces
from mldm_plugin.perceptual.face_networks import FaceFeatures
from mldm_plugin.perceptual.lpips_network import LPIPSNetwork
from mldm_plugin.perceptual.masked_distance import masked_sum
from mldm_plugin.perceptual.unit_difference import weighted_square
from mldm_plugin.prepare.faces.mtcnn import Mtcnn, load_network
from mldm_plugin.records.panels import arrange, as_bytes

RESOLUTION = 128  # people-mini's
NOISES = 2  # of each photograph
STEPS, GUIDANCE = 25, 3.0  # of the sampler
STRENGTH = 0.6  # the share of the schedule that a photograph is noised for before it is restored
SHOWN_FACE = FaceCrop(size=160, extent=1.25)
JUDGED_FACE = FaceCrop(size=128, extent=1.1)

# What is measured, each better when smaller, and what the table calls it.
MEASURES = {"face": "face LPIPS", "person": "person LPIPS", "identity": "identity (trained on)"}


@dataclass(frozen=True)
class Drawn:
    """What a model made, NOISES times the photographs, in [-1, 1].

    Args:
        new: (n, 3, H, W) from noise and the photographs' captions.
        restored: (n, 3, H, W) from the photographs themselves, noised up to STRENGTH.
    """

    new: Tensor
    restored: Tensor


class Painter:
    """Draws by the captions of photographs, the same noise for each model.

    Args:
        model: folder of a Stable Diffusion 1.x pipeline.
        photos: whose captions are drawn, and which are restored.
    """

    def __init__(self, model: Path, photos: Sequence[Photo]) -> None:
        from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
        from diffusers.utils import logging

        logging.set_verbosity_error()  # it would speak of the missing safety checker and of text encoders without LoRA
        pipeline: Any = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
        pipeline.scheduler = DDIMScheduler.from_config({**pipeline.scheduler.config, "clip_sample": False})
        self.draw, self.restore = pipeline, StableDiffusionImg2ImgPipeline(**pipeline.components)
        for one in (self.draw, self.restore):
            one.set_progress_bar_config(disable=True)
        self.texts, self.pictures = [photo.text for photo in photos], pictures_of(photos)

    def __call__(self, lora: Path | None) -> Drawn:
        """The pictures of the model with a LoRA, or of the model alone."""
        self.draw.unload_lora_weights()
        if lora is not None:
            self.draw.load_lora_weights(lora)
        common = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "pt"}
        new, restored = [], []
        for repetition in range(NOISES):
            seeds = [torch.Generator().manual_seed(1000 * repetition + i) for i in range(len(self.texts))]
            shape = {"height": RESOLUTION, "width": RESOLUTION}
            new.append(self.draw(self.texts, generator=seeds, **shape, **common).images)
            images = (self.pictures + 1) / 2
            restored.append(self.restore(self.texts, image=images, strength=STRENGTH, generator=seeds, **common).images)
        return Drawn(torch.cat(new) * 2 - 1, torch.cat(restored) * 2 - 1)


class Judge:
    """Distances to photographs, by networks that do not all belong to the losses.

    Args:
        photos: that no training saw.
    """

    def __init__(self, photos: Sequence[Photo]) -> None:
        self.lpips, self.identities = LPIPSNetwork("vgg"), FaceFeatures("dlib_resnet")
        self.pictures = pictures_of(photos)
        self.boxes = [torch.tensor([photo.face]) * RESOLUTION / SIDE for photo in photos]
        masks = [Image.fromarray(p.mask).resize((RESOLUTION,) * 2, Image.Resampling.NEAREST) for p in photos]
        self.masks = torch.stack([torch.from_numpy(np.array(mask))[None].float() for mask in masks])
        self.known = self._embedded(self.pictures, self.boxes)

    @torch.no_grad()
    def __call__(self, drawn: Drawn) -> dict[str, Tensor]:
        """One value for each picture, (n,): see MEASURES.

        face: LPIPS (VGG16) of the restored face. person: the same on the person. identity: distance between dlib's
        embeddings of the new face and of the photographs' faces, on average; infinite where MTCNN finds no face.
        """
        values: dict[str, list[Tensor]] = {name: [] for name in MEASURES}
        photos = len(self.pictures)
        for new, restored in zip(drawn.new.split(photos), drawn.restored.split(photos), strict=True):
            made, wanted = (crop_faces(images, self.boxes, JUDGED_FACE) for images in (restored, self.pictures))
            values["face"].append(self._lpips(made, wanted, torch.ones_like(made[:, :1])))
            values["person"].append(self._lpips(restored, self.pictures, self.masks))
            values["identity"].append(torch.stack([self._identity(one) for one in new]))
        return {name: torch.cat(found) for name, found in values.items()}

    def _lpips(self, made: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
        layers = zip(self.lpips.features(made), self.lpips(wanted), self.lpips.channel_weights(made), strict=True)
        distance = torch.stack([masked_sum(weighted_square(p, t, w), mask) for p, t, w in layers]).sum(0)
        return (distance / mask.sum((-2, -1)))[:, 0]

    def _identity(self, picture: Tensor) -> Tensor:
        box = found_face(picture)
        if box is None:
            return torch.tensor(torch.inf)
        return (self._embedded(picture[None], [box]) - self.known).norm(dim=1).mean()

    def _embedded(self, pictures: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            return self.identities(crop_faces(pictures, boxes, self.identities.crop))[-1].flatten(1)


def pictures_of(photos: Sequence[Photo]) -> Tensor:
    """The photographs as the model sees them, (n, 3, 128, 128) in [-1, 1]."""
    small = [photo.picture.resize((RESOLUTION,) * 2, Image.Resampling.LANCZOS) for photo in photos]
    return torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in small]) / 127.5 - 1


def found_face(picture: Tensor) -> Tensor | None:
    """The box (1, 4) of the largest face that MTCNN finds in a picture (3, H, W), or None."""
    large = torch.nn.functional.interpolate(picture[None], scale_factor=2, mode="bicubic").clamp(-1, 1)
    boxes, scores, _ = load_network()((large[0] + 1) * 127.5, Mtcnn.least_face)
    boxes = boxes[scores >= Mtcnn.least_score]
    if not len(boxes):
        return None
    largest = (boxes[:, 2:] - boxes[:, :2]).prod(1).argmax()
    return (boxes[largest] / 2).clamp(0, picture.shape[-1])[None]


def everywhere(found: Iterable[dict[str, Tensor]]) -> Tensor:
    """Which pictures count, bool (n,): those in which every model shows a face. A mean over each model's own would
    favour the one whose hard pictures show none."""
    return torch.stack([values["identity"].isfinite() for values in found]).all(0)


def interval(one: Tensor, other: Tensor, photos: int) -> tuple[float, float] | None:
    """95 % of the mean of `one` − `other`, (n,) each, pair by pair; None for fewer than five photographs.

    Noises of one photograph are not independent: they are averaged first, and the interval is Student's t of the
    photographs.
    """
    from scipy.stats import t

    gaps = (one - other).double().view(-1, photos).nanmean(0)
    gaps = gaps[gaps.isfinite()]
    if len(gaps) < 5:
        return None
    reach = float(t.ppf(0.975, len(gaps) - 1)) * float(gaps.std()) / len(gaps) ** 0.5
    return float(gaps.mean()) - reach, float(gaps.mean()) + reach


def faces_side_by_side(photos: Sequence[Photo], drawn: dict[str, Tensor]) -> Image.Image:
    """Enlarged faces: the photographs in a row, and below them a row for each model with the same noise in a column.

    Args:
        photos: n of them, over their columns.
        drawn: caption of a row → pictures (n, 3, H, W) whose faces are where those of the photographs are.
    """
    boxes = [torch.tensor([photo.face]) * RESOLUTION / SIDE for photo in photos]
    rows = {"photographs that no training saw": pictures_of(photos), **drawn}
    tiles = [as_bytes(crop_faces(pictures, boxes, SHOWN_FACE)) for pictures in rows.values()]
    return arrange([photo.name for photo in photos], tiles, list(rows))
