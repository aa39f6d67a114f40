"""DiffSynth-Studio, unedited: `python -m mldm_plugin examples/flux2/model_training/train.py … --loss-plugin mldm`.

Its models of pictures are trained with one loss function, `FlowMatchSFTLoss`, which adds noise by the pipeline's
scheduler and calls the pipeline's `model_fn`. Both are followed while it runs. Pictures are Pillow's and torchvision's
all the way, so the ledger knows where each was cut.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from mldm_plugin.attach.annotation import KEY, Annotation, annotate_frames
from mldm_plugin.attach.attachment import Attachment
from mldm_plugin.attach.by_frame import stop_unseen
from mldm_plugin.attach.frame import check_frame
from mldm_plugin.attach.ledger import frame_of
from mldm_plugin.attach.loop import Loop
from mldm_plugin.attach.on_record import Fault
from mldm_plugin.attach.scope import share_of_noise
from mldm_plugin.decode.own import OwnDecode
from mldm_plugin.errors import CheckError, DataError, MldmError

_LOSS = "FlowMatchSFTLoss"


class FlowMatchScheduler:
    """What the attachment asks of a flow's scheduler; σ comes with each step."""

    config = MappingProxyType({"num_train_timesteps": 1000})


def install(attachment: Attachment, script: Path) -> None:
    """Put our loss in the place of the one that `script` is about to import.

    Raises:
        MldmError: DiffSynth-Studio is not installed.
    """
    try:
        import diffsynth.diffusion
        from diffsynth.diffusion import loss
    except ImportError as error:
        raise MldmError(
            f"{script} is a script of DiffSynth-Studio's, and what it trains with was not found ({error}): install "
            "DiffSynth-Studio in this environment."
        ) from error
    mixing = mixed(getattr(loss, _LOSS), attachment)
    for module in (loss, diffsynth.diffusion):
        setattr(module, _LOSS, mixing)
    remedy = "Train with --task sft, or use the library form (docs/attach.md)."
    stop_unseen(attachment, f"DiffSynth-Studio's {_LOSS}", remedy)


def mixed(plain: Callable[..., Tensor], attachment: Attachment) -> Callable[..., Tensor]:
    """Its loss function, with ours."""

    @functools.wraps(plain)
    def mixing(pipe: Any, **inputs: Any) -> Tensor:
        noted, scheduler, model_fn = _Noted(pipe.scheduler, inputs), pipe.scheduler, pipe.model_fn
        scheduler.add_noise, scheduler.training_target = noted.adding, noted.aiming
        pipe.model_fn = functools.partial(noted.calling, model_fn)
        try:
            loss = plain(pipe, **inputs)
        finally:
            del scheduler.add_noise, scheduler.training_target
            pipe.model_fn = model_fn
        return attachment.loss(loss, {**noted.step(), **_around(pipe, inputs, attachment)})

    return mixing


class _Noted:
    """What one call of the loss function made of a picture's latents."""

    def __init__(self, scheduler: Any, inputs: dict[str, Any]) -> None:
        self._add_noise, self._training_target = scheduler.add_noise, scheduler.training_target
        self._is_flow = getattr(scheduler, "alphas_cumprod", None) is None
        self._size = (inputs.get("height", 1), inputs.get("width", 1))
        self._tensors: dict[str, Tensor] = {}

    def adding(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        noisy = self._add_noise(latents, noise, timestep)
        self._tensors.update(latents=latents, noise=noise, noisy_latents=noisy, timesteps=timestep)
        return noisy

    def aiming(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        self._tensors["target"] = self._training_target(latents, noise, timestep)
        return self._tensors["target"]

    def calling(self, model_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The network's output; what the loss is computed from comes after what is noted, for its gradient is read."""
        output = model_fn(*args, **kwargs)
        if not isinstance(output, Tensor):
            raise CheckError(
                "DiffSynth-Studio's network gave more than one tensor: only those of pictures are followed."
            )
        self._tensors["model_pred"] = self._grid(output)
        return output if output.ndim != 3 else self._tensors["model_pred"].flatten(2).transpose(1, 2)

    def step(self) -> dict[str, Any]:
        """The tensors of a step.

        Raises:
            CheckError: they are not those of one picture.
        """
        if len(self._tensors) < 6:
            raise CheckError(
                f"DiffSynth-Studio's {_LOSS} has not added noise and called its network as it is known to."
            )
        names = ("latents", "noise", "noisy_latents", "target")
        step: dict[str, Any] = {**self._tensors, **{name: self._grid(self._tensors[name]) for name in names}}
        if self._is_flow:
            step["sigmas"] = share_of_noise(*(step[name] for name in names[:3]))
            step["timesteps"] = 1000 * step["sigmas"]
        return step

    def _grid(self, tensor: Tensor) -> Tensor:
        """Tokens (N, h w, C) as (N, C, h, w), Flux.2's; other latents as they are."""
        if tensor.ndim != 3:
            return tensor
        side = math.sqrt(self._size[0] * self._size[1] / tensor.shape[1])
        return tensor.transpose(1, 2).unflatten(2, (round(self._size[0] / side), round(self._size[1] / side)))


def _around(pipe: Any, inputs: dict[str, Any], attachment: Attachment) -> dict[str, Any]:
    from accelerate.state import GradientState, PartialState

    args = getattr(sys.modules["__main__"], "args", None)
    first = attachment.in_use and not attachment.steps
    return {
        "batch": annotated(inputs.get("input_image"), attachment) if attachment.in_use else {},
        "vae": OwnDecode(decode_of(pipe)) if first else None,
        "noise_scheduler": schedule_of(pipe.scheduler),
        "global_step": attachment.steps,
        "accelerator": Loop(GradientState().sync_gradients, PartialState().is_main_process),
        "args": SimpleNamespace(output_dir=getattr(args, "output_path", "models")),
    }


def schedule_of(scheduler: Any) -> Any:
    """What the attachment asks of the scheduler of a diffusion model, or of a flow."""
    if getattr(scheduler, "alphas_cumprod", None) is None:
        return FlowMatchScheduler()
    config = {"prediction_type": scheduler.prediction_type}
    return SimpleNamespace(config=config, alphas_cumprod=torch.as_tensor(scheduler.alphas_cumprod))


def annotated(picture: Any, attachment: Attachment) -> dict[str, Any]:
    """The one picture of a step, and its annotation."""
    if not isinstance(picture, PIL.Image.Image):
        return {
            KEY: Fault("DiffSynth-Studio's step came without its picture: train with --task sft, not from a cache.")
        }
    shown = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].float() / 127.5 - 1
    stored_of = attachment.stored_of
    try:
        frame = check_frame(frame_of(picture), picture.size, getattr(frame_of(picture), "source", "") or "the picture")
        placed: Annotation | Fault = annotate_frames([frame], stored_of, shown)
    except DataError as error:
        placed = Fault(str(error))
    return {"pixel_values": shown, KEY: placed}


def decode_of(pipe: Any) -> Callable[[Tensor], Tensor]:
    """What a pipeline decodes with, from latents as its network sees them: a `vae`, or a `vae_decoder` of its own.

    Stable Diffusion's pipelines divide by the `scaling_factor` before they call it; other decoders know their scale.

    Raises:
        MldmError: neither is loaded.
    """
    network = getattr(pipe, "vae_decoder", None) or getattr(pipe, "vae", None)
    if not isinstance(network, nn.Module):
        raise MldmError("DiffSynth-Studio has loaded no decoder: name the whole VAE in --model_paths.")
    is_whole = network is not getattr(pipe, "vae_decoder", None)
    decode: Any = network.decode if is_whole else network
    scale: Any = getattr(network, "scaling_factor", 1.0) if is_whole else 1.0

    def decoded(latents: Tensor) -> Tensor:
        like = next(network.parameters())
        return decode((latents / scale).to(like)).float()

    return decoded
