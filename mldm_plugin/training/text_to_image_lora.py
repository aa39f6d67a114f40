"""Train a LoRA of the U-Net of Stable Diffusion 1.x.

What is this trainer's own stands here; the loop is in `run`. Without a plugin the numbers are those of diffusers'
examples/text_to_image/train_text_to_image_lora.py, to the bit: random draws keep its order, and gradients are not
clipped unless `--clip_gradients` asks for it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import cast_training_params, compute_snr
from diffusers.utils import convert_state_dict_to_diffusers, convert_unet_state_dict_to_peft
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import RunFolderError
from mldm_plugin.training import run
from mldm_plugin.training.asked import Asked
from mldm_plugin.training.conditions import with_drops
from mldm_plugin.training.flags import LoraFlags
from mldm_plugin.training.stable_diffusion import StableDiffusionTrainer
from mldm_plugin.training.trainer import Prompt, annotation_of

log = logging.getLogger(__name__)

ATTENTION = ["to_k", "to_q", "to_v", "to_out.0"]  # the layers that diffusers' script adapts


class LoraTrainer(StableDiffusionTrainer):
    """A LoRA inside the U-Net. As in diffusers' script it is rounded with the U-Net in bfloat16, and is float32 beside
    float16, which gradients would leave."""

    what = "LoRA"
    flags_type = LoraFlags
    weights_file = "pytorch_lora_weights.safetensors"
    every_file = True
    inference_steps = 30
    project = "text2image-fine-tune"  # the script has no flag for it
    flags: LoraFlags

    def __init__(self, flags: LoraFlags, device: torch.device, dtype: torch.dtype) -> None:
        """Load the pipeline, and add a LoRA to the U-Net, already on its device and in its precision.

        The LoRA draws its first weights from the global generator.

        Raises:
            MldmError: the pipeline cannot be loaded, or cannot be trained as the flags ask.
        """
        super().__init__(flags, device, dtype)
        if flags.prediction_type is not None:
            self.noise_scheduler.register_to_config(prediction_type=flags.prediction_type)
        self.check_prediction_type()
        unet = self.unet.to(device)
        if unet.dtype != dtype:
            unet.to(dtype)
        unet.add_adapter(
            LoraConfig(r=flags.rank, lora_alpha=flags.rank, init_lora_weights="gaussian", target_modules=ATTENTION)
        )
        if dtype == torch.float16:
            cast_training_params(unet, dtype=torch.float32)
        self.trained = unet
        self.use_memory_savers(unet)
        unet.train()
        self.train_beside_text(unet)
        self.frozen = (self.vae, self.text_encoder)
        self.clips_gradients = flags.clip_gradients
        if not flags.clip_gradients:
            log.info("gradients are not clipped, as in diffusers' script; --clip_gradients would, to --max_grad_norm.")
        self.framing = {
            "interpolation": flags.image_interpolation_mode,
            "random_crop": not flags.center_crop,
            "random_flip": flags.random_flip,
        }

    def diffusion_step(
        self, model: nn.Module, batch: dict[str, Any], draw_timesteps: Callable[[Tensor], Tensor]
    ) -> DiffusionStep:
        """Noise the latents, predict, compare; the plain loss is weighted where --snr_gamma asks for it."""
        scheduler = self.noise_scheduler
        latents = self.latents_of(batch)
        noise = draw_noise(latents, self.flags.noise_offset)
        timesteps = draw_timesteps(latents)
        noisy_latents = scheduler.add_noise(latents, noise, timesteps)
        predicts_noise = scheduler.config.prediction_type == "epsilon"
        target = noise if predicts_noise else scheduler.get_velocity(latents, noise, timesteps)
        dropped = with_drops(batch, self.flags.condition_dropout)
        model_pred, tokens = self.answer(model, dropped, noisy_latents, timesteps)

        weights = min_snr_weights(scheduler, timesteps, self.flags.snr_gamma)
        if weights is None:
            plain = F.mse_loss(model_pred.float(), target.float())
        else:
            error = F.mse_loss(model_pred.float(), target.float(), reduction="none")
            plain = (error.mean(dim=(1, 2, 3)) * weights).mean()
        return DiffusionStep(
            latents=latents,
            noise=noise,
            noisy_latents=noisy_latents,
            timesteps=timesteps,
            model_pred=model_pred,
            target=target,
            base_weights=weights,
            base_loss=plain,
            predict=self.ask_again(batch, tokens),
            **annotation_of(batch),
        )

    def answer(
        self, model: nn.Module, batch: dict[str, Any], noisy_latents: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The output of the U-Net `model`."""
        answer, tokens = self.ask(model, batch, noisy_latents, timesteps)
        return answer[0], tokens

    def save(self, folder: Path) -> None:
        """As a pipeline's `load_lora_weights` reads it, in float32."""
        weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.unet))
        weights = {name: weight.float() for name, weight in weights.items()}
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=weights)
        self.save_conditions(folder)

    def load(self, folder: Path) -> None:
        """Put back what `save` wrote; raises RunFolderError for a LoRA of other layers or another rank."""
        file = folder / self.weights_file
        stored = {name.removeprefix("unet."): weight for name, weight in load_file(file).items()}
        stored = convert_unet_state_dict_to_peft(stored)
        own = {name: weight.shape for name, weight in get_peft_model_state_dict(self.unet).items()}
        if {name: weight.shape for name, weight in stored.items()} != own:
            raise RunFolderError(
                f"{file} holds a LoRA of other layers or another rank: resume it with its own --rank and model."
            )
        set_peft_model_state_dict(self.unet, stored, adapter_name="default")
        self.load_conditions(folder)

    def prompts(self) -> list[Prompt]:
        """The one prompt, if there is one."""
        text = self.flags.validation_prompt
        return [] if text is None else [Prompt(text, {"prompt": text})]

    def make_pipeline(self, stored: Path | None) -> Any:
        """The U-Net in training, or the pipeline's own with the LoRA that was stored."""
        pipeline = self.load_pipeline(StableDiffusionPipeline, **({"unet": self.unet} if stored is None else {}))
        if stored is not None:
            pipeline.unet.to(self.dtype)
            pipeline.load_lora_weights(stored)
        prediction_type = self.noise_scheduler.config.prediction_type
        pipeline.scheduler.register_to_config(prediction_type=prediction_type)
        return self.with_conditions(pipeline, stored)

    def samples_after_pass(self, epoch: int) -> bool:
        """Every --validation_epochs."""
        return epoch % self.flags.validation_epochs == 0


def draw_noise(latents: Tensor, offset: float) -> Tensor:
    """ε, (N, C, h, w); with an offset, each channel of each image is shifted as a whole by that much noise."""
    noise = torch.randn_like(latents)
    if offset:
        noise += offset * torch.randn((*latents.shape[:2], 1, 1), device=latents.device)
    return noise


def min_snr_weights(scheduler: Any, timesteps: Tensor, gamma: float | None) -> Tensor | None:
    """Factor on the squared error of each image, (N,); None without gamma.

    min(SNR, γ)/SNR for ε, min(SNR, γ)/(SNR + 1) for v. Source: Hang et al., "Efficient Diffusion Training via
    Min-SNR Weighting Strategy", section 3.4.
    """
    if gamma is None:
        return None
    snr = compute_snr(scheduler, timesteps)
    return snr.clamp(max=gamma) / (snr if scheduler.config.prediction_type == "epsilon" else snr + 1)


def main(asked: Asked | Sequence[str] | None = None) -> int:
    """The command: 0 when trained or stopped in good order, 1 with one line on what to mend."""
    return run.main(LoraTrainer, asked)


if __name__ == "__main__":
    sys.exit(main())
