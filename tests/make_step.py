"""Steps, schedules, decoders and losses for the engine's tests: small, random, seeded, real classes throughout."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from diffusers import AutoencoderKL, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.engine.term import Term
from mldm_plugin.perceptual.frozen import build_seeded


def ddpm(prediction_type: str = "epsilon", **kwargs) -> DDPMScheduler:
    """Stable Diffusion's noise scheduler."""
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        **kwargs,
    )


def flow(**kwargs) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**kwargs)


def tiny_vae(seed: int = 0, downscale: int = 4) -> AutoencoderKL:
    """A random VAE of Stable Diffusion's architecture with factor 2 or 4."""
    levels = {2: 2, 4: 3}[downscale]
    build = partial(
        AutoencoderKL,
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
    )
    return build_seeded(build, seed).requires_grad_(False)


def people_mask(n: int, size: int = 32, people: int = 2) -> torch.Tensor:
    """Label maps with `people` rectangles side by side."""
    mask = torch.zeros(n, 1, size, size, dtype=torch.uint8)
    width = size // (people + 1)
    for k in range(people):
        mask[:, :, size // 4 :, k * width + 1 : (k + 1) * width + 1] = k + 1
    return mask


def make_step(
    timesteps=(50, 50),
    *,
    scheduler=None,
    seed: int = 0,
    channels: int = 4,
    size: int = 32,
    latent_size: int = 8,
    error: float = 0.3,
    people: int = 2,
    with_faces: bool = True,
    base_loss: bool = True,
) -> DiffusionStep:
    """A step as a host loop would hand it over: a network that is wrong by `error` times unit noise."""
    scheduler = scheduler or ddpm()
    g = torch.Generator().manual_seed(seed)
    n = len(timesteps)
    latents = torch.randn(n, channels, latent_size, latent_size, generator=g)
    noise = torch.randn(latents.shape, generator=g)
    timesteps = torch.tensor(timesteps)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        sigma = (timesteps / 1000)[:, None, None, None]
        noisy, target = (1 - sigma) * latents + sigma * noise, noise - latents
    else:
        noisy = scheduler.add_noise(latents, noise, timesteps)
        kind = scheduler.config.prediction_type
        target = {
            "epsilon": lambda: noise,
            "v_prediction": lambda: scheduler.get_velocity(latents, noise, timesteps),
            "sample": lambda: latents,
        }[kind]()
    model_pred = (target + error * torch.randn(latents.shape, generator=g)).requires_grad_()
    faces = [torch.tensor([[4.0, 4.0, 20.0, 24.0], [18.0, 2.0, 30.0, 16.0]]) for _ in range(n)]
    step = DiffusionStep(
        latents=latents,
        noise=noise,
        noisy_latents=noisy,
        timesteps=timesteps,
        model_pred=model_pred,
        target=target,
        pixel_values=torch.rand(n, 3, size, size, generator=g) * 2 - 1,
        person_mask=people_mask(n, size, people),
        face_boxes=faces if with_faces else [torch.empty(0, 4) for _ in range(n)],
    )
    if base_loss:
        step = replace(step, base_loss=torch.nn.functional.mse_loss(model_pred.float(), target.float()))
    return step


def arms(n: int) -> list[torch.Tensor]:
    """Keypoints of `n` pictures that show one person's right arm each, and a hip."""
    person = torch.zeros(1, 17, 3)
    for number, place in {5: (6.0, 6.0), 7: (8.0, 12.0), 9: (14.0, 18.0), 11: (6.0, 26.0)}.items():
        person[0, number] = torch.tensor([*place, 2.0])
    return [person.clone() for _ in range(n)]


def step_of(output):
    """A step of the prediction type `sample`, whose output is the clean latents plus what is given."""
    step = make_step((50,), scheduler=ddpm("sample"), base_loss=False)
    error = torch.zeros_like(step.latents)
    error[0, 0, 0, : len(output)] = torch.tensor(output)
    return replace(step, model_pred=(step.latents + error).requires_grad_())


class PictureLoss:
    """Mean squared difference of the pictures on the people."""

    needs = frozenset({"pred_images", "person_mask"})

    def __call__(self, step):
        mask = (step.person_mask > 0).float()
        return ((step.pred_images - step.target_images).square() * mask).flatten(1).mean(1)


class FaceLoss:
    """Mean absolute difference inside the face boxes."""

    needs = frozenset({"pred_images", "face_boxes"})

    def __call__(self, step):
        values = []
        for predicted, target, boxes in zip(step.pred_images, step.target_images, step.face_boxes, strict=True):
            crops = [(slice(None), slice(int(b[1]), int(b[3])), slice(int(b[0]), int(b[2]))) for b in boxes]
            values.append(sum(((predicted[c] - target[c]).abs().mean() for c in crops), predicted.sum() * 0))
        return torch.stack(values)


class LatentLoss:
    """Mean absolute difference of the latents: needs no picture."""

    needs = frozenset()

    def __call__(self, step):
        return (step.pred_latents - step.latents).abs().flatten(1).mean(1)


class Push:
    """A loss whose gradient at ẑ₀ is known: 2 at one number, whatever the estimate is."""

    needs = frozenset()

    def __call__(self, step):
        return 2 * step.pred_latents[:, 0, 0, 1]


def make_stack(*terms, scheduler=None, **options):
    """A stack whose VAE is random, so that nothing has to resemble anything."""
    options = {"picture_check": "warn", "announce": lambda text: None, **options}
    options.setdefault("decoder", LatentDecoder(tiny_vae()))
    return LossStack(terms, schedule=NoiseSchedule.from_scheduler(scheduler or ddpm()), **options)


def two_terms(**options):
    return make_stack(Term("picture", PictureLoss(), 0.2), Term("face", FaceLoss(), 0.5), **options)


def loss_and_gradient(stack, step):
    """The loss of a step, and its gradient at the network's output."""
    report = stack(replace(step, base_loss=None))
    return report.loss.detach(), torch.autograd.grad(report.loss, step.model_pred)[0]


def pictures(n, seed, size=32):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def face_step(boxes, pred=None, target=None, size=32):
    """What a loss on faces is given: two sets of pictures and boxes, [[x0, y0, x1, y1], …] of each image."""
    n = len(boxes)
    z = torch.zeros(n, 4, 4, 4)
    return DiffusionStep(
        latents=z,
        noise=z,
        noisy_latents=z,
        timesteps=torch.zeros(n, dtype=torch.long),
        model_pred=z,
        target=z,
        face_boxes=[torch.tensor(b, dtype=torch.float32).reshape(-1, 4) for b in boxes],
        pred_images=pictures(n, 1, size).requires_grad_() if pred is None else pred,
        target_images=pictures(n, 2, size) if target is None else target,
    )
