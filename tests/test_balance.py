"""`balance: gradient`: a weight is how strong a loss's gradient is, whatever its own scale."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from make_step import FaceLoss, LatentLoss, PictureLoss, Push, ddpm, make_stack, make_step, step_of

from mldm_plugin.attach.loop import Loop
from mldm_plugin.engine.audit import MOST_UNREAD
from mldm_plugin.engine.balance import DECAY, Balance
from mldm_plugin.engine.term import Term
from mldm_plugin.errors import LossError, PresetError
from mldm_plugin.preset import load_preset


class Scaled:
    """Another loss times a number."""

    def __init__(self, loss, factor):
        self.needs, self._loss, self._factor = loss.needs, loss, factor

    def __call__(self, step):
        return self._factor * self._loss(step)


def stack_of(*terms, **options):
    stack = make_stack(*terms, **{"audit_steps": 1, **options})
    stack.start_up = None
    return stack


def gradient_of(stack, step):
    return torch.autograd.grad(stack(step).loss, step.model_pred)[0]


@pytest.mark.parametrize("combine", ["convex", "additive"])
def test_by_hand(combine):
    """h = 2 (3, 4) / 256, of length 10/256, and ∂L = (0, 2): s = 5/256, and half of the length of h is added."""
    push = Term("push", Push(), 0.5, balance=Balance(least=1))
    stack = stack_of(push, scheduler=ddpm("sample"), combine=combine, decoder=None)
    step = step_of([3.0, 4.0])
    plain = torch.autograd.grad(F.mse_loss(step.model_pred, step.latents), step.model_pred)[0]
    assert torch.equal(gradient_of(stack, step), plain)  # not measured yet
    assert stack.audit.read(1)["push/balance"] == pytest.approx(5 / 256)
    report = stack(step)
    kept = 0.5 if combine == "convex" else 1.0
    value = 2 * step.model_pred[0, 0, 0, 1].item()
    assert report.loss.item() == pytest.approx(0.5 * 5 / 256 * value + kept * 25 / 256)
    (gradient,) = torch.autograd.grad(report.loss, step.model_pred)
    expected = [kept * 6 / 256, kept * 8 / 256 + 5 / 256]
    assert gradient[0, 0, 0, :2].tolist() == pytest.approx(expected)
    assert report.terms["push"].weight.tolist() == pytest.approx([0.5 * 5 / 256])
    logs = stack.audit.read(2)
    assert logs["push/gradient/t0-99"] == pytest.approx(0.5 * logs["push/plain/t0-99"])
    assert logs["push/share/t0-99"] == pytest.approx(0.5 if combine == "convex" else 1 / 3)


def test_the_running_mean_by_hand():
    """Readings of (H, G) = (6, 2), nothing, (1, 1): sums decay by 0.9 where there is something new."""
    balance = Balance()
    assert balance.factor == 0
    for plain, alone, pictures in ((6.0, 2.0, 3), (0.0, 0.0, 0), (1.0, 1.0, 1)):
        assert balance.factor == 0, "three pictures are too few"
        balance.learn(plain, alone, pictures)
    assert balance.factor == pytest.approx((DECAY * 6 + 1) / (DECAY * 2 + 1))


@settings(max_examples=10, deadline=None)
@given(
    factor=st.floats(1e-4, 1e4),
    weight=st.floats(0.05, 0.6),
    combine=st.sampled_from(("convex", "additive")),
    seed=st.integers(0, 50),
)
def test_the_scale_of_a_loss_does_not_matter(factor, weight, combine, seed):
    """And the strength is the one that was asked for, exactly on the images that were measured."""
    step = make_step((50, 20), seed=seed, base_loss=False)
    found = []
    for loss in (PictureLoss(), Scaled(PictureLoss(), factor)):
        stack = stack_of(Term("picture", loss, weight, balance=Balance(least=2)), combine=combine)
        stack(step)
        stack.audit.read(1)
        found.append(gradient_of(stack, step))
        logs = stack.audit.read(2)
        assert logs["picture/gradient/t0-99"] == pytest.approx(weight * logs["picture/plain/t0-99"], rel=1e-3)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-9)


def test_in_the_convex_mix_weights_are_shares():
    terms = [
        Term("picture", PictureLoss(), 0.2, balance=Balance(least=2)),
        Term("face", FaceLoss(), 0.5, balance=Balance(least=2)),
    ]
    stack, step = stack_of(*terms), make_step((50, 20))
    stack(step)
    stack.audit.read(1)
    stack(step)
    logs = stack.audit.read(2)
    assert [logs[f"{name}/share/t0-99"] for name in ("picture", "face")] == pytest.approx([0.2, 0.5], rel=1e-3)


def test_a_loss_that_waits_leaves_the_plain_loss_as_it_is_and_is_logged():
    stack = stack_of(Term("face", FaceLoss(), 0.5, balance=Balance(least=2)), Term("latent", LatentLoss(), 0.2))
    without = stack_of(Term("latent", LatentLoss(), 0.2))
    step = make_step((50, 20), base_loss=False)
    report = stack(step)
    assert torch.equal(torch.autograd.grad(report.loss, step.model_pred)[0], gradient_of(without, step))
    assert report.terms["face"].gated == 2
    assert report.terms["face"].weight.tolist() == [0, 0]
    nobody = replace(step, face_boxes=[torch.empty(0, 4)] * 2)
    stack = stack_of(Term("face", FaceLoss(), 0.5, balance=Balance(least=2)), Term("latent", LatentLoss(), 0.2))
    stack(nobody)
    assert stack.audit.read(1)["face/balance"] == 0
    stack(step)
    assert stack.audit.read(2)["face/balance"] > 0  # as soon as it has been seen


def test_between_readings_the_factor_stays():
    stack = stack_of(Term("face", FaceLoss(), 0.5, balance=Balance(least=2)), audit_steps=2)
    factors = []
    for number in range(1, 7):
        stack(make_step((50, 20), seed=number))
        stack.audit.read(number)
        factors.append(stack.terms[0].scale)
    assert factors[0] > 0  # the first reading comes after the first step
    assert factors[1] != factors[0]
    assert factors[1] == factors[2]
    assert factors[3] == factors[4]
    assert len(set(factors)) == 4


def test_a_state_goes_on_to_the_bit():
    def run(cut):
        def made():
            return stack_of(Term("face", FaceLoss(), 0.5, balance=Balance(least=2)), audit_steps=2)

        stack, losses = made(), []
        for number in range(1, 8):
            losses.append(stack(make_step((50, 20), seed=number)).loss.item())
            stack.audit.read(number)
            if number == cut:
                state = stack.audit.state()
                stack = made()
                stack.audit.resume(state)
        return losses

    assert all(run(cut) == run(None) for cut in (1, 2, 3, 5))


def test_a_loop_that_never_reads_is_told():
    stack = stack_of(Term("push", Push(), 0.5, balance=Balance(least=2)), scheduler=ddpm("sample"), decoder=None)
    step = step_of([3.0, 4.0])
    for _ in range(MOST_UNREAD):
        stack(step)
    with pytest.raises(LossError, match=r"'push' is to be balanced, but nobody reads .* call stack\.audit\.read\(step"):
        stack(step)


def test_without_balance_nothing_changes():
    step = make_step((50, 20), base_loss=False)
    assert Term("face", FaceLoss(), 0.5).scale == 1.0
    report = stack_of(Term("face", FaceLoss(), 0.5))(step)
    assert report.terms["face"].weight.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "losses: {masked_mse: {weight: 0.5, balance: loudness}}",
            "balance: input should be 'gradient'",
        ),
        ("losses: {masked_mse: {weight: 0.5, balance: gradient, detach: true}}", "detach: true leaves no gradient"),
        ("audit_steps: 0\nlosses: {masked_mse: {weight: 0.5, balance: gradient}}", "audit_steps: 0 leaves no gradient"),
    ],
)
def test_a_preset_that_cannot_be_balanced_is_refused(tmp_path, text, said):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(PresetError, match=said):
        load_preset(tmp_path / "own.yaml")


def test_a_loss_that_waits_is_measured_until_its_factor_rests_on_enough(monkeypatch):
    """By default on four pictures: two of each of two micro-batches, though a reading measures others once alone."""
    stack = stack_of(Term("face", FaceLoss(), 0.5, balance=Balance()), Term("latent", LatentLoss(), 0.2))
    for seed in (1, 2):
        stack(make_step((50, 20), seed=seed))
    logs = stack.audit.read(1)
    assert [logs[f"{name}/measured/t0-99"] for name in ("face", "latent")] == [4, 2]
    assert logs["face/balance"] > 0


def test_a_balanced_loss_without_a_gradient_is_told_of():
    told = []
    stack = stack_of(Term("face", NoGradient(), 0.5, balance=Balance()), audit_steps=1, announce=told.append)
    for number in range(1, 40):
        stack(make_step((50, 20)))
        stack.audit.read(number)
    (text,) = [line for line in told if "it weighs nothing" in line]
    assert "face is to be balanced and reached 64 pictures" in text


class NoGradient(FaceLoss):
    def __call__(self, step):
        return super().__call__(step) + 0 * step.pred_images.sum(dim=(1, 2, 3)).detach() - super().__call__(step)


def test_several_processes_need_the_accelerator(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    stack = stack_of(Term("face", FaceLoss(), 0.5, balance=Balance()))
    stack(make_step((50, 20)))
    for nobody in (None, Loop(sync_gradients=True)):  # ai-toolkit's processes tell each other nothing
        with pytest.raises(LossError, match=r"give audit.read\(step, accelerator\) its Accelerator"):
            stack.audit.read(1, nobody)
    stack_of(Term("face", FaceLoss(), 0.5)).audit.read(1)
