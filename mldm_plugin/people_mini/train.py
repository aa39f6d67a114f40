"""The whole training: autoencoder, then text encoder and U-Net on its latents, then the pipeline and what shows it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from torch import Tensor

from mldm_plugin.people_mini.autoencoder import Coding, CodingObjective, encode_all, scaling_factor
from mldm_plugin.people_mini.denoiser import Denoiser, DenoisingObjective
from mldm_plugin.people_mini.loop import Plan, Progress, Training
from mldm_plugin.people_mini.networks import SIZES, build_networks, count_parameters, write_pipeline
from mldm_plugin.people_mini.perceptual import ThreeStages
from mldm_plugin.people_mini.pictures import Pictures, load_pictures, tokenized, with_mirrored_drawings
from mldm_plugin.people_mini.showing import Sheets, show_curves, show_reconstructions
from mldm_plugin.people_mini.words import read_tokenizer, tokens_of

log = logging.getLogger(__name__)
SHOWN = 256  # pictures of each kind on which the autoencoder is scored


@dataclass(frozen=True)
class Settings:
    """What a training is asked for.

    Args:
        size: of `networks.SIZES`.
        vae, denoiser: plans.
        vae_batch, denoiser_batch: pictures in a step.
        scale: of the number of squares cut out of photographs.
        seed: of weights and data.
    """

    size: str
    vae: Plan
    denoiser: Plan
    vae_batch: int
    denoiser_batch: int
    scale: float = 1.0
    seed: int = 0


class Run:
    """One training in one folder; started again, it goes on where it was.

    Args:
        folder: gets states, sheets, log and pipeline.
        settings: what is asked for.
        archives: pictures that both stages see.
        more: folder of shards that another process may still be drawing; those that are there when the second
            stage begins are seen by it too.
        lpips: for the autoencoder, or None.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        archives: list[Path],
        more: Path | None = None,
        lpips: ThreeStages | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.settings, self.archives, self.more, self.lpips = folder, settings, archives, more, lpips
        gpu = torch.cuda.is_available()
        # A cache of half-precision weights would outlive the pass that a CUDA graph captures.
        handlers = [AutocastKwargs(cache_enabled=False)]
        self.accelerator = Accelerator(mixed_precision="bf16" if gpu else "no", kwargs_handlers=handlers)
        torch.backends.cudnn.benchmark = gpu
        torch.backends.cudnn.benchmark_limit = 4  # chosen: a search that is paid back within two minutes
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.device = self.accelerator.device
        self.networks = build_networks(SIZES[settings.size], settings.seed)
        self.progress: dict[str, Progress] = {}
        self.log: dict[str, Any] = {"settings": asdict(settings), "parameters": self._counted(), "seconds": {}}
        self._began = time.monotonic()

    def _counted(self) -> dict[str, int]:
        return {name: count_parameters(network) for name, network in self.networks.items()}

    def _past(self, what: str) -> None:
        self.log["seconds"][what] = round(time.monotonic() - self._began, 1)
        log.info("%s: %.1f s since the start", what, self.log["seconds"][what])
        self.write_log()

    def write_log(self) -> None:
        """Write log.json as far as things are."""
        self.log["losses"] = {name: one.losses for name, one in self.progress.items()}
        self.log["steps"] = {name: one.step for name, one in self.progress.items()}
        part = self.folder / "log.json.part"
        part.write_text(json.dumps(self.log, indent=1), encoding="utf-8")
        part.replace(self.folder / "log.json")

    def all(self) -> Path:
        """Train both and return the pipeline's folder."""
        self.log["device"] = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        pictures = load_pictures(self.archives, self.settings.seed, self.settings.scale).to(self.device)
        self._past("pictures read")
        vae = self._autoencoder(pictures)
        self.log["psnr"] = show_reconstructions(vae, pictures, self.folder / "reconstructions.png", SHOWN)
        self._past("autoencoder trained")
        denoiser = self._denoiser(vae, self._all_pictures(pictures))
        self._past("denoiser trained")
        show_curves(self.progress, self.folder / "curves.png")
        networks = {"vae": vae, "unet": denoiser.unet, "text_encoder": denoiser.text_encoder}
        written = write_pipeline(self.folder / "pipeline", networks)
        self._past("pipeline written")
        return written

    def _autoencoder(self, pictures: Pictures) -> Any:
        settings, lpips = self.settings, self.lpips
        if lpips is not None:
            lpips = lpips.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        objective = CodingObjective(pictures, settings.vae_batch, lpips, self.accelerator.autocast)
        training = Training(Coding(self.networks["vae"]), settings.vae, objective, self.accelerator, self.folder)
        vae = training.run().vae
        self.progress["autoencoder"] = training.progress
        return vae

    def _all_pictures(self, pictures: Pictures) -> Pictures:
        """Those of the first stage and what was drawn meanwhile, drawings mirrored too."""
        shards = sorted(self.more.glob("*.zip")) if self.more and self.more.is_dir() else []
        if shards:
            drawn = load_pictures(shards, self.settings.seed).to(self.device)
            pixels, texts = torch.cat([drawn.pixels, pictures.pixels]), [*drawn.texts, *pictures.texts]
            pictures = Pictures(pixels, texts, drawn.drawings + pictures.drawings)
        self.log["drawings"], self.log["squares of photographs"] = pictures.drawings, len(pictures) - pictures.drawings
        return with_mirrored_drawings(pictures)

    def _tokens_of(self) -> Callable[[list[str]], Tensor]:
        tokenizer = read_tokenizer(self.folder / "tokenizer")
        return lambda texts: tokens_of(tokenizer, texts)

    def _denoiser(self, vae: Any, pictures: Pictures) -> Denoiser:
        latents = encode_all(vae, pictures)
        factor = scaling_factor(latents)
        vae.register_to_config(scaling_factor=factor)
        self.log["scaling_factor"] = factor
        tokens = self._tokens_of()
        captions = tokenized(pictures.texts, tokens, self.device)
        self._past("latents and tokens")
        settings = self.settings
        objective = DenoisingObjective(latents * factor, pictures, captions, settings.denoiser_batch)
        sheets = Sheets(self.folder / "sheets", tokens, vae, factor, self.device)
        module = Denoiser(self.networks["text_encoder"], self.networks["unet"])
        training = Training(module, settings.denoiser, objective, self.accelerator, self.folder, sheets)
        denoiser = training.run()
        sheets(denoiser, training.progress.step)
        self.progress["denoiser"] = training.progress
        return denoiser
