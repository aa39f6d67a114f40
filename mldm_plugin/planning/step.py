"""What the network's part of a training step takes: ControlNet beside a frozen U-Net, or a LoRA of the U-Net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mldm_plugin.planning.families import Family
from mldm_plugin.planning.meta import META, building, compute_like_cuda_autocast, flash_attention
from mldm_plugin.planning.operations import counting
from mldm_plugin.planning.tensor_memory import TensorMemory

Kind = Literal["controlnet", "lora"]
ATTENTION = ["to_k", "to_q", "to_v", "to_out.0"]  # the layers that diffusers' LoRA script adapts
TOKENS = 77
_Inputs = tuple[Tensor, Tensor, Tensor, dict[str, Any]]


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one step, without weights, gradients and states.

    Attributes:
        kept: activations between the forward and the backward pass, when the losses on pictures are taken.
        forward, backward: the most in each pass.
    """

    kept: int
    forward: int
    backward: int

    def extrapolated(self, twice: StepMemory, images: int) -> StepMemory:
        """For so many images, if this is for one and `twice` for two: every activation has the batch as an axis."""
        values = ((a, getattr(twice, n)) for n, a in vars(self).items())
        return StepMemory(*(a + (b - a) * (images - 1) for a, b in values))


class TrainedNetworks:
    """The networks of a trainer without their data.

    Args:
        family: what they look like.
        kind: what is trained.
        dtype: of frozen weights, and of computation.
        checkpointing: `--gradient_checkpointing`: of the ControlNet, or of the U-Net with the LoRA.
        rank: of the LoRA.
        device: `META`, or for a comparison a device with data.

    Attributes:
        frozen_weights, trained_weights: how many there are.
    """

    def __init__(
        self,
        family: Family,
        kind: Kind,
        dtype: torch.dtype,
        *,
        checkpointing: bool = False,
        rank: int = 4,
        device: torch.device = META,
    ) -> None:
        self.kind, self.dtype, self.device = kind, dtype, device
        self.width = family.unet.get("cross_attention_dim", 1280)
        with building(dtype, device):
            self.unet: Any = UNet2DConditionModel(**family.unet).requires_grad_(False)
            self.trained: Any = self.unet
            if kind == "lora":
                lora = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=ATTENTION)
                self.unet.add_adapter(lora)
        if kind == "controlnet":
            with building(torch.float32, device):
                self.trained = ControlNetModel.from_unet(self.unet, load_weights_from_unet=False)
        self.trained.train()
        if checkpointing:
            self.trained.enable_gradient_checkpointing()
        if dtype != torch.float32:
            compute_like_cuda_autocast(self.trained, dtype)
        every = {*self.unet.parameters(), *self.trained.parameters()}
        self.trained_weights = sum(p.numel() for p in every if p.requires_grad)
        self.frozen_weights = sum(p.numel() for p in every) - self.trained_weights

    def measure(self, images: int, resolution: int, answers: int = 1) -> StepMemory:
        """One step on so many pictures, all of them asked about so often: K of `estimate: ddim-K`. Gradients are there
        already, as from the second step on."""
        for parameter in self.trained.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        inputs = self.inputs(images, resolution)
        with flash_attention(), TensorMemory() as memory:
            loss = self._loss(inputs, answers)
            kept, forward = memory.live, memory.peak
            memory.peak = memory.live
            loss.backward()
        return StepMemory(kept, forward, memory.peak)

    def tflop(self, resolution: int, answers: int = 1) -> float:
        """Operations of a step on one picture, 10¹²: matrix products and convolutions, two for a multiplication and
        addition."""
        inputs = self.inputs(1, resolution)
        with flash_attention(), counting() as operations:
            self._loss(inputs, answers).backward()
        return operations.get_total_flops() / 1e12

    def inputs(self, images: int, resolution: int) -> _Inputs:
        """What `predict` is given of so many pictures."""
        with building(self.dtype, self.device):
            latents = torch.zeros(images, self.unet.config.in_channels, resolution // 8, resolution // 8)
            text = torch.zeros(images, TOKENS, self.width)
            more: dict[str, Any] = {}
            if self.unet.config.addition_embed_type == "text_time":
                pooled = self.unet.config.projection_class_embeddings_input_dim
                pooled -= 6 * self.unet.config.addition_time_embed_dim  # two sizes and a corner
                sizes = {"text_embeds": torch.zeros(images, pooled), "time_ids": torch.zeros(images, 6)}
                more = {"added_cond_kwargs": sizes}
            return latents, torch.zeros(images, 3, resolution, resolution), text, more

    def predict(self, latents: Tensor, hint: Tensor, text: Tensor, more: dict[str, Any]) -> Tensor:
        """The U-Net's output."""
        timesteps = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        if self.kind == "controlnet":
            down, middle = self.trained(
                latents, timesteps, encoder_hidden_states=text, controlnet_cond=hint, return_dict=False, **more
            )
            down, middle = [d.float() for d in down], middle.float()  # as accelerate hands them out
            more = more | {
                "down_block_additional_residuals": [d.to(self.dtype) for d in down],
                "mid_block_additional_residual": middle.to(self.dtype),
            }
            del down, middle
        return self.unet(latents, timesteps, encoder_hidden_states=text, return_dict=False, **more)[0]

    def _loss(self, inputs: _Inputs, answers: int) -> Tensor:
        """Of the first answer, and of the last one. What comes after the first is asked as engine/schedule.py does:
        about latents that hang on the answers before, and kept as questions alone."""
        latents, hint, text, more = inputs
        prediction = self.predict(latents, hint, text, more)
        loss = prediction.float().square().mean()
        for _ in range(answers - 1):
            latents = (latents.float() - prediction.float()).to(latents.dtype)
            prediction = checkpoint(self.predict, latents, hint, text, more, use_reentrant=False)
        return loss if answers == 1 else loss + prediction.float().square().mean()


def measure_encoder(family: Family, dtype: torch.dtype, images: int, resolution: int) -> tuple[int, int]:
    """Bytes of the VAE's weights, and the most on top of them while it encodes so many pictures."""
    with building(dtype), TensorMemory() as weights:
        vae: Any = AutoencoderKL(**family.vae).requires_grad_(False).eval()
    with building(dtype), torch.no_grad(), flash_attention():
        pictures = torch.zeros(images, 3, resolution, resolution)
        with TensorMemory() as memory:
            vae.encode(pictures)
    return weights.live, memory.peak
