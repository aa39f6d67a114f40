"""Tests of template_loss: values, gradients, and that it trains."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from mldm_plugin import DiffusionStep, LossStack, load_plugins

PLUGIN = str(Path(__file__).with_name("template_loss.py"))


def make_loss(**options: Any) -> Any:
    return load_plugins([PLUGIN]).losses["template_loss"](**options)


def step_of(predicted: Tensor, target: Tensor, mask: Tensor) -> DiffusionStep:
    """A step as the loss sees it: pictures are decoded, latents do not matter."""
    z = torch.zeros(len(predicted), 4, 1, 1)
    return DiffusionStep(
        latents=z,
        noise=z,
        noisy_latents=z,
        timesteps=torch.zeros(len(predicted), dtype=torch.long),
        model_pred=z,
        target=z,
        person_mask=mask,
        pred_images=predicted,
        target_images=target,
    )


def pictures(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    predicted, target = (torch.rand(3, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    mask = torch.zeros(3, 1, 16, 16, dtype=torch.uint8)
    mask[:, :, 4:12, 2:8] = 1
    mask[:, :, 4:12, 9:15] = 2
    return predicted.requires_grad_(), target, mask


def test_value_worked_out_by_hand() -> None:
    predicted, target = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5)
    mask = torch.tensor([[[[1, 0], [0, 2]]]])
    assert make_loss()(step_of(predicted, target, mask)).tolist() == [0.5]
    assert make_loss(power=2.0)(step_of(predicted, target, mask)).tolist() == [0.25]


def test_equal_pictures_are_0() -> None:
    _, target, mask = pictures()
    assert make_loss()(step_of(target, target, mask)).tolist() == [0.0, 0.0, 0.0]


def test_nothing_outside_the_people_matters() -> None:
    predicted, target, mask = pictures()
    make_loss()(step_of(predicted, target, mask)).sum().backward()
    assert predicted.grad is not None
    outside = (mask == 0).expand_as(predicted)
    assert predicted.grad[outside].abs().max() == 0
    assert predicted.grad[~outside].abs().min() > 0


def test_empty_mask_is_0_with_a_finite_gradient() -> None:
    predicted, target, mask = pictures()
    values = make_loss()(step_of(predicted, target, torch.zeros_like(mask)))
    values.sum().backward()
    assert values.tolist() == [0.0, 0.0, 0.0]
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()


def test_a_batch_is_its_images_one_by_one() -> None:
    loss = make_loss()
    predicted, target, mask = pictures()
    together = loss(step_of(predicted, target, mask))
    alone = [loss(step_of(predicted[i : i + 1], target[i : i + 1], mask[i : i + 1])) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


class BlockVAE(nn.Module):
    """A stand-in for a VAE: each latent pixel becomes a block of 8×8 pixels of its first three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.config = FrozenDict({"scaling_factor": 1.0, "block_out_channels": (1,) * 4})
        self.colours = nn.Parameter(torch.eye(3, 4))

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        blocks = torch.einsum("rc,nchw->nrhw", self.colours, latents)
        return (blocks.repeat_interleave(8, dim=-2).repeat_interleave(8, dim=-1),)


def test_it_trains(tmp_path: Path) -> None:
    """The stack proves the gradient at its first step; then the value falls when the output is optimised."""
    preset = tmp_path / "preset.yaml"
    preset.write_text("losses: {template_loss: {weight: 0.5, max_timestep: null}}")
    vae = BlockVAE()
    alphas_cumprod = torch.linspace(0.99, 0.01, 1000)
    scheduler = SimpleNamespace(config={"prediction_type": "epsilon"}, alphas_cumprod=alphas_cumprod)
    stack = LossStack.from_preset(preset, vae=vae, noise_scheduler=scheduler, plugins=[PLUGIN])
    generator = torch.Generator().manual_seed(0)
    latents, noise, start = (torch.randn(2, 4, 4, 4, generator=generator) for _ in range(3))
    timesteps = torch.tensor([100, 300])
    alpha, sigma = alphas_cumprod[timesteps].sqrt(), (1 - alphas_cumprod[timesteps]).sqrt()
    noisy = alpha[:, None, None, None] * latents + sigma[:, None, None, None] * noise
    output = (noise + 0.5 * start).requires_grad_()
    optimizer = torch.optim.Adam([output], lr=0.02)
    values = []
    for _ in range(20):
        report = stack(
            DiffusionStep(
                latents=latents,
                noise=noise,
                noisy_latents=noisy,
                timesteps=timesteps,
                model_pred=output,
                target=noise,
                pixel_values=vae.decode(latents)[0].detach(),
                person_mask=torch.ones(2, 1, 32, 32, dtype=torch.uint8),
            )
        )
        optimizer.zero_grad()
        report.loss.backward()
        optimizer.step()
        values.append(report.terms["template_loss"].raw.mean().item())
    assert values[-1] < 0.7 * values[0]
