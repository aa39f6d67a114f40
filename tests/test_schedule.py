"""The noise schedule: x̂0 for each parametrisation, SNR, and the gate."""

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from make_step import ddpm, flow, make_step

from mldm_plugin.engine.schedule import NoiseSchedule, pred_latents, stable_diffusion_snr
from mldm_plugin.errors import CheckError


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("timestep", [0, 100, 500, 999])
def test_estimate_from_the_target_is_the_clean_latents(kind, timestep):
    step = make_step((timestep,), scheduler=ddpm(kind), error=0.0)
    estimate = NoiseSchedule.from_scheduler(ddpm(kind)).pred_latents(step)
    alpha = NoiseSchedule.from_scheduler(ddpm(kind)).coefficients(step.timesteps)[0]
    assert (alpha * (estimate - step.latents)).abs().max() < 1e-5


@pytest.mark.parametrize("timestep", [1, 250, 999])
def test_flow_estimate_from_the_target_is_the_clean_latents(timestep):
    step = make_step((timestep,), scheduler=flow(), error=0.0)
    torch.testing.assert_close(
        NoiseSchedule.from_scheduler(flow()).pred_latents(step), step.latents, rtol=1e-5, atol=1e-5
    )


def test_epsilon_by_hand():
    # abar = 0.64: alpha = 0.8, sigma = 0.6; (2 - 0.6 * 0.5) / 0.8
    one = torch.ones(1, 1, 1, 1)
    assert pred_latents("epsilon", 0.5 * one, 2 * one, 0.8 * one, 0.6 * one).item() == pytest.approx(2.125)
    assert pred_latents("v_prediction", 0.5 * one, 2 * one, 0.8 * one, 0.6 * one).item() == pytest.approx(1.3)
    assert pred_latents("flow_prediction", 0.5 * one, 2 * one, 0.4 * one, 0.6 * one).item() == pytest.approx(1.7)
    assert pred_latents("sample", 0.5 * one, 2 * one, 0.8 * one, 0.6 * one).item() == 0.5


def test_agrees_with_diffusers_own_one_step_estimate():
    for kind in ("epsilon", "v_prediction", "sample"):
        scheduler = ddpm(kind, clip_sample=False)
        step = make_step((321,), scheduler=scheduler)
        theirs = scheduler.step(step.model_pred, 321, step.noisy_latents).pred_original_sample
        torch.testing.assert_close(
            NoiseSchedule.from_scheduler(scheduler).pred_latents(step), theirs, rtol=1e-5, atol=1e-5
        )


@given(st.integers(0, 999))
def test_gate_is_t_at_most_max_timestep_on_the_stable_diffusion_schedule(limit):
    schedule = NoiseSchedule.from_scheduler(ddpm())
    t = torch.arange(1000)
    assert torch.equal(schedule.gate(schedule.snr(t), limit), t <= limit)


def test_gate_is_the_same_snr_on_other_schedules():
    threshold = stable_diffusion_snr()[100].item()
    zero_terminal = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    )
    schedule = NoiseSchedule.from_scheduler(zero_terminal)
    snr = schedule.snr(torch.arange(1000))
    gate = schedule.gate(snr, 100)
    assert 0 < gate.sum() < 1000
    assert gate.sum() != 101
    assert torch.equal(gate, snr >= threshold)

    flow_schedule = NoiseSchedule.from_scheduler(flow())
    sigma = 1 / (1 + threshold**0.5)
    timesteps = torch.tensor([sigma * 1000 * 0.99, sigma * 1000 * 1.01])
    assert flow_schedule.gate(flow_schedule.snr(timesteps), 100).tolist() == [True, False]


def test_without_a_limit_the_gate_is_open_even_at_pure_noise():
    schedule = NoiseSchedule.from_scheduler(flow())
    assert schedule.gate(schedule.snr(torch.tensor([1000.0])), None).all()


def test_given_sigmas_win_over_timesteps():
    schedule = NoiseSchedule.from_scheduler(flow())
    alpha, sigma = schedule.coefficients(torch.tensor([500.0]), torch.tensor([0.25]).view(1, 1, 1, 1))
    assert (alpha.item(), sigma.item()) == (0.75, 0.25)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_epsilon_factor_turns_every_squared_error_into_that_of_epsilon(kind):
    """For one z_t and one wrong z0, compare ||Δε||² with the factor times the parametrisation's own error."""
    g = torch.Generator().manual_seed(0)
    z0, wrong, eps = (torch.randn(1, 4, 8, 8, generator=g, dtype=torch.float64) for _ in range(3))
    is_flow = kind == "flow_prediction"
    schedule = NoiseSchedule.from_scheduler(flow() if is_flow else ddpm(kind))
    t = torch.tensor([300])
    alpha, sigma = (c.double().view(1, 1, 1, 1) for c in schedule.coefficients(t))
    noisy = alpha * z0 + sigma * eps
    wrong_eps = (noisy - alpha * wrong) / sigma
    error = schedule.target(z0, eps, alpha, sigma) - schedule.target(wrong, wrong_eps, alpha, sigma)
    expected = (eps - wrong_eps).square().mean()
    factor = schedule.epsilon_factor(schedule.snr(t)).double()
    torch.testing.assert_close((factor * error.square().mean()).squeeze(), expected, rtol=1e-5, atol=0)


def test_epsilon_factor_at_both_ends_of_a_schedule():
    ends = torch.tensor([0.0, float("inf")])
    assert NoiseSchedule.from_scheduler(flow()).epsilon_factor(ends).tolist() == [0, 1]
    assert NoiseSchedule.from_scheduler(ddpm("v_prediction")).epsilon_factor(ends).tolist() == [0, 1]


def test_timestep_at_inverts_snr():
    schedule = NoiseSchedule.from_scheduler(ddpm())
    for t in (0, 50, 999):
        assert schedule.timestep_at(schedule.snr(torch.tensor([t])).item()) == t
    assert NoiseSchedule.from_scheduler(flow()).timestep_at(1.0) == 500


def test_unknown_prediction_type_and_scheduler_are_refused():
    with pytest.raises(CheckError, match=r"velocity.*expected one of epsilon"):
        NoiseSchedule.from_scheduler(ddpm(), "velocity")

    class Config(dict):
        pass

    class Strange:
        config = Config()

    with pytest.raises(CheckError, match="neither alphas_cumprod nor flow matching"):
        NoiseSchedule.from_scheduler(Strange())


@pytest.mark.parametrize("make", [EDMEulerScheduler, EulerDiscreteScheduler])
def test_edm_schedules_add_sigma_times_noise(make):
    scheduler = make()
    schedule = NoiseSchedule.from_scheduler(scheduler, "sample")
    index = torch.tensor([0, 500, 999])
    timesteps, sigmas = scheduler.timesteps[index], scheduler.sigmas[index]
    latents, noise = torch.randn(2, 3, 4, 8, 8)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    alpha, sigma = (c[:, None, None, None] for c in schedule.coefficients(timesteps, sigmas[:, None]))
    assert torch.allclose(alpha * latents + sigma * noise, noisy)
    assert torch.allclose(schedule.snr(timesteps, sigmas), sigmas**-2)
    assert schedule.knows(timesteps)
    assert not schedule.knows(torch.tensor([float("nan")]))


def test_edm_gates_at_the_same_signal_to_noise_ratio():
    schedule = NoiseSchedule("sample", edm=True)
    limit = stable_diffusion_snr()[100].item()
    snr = schedule.snr(torch.zeros(2), torch.tensor([limit**-0.5 * 0.99, limit**-0.5 * 1.01]))
    assert schedule.gate(snr, 100).tolist() == [True, False]
    assert schedule.timestep_at(limit) == pytest.approx(limit**-0.5)
