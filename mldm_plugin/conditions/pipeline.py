"""Pictures from conditions: the pipeline of `train_conditional_ldm.py`, as `from_pretrained` loads it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from safetensors.torch import load_file
from torch import Tensor

from mldm_plugin.conditions.conditions import Conditions
from mldm_plugin.errors import DataError

ATTRIBUTES, MASK = "attributes", "semantic_mask"  # conditions that have an argument of their own
TRAINED = ("unet", "conditions")  # parts that are trained, in a folder each of a pipeline and of a checkpoint
EMA_WEIGHTS = "ema.safetensors"  # beside them in a checkpoint: their moving average


class ConditionalLDMPipeline(DiffusionPipeline):
    """A latent diffusion model that is steered by attributes, a semantic mask, or whatever it was trained with.

    Args:
        vae: an AutoencoderKL or a VQModel of diffusers.
        unet: a UNet2DConditionModel whose cross-attention reads the tokens.
        scheduler: any of diffusers'.
        conditions: makes tokens of what is asked for.
    """

    model_cpu_offload_seq = "conditions->unet->vae"

    def __init__(self, vae: Any, unet: Any, scheduler: Any, conditions: Conditions) -> None:
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler, conditions=conditions)
        self.image_processor = VaeImageProcessor(vae_scale_factor=2 ** (len(vae.config.block_out_channels) - 1))

    @torch.no_grad()
    def __call__(
        self,
        attributes: Any = None,
        mask: Any = None,
        *,
        conditions: Mapping[str, Sequence[Any]] | None = None,
        batch_size: int = 1,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw pictures.

        Args:
            attributes: one picture's, a mapping of names or so many zeros and ones, or a list of such.
            mask: one picture's labels, (H, W) or a picture of mode L, or a list of such.
            conditions: name → one value a picture, for other conditions than these two.
            batch_size: pictures, where nothing is asked for.
            guidance_scale: 1 draws as trained; above it, away from what it draws of absent conditions, in the manner of
                classifier-free guidance. Helps only if conditions were dropped in training.
            num_inference_steps: of the scheduler.
            eta: of DDIM: 0 is without noise, 1 with that of DDPM.
            generator: of the first noise and of eta's.
            latents: the first noise (N, C, h, w), in place of a drawn one.
            output_type: "pil", "np", "pt" or "latent".

        Raises:
            DataError: a condition that this model does not know, a value that cannot be used, or unequal numbers.
        """
        values, count = self._read({**(conditions or {}), **_given(attributes, mask)}, batch_size)
        tokens = self.conditions(values, count=count)
        guided = guidance_scale != 1.0 and bool(values)
        if guided:
            tokens = torch.cat([self.conditions({}, count=count), tokens])
        latents = self._first_noise(latents, count, tokens.dtype, generator)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        latents = latents * self.scheduler.init_noise_sigma
        options = {"eta": eta, "generator": generator}
        options = {k: v for k, v in options.items() if k in inspect.signature(self.scheduler.step).parameters}
        for timestep in self.progress_bar(self.scheduler.timesteps):
            noisy = torch.cat([latents] * 2) if guided else latents
            predicted = self.unet(self.scheduler.scale_model_input(noisy, timestep), timestep, tokens).sample
            if guided:
                without, with_ = predicted.chunk(2)
                predicted = without + guidance_scale * (with_ - without)
            latents = self.scheduler.step(predicted, timestep, latents, return_dict=False, **options)[0]
        pictures = self._decoded(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=pictures) if return_dict else (pictures,)

    def _read(self, asked: Mapping[str, Sequence[Any]], batch_size: int) -> tuple[dict[str, Tensor], int]:
        """Values as the encoders take them, on the device, and for how many pictures they are."""
        counts = {name: len(of_all) for name, of_all in asked.items()}
        if len({*counts.values()}) > 1:
            said = ", ".join(f"{count} of {name}" for name, count in counts.items())
            raise DataError(f"unequal numbers of conditions: {said}; give one of each for every picture.")
        encoders, values = dict(self.conditions.each()), {}
        for name, of_all in asked.items():
            if name not in encoders:
                known = ", ".join(encoders) or "none: it is unconditional"
                raise DataError(f"this model knows no condition {name!r}; it knows {known}.")
            values[name] = torch.stack([encoders[name].read(one) for one in of_all]).to(self._execution_device)
        return values, next(iter(counts.values()), batch_size)

    def _first_noise(self, latents: Tensor | None, count: int, dtype: torch.dtype, generator: Any) -> Tensor:
        side = self.unet.config.sample_size
        shape = (count, self.unet.config.in_channels, side, side)
        if latents is None:
            return randn_tensor(shape, generator, self._execution_device, dtype)
        if tuple(latents.shape) != shape:
            raise DataError(f"latents are {tuple(latents.shape)}, expected {shape}.")
        return latents.to(self._execution_device, dtype)

    def _decoded(self, latents: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return latents
        pictures = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        return self.image_processor.postprocess(pictures, output_type=output_type)


def put_step(pipeline: ConditionalLDMPipeline, folder: Path) -> None:
    """Put what was trained up to a step into the pipeline of its run.

    Args:
        pipeline: of the finished run.
        folder: `checkpoint-N/model` of `train_conditional_ldm.py`; its moving average is taken where there is one.

    Raises:
        KeyError, RuntimeError: weights of another network.
    """
    parts = {name: getattr(pipeline, name) for name in TRAINED}
    for name, part in parts.items():
        part.load_state_dict(type(part).from_pretrained(folder / name).state_dict())
    if (folder / EMA_WEIGHTS).is_file():
        weights = {
            f"{name}.{inner}": weight for name, part in parts.items() for inner, weight in part.named_parameters()
        }
        for name, averaged in load_file(folder / EMA_WEIGHTS).items():
            weights[name].data.copy_(averaged)


def _given(attributes: Any, mask: Any) -> dict[str, Sequence[Any]]:
    """The two usual conditions as lists; one picture's is a list of one."""
    given: dict[str, Sequence[Any]] = {}
    if attributes is not None:
        listed = isinstance(attributes, Sequence | Tensor | np.ndarray) and len(attributes)
        given[ATTRIBUTES] = attributes if listed and not _is_number(attributes[0]) else [attributes]
    if mask is not None:
        given[MASK] = mask if isinstance(mask, list | tuple) or getattr(mask, "ndim", 0) > 2 else [mask]
    return given


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.generic) or (isinstance(value, Tensor) and value.ndim == 0)
