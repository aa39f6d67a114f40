"""Pipelines that draw from conditions, of `train_conditional_ldm.py`: how they are asked and shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mldm_plugin.conditions.celeba import COLOURS
from mldm_plugin.conditions.conditions import Conditions
from mldm_plugin.conditions.encoder import ConditionEncoder
from mldm_plugin.conditions.pipeline import ConditionalLDMPipeline
from mldm_plugin.data.batch import Example
from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.predicting import Listener


def encoders_of(folders: Iterable[str]) -> dict[str, ConditionEncoder]:
    """What these pipelines draw from, by name, to read the columns of a data set with; of one name the first.

    Raises:
        MldmError: encoders that do not load.
    """
    found: dict[str, ConditionEncoder] = {}
    for folder in folders:
        try:
            of_model = Conditions.from_pretrained(folder, subfolder="conditions")
        except (OSError, ValueError) as error:
            said = next(iter(str(error).splitlines()), "")[:300]
            raise MldmError(f"{folder} has no encoders of conditions ({type(error).__name__}: {said})") from error
        found = {**dict(of_model.each()), **found}
    return found


def drawn(
    pipeline: ConditionalLDMPipeline, given: Sequence[Mapping[str, Tensor]], generators: Any, **options: Any
) -> list[Image.Image]:
    """A picture from each of these conditions, of which a pipeline gets those that it knows; others are absent.

    Args:
        given: of each picture, name → value.
        generators: one for each.
        options: of the pipeline.
    """
    known = [{n: v for n, v in one.items() if n in pipeline.conditions.encoders} for one in given]
    if len({frozenset(one) for one in known}) > 1:  # a row that lacks a value; a batch has the same for all
        singly = zip(known, generators, strict=True)
        return [picture for one, own in singly for picture in drawn(pipeline, [one], [own], **options)]
    values = {name: [one[name] for one in known] for name in known[0]}
    pictures: list[Image.Image] = pipeline(
        conditions=values, batch_size=len(given), generator=generators, **options
    ).images
    return pictures


def side_drawn(pipeline: ConditionalLDMPipeline) -> int:
    """Of the pictures that such a pipeline draws, in pixels; it draws no other."""
    return int(pipeline.unet.config.sample_size * pipeline.image_processor.config.vae_scale_factor)


def check_side(pipeline: ConditionalLDMPipeline, side: int | None) -> None:
    """Raises MldmError where another size is asked for than such a pipeline was made for."""
    own = side_drawn(pipeline)
    if side is not None and side != own:
        raise MldmError(f"it draws {own} pixels and no other size, asked were {side}: leave out --resolution.")


class ConditionAsker:
    """Asks such a pipeline's network for one prediction: see `one_step.Predict`. No guidance; the caption says nothing.

    Args:
        pipeline: whose conditions are those of the photograph.
    """

    def __init__(self, pipeline: ConditionalLDMPipeline) -> None:
        self.pipeline, self.dtype = pipeline, pipeline.unet.dtype

    @torch.no_grad()
    def __call__(self, noisy: Tensor, timestep: float, caption: str, example: Example) -> Tensor:
        """The network's output, (1, C, h, w), at z_t of the same shape."""
        pipeline, own = self.pipeline, self.pipeline.scheduler
        values = {n: [v] for n, v in example.conditions.items() if n in pipeline.conditions.encoders}
        pipeline.scheduler = listener = Listener(own, timestep)
        try:
            pipeline(conditions=values, latents=noisy.to(self.dtype), num_inference_steps=1, output_type="latent")
        finally:
            pipeline.scheduler = own
        return listener.answer


def in_words(conditions: Mapping[str, Tensor], encoders: Mapping[str, ConditionEncoder]) -> str:
    """Conditions that are no label maps as a reader reads them: the attributes that are so, numbers of others."""
    said = []
    for name, value in conditions.items():
        names = getattr(encoders[name], "names", None)
        if encoders[name].is_label_map:
            continue
        if names is not None:
            so = [word for word, yes in zip(names, value.tolist(), strict=True) if yes]
            said.append(", ".join(so).replace("_", " ") or f"none of the {len(names)} attributes")
        else:
            said.append(f"{name}: {', '.join(f'{number:.3g}' for number in value.flatten().tolist()[:8])}")
    return "; ".join(said)


def as_picture(conditions: Mapping[str, Tensor], encoders: Mapping[str, ConditionEncoder]) -> Image.Image | None:
    """The label maps side by side, in colours; None without any."""
    maps = [coloured(value[0]) for name, value in conditions.items() if encoders[name].is_label_map]
    if not maps:
        return None
    sheet = Image.new("RGB", (sum(one.width for one in maps), max(one.height for one in maps)))
    left = 0
    for one in maps:
        sheet.paste(one, (left, 0))
        left += one.width
    return sheet


def coloured(labels: Tensor) -> Image.Image:
    """Labels (H, W) as a picture, in the colours of CelebAMask-HQ; where there are more, they begin again."""
    palette = torch.tensor(COLOURS, dtype=torch.uint8)
    return Image.fromarray(palette[labels.long().cpu() % len(palette)].numpy())
