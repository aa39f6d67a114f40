"""The networks of the LoRA trainer, and how a LoRA is stored."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import cast_training_params
from diffusers.utils import convert_state_dict_to_diffusers, convert_unet_state_dict_to_peft
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from mldm_plugin.errors import RunFolderError
from mldm_plugin.training.networks import Networks, check_prediction_type, load_frozen, use_xformers
from mldm_plugin.training.weights_format import WeightsFormat

log = logging.getLogger(__name__)

FILE = "pytorch_lora_weights.safetensors"
ATTENTION = ["to_k", "to_q", "to_v", "to_out.0"]  # the layers that diffusers' script adapts


def load_networks(arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Networks:
    """Load the pipeline, and add a LoRA to the U-Net, already on its device and in its precision.

    The LoRA draws its first weights from the global generator. As in diffusers' script it is rounded with the
    U-Net in bfloat16, and is float32 beside float16, which gradients would leave.

    Raises:
        MldmError: the pipeline cannot be loaded, or cannot be trained as the flags ask.
    """
    networks = load_frozen(arguments, text_encoder_variant=None)
    if arguments.prediction_type is not None:
        networks.noise_scheduler.register_to_config(prediction_type=arguments.prediction_type)
    check_prediction_type(networks)
    unet = networks.unet.to(device)
    if unet.dtype != dtype:
        unet.to(dtype)
    rank = arguments.rank
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=ATTENTION))
    if dtype == torch.float16:
        cast_training_params(unet, dtype=torch.float32)
    if arguments.enable_xformers_memory_efficient_attention:
        use_xformers(unet)
    if arguments.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()
    if not arguments.clip_gradients:
        log.info("gradients are not clipped, as in diffusers' script; --clip_gradients would, to --max_grad_norm.")
    return networks


def _save(unet: Any, folder: Path) -> None:
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    weights = {name: weight.float() for name, weight in weights.items()}
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=weights)


def _load(unet: Any, folder: Path) -> None:
    stored = {name.removeprefix("unet."): weight for name, weight in load_file(folder / FILE).items()}
    stored = convert_unet_state_dict_to_peft(stored)
    own = {name: weight.shape for name, weight in get_peft_model_state_dict(unet).items()}
    if {name: weight.shape for name, weight in stored.items()} != own:
        raise RunFolderError(
            f"{folder / FILE} holds a LoRA of other layers or another rank: resume it with its own --rank and model."
        )
    set_peft_model_state_dict(unet, stored, adapter_name="default")


WEIGHTS = WeightsFormat(file=FILE, in_checkpoint="", save=_save, load=_load)
