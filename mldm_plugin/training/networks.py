"""The networks of a run: Stable Diffusion frozen, and what is trained."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.import_utils import is_xformers_available
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel, PretrainedConfig

from mldm_plugin.errors import MldmError


@dataclass
class Networks:
    """What a training step computes with.

    `trained` is what accelerate prepares: a ControlNet beside the frozen U-Net, or the U-Net itself, of which only
    the LoRA has gradients. `layouts` are the memory formats of the VAE's posterior for one picture and for several:
    noise is drawn like the latents, in the order of memory, so latents from a cache take the same.
    """

    tokenizer: Any
    noise_scheduler: DDPMScheduler
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    trained: nn.Module
    layouts: tuple[torch.memory_format, torch.memory_format] = (torch.contiguous_format, torch.contiguous_format)

    def move_frozen(self, device: torch.device, dtype: torch.dtype) -> None:
        """Put the networks that are only used where and in what precision they are used."""
        for frozen in (self.vae, self.unet, self.text_encoder):
            if frozen is self.trained:
                continue
            frozen.to(device)
            if frozen.dtype != dtype:
                frozen.to(dtype)

    def set_encoders_aside(self) -> None:
        """Take VAE and text encoder off the device; validation puts them back for as long as it lasts."""
        for network in (self.vae, self.text_encoder):
            network.to("cpu")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def trainable(self) -> list[nn.Parameter]:
        """What the optimizer gets, in the order of the network's parameters."""
        return [p for p in self.trained.parameters() if p.requires_grad]


def posterior(networks: Networks, batch: dict[str, Any], dtype: torch.dtype) -> DiagonalGaussianDistribution:
    """q(z₀ | picture) of each picture of a batch, from the cache if the batch was read from one."""
    if "posterior" in batch:
        parameters = batch["posterior"]
        layout = networks.layouts[len(parameters) > 1]
        return DiagonalGaussianDistribution(parameters.contiguous(memory_format=layout))
    return networks.vae.encode(batch["pixel_values"].to(dtype)).latent_dist


def encoded_text(networks: Networks, batch: dict[str, Any]) -> Tensor:
    """The encoded captions of a batch, (N, L, D), from the cache if the batch was read from one."""
    if "text" in batch:
        return batch["text"]
    return networks.text_encoder(batch["input_ids"], return_dict=False)[0]


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


def load_frozen(arguments: argparse.Namespace, *, text_encoder_variant: str | None) -> Networks:
    """The pipeline with all its networks frozen, and the U-Net in the place of what is trained.

    Draws no random numbers.

    Raises:
        MldmError: the pipeline is not there or is not one of Stable Diffusion 1.x.
    """
    name, revision = arguments.pretrained_model_name_or_path, arguments.revision
    place = {"revision": revision, "variant": arguments.variant}
    with loading(name):
        tokenizer = _load_tokenizer(arguments)
        _check_text_encoder(name, revision)
        scheduler = DDPMScheduler.from_pretrained(name, subfolder="scheduler")
        text_encoder = CLIPTextModel.from_pretrained(
            name, subfolder="text_encoder", revision=revision, variant=text_encoder_variant
        )
        vae = AutoencoderKL.from_pretrained(name, subfolder="vae", **place)
        unet = UNet2DConditionModel.from_pretrained(name, subfolder="unet", **place)
    for frozen in (vae, unet, text_encoder):
        frozen.requires_grad_(False)
    return Networks(tokenizer, scheduler, text_encoder, vae, unet, trained=unet)


def check_prediction_type(networks: Networks) -> None:
    """Refuse a pipeline that predicts something else than the scripts can train."""
    prediction_type = networks.noise_scheduler.config.prediction_type
    if prediction_type not in ("epsilon", "v_prediction"):
        raise MldmError(f"the pipeline predicts {prediction_type!r}, expected epsilon or v_prediction.")


def use_xformers(*networks: Any) -> None:
    """Attention by xformers in these networks."""
    if not is_xformers_available():
        raise MldmError("xformers is not installed; `pip install xformers`, or leave the flag out.")
    for network in networks:
        network.enable_xformers_memory_efficient_attention()


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
