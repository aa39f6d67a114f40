"""Train a ControlNet for Stable Diffusion 1.x.

What is this trainer's own stands here; the loop is in `run`. Without a plugin the numbers are those of diffusers'
examples/controlnet/train_controlnet.py, to the bit: random draws keep its order.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, UniPCMultistepScheduler
from torch import Tensor, nn

from mldm_plugin.conditions.beside_text import has_conditions
from mldm_plugin.data.annotations import read_picture
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import DataError, MldmError
from mldm_plugin.training import run
from mldm_plugin.training.asked import Asked
from mldm_plugin.training.conditions import with_drops
from mldm_plugin.training.flags import ControlNetFlags
from mldm_plugin.training.stable_diffusion import StableDiffusionTrainer, loading
from mldm_plugin.training.trainer import Prompt, annotation_of


class ControlNetTrainer(StableDiffusionTrainer):
    """A ControlNet in float32 beside the frozen U-Net."""

    what = "ControlNet"
    flags_type = ControlNetFlags
    weights_file = "diffusion_pytorch_model.safetensors"
    in_checkpoint = "controlnet"
    start_flag = "--controlnet_model_name_or_path"
    inference_steps = 20
    flags: ControlNetFlags

    def __init__(self, flags: ControlNetFlags, device: torch.device, dtype: torch.dtype) -> None:
        """Load the pipeline, and make or load the ControlNet, which accelerate moves to its device.

        A ControlNet made from the U-Net draws its first weights from the global generator.

        Raises:
            MldmError: the pipeline or the ControlNet cannot be loaded, or cannot be trained as the flags ask.
        """
        super().__init__(flags, device, dtype, text_encoder_variant=flags.variant, tokenizer=flags.tokenizer_name)
        with loading(flags.pretrained_model_name_or_path):
            own = flags.controlnet_model_name_or_path
            controlnet = ControlNetModel.from_pretrained(own) if own else ControlNetModel.from_unet(self.unet)
        self.trained = self.controlnet = controlnet.train()
        if flags.conditioning == "none":
            remove_hint(controlnet)
        self.use_memory_savers(self.unet, controlnet)
        if controlnet.dtype != torch.float32:
            raise MldmError(
                f"the ControlNet's weights are {controlnet.dtype}, expected float32: mixed precision keeps "
                "float32 weights too; convert them first."
            )
        self.check_prediction_type()
        self.project = flags.tracker_project_name
        self.frees_gradients = flags.set_grads_to_none
        self.lr_options = {"num_cycles": flags.lr_num_cycles, "power": flags.lr_power}
        self.hints = flags.conditioning_image_column if flags.conditioning == "image" else None
        self.empty_prompts = flags.proportion_empty_prompts
        self.framing = {"random_crop": flags.random_crop, "random_flip": flags.random_flip}
        self.train_beside_text(controlnet)
        if own and has_conditions(Path(own)):
            self.load_conditions(Path(own))

    def diffusion_step(
        self, model: nn.Module, batch: dict[str, Any], draw_timesteps: Callable[[Tensor], Tensor]
    ) -> DiffusionStep:
        """Noise the latents, predict with U-Net and ControlNet, compare."""
        scheduler = self.noise_scheduler
        latents = self.latents_of(batch)
        noise = torch.randn_like(latents)
        timesteps = draw_timesteps(latents)
        noisy_latents = scheduler.add_noise(latents.float(), noise.float(), timesteps).to(self.dtype)
        dropped = with_drops(batch, self.flags.condition_dropout)
        model_pred, tokens = self.answer(model, dropped, noisy_latents, timesteps)
        predicts_v = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, timesteps) if predicts_v else noise
        return DiffusionStep(
            latents=latents,
            noise=noise,
            noisy_latents=noisy_latents,
            timesteps=timesteps,
            model_pred=model_pred,
            target=target,
            base_loss=F.mse_loss(model_pred.float(), target.float()),
            predict=self.ask_again(batch, tokens),
            **annotation_of(batch),
        )

    def answer(
        self, model: nn.Module, batch: dict[str, Any], noisy_latents: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The U-Net's output, steered by the ControlNet `model`."""
        hint = batch.get("conditioning_pixel_values")
        if hint is None:
            side = self.flags.resolution
            hint = noisy_latents.new_zeros(len(noisy_latents), 3, side, side)
        (down, middle), text = self.ask(model, batch, noisy_latents, timesteps, controlnet_cond=hint.to(self.dtype))
        answer = self.unet(
            noisy_latents,
            timesteps,
            encoder_hidden_states=text,
            down_block_additional_residuals=[residual.to(self.dtype) for residual in down],
            mid_block_additional_residual=middle.to(self.dtype),
            return_dict=False,
        )[0]
        return answer, text

    def save(self, folder: Path) -> None:
        """As `ControlNetModel.from_pretrained` reads it."""
        self.controlnet.save_pretrained(folder)
        self.save_conditions(folder)

    def load(self, folder: Path) -> None:
        """Put back what `save` wrote."""
        self.controlnet.load_state_dict(ControlNetModel.from_pretrained(folder).state_dict())
        self.load_conditions(folder)

    def prompts(self) -> list[Prompt]:
        """Prompts with their hints; a single one of either goes with all of the other.

        Raises:
            DataError: a hint that cannot be read.
        """
        flags = self.flags
        texts = list(flags.validation_prompt or [])
        if flags.conditioning == "none":
            blank = PIL.Image.new("RGB", (flags.resolution, flags.resolution))
            return [Prompt(text, {"prompt": text, "image": blank}, blank) for text in texts]
        paths = list(flags.validation_image or [])
        number = max(len(texts), len(paths))
        texts = texts * number if len(texts) == 1 else texts
        paths = paths * number if len(paths) == 1 else paths
        hints = [read_hint(path) for path in paths]
        return [Prompt(t, {"prompt": t, "image": hint}, hint) for t, hint in zip(texts, hints, strict=True)]

    def make_pipeline(self, stored: Path | None) -> Any:
        """The ControlNet in training, or the one that was stored, with the scheduler that the script samples by."""
        controlnet = self.controlnet if stored is None else ControlNetModel.from_pretrained(stored).to(self.dtype)
        pipeline = self.load_pipeline(StableDiffusionControlNetPipeline, unet=self.unet, controlnet=controlnet)
        pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
        return self.with_conditions(pipeline, stored)

    def samples_after_step(self, step: int) -> bool:
        """Every --validation_steps."""
        return step % self.flags.validation_steps == 0


def remove_hint(controlnet: ControlNetModel) -> None:
    """Make the conditioning embedding exactly zero, for good.

    "Improving Latent Diffusion with Perceptual Mask-Aware Loss", section 3: the control branch sees no
    conditioning image. With all weights zero the embedding is 0 for any hint, so the saved ControlNet still loads
    anywhere and gives the same output whatever picture it is handed.
    """
    for parameter in controlnet.controlnet_cond_embedding.parameters():
        parameter.data.zero_()
        parameter.requires_grad_(False)


def read_hint(path: str) -> PIL.Image.Image:
    """The picture of a --validation_image, RGB; raises DataError if it is none."""
    try:
        return read_picture({"path": path, "bytes": None}, path).convert("RGB")
    except DataError as error:
        reason = error.__cause__ or error
        raise DataError(
            f"--validation_image {path} cannot be read as a picture ({type(reason).__name__}: {reason}); give the "
            "path of a picture."
        ) from error


def main(asked: Asked | Sequence[str] | None = None) -> int:
    """The command: 0 when trained or stopped in good order, 1 with one line on what to mend."""
    return run.main(ControlNetTrainer, asked)


if __name__ == "__main__":
    sys.exit(main())
