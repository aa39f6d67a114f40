"""Train a latent diffusion model on conditions: attributes, semantic masks, or others, alone or joined.

"Conditioning Diffusion Models via Attributes and Semantic Masks for Face Generation". What is this trainer's own stands
here; the loop is in `run`.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel, VQModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image

from mldm_plugin.conditions.conditions import Conditions
from mldm_plugin.conditions.pipeline import ATTRIBUTES, EMA_WEIGHTS, MASK, ConditionalLDMPipeline
from mldm_plugin.data.load import open_held_out
from mldm_plugin.data.training_set import Columns, TrainingSet
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import MldmError, RunFolderError
from mldm_plugin.records.files import write_text
from mldm_plugin.training import run
from mldm_plugin.training.asked import Asked
from mldm_plugin.training.conditional_card import CARD, card_of
from mldm_plugin.training.conditional_flags import ConditionalFlags
from mldm_plugin.training.conditions import make_conditions, tokens_of, with_drops
from mldm_plugin.training.trainer import Prompt, Trainer, annotation_of

AUTOENCODERS: Mapping[str, Any] = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}
EMA_STATE = "ema.json"


class ConditionedUNet(nn.Module):
    """U-Net and condition encoders, which are trained together."""

    def __init__(self, unet: UNet2DConditionModel, conditions: Conditions) -> None:
        super().__init__()
        self.unet, self.conditions = unet, conditions

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        values: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What the U-Net answers to z_t (N, C, h, w) at t (N,), and the tokens that it read, (N, L, D); values and
        presence as `Conditions` takes them, or the tokens of them."""
        if tokens is None:
            tokens = tokens_of(self.conditions, values, present, len(noisy))
        return self.unet(noisy, timesteps, tokens, return_dict=False)[0], tokens

    def enable_gradient_checkpointing(self) -> None:
        self.unet.enable_gradient_checkpointing()


class ConditionalTrainer(Trainer):
    """A U-Net and condition encoders from scratch, in the latents of somebody else's autoencoder."""

    what = "conditional LDM"
    flags_type = ConditionalFlags
    weights_file = "model_index.json"
    in_checkpoint = "model"
    inference_steps = 50
    project = "train_conditional_ldm"
    flags: ConditionalFlags

    def __init__(self, flags: ConditionalFlags, device: torch.device, dtype: torch.dtype) -> None:
        """Load the autoencoder; make U-Net and encoders, whose first weights are drawn from the global generator.

        Raises:
            MldmError: the autoencoder cannot be loaded, or the flags do not make a network.
        """
        super().__init__(flags, device, dtype)
        self.vae = load_autoencoder(flags)
        self.vae.requires_grad_(False)
        self.frozen = (self.vae,)
        self.noise_scheduler = DDPMScheduler(
            beta_start=flags.beta_start,
            beta_end=flags.beta_end,
            beta_schedule="scaled_linear",
            prediction_type=flags.prediction_type,
            clip_sample=False,
        )
        try:
            conditions = make_conditions(flags, flags.cross_attention_dim)
            unet = UNet2DConditionModel(**unet_config(flags, self.vae.config))
        except ValueError as error:
            raise MldmError(f"the flags do not make a network: {error}") from error
        self.trained = ConditionedUNet(unet, conditions).train()
        self.conditions = dict(conditions.each())
        self.use_memory_savers(unet)
        self.ema = EMAModel(self.trainable(), flags.ema_decay, foreach=True) if flags.use_ema else None
        self.framing = {"random_flip": flags.random_flip}

    def move_frozen(self) -> None:
        """The moving average, too."""
        super().move_frozen()
        if self.ema is not None:
            self.ema.to(self.device)

    def diffusion_step(
        self, model: nn.Module, batch: dict[str, Any], draw_timesteps: Callable[[Tensor], Tensor]
    ) -> DiffusionStep:
        """Noise the latents, drop conditions, predict, compare."""
        latents = self.latents_of(batch)
        noise = torch.randn_like(latents)
        timesteps = draw_timesteps(latents)
        scheduler, predicts_noise = self.noise_scheduler, self.flags.prediction_type == "epsilon"
        noisy_latents = scheduler.add_noise(latents.float(), noise.float(), timesteps).to(self.dtype)
        target = noise if predicts_noise else scheduler.get_velocity(latents.float(), noise.float(), timesteps)
        dropped = with_drops(batch, self.flags.condition_dropout)
        model_pred, tokens = self.answer(model, dropped, noisy_latents, timesteps)
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
        """The output of the U-Net, with the conditions of a batch."""
        values, present = batch.get("conditions", {}), batch.get("present", {})
        return model(noisy_latents, timesteps, values, present, batch.get("tokens"))

    def save(self, folder: Path) -> None:
        """U-Net and encoders as diffusers keeps them, and the moving average."""
        trained = self._trained
        trained.unet.save_pretrained(folder / "unet")
        trained.conditions.save_pretrained(folder / "conditions")
        if self.ema is not None:
            state = self.ema.state_dict()
            weights = dict(zip(self._names, (w.contiguous() for w in state.pop("shadow_params")), strict=True))
            save_file(weights, folder / EMA_WEIGHTS)
            (folder / EMA_STATE).write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Put back what `save` wrote; raises RunFolderError for a checkpoint without the moving average."""
        trained = self._trained
        trained.unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder / "unet").state_dict())
        trained.conditions.load_state_dict(Conditions.from_pretrained(folder / "conditions").state_dict())
        if self.ema is None:
            return
        if not (folder / EMA_WEIGHTS).is_file():
            raise RunFolderError(f"{folder} has no moving average of the weights: resume it without --use_ema.")
        weights = load_file(folder / EMA_WEIGHTS)
        state = json.loads((folder / EMA_STATE).read_text(encoding="utf-8"))
        self.ema.load_state_dict({**state, "shadow_params": [weights[name] for name in self._names]})
        self.ema.to(self.device)

    def publish(self, folder: Path) -> None:
        """The whole pipeline, as `ConditionalLDMPipeline.from_pretrained` reads it, and its model card."""
        self.make_pipeline(None).save_pretrained(folder)
        write_text(folder / CARD, card_of(self.flags))

    def prompts(self) -> list[Prompt]:
        """The conditions of the first pictures of the split validation, beside the pictures."""
        folder = self.flags.evaluate_data_dir or self.flags.train_data_dir
        if folder is None or not self.flags.validation_rows:
            return []
        rows, _ = open_held_out(folder, self.flags.cache_dir)
        columns = Columns(self.flags.image_column, None, None)
        held_out = TrainingSet(rows, columns, resolution=self.flags.resolution, conditions=self.conditions)
        return [
            Prompt(f"row {index}", arguments_of(example.conditions), to_pil_image(example.pixel_values / 2 + 0.5))
            for index in range(min(self.flags.validation_rows, len(held_out)))
            for example in [held_out.look(index)]
        ]

    def make_pipeline(self, stored: Path | None) -> Any:
        """What is in training, by its moving average where there is one, or what was stored; sampled by DDIM."""
        if stored is not None:
            return ConditionalLDMPipeline.from_pretrained(stored)
        averaged = copy.deepcopy(self._trained).eval()
        if self.ema is not None:
            self.ema.copy_to(parameter for parameter in averaged.parameters() if parameter.requires_grad)
        scheduler = DDIMScheduler.from_config(self.noise_scheduler.config)  # whose last step, at t = 0, ends at α = 1
        return ConditionalLDMPipeline(self.vae, averaged.unet, scheduler, averaged.conditions)

    def samples_after_step(self, step: int) -> bool:
        """Every --validation_steps."""
        return step % self.flags.validation_steps == 0

    @property
    def _trained(self) -> ConditionedUNet:
        if not isinstance(self.trained, ConditionedUNet):
            raise TypeError(f"this trainer trains a ConditionedUNet, not {type(self.trained).__name__}")
        return self.trained

    @property
    def _names(self) -> list[str]:
        """Of what the optimizer gets, in its order."""
        return [name for name, parameter in self.trained.named_parameters() if parameter.requires_grad]


def load_autoencoder(flags: ConditionalFlags) -> Any:
    """The autoencoder of a pipeline, or one that lies alone, with the factor that this run multiplies its latents by.

    Raises:
        MldmError: there is none.
    """
    name, place = flags.pretrained_model_name_or_path, {"revision": flags.revision, "variant": flags.variant}
    faults = []
    for subfolder in ("vae", "vqvae", None):
        try:
            config = AutoencoderKL.load_config(name, subfolder=subfolder, revision=flags.revision)
            kind = AUTOENCODERS[config["_class_name"]]
            vae = kind.from_pretrained(name, subfolder=subfolder, **place)
        except (OSError, ValueError, KeyError) as error:
            faults.append(next(iter(str(error).splitlines()), type(error).__name__))
            continue
        own = 1.0 if kind is VQModel else vae.config.scaling_factor
        vae.register_to_config(scaling_factor=own if flags.scaling_factor is None else flags.scaling_factor)
        return vae
    raise MldmError(
        f"{name} has no autoencoder: {faults[0]} Expected a pipeline with a folder vae or vqvae, or a folder of "
        f"{' or '.join(AUTOENCODERS)}, in diffusers' format."
    )


def unet_config(flags: ConditionalFlags, vae: Any) -> dict[str, Any]:
    """The U-Net: attention where the latent map has one of the asked sides, else none.

    Raises:
        ValueError: the map cannot be halved so often.
    """
    widths = flags.block_out_channels
    side = flags.resolution // 2 ** (len(vae.block_out_channels) - 1)
    if side % 2 ** (len(widths) - 1):
        raise ValueError(f"latents of {side}x{side} cannot be halved {len(widths) - 1} times (--block_out_channels).")
    attends = [side // 2**level in flags.attention_resolutions for level in range(len(widths))]
    if flags.condition and not any(attends):
        raise ValueError(
            f"no level of {[side // 2**level for level in range(len(widths))]} is in --attention_resolutions "
            f"{flags.attention_resolutions}, so no condition would reach it."
        )
    return {
        "sample_size": side,
        "in_channels": vae.latent_channels,
        "out_channels": vae.latent_channels,
        "block_out_channels": widths,
        "layers_per_block": flags.layers_per_block,
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "norm_num_groups": math.gcd(32, *widths),
        "cross_attention_dim": flags.cross_attention_dim,
        "attention_head_dim": [width // flags.attention_head_dim for width in widths],  # diffusers means their number
    }


def arguments_of(conditions: Mapping[str, Tensor]) -> dict[str, Any]:
    """One picture's conditions as the pipeline takes them."""
    others: dict[str, Sequence[Tensor]] = {k: [v] for k, v in conditions.items() if k not in (ATTRIBUTES, MASK)}
    return {"attributes": conditions.get(ATTRIBUTES), "mask": conditions.get(MASK), "conditions": others}


def main(asked: Asked | Sequence[str] | None = None) -> int:
    """The command: 0 when trained or stopped in good order, 1 with one line on what to mend."""
    return run.main(ConditionalTrainer, asked)


if __name__ == "__main__":
    sys.exit(main())
