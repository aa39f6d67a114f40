"""A batch of pictures with people, and one training step on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mldm_plugin.bench.networks import TEXT_LENGTH, Networks
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.start_up import CHECKED_STEPS
from mldm_plugin.engine.step import DiffusionStep

Loss = Callable[[DiffusionStep], Tensor]


@dataclass
class People:
    """Pictures in which somebody is seen: the worst case, in which no loss is spared for want of people.

    Args:
        pixel_values: (N, 3, R, R) noise in [-1, 1]; what is in a picture does not change what it costs.
        person_mask: (N, 1, R, R) one person on a third of the picture.
        face_boxes: a face of R/8 pixels in each.
    """

    pixel_values: Tensor
    person_mask: Tensor
    face_boxes: list[Tensor]

    @classmethod
    def draw(cls, n: int, resolution: int, device: torch.device, dtype: torch.dtype = torch.float32) -> People:
        pixel_values = torch.rand(n, 3, resolution, resolution, device=device, dtype=dtype) * 2 - 1
        mask = torch.zeros(n, 1, resolution, resolution, dtype=torch.uint8, device=device)
        third, top, left = resolution // 3, resolution // 4, resolution // 3
        mask[:, :, :, left : left + third] = 1
        face = float(resolution // 8)
        box = torch.tensor([[left + face, top, left + 2 * face, top + face]])
        return cls(pixel_values, mask, [box] * n)


@dataclass
class Batch:
    """What a trainer's loader hands over, and what it would have cached."""

    people: People
    text: Tensor
    hint: Tensor
    added: dict[str, Any]
    latents: Tensor
    noise: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    @classmethod
    def draw(cls, networks: Networks, n: int, resolution: int) -> Batch:
        people = People.draw(n, resolution, networks.device)
        latents = encode(networks, people.pixel_values)
        text = torch.randn(n, TEXT_LENGTH, networks.size.unet["cross_attention_dim"]).to(latents)
        side = latents.shape[-1] * 8  # a ControlNet shrinks its hint by 8
        hint = latents.new_zeros(n, 3, side, side)
        return cls(people, text, hint, networks.added_conditions(n), latents, torch.randn_like(latents))


def encode(networks: Networks, pixel_values: Tensor) -> Tensor:
    """Latents of pictures, as a trainer that caches nothing has to make them in each step."""
    with torch.no_grad():
        posterior = networks.vae.encode(pixel_values.to(networks.dtype)).latent_dist
        return posterior.sample() * networks.vae.config.scaling_factor


class Timesteps:
    """Timesteps that open the gate for the images one wants."""

    def __init__(self, stack: LossStack, device: torch.device) -> None:
        limits = [t.max_timestep for t in stack.terms if t.max_timestep is not None]
        self.inside, self.outside = min(limits) // 2, (max(limits) + 999) // 2
        self._device = device

    def __call__(self, n: int, gated: int) -> Tensor:
        """(n,) of which the first `gated` are inside every term's gate and the others outside."""
        return torch.tensor([self.inside] * gated + [self.outside] * (n - gated), device=self._device)


def noisy_step(networks: Networks, batch: Batch, timesteps: Tensor, latents: Tensor, noise: Tensor) -> DiffusionStep:
    """A step up to the network's output, which is still the target."""
    noisy = networks.noise_scheduler.add_noise(latents.float(), noise.float(), timesteps).to(latents.dtype)
    return DiffusionStep(
        latents=latents,
        noise=noise,
        noisy_latents=noisy,
        timesteps=timesteps,
        model_pred=noise,
        target=noise,
        pixel_values=batch.people.pixel_values,
        person_mask=batch.people.person_mask,
        face_boxes=batch.people.face_boxes,
    )


def with_output(step: DiffusionStep, model_pred: Tensor) -> DiffusionStep:
    """`step` with the network's output and the loop's own loss of it."""
    base_loss = F.mse_loss(model_pred.float(), step.target.float())
    return replace(step, model_pred=model_pred, base_loss=base_loss)


def training_step(
    networks: Networks, optimizer: Any, batch: Batch, timesteps: Tensor, loss: Loss, *, cached: bool
) -> None:
    """One whole step: latents, noise, networks, loss, gradients, weights."""
    try:
        latents = batch.latents if cached else encode(networks, batch.people.pixel_values)
        step = noisy_step(networks, batch, timesteps, latents, torch.randn_like(latents))
        model_pred = networks.predict(step.noisy_latents, timesteps, batch.text, batch.hint, batch.added)
        loss(with_output(step, model_pred)).backward()
        optimizer.step()
    finally:
        optimizer.zero_grad()


def pixel_path(networks: Networks, batch: Batch, timesteps: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """What comes after the network's output: the loss, and its gradient there. The output is off by a little noise."""
    step = noisy_step(networks, batch, timesteps, batch.latents, batch.noise)
    model_pred = (batch.noise + 0.1 * torch.flip(batch.noise, dims=(0, -1))).requires_grad_()
    value = loss(with_output(step, model_pred))
    (gradient,) = torch.autograd.grad(value, model_pred)
    return value.detach(), gradient


def start_up(networks: Networks, stack: LossStack, timesteps: Timesteps, resolution: int) -> None:
    """The start-up proof and the checks of the first steps, which are no part of a step's cost."""
    batch = Batch.draw(networks, 1, resolution)
    step = noisy_step(networks, batch, timesteps(1, 1), batch.latents, batch.noise)
    with torch.no_grad():
        for _ in range(CHECKED_STEPS):
            stack(with_output(step, batch.noise * 0.9))
