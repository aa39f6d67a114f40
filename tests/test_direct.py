"""The clean estimate after a step, by the noise that is known: the formula, the schedules, and a run with it."""

from dataclasses import replace

import pytest
import torch
from diffusers import EDMEulerScheduler
from hypothesis import given
from hypothesis import strategies as st
from make_step import LatentLoss, PictureLoss, ddpm, flow, make_stack, make_step, tiny_vae

from mldm_plugin.engine.direct import direct, part_of_error
from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.term import Term
from mldm_plugin.errors import PresetError
from mldm_plugin.preset import load_preset

SCHEDULERS = {kind: ddpm(kind) for kind in ("epsilon", "v_prediction", "sample")} | {"flow": flow()}


def schedule(kind, steps):
    made = NoiseSchedule.from_scheduler(SCHEDULERS[kind])
    made.direct_steps = steps
    return made


def after_a_step(kind, step, steps):
    """By the paper's two lines: a step of the sampler, then off with the noise that is known."""
    one = schedule(kind, None)
    alpha, sigma = (x.view(-1, 1, 1, 1).double() for x in one.coefficients(step.timesteps))
    alpha_after, sigma_after = (x.view(-1, 1, 1, 1).double() for x in one.coefficients(step.timesteps - steps))
    clean = one.pred_latents(step).double()
    noise = (step.noisy_latents.double() - alpha * clean) / sigma
    moved = alpha_after * clean + sigma_after * noise
    return (moved - sigma_after * step.noise.double()) / alpha_after


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_it_is_a_step_and_then_the_known_noise_taken_off(kind):
    step = make_step((100, 500, 900), scheduler=SCHEDULERS[kind])
    found = schedule(kind, 40).pred_latents(step)
    assert torch.allclose(found.double(), after_a_step(kind, step, 40), atol=2e-4)


def test_by_hand_for_a_flow_as_the_paper_has_it():
    """σ = 0.5 → 0.25, z₀ = 1, ε = 3, so z = 2; v̂ = 1 where v = 2: z' = 2 − 0.25 = 1.75, (1.75 − 0.75) / 0.75 = 4/3."""
    one = torch.ones(1, 1, 1, 1)
    step = replace(
        make_step((500,), scheduler=flow(), channels=1, latent_size=1, base_loss=False),
        **{"latents": one, "noise": 3 * one, "noisy_latents": 2 * one, "model_pred": one, "target": 2 * one},
    )
    assert schedule("flow", 250).pred_latents(step).item() == pytest.approx(4 / 3)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_step_that_ends_without_noise_is_the_one_step_estimate_to_the_bit(kind):
    step = make_step((30, 39), scheduler=SCHEDULERS[kind])
    assert torch.equal(schedule(kind, 40).pred_latents(step), schedule(kind, None).pred_latents(step))


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_network_that_knows_has_the_clean_latents(kind):
    step = make_step((60, 700), scheduler=SCHEDULERS[kind], error=0.0)
    assert torch.allclose(schedule(kind, 40).pred_latents(step), step.latents, atol=1e-4)


def test_pure_noise_and_no_noise_are_finite():
    step = make_step((1000, 0), scheduler=flow())
    step = replace(step, timesteps=step.timesteps.float())
    assert torch.isfinite(schedule("flow", 40).pred_latents(step)).all()
    assert part_of_error(*(torch.tensor([x]) for x in (0.0, 1.0, 0.04, 0.96))).item() == 1.0
    assert part_of_error(*(torch.tensor([x]) for x in (1.0, 0.0, 1.0, 0.0))).item() == 1.0


OFF_BY_ONE = replace(
    make_step((1,), channels=1, latent_size=1, base_loss=False),
    latents=torch.zeros(1, 1, 1, 1),
    model_pred=torch.ones(1, 1, 1, 1),
)


@given(st.integers(1, 999), st.integers(1, 999))
def test_the_part_lies_between_0_and_1_and_grows_with_the_step(t, steps):
    """Clean latents of 0 and an estimate of 1: what is left is the part."""
    step = replace(OFF_BY_ONE, timesteps=torch.tensor([t]))
    part, more = (schedule("sample", s).pred_latents(step).item() for s in (steps, steps + 1))
    assert 0 < part <= more <= 1


def test_gradients():
    latents = torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    estimate = (latents + 1).requires_grad_()
    part = torch.tensor([0.3, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: direct(latents, x, part), estimate)
    (found,) = torch.autograd.grad(direct(latents, estimate, part).sum(), estimate)
    assert torch.allclose(found, part.view(2, 1, 1, 1).expand_as(found))


def test_a_batch_is_its_images():
    one, step = schedule("epsilon", 40), make_step((20, 400, 900))
    whole = one.pred_latents(step)
    assert torch.equal(whole, torch.cat([one.pred_latents(step.select([i])) for i in range(3)]))


# In a stack


def stack_of(tmp_path, estimate, scheduler=None):
    (tmp_path / "one.yaml").write_text(
        f"estimate: {estimate}\ntarget: decoded\nchecks: {{picture: warn}}\n"
        "losses: {masked_lpips: {weight: 0.2, max_timestep: null, network: alex, weights: random}}\n"
    )
    told = []
    made = LossStack.from_preset(
        str(tmp_path / "one.yaml"), vae=tiny_vae(), noise_scheduler=scheduler or ddpm(), announce=told.append
    )
    return made, told


def test_a_run_is_proved_with_it_and_says_so(tmp_path):
    stack, told = stack_of(tmp_path, "direct-40")
    plain, silent = stack_of(tmp_path, "one_step")
    step = make_step((800, 30))
    report, one_step = stack(step), plain(step)
    assert "the clean estimate is that after a step of 40 timesteps" in told[0]
    assert "clean estimate" not in silent[0]
    seen, before = (r.terms["masked_lpips"].raw for r in (report, one_step))
    assert seen[0] < before[0], "of a picture that is less wrong"
    assert seen[1] == before[1], "a step that ends without noise"
    report.loss.backward()
    assert step.model_pred.grad.abs().sum() > 0


def test_losses_on_the_output_itself_stay():
    step = make_step((500,))
    stacks = [
        make_stack(Term("latent", LatentLoss(), 0.2, None), Term("picture", PictureLoss(), 0.2, None)) for _ in "ab"
    ]
    stacks[1].schedule.direct_steps = 100
    one, other = (s(step) for s in stacks)
    assert one.ldm == other.ldm
    assert other.terms["latent"].raw.item() < one.terms["latent"].raw.item()


def test_edm_has_no_timesteps_to_go_back(tmp_path):
    with pytest.raises(PresetError, match="EDM has none: use estimate: one_step"):
        stack_of(tmp_path, "direct-40", EDMEulerScheduler())


@pytest.mark.parametrize("estimate", ["direct", "direct-0", "direct-1000", "ddim-0", "ddim-5", "twice"])
def test_another_word_is_refused(tmp_path, estimate):
    (tmp_path / "one.yaml").write_text(f"estimate: {estimate}\n")
    with pytest.raises(PresetError, match="expected one_step, direct-S with S timesteps"):
        load_preset(str(tmp_path / "one.yaml"))
