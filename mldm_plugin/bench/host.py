"""A host's training loop on networks with random weights, and the plugin attached to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mldm_plugin.bench.sizes import Size
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.step import DiffusionStep, on_device
from mldm_plugin.engine.term import DECODED
from mldm_plugin.errors import MldmError, PresetError
from mldm_plugin.perceptual.dlib_resnet import DlibResNet
from mldm_plugin.perceptual.face_networks import FaceFeatures
from mldm_plugin.plugins import Plugins
from mldm_plugin.preset import Preset, load_preset
from mldm_plugin.requirements import pip_install

TEXT_LENGTH = 77  # tokens of CLIP
POOLED_WIDTH, TIME_IDS = 1280, 6  # SDXL's pooled text embedding; sizes and crop

Loss = Callable[[DiffusionStep], Tensor]


@dataclass
class Batch:
    """What a trainer's loader hands over, and what it would have cached.

    `people` are pictures, masks and boxes under a step's own names, `inputs` what the networks see beside latents.
    """

    people: dict[str, Any]
    inputs: dict[str, Any]
    latents: Tensor
    noise: Tensor

    def __len__(self) -> int:
        return len(self.latents)


class Host:
    """A frozen U-Net and VAE, and a ControlNet in training, as in diffusers' train_controlnet.py.

    Args:
        size: what the networks look like.
        device: where their random weights are drawn.

    Attributes:
        dtype: the loop's precision, float32 until `use`.

    Raises:
        MldmError: diffusers is not installed.
    """

    def __init__(self, size: Size, device: torch.device) -> None:
        try:
            from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
        except ImportError as error:
            raise MldmError(f"training steps need diffusers ({error}): {pip_install('diffusers')}") from error
        self.size, self.device, self.dtype = size, device, torch.float32
        with device:
            self.vae: Any = AutoencoderKL(**size.family.vae)
            self.unet: Any = UNet2DConditionModel(**size.family.unet)
            self.controlnet: Any = ControlNetModel.from_unet(self.unet).train()
        self.vae.requires_grad_(False)
        self.unet.requires_grad_(False)
        # stable-diffusion-v1-5's scheduler; SDXL's is the same.
        self.noise_scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

    def use(self, dtype: torch.dtype) -> None:
        """Bring the frozen networks to `dtype`; the ControlNet stays in float32, under autocast where it is another."""
        self.dtype = dtype
        for frozen in (self.vae, self.unet):  # diffusers' own `to` warns, although nothing is to be kept in float32
            nn.Module.to(frozen, dtype)

    def draw(self, n: int, resolution: int) -> Batch:
        """A batch of noise, latents encoded."""
        people = draw_people(n, resolution, self.device)
        latents = self.encode(people["pixel_values"])
        return Batch(people, self.draw_inputs(n, latents.shape[-1]), latents, torch.randn_like(latents))

    def draw_inputs(self, n: int, side: int) -> dict[str, Any]:
        """Text, hint (a ControlNet shrinks it by 8 to `side`), and for SDXL what its U-Net wants beside them."""
        draw: Any = {"device": self.device, "dtype": self.dtype}
        text = torch.randn(n, TEXT_LENGTH, self.size.family.unet["cross_attention_dim"], **draw)
        inputs: dict[str, Any] = {"text": text, "hint": torch.zeros(n, 3, 8 * side, 8 * side, **draw), "more": {}}
        if self.size.family.unet.get("addition_embed_type") == "text_time":
            pooled, ids = (torch.randn(n, width, **draw) for width in (POOLED_WIDTH, TIME_IDS))
            inputs["more"] = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
        return inputs

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Latents of pictures, as a trainer that caches nothing has to make them in each step."""
        with torch.no_grad():
            posterior = self.vae.encode(pixel_values.to(self.dtype)).latent_dist
            return posterior.sample() * self.vae.config.scaling_factor

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, text: Tensor, hint: Tensor, more: Any) -> Tensor:
        """The U-Net's output, steered by the ControlNet."""
        seen = {"timestep": timesteps, "encoder_hidden_states": text, "return_dict": False, **more}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype != torch.float32):
            down, middle = self.controlnet(noisy_latents, controlnet_cond=hint, **seen)
        steer = {
            "down_block_additional_residuals": [residual.to(self.dtype) for residual in down],
            "mid_block_additional_residual": middle.to(self.dtype),
        }
        return self.unet(noisy_latents, **seen, **steer)[0]

    def ask_again(self, inputs: dict[str, Any], noisy: Tensor, timesteps: Tensor, rows: Sequence[int]) -> Tensor:
        """The output for some images of a batch at other noise."""
        return self.predict(noisy, timesteps, **_of_rows(inputs, on_device(rows, noisy.device)))

    def noisy_step(self, batch: Batch, timesteps: Tensor, latents: Tensor, noise: Tensor) -> DiffusionStep:
        """A step up to the network's output, which is still the target."""
        noisy = self.noise_scheduler.add_noise(latents.float(), noise.float(), timesteps).to(latents.dtype)
        return DiffusionStep(latents, noise, noisy, timesteps, model_pred=noise, target=noise, **batch.people)

    def train(self, optimizer: Any, batch: Batch, timesteps: Tensor, loss: Loss, *, cached: bool) -> None:
        """One whole step: latents, noise, networks, loss, gradients, weights."""
        try:
            latents = batch.latents if cached else self.encode(batch.people["pixel_values"])
            step = self.noisy_step(batch, timesteps, latents, torch.randn_like(latents))
            model_pred = self.predict(step.noisy_latents, timesteps, **batch.inputs)
            loss(with_output(replace(step, predict=partial(self.ask_again, batch.inputs)), model_pred)).backward()
            optimizer.step()
        finally:
            optimizer.zero_grad()

    def after_the_network(self, batch: Batch, timesteps: Tensor, loss: Loss) -> tuple[Tensor, list[Tensor]]:
        """The loss, and its gradient at the network's output, which is off by a little noise."""
        step = self.noisy_step(batch, timesteps, batch.latents, batch.noise)
        model_pred = (batch.noise + 0.1 * torch.flip(batch.noise, dims=(0, -1))).requires_grad_()
        value = loss(with_output(step, model_pred))
        return value.detach(), list(torch.autograd.grad(value, model_pred))


def _of_rows(inputs: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """What the networks see of some images, (n, …) of each (N, …)."""
    return {k: _of_rows(v, rows) if isinstance(v, dict) else v.index_select(0, rows) for k, v in inputs.items()}


def with_output(step: DiffusionStep, model_pred: Tensor) -> DiffusionStep:
    """`step` with the network's output and the loop's own loss of it."""
    base_loss = F.mse_loss(model_pred.float(), step.target.float())
    return replace(step, model_pred=model_pred, base_loss=base_loss)


def draw_people(n: int, resolution: int, device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Pictures in which somebody is seen: the worst case, in which no loss is spared for want of people.

    What is in a picture does not change what it costs, so they are noise in [-1, 1]. In each is one person on a third
    of it, with a face of an eighth of its side and two arms that hang down.
    """
    mask = torch.zeros(n, 1, resolution, resolution, dtype=torch.uint8, device=device)
    third, top, left = resolution // 3, resolution // 4, resolution // 3
    mask[:, :, :, left : left + third] = 1
    face = float(resolution // 8)
    box = torch.tensor([[left + face, top, left + 2 * face, top + face]])
    arms = torch.zeros(1, 17, 3)
    for k, joint in enumerate((5, 7, 9)):  # COCO's shoulders, elbows and wrists, the left one of each first
        for side, x in enumerate((left + third - face / 2, left + face / 2)):
            arms[0, joint + side] = torch.tensor([x, top + 1.5 * face * (k + 1), 2.0])
    pictures = torch.rand(n, 3, resolution, resolution, device=device, dtype=dtype) * 2 - 1
    return {"pixel_values": pictures, "person_mask": mask, "face_boxes": [box] * n, "keypoints": [arms] * n}


def decoded_step(people: dict[str, Any], pred_images: Tensor) -> DiffusionStep:
    """A step as a loss sees it, of which only the pictures matter."""
    nothing = pred_images.new_zeros(len(pred_images), 4, 1, 1)
    timesteps = torch.zeros(len(nothing), dtype=torch.long, device=nothing.device)
    step = DiffusionStep(nothing, nothing, nothing, timesteps, model_pred=nothing, target=nothing, **people)
    return replace(step, pred_images=pred_images, target_images=people["pixel_values"])


def random_preset(name: str, overrides: Sequence[str], plugins: Plugins) -> Preset:
    """A preset with random weights in its losses' networks, and nothing balanced, which costs the same.

    A loss whose class says `random_is_smaller` keeps its weights: the network that tests have costs something else.

    Raises:
        WeightsError: weights of such a loss that cannot be had.
        PresetError: as `load_preset`, or a preset that a benchmark cannot gate.
    """
    preset = load_preset(name, overrides, plugins=plugins)
    random = [
        f"losses.{loss}.weights=random"
        for loss, s in preset.losses.items()
        if "weights" in s.options and not getattr(plugins.losses[loss], "random_is_smaller", False)
    ]
    random += [f"losses.{loss}.balance=null" for loss, s in preset.losses.items() if s.balance]
    preset = load_preset(preset, ["checks.picture=warn", *random], plugins=plugins)
    limits = [
        s.max_timestep
        for loss, s in preset.losses.items()
        if s.weight > 0 and not (s.max_timestep is None and decodes_nothing(plugins.losses[loss]))
    ]
    if preset.answers > 1:
        raise PresetError(
            f"preset {name} asks the network again, of which the steps are measured beside its own anyway: add --set "
            "estimate=one_step."
        )
    if not limits or preset.base.weighting != "none":
        raise PresetError(
            f"preset {name} has no losses behind a gate, or weighs the plain one: choose one like mldm to measure."
        )
    if any(limit is None or limit >= 990 for limit in limits):
        raise PresetError(
            f"preset {name} lets every image through its gate: give each loss on pictures a max_timestep below 990."
        )
    return preset


def decodes_nothing(loss: Any) -> bool:
    """Whether a loss, or what makes it, says that it looks at latents alone, so that it costs next to nothing."""
    needs = getattr(loss, "needs", None)
    return needs is not None and DECODED.isdisjoint(needs)


def attach(host: Host, preset: Preset, plugins: Plugins) -> LossStack:
    """The plugin as a trainer has it, silent."""
    stack = LossStack.from_preset(
        preset, vae=host.vae, noise_scheduler=host.noise_scheduler, plugins=plugins, announce=lambda text: None
    )
    for term in stack.terms:
        shrink_faces(term.loss, host.size)
    return stack


def shrink_faces(loss: Any, size: Size) -> None:
    """Have a loss on faces crop them as small as the pictures of `size` ask for; dlib's network takes no smaller ones
    than its own, and costs little."""
    features = getattr(loss, "features", None)
    if not isinstance(features, FaceFeatures) or isinstance(features.frozen.network, DlibResNet):
        return
    if size.face_crop is not None:
        features.crop = replace(features.crop, size=size.face_crop)


def timesteps_of(stack: LossStack, n: int, gated: int, device: torch.device) -> Tensor:
    """(n,) of which the first `gated` are inside every term's gate and the others outside all that there are."""
    limits = [t.max_timestep for t in stack.terms if t.max_timestep is not None]
    inside, outside = min(limits) // 2, (max(limits) + 999) // 2
    return torch.tensor([inside] * gated + [outside] * (n - gated), device=device)


def start_up(host: Host, stack: LossStack, resolution: int) -> torch.dtype:
    """Get over with the checks of the first steps, and a measured one, which are no part of a step's cost; what the
    plugin decodes in."""
    batch = host.draw(1, resolution)
    step = host.noisy_step(batch, timesteps_of(stack, 1, 1, host.device), batch.latents, batch.noise)
    with torch.no_grad():
        while stack.start_up is not None:
            stack(with_output(step, batch.noise * 0.9))
    stack(with_output(step, (batch.noise * 0.9).requires_grad_()))
    return stack.pictures.dtype_for(step)
