"""One prediction of a pipeline's network at a chosen timestep, whichever pipeline of diffusers it is.

The pipeline is run for one step with a scheduler that hands out the timestep and keeps what the network answers: so
text encoders, size conditions, ControlNets and packing are the pipeline's own, and nothing of them is written twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mldm_plugin.data.batch import Example


class Listener:
    """A scheduler of one step that changes nothing.

    Args:
        own: the pipeline's scheduler, for its configuration.
        timestep: that the network is asked at.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, own: Any, timestep: float) -> None:
        self.config, self.answer = own.config, torch.empty(0)
        whole = "FlowMatch" not in type(own).__name__
        self.timesteps = torch.tensor([int(timestep) if whole else float(timestep)])
        self.sigmas = torch.tensor([float(timestep) / own.config.num_train_timesteps, 0.0])

    def __len__(self) -> int:
        return 1

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: Any = None,
    ) -> None:
        self.timesteps = self.timesteps.to(device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Nothing to begin with."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        self.answer = model_output
        return (sample,)


class Asker:
    """Asks a pipeline's network for one prediction: see `one_step.Predict`. No guidance. Conditions beside text are
    those of the photograph.

    Args:
        pipeline: of diffusers, from text, with or without a ControlNet.
    """

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.dtype = (pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer).dtype

    @torch.no_grad()
    def __call__(self, noisy: Tensor, timestep: float, caption: str, example: Example) -> Tensor:
        """The network's output, (1, C, h, w), at z_t of the same shape."""
        pipeline, own = self.pipeline, self.pipeline.scheduler
        pictures = {
            "height": noisy.shape[-2] * pipeline.vae_scale_factor,
            "width": noisy.shape[-1] * pipeline.vae_scale_factor,
        }
        packs = hasattr(pipeline, "_pack_latents")
        given = noisy.to(self.dtype)
        if packs:
            given = pipeline._pack_latents(given, *given.shape)
        options: dict[str, Any] = {"guidance_scale": 1.0, "output_type": "latent", "num_inference_steps": 1, **pictures}
        if (hint := hint_option(pipeline)) is not None:
            known = example.conditioning_pixel_values
            options[hint] = (torch.zeros_like(example.pixel_values) if known is None else known)[None]
        if (beside := getattr(pipeline, "beside_text", None)) is not None:
            beside.given = [example.conditions]
        pipeline.scheduler = listener = Listener(own, timestep)
        try:
            pipeline([caption], latents=given, **options)
        finally:
            pipeline.scheduler = own
        answer = listener.answer
        return pipeline._unpack_latents(answer, *pictures.values(), pipeline.vae_scale_factor) if packs else answer


def hint_option(pipeline: Any) -> str | None:
    """What a pipeline calls the picture that its ControlNet sees; None for one without."""
    if not hasattr(pipeline, "controlnet"):
        return None
    import inspect

    return "control_image" if "control_image" in inspect.signature(pipeline.__call__).parameters else "image"
