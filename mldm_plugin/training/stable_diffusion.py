"""Stable Diffusion 1.x, frozen, for the trainers that train something beside or inside its U-Net."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel, PretrainedConfig

from mldm_plugin.conditions.beside_text import FOLDER, BesideText, has_conditions, read_conditions
from mldm_plugin.conditions.conditions import Conditions
from mldm_plugin.errors import MldmError, RunFolderError
from mldm_plugin.training.conditions import TextAndConditions, make_conditions
from mldm_plugin.training.flags import TrainerFlags
from mldm_plugin.training.trainer import Trainer

TEXT_ENCODER = "CLIPTextModel"


class StableDiffusionTrainer(Trainer):
    """The pipeline's networks, and what is done with captions.

    Attributes:
        text_encoder, unet: of the pipeline, beside the `vae`; the U-Net may be what is trained.
        beside: encoders of conditions whose tokens are read behind the text's; None without --condition.
    """

    beside: Conditions | None = None

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

    def train_beside_text(self, network: nn.Module) -> None:
        """What is trained: this network, and the encoders of --condition beside it, whose tokens it reads behind text.

        Raises:
            MldmError: there is no such condition, or its options do not fit.
        """
        self.trained = network
        if not self.flags.condition:
            return
        try:
            self.beside = make_conditions(self.flags, self.unet.config.cross_attention_dim).to(self.device).train()
        except ValueError as error:
            raise MldmError(f"--condition: {error}") from error
        self.conditions = dict(self.beside.each())
        self.trained = TextAndConditions(network, self.beside)

    def ask(self, model: nn.Module, batch: dict[str, Any], noisy: Tensor, timesteps: Tensor, **options: Any) -> Any:
        """What `model` answers, and all that it read: the text, and the tokens of conditions behind it."""
        tokens = batch.get("tokens")  # all there is to read, of a network that is asked again
        text = self.text_of(batch) if tokens is None else tokens
        if self.beside is None:
            return model(noisy, timesteps, encoder_hidden_states=text, return_dict=False, **options), text
        values, present = batch.get("conditions", {}) if tokens is None else None, batch.get("present", {})
        answer, read = model(noisy, timesteps, text, values, present, **options)
        return answer, read.to(self.dtype)

    def save_conditions(self, folder: Path) -> None:
        """The encoders that were trained, beside the weights."""
        if self.beside is not None:
            self.beside.save_pretrained(folder / FOLDER)

    def load_conditions(self, folder: Path) -> None:
        """Put back what `save_conditions` wrote.

        Raises:
            RunFolderError: other conditions, or none where there should be some.
        """
        there = has_conditions(folder)
        if there != (self.beside is not None):
            how = (
                "leave out --condition" if self.beside is not None else "give the --condition that it was trained with"
            )
            raise RunFolderError(f"{folder} has {'' if there else 'no '}encoders of conditions: {how}.")
        if self.beside is None:
            return
        try:
            self.beside.load_state_dict(read_conditions(folder).state_dict())
        except RuntimeError as error:
            raise RunFolderError(f"{folder / FOLDER} holds other conditions: resume it with its own.") from error

    def with_conditions(self, pipeline: Any, stored: Path | None) -> Any:
        """A pipeline that reads the tokens of conditions, those in training or those that were stored, too."""
        if self.beside is not None:
            BesideText(pipeline, copy.deepcopy(self.beside) if stored is None else read_conditions(stored))
        return pipeline

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
