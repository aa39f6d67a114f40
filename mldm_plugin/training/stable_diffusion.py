"""Stable Diffusion 1.x, frozen, for the trainers that train something beside or inside its U-Net."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPTextModel, PretrainedConfig

from mldm_plugin.errors import MldmError
from mldm_plugin.training.flags import TrainerFlags
from mldm_plugin.training.trainer import Trainer

TEXT_ENCODER = "CLIPTextModel"


class StableDiffusionTrainer(Trainer):
    """The pipeline's networks, and what is done with captions.

    Attributes:
        text_encoder, unet: of the pipeline, beside the `vae`; the U-Net may be what is trained.
    """

    def __init__(
        self,
        flags: TrainerFlags,
        device: torch.device,
        dtype: torch.dtype,
        *,
        text_encoder_variant: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        """Load the pipeline with all its networks frozen, to be moved later. Draws no random numbers.

        Raises:
            MldmError: the pipeline is not there or is not one of Stable Diffusion 1.x.
        """
        super().__init__(flags, device, dtype)
        name, revision = flags.pretrained_model_name_or_path, flags.revision
        place = {"revision": revision, "variant": flags.variant}
        with loading(name):
            config, _ = PretrainedConfig.get_config_dict(name, subfolder="text_encoder", revision=revision)
            if (architectures := config.get("architectures") or ["of no name"]) != [TEXT_ENCODER]:
                raise MldmError(f"the pipeline {name} has a text encoder {architectures[0]}, expected {TEXT_ENCODER}.")
            where = {} if tokenizer else {"subfolder": "tokenizer"}
            self.tokenizer = AutoTokenizer.from_pretrained(
                tokenizer or name, revision=revision, use_fast=False, **where
            )
            self.noise_scheduler = DDPMScheduler.from_pretrained(name, subfolder="scheduler")
            self.text_encoder = CLIPTextModel.from_pretrained(
                name, subfolder="text_encoder", revision=revision, variant=text_encoder_variant
            )
            self.vae = AutoencoderKL.from_pretrained(name, subfolder="vae", **place)
            self.unet = UNet2DConditionModel.from_pretrained(name, subfolder="unet", **place)
        self.frozen = (self.vae, self.unet, self.text_encoder)
        for network in self.frozen:
            network.requires_grad_(False)
        self.captions = flags.caption_column

    def load_pipeline(self, kind: Any, **parts: Any) -> Any:
        """A pipeline of a class of diffusers around the frozen networks and `parts`, the rest from its files."""
        return kind.from_pretrained(
            self.flags.pretrained_model_name_or_path,
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            revision=self.flags.revision,
            variant=self.flags.variant,
            safety_checker=None,
            **parts,
        )


@contextlib.contextmanager
def loading(name: str) -> Iterator[None]:
    """Raises MldmError where the pipeline `name` is not there or is not one of Stable Diffusion 1.x."""
    try:
        yield
    except (OSError, ValueError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise MldmError(
            f"the pipeline {name} cannot be loaded: {first_line} Expected a Stable Diffusion 1.x pipeline in "
            "diffusers' format, a folder or a Hub name."
        ) from error
