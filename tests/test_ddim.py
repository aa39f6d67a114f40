"""The clean estimate of several answers of the network: the formula, every gradient, and what a stack does with it."""

from dataclasses import replace

import pytest
import torch
from diffusers import EDMEulerScheduler
from make_step import LatentLoss, PictureLoss, ddpm, flow, make_stack, make_step, tiny_vae

from mldm_plugin.attach.attachment import Attachment
from mldm_plugin.attach.flags import Settings
from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.engine.ddim import check_answers, ddim_step
from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.term import Term
from mldm_plugin.errors import CheckError, PresetError
from mldm_plugin.planning.tensor_memory import TensorMemory

SCHEDULERS = {kind: ddpm(kind) for kind in ("epsilon", "v_prediction", "sample")} | {"flow": flow()}


class Network(torch.nn.Module):
    """Two convolutions that see the timestep and a number of each image, its caption."""

    def __init__(self, width=8, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Conv2d(5, width, 3, padding=1), torch.nn.Conv2d(width, 4, 3, padding=1)
        self.dropout, self.seen = torch.nn.Dropout(dropout), []

    def forward(self, z, timesteps, captions):
        time = (timesteps.to(z.dtype) / 1000 + captions.to(z.dtype)).view(-1, 1, 1, 1).expand(-1, 1, *z.shape[-2:])
        hidden = self.dropout(torch.tanh(self.first(torch.cat([z, time], 1))))
        self.seen.append(hidden.dtype)
        return self.last(hidden)


def asked(network, step, captions=None, **changes):
    """The step as a host hands it over, whose output is the network's; the list of what is asked afterwards."""
    captions = torch.arange(len(step)).to(step.latents) if captions is None else captions
    log = []

    def predict(noisy, timesteps, rows):
        log.append((timesteps.tolist(), list(rows)))
        return network(noisy, timesteps, captions[list(rows)])

    output = network(step.noisy_latents, step.timesteps, captions)
    base = torch.nn.functional.mse_loss(output.float(), step.target.float())
    return replace(step, model_pred=output, base_loss=base, predict=predict, **changes), log


def schedule_of(kind, answers):
    made = NoiseSchedule.from_scheduler(SCHEDULERS[kind])
    made.answers = answers
    return made


def in_float64(kind, network, step, answers, output):
    """x̂₀ written down plainly: DDIM by ẑ₀ and ε̂ of each parametrisation, nothing computed again."""
    one = schedule_of(kind, 1)

    def levels(t):
        return (c.double().view(-1, 1, 1, 1) for c in one.coefficients(t))

    z, t = step.noisy_latents.double(), step.timesteps
    for k in range(answers):
        alpha, sigma = levels(t)
        answer = output if k == 0 else network(z, t, torch.arange(len(step)).double())
        clean, noise = {
            "epsilon": lambda a=alpha, s=sigma, z=z, p=answer: ((z - s * p) / a, p),
            "v_prediction": lambda a=alpha, s=sigma, z=z, p=answer: (a * z - s * p, s * z + a * p),
            "sample": lambda a=alpha, s=sigma, z=z, p=answer: (p, (z - a * p) / s),
            "flow": lambda a=alpha, s=sigma, z=z, p=answer: (z - s * p, z + a * p),
        }[kind]()
        t = torch.round(step.timesteps * (answers - k - 1) / answers).long()
        if k < answers - 1:
            alpha, sigma = levels(t)
            z = alpha * clean + sigma * noise
    return clean


@pytest.mark.parametrize("answers", [2, 3, 4])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_value_and_every_gradient_are_those_of_ddim_written_plainly(kind, answers):
    network, step = Network(), make_step((120, 400, 900), scheduler=SCHEDULERS[kind])
    step, log = asked(network, step)
    found = schedule_of(kind, answers).pred_latents(step)
    weights = [step.model_pred, *network.parameters()]
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(5))
    gradients = torch.autograd.grad(found, weights, upstream)
    twin = Network().double()
    output = twin(step.noisy_latents.double(), step.timesteps, torch.arange(3).double())
    expected = in_float64(kind, twin, step, answers, output)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    plain = torch.autograd.grad(expected, [output, *twin.parameters()], upstream.double())
    for own, right in zip(gradients, plain, strict=True):
        torch.testing.assert_close(own.double(), right, rtol=1e-3, atol=1e-4 * right.abs().max().item())
    times = [[round(t * (answers - k) / answers) for t in (120, 400, 900)] for k in range(1, answers)]
    assert log == [(t, [0, 1, 2]) for t in times] + [(t, [0, 1, 2]) for t in reversed(times)]  # and again, backwards


def test_two_answers_by_hand():
    """A flow, σ = 0.5 → 0.25, whose network says w z: Euler's steps, x̂₀ = z (1 − w/4)², so −z/2 (1 − w/4) is its slope.

    With z = 2 and w = 1/2: v̂ = 1, z' = 1.75, v̂' = 0.875, x̂₀ = 1.75 − 0.25 · 0.875; half of the slope is each answer's.
    """
    one, w = torch.ones(1, 1, 1, 1), torch.tensor(0.5, requires_grad=True)
    step = make_step((500,), scheduler=flow(), channels=1, latent_size=1, base_loss=False)
    step = replace(step, latents=one, noise=3 * one, noisy_latents=2 * one, model_pred=w * 2 * one, target=2 * one)
    step = replace(step, predict=lambda z, t, rows: w * z)
    found = schedule_of("flow", 2).pred_latents(step)
    assert found.item() == 1.53125
    whole, output = torch.autograd.grad(found, (w, step.model_pred), retain_graph=True)
    assert whole.item() == -0.875
    assert output.item() == -0.25 * (1 - 0.5 / 4)


def test_a_step_is_the_samplers():
    x = [torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in "ab"]
    levels = [torch.tensor(v, dtype=torch.float64).view(2, 1, 1, 1) for v in ((0.8, 1), (0.6, 0), (0.96, 1), (0.28, 0))]
    assert torch.autograd.gradcheck(lambda a, b: ddim_step(a, b, *levels), x)
    assert torch.equal(ddim_step(*x, *levels)[1], x[0][1]), "without noise it is the estimate"


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_network_that_knows_has_the_clean_latents(kind):
    schedule, step = schedule_of(kind, 4), make_step((60, 700), scheduler=SCHEDULERS[kind], error=0.0)

    def knows(noisy, timesteps, rows):
        alpha, sigma = (c.view(-1, 1, 1, 1) for c in schedule.coefficients(timesteps))
        return schedule.target(step.latents, (noisy - alpha * step.latents) / sigma, alpha, sigma)

    found = schedule.pred_latents(replace(step, predict=knows))
    assert torch.allclose(found, step.latents, atol=2e-4)


def test_a_flow_that_tells_its_sigmas_goes_down_by_them():
    network, step = Network(), make_step((800, 0), scheduler=flow())
    step, log = asked(network, replace(step, timesteps=step.timesteps.float(), sigmas=step.timesteps / 1000))
    found = schedule_of("flow", 4).pred_latents(step)
    assert [t for t, _ in log] == [[600, 0], [400, 0], [200, 0]]
    assert torch.equal(found[1], step.noisy_latents[1]), "no noise is left"


def test_a_batch_is_its_images():
    schedule, network = schedule_of("epsilon", 3), Network()
    step, _ = asked(network, make_step((20, 400, 900)))
    alone = torch.cat([schedule.pred_latents(step.select([i])) for i in (2, 0, 1)])
    torch.testing.assert_close(schedule.pred_latents(step)[[2, 0, 1]], alone)


def test_random_numbers_and_precision_are_the_same_again_in_the_backward_pass(monkeypatch):
    network, schedule = Network(dropout=0.5).train(), schedule_of("epsilon", 3)
    step, _ = asked(network, make_step((400,)))
    state, found = torch.get_rng_state(), []
    for keeps in (False, True):
        torch.set_rng_state(state)
        network.seen.clear()
        with monkeypatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
            if keeps:
                patch.setattr("mldm_plugin.engine.schedule.checkpoint", lambda f, *given, use_reentrant: f(*given))
            estimate = schedule.pred_latents(step)
        found.append([estimate, *torch.autograd.grad(estimate.sum(), network.parameters(), retain_graph=True)])
        assert network.seen == [torch.bfloat16] * (2 if keeps else 4)
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1:], found[1][1:])


def test_memory_does_not_grow_with_the_answers():
    network, step = Network(width=256), make_step((400,), latent_size=32, size=128)
    peaks = []
    for answers in (1, 2, 4):
        schedule = schedule_of("epsilon", answers)
        with TensorMemory() as memory:
            made, _ = asked(network, step)
            torch.autograd.grad(schedule.pred_latents(made).sum(), network.parameters())
        peaks.append(memory.peak)
    assert peaks[0] < peaks[1] < 2.2 * peaks[0], "the first answer's activations wait while another's are there again"
    assert peaks[2] < 1.05 * peaks[1]


# In a stack


def zero_step(network, timesteps=(50, 20, 900), **changes):
    return asked(network, make_step(timesteps), **changes)


def stack_of(answers, *terms, **options):
    options = {"picture_check": "warn", "announce": lambda text: None, **options}
    terms = terms or [Term("picture", PictureLoss(), 0.3)]
    return LossStack(terms, schedule=schedule_of("epsilon", answers), decoder=LatentDecoder(tiny_vae()), **options)


def weights_gradient(stack, network, step):
    report = stack(step)
    return report, torch.autograd.grad(report.loss, network.parameters(), retain_graph=True)


def test_one_answer_is_the_one_step_estimate_to_the_bit():
    network = Network()
    pairs = []
    for answers in (None, 1):
        stack = make_stack(Term("picture", PictureLoss(), 0.3), Term("latent", LatentLoss(), 0.2))
        if answers:
            stack.schedule.answers = answers
        step, log = zero_step(network)
        report, gradient = weights_gradient(stack, network, step)
        pairs.append([report.loss, *gradient])
        assert log == []
    assert all(map(torch.equal, *pairs))


@pytest.mark.parametrize("combine", ["convex", "additive"])
def test_the_mix_has_the_gradient_of_all_answers(combine):
    """By pictures and by latents, against the mix written down with the estimate's own graph."""
    network, terms = Network(), [Term("picture", PictureLoss(), 0.3), Term("latent", LatentLoss(), 0.2, 30)]
    stack = stack_of(3, *terms, combine=combine)
    step, log = zero_step(network)
    stack(step)
    stack.start_up = None
    log.clear()
    report, found = weights_gradient(stack, network, step := zero_step(network)[0])
    estimate = stack.schedule.pred_latents(step)
    seen = stack.pictures.of(replace(step, pred_latents=estimate))
    values = {"picture": PictureLoss()(seen), "latent": LatentLoss()(seen)}
    error = (step.model_pred - step.target).square().flatten(1).mean(1)
    total = step.base_loss
    for name, weight, rows in (("picture", 0.3, [0, 1]), ("latent", 0.2, [1])):
        left = error[rows] if combine == "convex" else 0
        total = total + weight * (values[name][rows] - left).sum() / 3
    expected = torch.autograd.grad(total, network.parameters())
    torch.testing.assert_close(report.loss, total)
    for own, right in zip(found, expected, strict=True):
        torch.testing.assert_close(own, right, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_the_slope_of_the_loss():
    network, stack = Network(), stack_of(2, Term("picture", PictureLoss(), 0.9, None), combine="additive")
    made = make_step((300, 600))
    stack(asked(network, made)[0])
    stack.start_up = None
    _, gradients = weights_gradient(stack, network, asked(network, made)[0])
    generator, values = torch.Generator().manual_seed(1), []
    way = [torch.randn(p.shape, generator=generator) for p in network.parameters()]
    for by in (-1e-3, 1e-3):
        moved = Network()
        with torch.no_grad():
            for p, direction in zip(moved.parameters(), way, strict=True):
                p.add_(direction, alpha=by)
        values.append(stack(asked(moved, made)[0]).loss.item())
    slope = sum((g * d).sum().item() for g, d in zip(gradients, way, strict=True))
    assert (values[1] - values[0]) / 2e-3 == pytest.approx(slope, rel=0.01)


def test_gated_images_alone_are_asked_again():
    network, stack = Network(), stack_of(3)
    step, _ = zero_step(network, (900, 50, 20))
    stack(step)
    stack.start_up = None
    step, log = zero_step(network, (900, 50, 20))
    report = stack(step)
    assert log == [([33, 13], [1, 2]), ([17, 7], [1, 2])]
    report.loss.backward()
    step, log = zero_step(network, (900, 800))
    assert torch.equal(stack(step).loss, step.base_loss)
    assert log == []


def test_no_gradient_no_graph_and_one_step_for_those_who_look():
    network, seen = Network(), {}
    stack = stack_of(2, after_loss=lambda step, report: seen.update(step=step, report=report))
    step, _ = zero_step(network)
    stack(step)
    stack.start_up = None
    with torch.no_grad():
        assert not stack(step).loss.requires_grad
    one_step = schedule_of("epsilon", 1).pred_latents(step)
    assert torch.equal(seen["step"].pred_latents, one_step)


def test_an_answer_that_is_not_finite_stays_out_of_the_network():
    network, stack = Network(), stack_of(2, combine="additive")
    stack(zero_step(network)[0])
    stack.start_up = None
    step, _ = zero_step(network)
    predict = step.predict

    def overflows(noisy, timesteps, rows):
        bad = torch.tensor([float("inf") if row == 0 else 1.0 for row in rows]).view(-1, 1, 1, 1)
        return predict(noisy * bad, timesteps, rows)

    report, found = weights_gradient(stack, network, replace(step, predict=overflows))
    assert report.terms["picture"].weight.tolist() == pytest.approx([0, 0.3, 0])
    kept = zero_step(network)[0]
    kept = replace(kept, person_mask=kept.person_mask * torch.tensor([0, 1, 1]).view(3, 1, 1, 1).to(torch.uint8))
    _, expected = weights_gradient(stack, network, kept)
    for own, right in zip(found, expected, strict=True):
        torch.testing.assert_close(own, right)
    report, found = weights_gradient(
        stack, network, replace(zero_step(network)[0], predict=lambda z, t, rows: z * float("nan"))
    )
    assert torch.equal(report.loss, report.ldm), "no image is left"


def test_the_audit_measures_at_the_first_answer_through_the_others():
    told, network = [], Network()
    stack = stack_of(
        3, Term("latent", LatentLoss(), 0.3, None), combine="additive", audit_steps=1, announce=told.append
    )
    step, _ = zero_step(network)
    stack(step)
    found = stack.audit.read(1)
    estimate = stack.schedule.pred_latents(step)
    value = 0.3 * (estimate - step.latents).abs().flatten(1).mean(1)
    (own,) = torch.autograd.grad(value.sum(), step.model_pred)
    by_range = {k: v for k, v in found.items() if k.startswith("latent/gradient/")}
    measured = {k: found[f"latent/measured/{k.rsplit('/', 1)[1]}"] for k in by_range}
    total = sum(by_range[k] * measured[k] for k in by_range)
    assert total == pytest.approx(own.flatten(1).norm(dim=1).sum().item(), rel=1e-3)
    assert "at the network's first output" in stack.audit.table()
    assert "of 3 answers of the network" in told[0]


# The proof


def test_the_first_gated_step_shows_it_and_says_so():
    told, network = [], Network()
    stack = stack_of(2, announce=told.append)
    stack(zero_step(network, (900, 950))[0])
    assert not any("asked again" in line for line in told)
    state = torch.get_rng_state()
    stack(zero_step(network)[0])
    stack(zero_step(network)[0])
    (line,) = [line for line in told if "asked again" in line]
    assert "the network answers the same" in line
    assert torch.equal(torch.get_rng_state(), state)


FAULTS = {
    "without gradients": (lambda net, z, t, c: net(z, t, c).detach(), "no finite gradient to its weights"),
    "cut off from the question": (lambda net, z, t, c: net(z.detach(), t, c), "to the noisy latents"),
    "a frozen copy": (lambda net, z, t, c: Network().requires_grad_(False)(z, t, c), "to its weights"),
    "other images": (lambda net, z, t, c: net(z, t, c.flip(0)), "differs from its output by"),
    "another network": (lambda net, z, t, c: 2 * net(z, t, c), "differs from its output by"),
    "NaN": (lambda net, z, t, c: net(z, t, c) * float("nan"), "no finite gradient to the noisy latents"),
    "another shape": (lambda net, z, t, c: net(z, t, c)[:, :2], "expected those"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_network_or_a_lost_gradient_stops_the_run(fault):
    network, (broken, said) = Network(), FAULTS[fault]
    step, _ = zero_step(network)
    captions = torch.arange(3.0)
    step = replace(step, predict=lambda z, t, rows: broken(network, z, t, captions[list(rows)]))
    with pytest.raises(CheckError, match=said):
        stack_of(2)(step)


def test_a_network_that_draws_random_numbers_is_told_of_and_trains():
    network = Network(dropout=0.5).train()
    step, _ = zero_step(network)
    assert check_answers(step, [0, 1]).startswith("warning: the network draws random numbers")


def test_without_predict_the_first_step_is_refused():
    step, _ = zero_step(Network())
    with pytest.raises(CheckError, match=r"asks the network again, but the step has no predict: pass predict"):
        stack_of(2)(replace(step, predict=None))
    stack = stack_of(2)
    stack.start_up = None
    with pytest.raises(CheckError, match="no predict"):
        stack(replace(step, predict=None))


def test_attached_scripts_are_refused_before_they_run():
    with pytest.raises(PresetError, match="estimate: ddim-2 asks the network again, which an attached script"):
        Attachment(Settings((), preset="mldm", set=("estimate=ddim-2",)))


def test_edm_has_no_timesteps_to_go_back(tmp_path):
    (tmp_path / "one.yaml").write_text("estimate: ddim-2\n")
    with pytest.raises(PresetError, match="EDM has none: use estimate: one_step"):
        LossStack.from_preset(str(tmp_path / "one.yaml"), vae=tiny_vae(), noise_scheduler=EDMEulerScheduler())
    made = LossStack.from_preset(str(tmp_path / "one.yaml"), vae=tiny_vae(), noise_scheduler=ddpm())
    assert made.schedule.answers == 2
    assert made.schedule.direct_steps is None
