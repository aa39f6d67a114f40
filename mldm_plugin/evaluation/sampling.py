"""Each model draws each case, from the same noise."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mldm_plugin.conditions.pipeline import ConditionalLDMPipeline
from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.cases import Case, Photographs
from mldm_plugin.evaluation.conditional import check_side, drawn
from mldm_plugin.evaluation.predicting import hint_option
from mldm_plugin.records.panels import save_panel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn.

    Args:
        sampler: `dpm++`, `ddim` or the name of a scheduler of diffusers.
        steps: of the sampler.
        guidance: scale of classifier-free guidance, None for the pipeline's own.
        repetitions: pictures of each case.
        seed: of all noise.
        resolution: side of the pictures, None for the pipeline's own.
        eta: of DDIM: 0 is without noise after the first, 1 with that of DDPM.
    """

    sampler: str = "dpm++"
    steps: int = 20
    guidance: float | None = None
    repetitions: int = 1
    seed: int = 0
    resolution: int | None = None
    eta: float = 0.0

    def told(self) -> dict[str, Any]:
        """All of it, for what depends on it; as it was before there was an eta, where that is 0."""
        return {name: value for name, value in asdict(self).items() if name != "eta" or value}


def noise_of(seed: int, case: Case, repetition: int) -> torch.Generator:
    """The generator of one picture, on the CPU: the same whatever is drawn before it, beside it and by how many.

    diffusers draws each picture of a batch from its own generator, the first noise and that of stochastic samplers.
    """
    name = f"{seed}/{case.key}/{repetition}".encode()
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1)


def picture_name(case: Case, repetition: int) -> str:
    return f"{case.key}-{repetition}.png"


def draw(
    pipeline: Any,
    cases: Sequence[Case],
    sampling: Sampling,
    folder: Path,
    *,
    photographs: Photographs | None = None,
    batch: int = 1,
    share: tuple[int, int] = (0, 1),
    title: str = "",
) -> None:
    """Draw what is not yet in `folder`, a PNG for each case and repetition, each there whole or not at all.

    Args:
        pipeline: of diffusers, from text to pictures, with or without a ControlNet, or from conditions.
        photographs: whose hints a ControlNet gets, without one a black one; and whose conditions a pipeline gets that
            draws from them, alone or beside text.
        batch: pictures at a time on a GPU; halved where its memory is too small. A CPU draws one by one: beside others
            a picture's last bits would change, and little time would be won.
        share: this process and the number of them; every process draws its own share.
        title: of the progress bar.
    """
    folder.mkdir(parents=True, exist_ok=True)
    batch = 1 if pipeline.device.type == "cpu" else batch
    wanted = [(case, repetition) for repetition in range(sampling.repetitions) for case in cases]
    own = [one for one in wanted[share[0] :: share[1]] if not (folder / picture_name(*one)).is_file()]
    with tqdm(total=len(own), desc=title, disable=share[0] != 0 or not own, unit="picture") as bar:
        while own:
            some = own[:batch]
            try:
                pictures = _drawn(pipeline, some, sampling, photographs)
            except torch.cuda.OutOfMemoryError:
                if batch == 1:
                    raise
                batch = max(batch // 2, 1)
                torch.cuda.empty_cache()
                log.info(f"the memory is too small: {batch} pictures at a time")
                continue
            for one, picture in zip(some, pictures, strict=True):
                save_panel(picture, folder / picture_name(*one))
            own = own[len(some) :]
            bar.update(len(some))


def _drawn(
    pipeline: Any, some: Sequence[tuple[Case, int]], sampling: Sampling, photographs: Photographs | None
) -> list[Image.Image]:
    options: dict[str, Any] = {"num_inference_steps": sampling.steps}
    if sampling.guidance is not None:
        options["guidance_scale"] = sampling.guidance
    if sampling.eta:
        options["eta"] = _eta(pipeline, sampling.eta)
    generators = [noise_of(sampling.seed, case, repetition) for case, repetition in some]
    if isinstance(pipeline, ConditionalLDMPipeline):
        check_side(pipeline, sampling.resolution)
        return drawn(pipeline, [_conditions(case, photographs) for case, _ in some], generators, **options)
    if (beside := getattr(pipeline, "beside_text", None)) is not None:
        beside.given = [_conditions(case, photographs) for case, _ in some]
    if sampling.resolution is not None:
        options |= {"height": sampling.resolution, "width": sampling.resolution}
    if (name := hint_option(pipeline)) is not None:
        side = sampling.resolution or own_side(pipeline)
        options[name] = torch.stack([_hint(case, photographs, side) for case, _ in some])
    return pipeline([case.text for case, _ in some], generator=generators, **options).images


def _eta(pipeline: Any, eta: float) -> float:
    """Raises MldmError where nothing would come of it."""
    if "eta" not in inspect.signature(pipeline.scheduler.step).parameters:
        raise MldmError(f"--eta {eta:g} says nothing to {type(pipeline.scheduler).__name__}: give --sampler ddim.")
    if "eta" not in inspect.signature(pipeline.__call__).parameters:
        raise MldmError(f"{type(pipeline).__name__} takes no --eta.")
    return eta


def _conditions(case: Case, photographs: Photographs | None) -> Mapping[str, Tensor]:
    """Those of the photograph that a case belongs to; nothing without one."""
    return {} if photographs is None or case.row is None else photographs.look(case.row).conditions


def own_side(pipeline: Any) -> int:
    """The side of the pictures that a pipeline draws when it is not told: a ControlNet's hint decides it."""
    network = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    latents = getattr(pipeline, "default_sample_size", None) or network.config.sample_size
    return int(latents) * int(pipeline.vae_scale_factor)


def _hint(case: Case, photographs: Photographs | None, side: int) -> Tensor:
    hint = None
    if photographs is not None and case.row is not None:
        hint = photographs.look(case.row).conditioning_pixel_values
    return torch.zeros(3, side, side) if hint is None else hint
