"""The networks of the ControlNet trainer, and how a ControlNet is stored."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import ControlNetModel
from torch import nn

from mldm_plugin.errors import MldmError
from mldm_plugin.training.networks import Networks, check_prediction_type, load_frozen, loading, use_xformers
from mldm_plugin.training.weights_format import WeightsFormat


def load_networks(arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Networks:
    """Load the pipeline, and make or load the ControlNet, which accelerate moves to its device.

    A ControlNet made from the U-Net draws its first weights from the global generator.

    Raises:
        MldmError: the pipeline or the ControlNet cannot be loaded, or cannot be trained as the flags ask.
    """
    networks = load_frozen(arguments, text_encoder_variant=arguments.variant)
    with loading(arguments.pretrained_model_name_or_path):
        own = arguments.controlnet_model_name_or_path
        controlnet = ControlNetModel.from_pretrained(own) if own else ControlNetModel.from_unet(networks.unet)
    networks.trained = controlnet
    controlnet.train()
    if arguments.conditioning == "none":
        remove_hint(controlnet)
    if arguments.enable_xformers_memory_efficient_attention:
        use_xformers(networks.unet, controlnet)
    if arguments.gradient_checkpointing:
        controlnet.enable_gradient_checkpointing()
    if controlnet.dtype != torch.float32:
        raise MldmError(
            f"the ControlNet's weights are {controlnet.dtype}, expected float32: mixed precision keeps "
            "float32 weights too; convert them first."
        )
    check_prediction_type(networks)
    return networks


def remove_hint(controlnet: ControlNetModel) -> None:
    """Make the conditioning embedding exactly zero, for good.

    "Improving Latent Diffusion with Perceptual Mask-Aware Loss", section 3: the control branch sees no
    conditioning image. With all weights zero the embedding is 0 for any hint, so the saved ControlNet still loads
    anywhere and gives the same output whatever picture it is handed.
    """
    for parameter in controlnet.controlnet_cond_embedding.parameters():
        parameter.data.zero_()
        parameter.requires_grad_(False)


def _save(controlnet: ControlNetModel, folder: Path) -> None:
    controlnet.save_pretrained(folder)


def _load(controlnet: nn.Module, folder: Path) -> None:
    controlnet.load_state_dict(ControlNetModel.from_pretrained(folder).state_dict())


WEIGHTS = WeightsFormat(
    file="diffusion_pytorch_model.safetensors",
    in_checkpoint="controlnet",
    save=_save,
    load=_load,
    start_flag="--controlnet_model_name_or_path",
)
