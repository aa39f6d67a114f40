"""P2, min-SNR and debiased weightings: values by hand, definition for v, and their use in the stack."""

import pytest
import torch
from diffusers.training_utils import compute_snr
from make_step import ddpm, make_step

from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.hooks.debiased import Debiased
from mldm_plugin.hooks.min_snr import MinSNR
from mldm_plugin.hooks.p2 import P2

snr = torch.tensor([0.0, 1.0, 3.0, 24.0])


def test_p2_by_hand():
    torch.testing.assert_close(P2(k=1, gamma=1)(snr), torch.tensor([1, 0.5, 0.25, 0.04]))
    assert torch.equal(P2(gamma=0)(snr), torch.ones(4))


def test_min_snr_by_hand():
    torch.testing.assert_close(MinSNR(gamma=3)(snr), torch.tensor([1, 1, 1, 0.125]))


def test_debiased_by_hand():
    torch.testing.assert_close(Debiased(max_snr=9)(snr[1:]), torch.tensor([1, 3**-0.5, 1 / 3]))
    assert torch.isfinite(Debiased()(snr)).all()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_equals_diffusers_snr_gamma(kind):
    """Reference: `--snr_gamma` of diffusers' scripts, min(SNR, γ) over SNR for epsilon and over SNR + 1 for v."""
    scheduler = ddpm(kind)
    timesteps = torch.tensor([0, 10, 200, 700, 999])
    reference = compute_snr(scheduler, timesteps)
    divisor = reference if kind == "epsilon" else reference + 1
    expected = reference.clamp(max=5.0) / divisor
    schedule = NoiseSchedule.from_scheduler(scheduler)
    ours = schedule.snr(timesteps)
    torch.testing.assert_close(MinSNR(gamma=5.0)(ours) * schedule.epsilon_factor(ours), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_weighting_is_the_same_objective_in_every_parametrisation(kind):
    """P2 is defined on ε. The stack's plain loss for v and sample equals that of the ε the output stands for."""
    scheduler = ddpm(kind)
    step = make_step((30, 600), scheduler=scheduler)
    stack = LossStack([], schedule=NoiseSchedule.from_scheduler(scheduler), base_weighting=P2())
    schedule = stack.schedule
    alpha, sigma = (c.view(-1, 1, 1, 1) for c in schedule.coefficients(step.timesteps))
    estimate = schedule.pred_latents(step)
    implied_noise = (step.noisy_latents - alpha * estimate) / sigma
    weight = P2()(schedule.snr(step.timesteps))
    expected = (weight * (implied_noise - step.noise).square().flatten(1).mean(1)).mean()
    torch.testing.assert_close(stack(step).loss, expected, rtol=2e-4, atol=0)
