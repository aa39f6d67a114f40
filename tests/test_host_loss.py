"""The weights of images and the rest of a loss, read off its gradient."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from make_step import make_step, two_terms

import mldm_plugin
from mldm_plugin.engine.host_loss import gradient_at, read_host_loss, take_apart
from mldm_plugin.errors import CheckError


def step(n=3, dtype=torch.float32, seed=0):
    """A network with one parameter, its output and a target."""
    g = torch.Generator().manual_seed(seed)
    gain = torch.ones((), requires_grad=True)
    pred = (torch.randn(n, 4, 8, 8, generator=g) * gain).to(dtype)
    return gain, pred, torch.randn(n, 4, 8, 8, generator=g).to(dtype)


apart = read_host_loss


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5))
@settings(deadline=None, max_examples=30)
def test_weights_of_any_size(weights):
    weights = torch.tensor(weights)
    _, pred, target = step(len(weights))
    found = apart((weights * (pred - target).square().flatten(1).mean(1)).mean(), pred, target)
    torch.testing.assert_close(found.weights, weights, rtol=1e-4, atol=1e-6)
    assert found.rest.abs().item() <= 1e-5 * weights.sum().item()


def test_a_plain_mean_and_one_image_without_weight():
    _, pred, target = step()
    assert torch.allclose(apart(F.mse_loss(pred, target), pred, target).weights, torch.ones(3))
    some = torch.tensor([1.0, 0.0, 2.0])
    found = apart((some * (pred - target).square().flatten(1).mean(1)).mean(), pred, target)
    assert torch.allclose(found.weights, some, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    _, pred, target = step(dtype=dtype)
    found = apart(0.1 * F.mse_loss(pred.float(), target.float()), pred, target)
    torch.testing.assert_close(found.weights, torch.full((3,), 0.1), rtol=1e-2, atol=0)


def test_prior_preservation_is_the_rest_and_keeps_its_gradient():
    gain, both, targets = step(4)
    pred, prior = both.chunk(2)
    target, prior_target = targets.chunk(2)
    prior_loss = 0.5 * F.mse_loss(prior, prior_target)
    found = apart(F.mse_loss(pred, target) + prior_loss, pred, target)
    assert torch.allclose(found.weights, torch.ones(2))
    assert found.rest.item() == pytest.approx(prior_loss.item(), rel=1e-5)
    (own,) = torch.autograd.grad(found.rest, gain, retain_graph=True)
    (expected,) = torch.autograd.grad(prior_loss, gain)
    assert own.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_graph_and_gradients_are_left_alone():
    gain, pred, target = step()
    loss = F.mse_loss(pred, target)
    apart(loss, pred, target)
    assert gain.grad is None
    loss.backward()
    assert gain.grad is not None


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda p, t: F.l1_loss(p, t),
        lambda p, t: F.huber_loss(p, t, delta=0.1),
        lambda p, t: ((p - t).square() * torch.linspace(0, 1, 8)).mean(),  # a mask
        lambda p, t: F.mse_loss(p, t) + 0.1 * p.abs().mean(),
        lambda p, t: F.mse_loss(p, t.flip(0)),  # another target
    ],
)
def test_a_loss_of_another_form_is_refused(loss_of):
    _, pred, target = step()
    with pytest.raises(CheckError, match="is not the squared error of each image"):
        apart(loss_of(pred, target), pred, target)


def test_the_refusal_offers_what_takes_any_loss():
    _, pred, target = step()
    loss = F.l1_loss(pred, target)
    parts = take_apart(loss, gradient_at(pred, loss), pred, target)
    assert not parts.fits
    with pytest.raises(CheckError, match="combine: convex takes a share .* --set combine=additive takes any loss"):
        parts.check()
    with pytest.raises(CheckError, match=r"--set 'base=\{weighting: none\}'") as told:
        parts.check(weighted=True)  # additive would not help
    assert "additive" not in str(told.value)


def test_what_is_read_off_is_what_a_step_takes():
    """The public name, in a loop that weighs its images and has another part in its loss: the mix of eq. 3."""
    own = make_step((50, 20))
    weights = torch.tensor([0.5, 3.0])
    error = (own.model_pred - own.target).square().flatten(1).mean(1)
    other = own.model_pred.new_tensor(0.7)
    loss = (weights * error).mean() + other
    parts = mldm_plugin.read_host_loss(loss, own.model_pred, own.target)
    given = replace(own, base_loss=loss, base_weights=parts.weights, other_loss=parts.rest)
    known = replace(own, base_loss=loss, base_weights=weights, other_loss=other)
    torch.testing.assert_close(two_terms()(given).loss, two_terms()(known).loss, rtol=1e-5, atol=0)
    with pytest.raises(CheckError, match="read_host_loss"):
        two_terms()(replace(own, base_loss=loss))


def test_a_loss_that_does_not_depend_on_the_output():
    gain, pred, _ = step()
    for output, loss in ((pred, gain * 2), (pred.detach(), F.mse_loss(pred, pred * 0)), (pred, torch.tensor(1.0))):
        with pytest.raises(CheckError, match="does not depend"):
            gradient_at(output, loss)


def test_no_error_at_all_has_no_weights():
    _, pred, _ = step()
    found = apart(F.mse_loss(pred, pred.detach()), pred, pred.detach())
    assert found.weights.tolist() == [0.0, 0.0, 0.0]


def test_one_image_of_another_form_is_not_hidden_by_a_heavy_one():
    _, pred, target = step(2)
    square = (pred - target).square()
    loss = (1e4 * square[0].mean() + (square[1] * torch.linspace(0, 1, 8)).mean()) / 2
    with pytest.raises(CheckError, match="is not the squared error of each image"):
        apart(loss, pred, target)


def test_weights_that_overflow_half_precision():
    _, pred, target = step(dtype=torch.float16)
    found = apart(1e5 * F.mse_loss(pred.float(), target.float()), pred, target)
    torch.testing.assert_close(found.weights, torch.full((3,), 1e5), rtol=2e-2, atol=0)


def test_a_loss_that_is_not_finite_gives_finite_weights():
    _, pred, target = step()
    found = apart(F.mse_loss(pred, target) * float("nan"), pred, target)
    assert found.weights.tolist() == [0.0, 0.0, 0.0]
