"""Healthy hosts of every precision, schedule and noise level pass the first steps' checks; wrong ones do not."""

from dataclasses import replace

import pytest
import torch
from diffusers import EDMEulerScheduler
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from hypothesis import given, settings
from hypothesis import strategies as st
from make_step import LatentLoss, PictureLoss, ddpm, flow, make_stack, make_step
from torch import nn

from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.engine.host_checks import check_estimate, encoding_fault, estimate_errors
from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.engine.term import Term
from mldm_plugin.errors import CheckError

HALVES = [torch.bfloat16, torch.float16]


def as_diffusers_does(kind, timestep, rms, dtype, seed=0):
    """A step whose every tensor is computed in `dtype`, as diffusers' scripts do with their weight dtype."""
    scheduler = flow() if kind == "flow" else ddpm(kind)
    g = torch.Generator().manual_seed(seed)
    latents = (torch.randn(1, 4, 16, 16, generator=g) * rms).to(dtype)
    noise = torch.randn(latents.shape, generator=g).to(dtype)
    timesteps, sigmas = torch.tensor([timestep]), None
    if kind == "flow":
        sigmas = (timesteps / 1000).to(dtype)
        sigma = sigmas[:, None, None, None]
        noisy, target = (1 - sigma) * latents + sigma * noise, noise - latents
    else:
        noisy = scheduler.add_noise(latents, noise, timesteps)
        target = {"epsilon": noise, "sample": latents}.get(kind)
        target = scheduler.get_velocity(latents, noise, timesteps) if target is None else target
    return DiffusionStep(latents, noise, noisy, timesteps, target, target, sigmas=sigmas), scheduler


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["epsilon", "v_prediction", "sample", "flow"]),
    timestep=st.one_of(st.integers(0, 5), st.integers(0, 999)),
    rms=st.floats(0.3, 3.0),
    dtype=st.sampled_from([torch.float32, *HALVES]),
    seed=st.integers(0, 99),
)
def test_no_healthy_run_is_stopped(kind, timestep, rms, dtype, seed):
    """In bfloat16 ᾱ rounds to 1 at t = 0 and 1, so add_noise adds none; with RMS 0.7 that was refused."""
    step, scheduler = as_diffusers_does(kind, timestep, rms, dtype, seed)
    check_estimate(NoiseSchedule.from_scheduler(scheduler), step)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("timestep", [0, 1, 2, 500])
def test_what_rounding_explains_is_small(dtype, timestep):
    for rms in (0.3, 0.7, 0.8, 3.0):
        step, scheduler = as_diffusers_does("epsilon", timestep, rms, dtype)
        assert max(estimate_errors(NoiseSchedule.from_scheduler(scheduler), step)) < 0.012


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("timestep", [300, 500, 800])
def test_a_wrong_schedule_is_found_in_every_precision(dtype, timestep):
    other = NoiseSchedule.from_scheduler(ddpm(rescale_betas_zero_snr=True))
    for seed in range(5):
        step, _ = as_diffusers_does("epsilon", timestep, 0.8, dtype, seed)
        with pytest.raises(CheckError, match="noise schedule is not the one given"):
            check_estimate(other, step)


def test_a_bad_image_is_not_averaged_away_by_its_batch():
    step = make_step((500,) * 8)
    latents = step.latents.clone()
    latents[3] *= 1.2
    with pytest.raises(CheckError, match="scaled differently"):
        check_estimate(NoiseSchedule.from_scheduler(ddpm()), replace(step, latents=latents))


@pytest.mark.parametrize("max_timestep", [100, 10, None])
def test_the_proof_of_an_edm_host_whose_timesteps_are_whole_numbers(max_timestep):
    """Its σ of 0.02 became the integer 0, the probe had no noise, and a healthy loss "would train nothing"."""
    scheduler = EDMEulerScheduler()
    sigma = torch.tensor([0.5, 2.0])
    g = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 4, 8, 8, generator=g)
    step = replace(
        make_step((1, 2)),
        latents=latents,
        noise=noise,
        noisy_latents=latents + sigma[:, None, None, None] * noise,
        target=latents,
        model_pred=(latents + 0.1 * noise).requires_grad_(),
        sigmas=sigma,
        base_loss=None,
    )
    assert step.timesteps.dtype == torch.int64
    schedule = NoiseSchedule.from_scheduler(scheduler, "sample")
    terms = Term("picture", PictureLoss(), 0.2, max_timestep), Term("latent", LatentLoss(), 0.2, max_timestep)
    table = make_stack(*terms, scheduler=scheduler).prove(step)
    assert table.count("reaches the network") == 2
    assert schedule.timesteps_at(100.0, step.timesteps).tolist() == pytest.approx([0.1, 0.1])


class Autoencoder(nn.Module):
    """Latents are the picture shrunk by 4, with a posterior as wide as asked."""

    def __init__(self, spread, coarse=0.0):
        super().__init__()
        self.coarse = coarse  # added and taken away again, which costs bfloat16 its digits
        self.config = FrozenDict(scaling_factor=0.5, shift_factor=0.1, block_out_channels=(1, 1, 1))
        self.place = nn.Parameter(torch.ones(()))
        self.spread = spread

    def encode(self, pictures, return_dict):
        shrunk = nn.functional.avg_pool2d(pictures, 4) * self.place + self.coarse - self.coarse
        mean = torch.cat([shrunk, shrunk[:, :1]], dim=1)
        logvar = torch.full_like(mean, 2 * torch.tensor(self.spread).clamp_min(1e-6).log().item())
        return (DiagonalGaussianDistribution(torch.cat([mean, logvar], dim=1)),)

    def decode(self, latents, return_dict):
        return (nn.functional.interpolate(latents[:, :3], scale_factor=4),)


def encoded_as_a_host_does(spread, dtype, seed=0, coarse=0.0):
    vae, g = Autoencoder(spread, coarse), torch.Generator().manual_seed(seed)
    pictures = torch.rand(2, 3, 64, 64, generator=g) * 2 - 1
    with torch.no_grad():
        posterior = vae.to(dtype).encode(pictures.to(dtype), False)[0]
        latents = (posterior.sample(torch.Generator().manual_seed(seed)) - 0.1) * 0.5
    return LatentDecoder(vae.float()), pictures, latents


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.0, 0.005, 0.05, 0.3])
def test_latents_of_any_vae_and_precision_pass(spread, dtype):
    """5 % was fitted on one VAE: a posterior wider than that, or bfloat16, stopped healthy runs."""
    for seed in range(20):
        decoder, pictures, latents = encoded_as_a_host_does(spread, dtype, seed)
        assert encoding_fault(decoder, pictures, latents) is None


def test_what_rounding_does_to_the_encoder_is_allowed_to_hosts_that_round():
    """Deep encoders lose more than 2 % in bfloat16; a float32 host has no such excuse."""
    for seed in range(5):
        decoder, pictures, latents = encoded_as_a_host_does(0.0, torch.bfloat16, seed, coarse=8.0)
        exact, _ = decoder.encode(pictures)
        assert (exact - latents.float()).norm() > 0.05 * exact.norm()
        assert encoding_fault(decoder, pictures, latents) is None
        assert encoding_fault(decoder, pictures, latents.float()) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.0, 0.01, 0.05])  # up to a third of the pictures' own 0.14
@pytest.mark.parametrize(
    "wrong",
    [
        lambda z: z * 0.9,
        lambda z: z * 1.1,
        lambda z: z + 0.1 * z.float().square().mean().sqrt(),
        lambda z: z.flip(-1),
        lambda z: z.roll(1, 0),
        lambda z: torch.cat([z[:, 1:], z[:, :1]], dim=1),
    ],
    ids=["scale .9", "scale 1.1", "shift", "mirrored", "another picture's", "channels"],
)
def test_a_wrong_scale_or_shift_or_picture_never_passes(spread, dtype, wrong):
    for seed in range(5):
        decoder, pictures, latents = encoded_as_a_host_does(spread, dtype, seed)
        assert "the latents are not encode(picture)" in encoding_fault(decoder, pictures, wrong(latents))
