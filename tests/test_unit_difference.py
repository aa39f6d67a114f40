"""LPIPS's squared difference: the formula, its gradient, places without features, and how little it keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mldm_plugin.perceptual.unit_difference import unit_normalise, weighted_square
from mldm_plugin.planning.tensor_memory import TensorMemory


def draw(n=2, channels=6, height=3, width=5, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    features, other = (torch.randn(n, channels, height, width, generator=g, dtype=dtype) for _ in range(2))
    weights = torch.rand(1, channels, 1, 1, generator=g, dtype=dtype)
    return features.requires_grad_(), unit_normalise(other), weights


def literal(features, target, weights):
    return (weights * (unit_normalise(features) - target) ** 2).sum(dim=1, keepdim=True)


@settings(deadline=None, max_examples=40)
@given(channels=st.integers(1, 9), n=st.integers(1, 3), seed=st.integers(0, 100), last=st.booleans())
def test_value_and_gradient_are_those_of_the_formula(channels, n, seed, last):
    features, target, weights = draw(n, channels, seed=seed)
    given_features = features.contiguous(memory_format=torch.channels_last) if last else features
    ours, theirs = weighted_square(given_features, target, weights), literal(features, target, weights)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(seed))
    (mine,) = torch.autograd.grad(ours, features, upstream)
    (his,) = torch.autograd.grad(theirs, features, upstream)
    torch.testing.assert_close(mine, his)


def test_gradcheck():
    features, target, weights = draw()
    assert torch.autograd.gradcheck(lambda f: weighted_square(f, target, weights), features)


def test_a_place_without_features_has_a_finite_gradient():
    features, target, weights = draw()
    dark = features.detach().clone()
    dark[0, :, 1, 2] = 0
    dark.requires_grad_()
    weighted_square(dark, target, weights).sum().backward()
    assert torch.isfinite(dark.grad).all()
    blank = torch.zeros(1, 6, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(unit_normalise(blank).sum(), blank)
    assert gradient.abs().max() == 1 / torch.tensor(1e-10)  # that of f/ε: the length itself has slope 0 there


def test_it_keeps_nothing_and_takes_less_than_the_formula():
    features, target, weights = draw(1, 64, 32, 32, dtype=torch.float32)
    size = features.nbytes
    taken = {}
    for function in (weighted_square, literal):
        with TensorMemory() as memory:
            out = function(features, target, weights)
            kept = memory.live
            out.sum().backward()
        taken[function] = (kept / size, memory.peak / size)
        features.grad = None
    assert taken[weighted_square][0] < 0.05  # the result; features and target were there before
    assert taken[literal][0] > 1
    assert taken[weighted_square][1] < 0.6 * taken[literal][1]


@pytest.mark.parametrize("wrong", [0, 2])
def test_nothing_flows_to_what_it_is_compared_with(wrong):
    inputs = list(draw())
    inputs[wrong] = inputs[wrong].detach().requires_grad_(wrong == 0)
    out = weighted_square(*inputs)
    assert out.requires_grad == (wrong == 0 or inputs[0].requires_grad)
