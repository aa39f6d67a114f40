"""The networks of a training step with random weights, and the plugin attached to them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mldm_plugin.bench.sizes import Size
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.errors import MldmError, PresetError
from mldm_plugin.plugins import Plugins
from mldm_plugin.preset import Preset, load_preset

TEXT_LENGTH = 77  # tokens of CLIP
POOLED_WIDTH, TIME_IDS = 1280, 6  # SDXL's pooled text embedding; sizes and crop


@dataclass
class Networks:
    """A frozen U-Net and VAE, and a ControlNet in training, as in diffusers' train_controlnet.py.

    With bfloat16 the frozen ones are kept in it, and the ControlNet stays in float32 under autocast.
    """

    size: Size
    device: torch.device
    dtype: torch.dtype
    vae: Any
    unet: Any
    controlnet: Any
    noise_scheduler: Any

    def added_conditions(self, n: int) -> dict[str, Any]:
        """What SDXL's U-Net wants beside the text, random; nothing for others."""
        if self.size.unet.get("addition_embed_type") != "text_time":
            return {}
        embeds, ids = (torch.randn(n, w, device=self.device, dtype=self.dtype) for w in (POOLED_WIDTH, TIME_IDS))
        return {"added_cond_kwargs": {"text_embeds": embeds, "time_ids": ids}}

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, text: Tensor, hint: Tensor, added: Any) -> Tensor:
        """The U-Net's output, steered by the ControlNet."""
        mixed = torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype != torch.float32)
        with mixed:
            down, middle = self.controlnet(
                noisy_latents, timesteps, encoder_hidden_states=text, controlnet_cond=hint, return_dict=False, **added
            )
        return self.unet(
            noisy_latents,
            timesteps,
            encoder_hidden_states=text,
            down_block_additional_residuals=[residual.to(self.dtype) for residual in down],
            mid_block_additional_residual=middle.to(self.dtype),
            return_dict=False,
            **added,
        )[0]


def build_networks(size: Size, device: torch.device, dtype: torch.dtype) -> Networks:
    """Random weights, drawn on `device`.

    Raises:
        MldmError: diffusers is not installed.
    """
    try:
        from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
    except ImportError as error:
        raise MldmError(f"training steps need diffusers ({error}): pip install 'mldm-plugin[train]'.") from error
    levels = len(size.vae_channels)
    with device:
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=size.vae_channels,
            layers_per_block=2,
            latent_channels=4,
            scaling_factor=size.scaling_factor,
        )
        unet = UNet2DConditionModel(**size.unet)
        controlnet = ControlNetModel.from_unet(unet)
    for frozen in (vae, unet):
        cast(frozen.requires_grad_(False), dtype)
    # stable-diffusion-v1-5's scheduler; SDXL's is the same.
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return Networks(size, device, dtype, vae, unet, controlnet.train(), scheduler)


def random_preset(name: str, overrides: Sequence[str], plugins: Plugins) -> Preset:
    """A preset with random weights in its losses' networks, which cost what pretrained ones do.

    Raises:
        PresetError: as `load_preset`, or a preset that a benchmark cannot gate.
    """
    preset = load_preset(name, overrides, plugins=plugins)
    random = [f"losses.{loss}.weights=random" for loss, s in preset.losses.items() if "weights" in s.options]
    preset = load_preset(preset, ["checks.picture=warn", *random], plugins=plugins)
    limits = [s.max_timestep for s in preset.losses.values() if s.weight > 0]
    if not limits or preset.base.weighting != "none":
        raise PresetError(f"preset {name} has no losses or weighs the plain one: choose one like mldm to measure.")
    if any(limit is None or limit >= 990 for limit in limits):
        raise PresetError(f"preset {name} lets every image through its gate: give each loss a max_timestep below 990.")
    return preset


def attach(networks: Networks, preset: Preset, plugins: Plugins) -> LossStack:
    """The plugin as a trainer has it, silent."""
    stack = LossStack.from_preset(
        preset,
        vae=networks.vae,
        noise_scheduler=networks.noise_scheduler,
        plugins=plugins,
        announce=lambda text: None,
    )
    if networks.size.face_crop is not None:
        for term in stack.terms:
            features: Any = getattr(term.loss, "features", None)
            if features is not None:
                features.size = networks.size.face_crop
    return stack


def plain_vae(networks: Networks, preset: Preset) -> Any:
    """A VAE for the plain strategies, in the precision that the plugin decodes in."""
    half = preset.precision == "bfloat16" or (preset.precision == "auto" and networks.dtype != torch.float32)
    return cast(copy.deepcopy(networks.vae), torch.bfloat16 if half else torch.float32)


def cast(network: Any, dtype: torch.dtype) -> Any:
    """`network` in `dtype`, by torch's own `to`: diffusers' warns although nothing is to be kept in float32 here."""
    return network if network.dtype == dtype else nn.Module.to(network, dtype)
