"""Noise schedules: the one-step clean estimate, the signal-to-noise ratio, and the gate.

Every schedule is written as z_t = α_t z₀ + σ_t ε. With ᾱ the cumulative product of a diffusion schedule,
α = √ᾱ and σ = √(1−ᾱ); for flow matching α = 1−σ; for EDM, whose variance grows without bound, α = 1. SNR = α²/σ².
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mldm_plugin.engine.ddim import ddim_step, require_predict
from mldm_plugin.engine.direct import direct, part_of_error
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import CheckError

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]

# Two neighbouring timesteps of Stable Diffusion differ by 0.6 % in SNR or more, so a tolerance far below
# that absorbs the rounding of somebody's float32 tables and never admits a neighbour. Chosen.
_SNR_TOLERANCE = 1e-4


@functools.cache
def stable_diffusion_snr() -> Tensor:
    """SNR of Stable Diffusion's own schedule, (1000,) float64: β scaled linear from 0.00085 to 0.012.

    Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", configs of the
    released models. The float32 steps repeat those of diffusers' schedulers, so that both agree to the bit.
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
    alphas_cumprod = torch.cumprod(1.0 - betas, dim=0).double()
    return alphas_cumprod / (1 - alphas_cumprod)


@functools.cache
def _least_snr(max_timestep: int) -> float:
    """The SNR down to which the gate of T = `max_timestep` is open; a number of the host, asked for in every step."""
    return stable_diffusion_snr()[max_timestep].item() * (1 - _SNR_TOLERANCE)


def pred_latents(
    prediction_type: str, model_pred: Tensor, noisy_latents: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """The one-step clean estimate ẑ₀ of a network output.

    epsilon: (z_t − σ ε̂)/α; v_prediction: α z_t − σ v̂; sample: the output; flow_prediction: z_t − σ v̂.

    Args:
        prediction_type: one of `PredictionType`.
        model_pred, noisy_latents: (N, C, h, w); gradients flow from the result to `model_pred`.
        alpha, sigma: (N, 1, 1, 1).

    Returns:
        (N, C, h, w), in the dtype of the arguments.

    Raises:
        CheckError: unknown `prediction_type`.

    Source: "Improving Latent Diffusion with Perceptual Mask-Aware Loss", eq. 4, for epsilon; Salimans and Ho,
    "Progressive Distillation for Fast Sampling of Diffusion Models", for v; Lipman et al., "Flow Matching for
    Generative Modeling", for flow with v = ε − z₀.

    >>> one = torch.ones(1, 1, 1, 1)
    >>> pred_latents("epsilon", 0.5 * one, 2 * one, 0.8 * one, 0.6 * one).item()  # (2 - 0.6 * 0.5) / 0.8
    2.125
    """
    if prediction_type == "epsilon":
        return (noisy_latents - sigma * model_pred) / alpha
    if prediction_type == "v_prediction":
        return alpha * noisy_latents - sigma * model_pred
    if prediction_type == "sample":
        return model_pred
    if prediction_type == "flow_prediction":
        return noisy_latents - sigma * model_pred
    raise CheckError(
        f"prediction type {prediction_type!r} is not known, expected one of {', '.join(get_args(PredictionType))}: "
        "pass prediction_type to LossStack."
    )


class NoiseSchedule:
    """α, σ and SNR by timestep, and the prediction type, of one trainer.

    Args:
        prediction_type: what the network's output is.
        alphas_cumprod: (T,) ᾱ of a diffusion schedule; None means flow matching, or EDM.
        num_train_timesteps: for flow matching, the timestep that stands for σ = 1.
        edm: z_t = z₀ + σ ε (Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"), with
            the σ of each image in the step's `sigmas`. The network's output is taken after preconditioning.

    Attributes:
        direct_steps: the clean estimate is that after a step of so many timesteps, by the noise that is known
            (direct.py); None is the one-step estimate.
        answers: the clean estimate is that of so many answers of the network (ddim.py); 1 is the one-step estimate.
    """

    def __init__(
        self,
        prediction_type: str,
        alphas_cumprod: Tensor | None = None,
        num_train_timesteps: int = 1000,
        *,
        edm: bool = False,
    ) -> None:
        if prediction_type not in get_args(PredictionType):
            raise CheckError(
                f"prediction type {prediction_type!r} is not known, expected one of "
                f"{', '.join(get_args(PredictionType))}: pass prediction_type to LossStack."
            )
        self.prediction_type = prediction_type
        self.num_train_timesteps = num_train_timesteps
        self.edm = edm
        self.direct_steps: int | None = None
        self.answers = 1
        self.alphas_cumprod = None if alphas_cumprod is None or edm else alphas_cumprod.detach().cpu()
        self._table = None if self.alphas_cumprod is None else _tabulate(self.alphas_cumprod)

    @classmethod
    def from_scheduler(cls, noise_scheduler: Any, prediction_type: str | None = None) -> NoiseSchedule:
        """The schedule of a diffusers noise scheduler; `prediction_type` overrides what its config says."""
        config = noise_scheduler.config
        name = type(noise_scheduler).__name__
        alphas_cumprod = getattr(noise_scheduler, "alphas_cumprod", None)
        if name.startswith(("EDM", "Euler")):  # their add_noise is z₀ + σ ε
            return cls(prediction_type or config.get("prediction_type", "epsilon"), edm=True)
        if alphas_cumprod is not None:
            return cls(prediction_type or config.get("prediction_type", "epsilon"), alphas_cumprod)
        if "FlowMatch" in name:
            return cls(prediction_type or "flow_prediction", None, config["num_train_timesteps"])
        raise CheckError(
            f"the noise scheduler {name} has neither alphas_cumprod nor flow matching: pass the DDPMScheduler, "
            "FlowMatchEulerDiscreteScheduler or EDMEulerScheduler that the trainer adds noise with."
        )

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor, prediction_type: str | None = None) -> NoiseSchedule:
        """The diffusion schedule with these ᾱ, (T,) from the cleanest timestep on; epsilon unless it is said."""
        falls = alphas_cumprod.ndim == 1 and len(alphas_cumprod) > 1 and bool((alphas_cumprod.diff() <= 0).all())
        if not falls or not 0 <= alphas_cumprod[-1] < alphas_cumprod[0] <= 1:
            raise CheckError(
                "alphas_cumprod does not fall from near 1 to near 0, one number a timestep, (T,): pass ᾱ, the running "
                "product of 1 − β, not β itself."
            )
        return cls(prediction_type or "epsilon", alphas_cumprod)

    @property
    def is_flow(self) -> bool:
        """Whether noisy latents are (1 − σ) z₀ + σ ε."""
        return self._table is None and not self.edm

    def coefficients(
        self, timesteps: Tensor, sigmas: Tensor | None = None, rounded: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """α and σ of each image, two (N,) float32 tensors on the device of `timesteps`.

        Args:
            timesteps: (N,) as given to the network.
            sigmas: (N,) or any shape of N elements; for flow matching where known exactly, for EDM always: without
                them its timesteps are taken for σ itself.
            rounded: as a host computes them in this precision: diffusers' `add_noise` rounds ᾱ to the latents' dtype
                before its roots, so that in bfloat16 σ is 0 at t = 0 and 1.
        """
        if rounded is not None:
            return self._rounded(timesteps, sigmas, rounded)
        if self.edm:
            sigma = (timesteps if sigmas is None else sigmas.flatten()).float()
            return torch.ones_like(sigma), sigma
        if self._table is None:
            sigma = timesteps.float() / self.num_train_timesteps if sigmas is None else sigmas.flatten().float()
            return 1 - sigma, sigma
        alpha, sigma, _ = self._look_up(timesteps)
        return alpha, sigma

    def snr(self, timesteps: Tensor, sigmas: Tensor | None = None) -> Tensor:
        """α²/σ² of each image, (N,) float32; infinite where σ is 0."""
        if self._table is None:
            alpha, sigma = self.coefficients(timesteps, sigmas)
            return (alpha / sigma) ** 2
        return self._look_up(timesteps)[2]

    def gate(self, snr: Tensor, max_timestep: int | None) -> Tensor:
        """Whether an image is as clean as Stable Diffusion's timestep `max_timestep`, (N,) bool.

        On Stable Diffusion's schedule this is t ≤ max_timestep; on any other one it is the same SNR.
        None lets every image through.
        """
        if max_timestep is None:
            return torch.ones_like(snr, dtype=torch.bool)
        return snr >= _least_snr(max_timestep)

    def pred_latents(self, step: DiffusionStep) -> Tensor:
        """The clean estimate of every image of a step, (N, C, h, w) float32, with gradient to `step.model_pred`: ẑ₀,
        or x̂₀ of direct.py, or, of a step that lets the network be asked again, that of ddim.py, with gradient to the
        network's weights, too."""
        if step.predict is not None:
            step = self._last_answer(step)
        alpha, sigma = self.coefficients(step.timesteps, step.sigmas)
        estimate = pred_latents(
            self.prediction_type,
            step.model_pred.float(),
            step.noisy_latents.float(),
            alpha[:, None, None, None],
            sigma[:, None, None, None],
        )
        if self.direct_steps is None:
            return estimate
        after = self._steps_before(step.timesteps, sigma, self.direct_steps)
        return direct(step.latents.detach(), estimate, part_of_error(alpha, sigma, *after))

    def _last_answer(self, step: DiffusionStep) -> DiffusionStep:
        """The step where DDIM asks the last of its questions, with its answer. Only the questions are kept."""
        first, predict = step, require_predict(step)
        for left in range(self.answers - 1, 0, -1):
            timesteps, sigmas = self._nearer(first, left / self.answers)
            levels = (*self.coefficients(step.timesteps, step.sigmas), *self.coefficients(timesteps, sigmas))
            estimate = self.pred_latents(replace(step, predict=None))
            noisy = ddim_step(estimate, step.noisy_latents.float(), *(c[:, None, None, None] for c in levels))
            noisy = noisy.to(step.noisy_latents.dtype)
            answer = checkpoint(predict, noisy, timesteps, list(range(len(step))), use_reentrant=False)
            step = replace(step, noisy_latents=noisy, timesteps=timesteps, sigmas=sigmas, model_pred=answer)
        return step

    def _nearer(self, step: DiffusionStep, part: float) -> tuple[Tensor, Tensor | None]:
        """The timesteps, and σ where they are given, of which only this part of the way to the picture is left."""
        timesteps = step.timesteps * part
        if self._table is not None or not step.timesteps.is_floating_point():
            timesteps = timesteps.round()
        sigmas = None if step.sigmas is None else step.sigmas * part
        return timesteps.to(step.timesteps.dtype), sigmas

    def _steps_before(self, timesteps: Tensor, sigma: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """α and σ of each image so many timesteps nearer to the picture; 1 and 0 below the first."""
        if self._table is None:
            sigma = (sigma - steps / self.num_train_timesteps).clamp_min(0)
            return 1 - sigma, sigma
        before = timesteps.long() - steps
        alpha, sigma, _ = self._look_up(before.clamp_min(0))
        return torch.where(before < 0, 1.0, alpha), torch.where(before < 0, 0.0, sigma)

    def describe(self) -> str:
        """Which clean estimate it is, for the start-up table; empty for the one-step estimate."""
        if self.answers > 1:
            return (
                f"the clean estimate is that of {self.answers} answers of the network; gradients are shown here and "
                "measured at the first"
            )
        if self.direct_steps is None:
            return ""
        return f"the clean estimate is that after a step of {self.direct_steps} timesteps, by the noise that is known"

    def knows(self, timesteps: Tensor) -> bool:
        """Whether all of them, (N,), are timesteps of this schedule: whole numbers from 0 for a diffusion schedule.

        EDM's are functions of σ that differ between implementations and are not looked at.
        """
        if self.edm:
            return bool(torch.isfinite(timesteps).all())
        last = self.num_train_timesteps if self._table is None else self._table.shape[1] - 1
        inside = bool(((timesteps >= 0) & (timesteps <= last)).all())
        return inside and (self._table is None or bool((timesteps == timesteps.long()).all()))

    def target(self, latents: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network should answer: ε, α ε − σ z₀, z₀ or ε − z₀; shapes as in `pred_latents`."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            return alpha * noise - sigma * latents
        if self.prediction_type == "sample":
            return latents
        return noise - latents

    def timesteps_at(self, snr: float, like: Tensor) -> Tensor:
        """The timestep whose SNR is nearest to `snr`, for each of the images of `like` (N,), on its device.

        Whole numbers for a diffusion schedule; σ and multiples of it are not rounded to those.
        """
        dtype = torch.float32 if self._table is None else torch.long
        return torch.full(like.shape, self.timestep_at(snr), dtype=dtype, device=like.device)

    def timestep_at(self, snr: float) -> float:
        """The timestep whose SNR is nearest to `snr`: an index of the schedule, σ times its length, or for EDM σ."""
        if self.edm:
            return snr**-0.5
        if self._table is None:
            return self.num_train_timesteps / (1 + snr**0.5)
        return int((self._table[2].clamp_min(1e-12).log() - torch.tensor(snr).log()).abs().argmin())

    def epsilon_factor(self, snr: Tensor) -> Tensor:
        """What a squared error of this prediction type is multiplied by to weigh as one of ε, (N,).

        For the same z_t, Δε = −(α/σ) Δz₀, Δv = −Δz₀/σ for v and for flow, so ‖Δε‖² is 1, α² and SNR times the
        squared error of epsilon, v or flow, and sample. A weighting written for ε thus keeps its meaning.
        """
        if self.prediction_type == "epsilon":
            return torch.ones_like(snr)
        if self.prediction_type == "sample":
            return snr
        if self.prediction_type == "v_prediction":
            return 1 / (1 + 1 / snr)
        return (1 + snr.rsqrt()) ** -2

    def _rounded(self, timesteps: Tensor, sigmas: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if self.alphas_cumprod is None:
            alpha, sigma = self.coefficients(timesteps, sigmas)
            sigma = sigma.to(dtype)
            return (alpha if self.edm else (1 - sigma).float()), sigma.float()
        abar = self.alphas_cumprod.to(timesteps.device, dtype)[timesteps.long()]
        return (abar**0.5).float(), ((1 - abar) ** 0.5).float()

    def _look_up(self, timesteps: Tensor) -> Tensor:
        table: Any = self._table
        if table.device != timesteps.device:
            self._table = table = table.to(timesteps.device, non_blocking=True)
        return table[:, timesteps.long()]


def _tabulate(alphas_cumprod: Tensor) -> Tensor:
    """α, σ and SNR of each timestep, (3, T) float32, computed in float64."""
    abar = alphas_cumprod.double()
    return torch.stack([abar.sqrt(), (1 - abar).sqrt(), abar / (1 - abar)]).float()
