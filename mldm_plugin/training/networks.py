"""The networks of a run: Stable Diffusion frozen, the ControlNet in training."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from diffusers.utils.import_utils import is_xformers_available
from torch import nn
from transformers import AutoTokenizer, CLIPTextModel, PretrainedConfig

from mldm_plugin.errors import MldmError


@dataclass
class Networks:
    """What a training step computes with. Only `controlnet` is trained."""

    tokenizer: Any
    noise_scheduler: DDPMScheduler
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    controlnet: ControlNetModel

    @classmethod
    def load(cls, arguments: argparse.Namespace) -> Networks:
        """Load the pipeline, and make or load the ControlNet, in the order of diffusers' script.

        The order matters: a ControlNet made from the U-Net draws its first weights from the global generator.

        Raises:
            MldmError: the pipeline is not there or is not one of Stable Diffusion 1.x.
        """
        name = arguments.pretrained_model_name_or_path
        place = {"revision": arguments.revision, "variant": arguments.variant}
        try:
            tokenizer = _load_tokenizer(arguments)
            _check_text_encoder(name, arguments.revision)
            scheduler = DDPMScheduler.from_pretrained(name, subfolder="scheduler")
            text_encoder = CLIPTextModel.from_pretrained(name, subfolder="text_encoder", **place)
            vae = AutoencoderKL.from_pretrained(name, subfolder="vae", **place)
            unet = UNet2DConditionModel.from_pretrained(name, subfolder="unet", **place)
            own = arguments.controlnet_model_name_or_path
            controlnet = ControlNetModel.from_pretrained(own) if own else ControlNetModel.from_unet(unet)
        except (OSError, ValueError) as error:
            first_line = next(iter(str(error).splitlines()), type(error).__name__)
            raise MldmError(
                f"the pipeline {name} cannot be loaded: {first_line} Expected a Stable Diffusion 1.x pipeline in "
                "diffusers' format, a folder or a Hub name."
            ) from error
        return cls(tokenizer, scheduler, text_encoder, vae, unet, controlnet)

    def prepare_for_training(self, arguments: argparse.Namespace) -> None:
        """Freeze all but the ControlNet, and set what the flags ask of the networks."""
        for frozen in (self.vae, self.unet, self.text_encoder):
            frozen.requires_grad_(False)
        self.controlnet.train()
        if arguments.conditioning == "none":
            remove_hint(self.controlnet)
        if arguments.enable_xformers_memory_efficient_attention:
            if not is_xformers_available():
                raise MldmError("xformers is not installed; `pip install xformers`, or leave the flag out.")
            self.unet.enable_xformers_memory_efficient_attention()
            self.controlnet.enable_xformers_memory_efficient_attention()
        if arguments.gradient_checkpointing:
            self.controlnet.enable_gradient_checkpointing()
        if self.controlnet.dtype != torch.float32:
            raise MldmError(
                f"the ControlNet's weights are {self.controlnet.dtype}, expected float32: mixed precision keeps "
                "float32 weights too; convert them first."
            )
        if self.noise_scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise MldmError(
                f"the pipeline predicts {self.noise_scheduler.config.prediction_type!r}, expected epsilon or "
                "v_prediction."
            )

    def move_frozen(self, device: torch.device, dtype: torch.dtype) -> None:
        """Put the frozen networks where and in what precision they are used."""
        for frozen in (self.vae, self.unet, self.text_encoder):
            frozen.to(device)
            if frozen.dtype != dtype:
                frozen.to(dtype)

    def trainable(self) -> list[nn.Parameter]:
        """What the optimizer gets, in the order of the ControlNet's parameters."""
        return [p for p in self.controlnet.parameters() if p.requires_grad]


def remove_hint(controlnet: ControlNetModel) -> None:
    """Make the conditioning embedding exactly zero, for good.

    "Improving Latent Diffusion with Perceptual Mask-Aware Loss", section 3: the control branch sees no
    conditioning image. With all weights zero the embedding is 0 for any hint, so the saved ControlNet still loads
    anywhere and gives the same output whatever picture it is handed.
    """
    for parameter in controlnet.controlnet_cond_embedding.parameters():
        parameter.data.zero_()
        parameter.requires_grad_(False)


def _load_tokenizer(arguments: argparse.Namespace) -> Any:
    if arguments.tokenizer_name:
        return AutoTokenizer.from_pretrained(arguments.tokenizer_name, revision=arguments.revision, use_fast=False)
    return AutoTokenizer.from_pretrained(
        arguments.pretrained_model_name_or_path,
        subfolder="tokenizer",
        revision=arguments.revision,
        use_fast=False,
    )


def _check_text_encoder(name: str, revision: str | None) -> None:
    config, _ = PretrainedConfig.get_config_dict(name, subfolder="text_encoder", revision=revision)
    (architecture,) = config.get("architectures") or ["of no name"]
    if architecture != "CLIPTextModel":
        raise MldmError(f"the pipeline {name} has a text encoder {architecture}, expected CLIPTextModel.")
