"""The two identities that spare the upsampled feature maps, against the literal computation."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mldm_plugin.perceptual.masked_distance import masked_squared_norm, masked_sum

sizes = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 30), st.integers(0, 30))


def literal_norm(difference, mask):
    up = F.interpolate(difference, size=mask.shape[-2:], mode="bilinear", align_corners=False)
    return torch.einsum("nkhw,nchw->nk", mask**2, up**2)


def literal_sum(maps, mask):
    up = F.interpolate(maps, size=mask.shape[-2:], mode="bilinear", align_corners=False)
    return (mask * up).sum(dim=(-2, -1))


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 3), st.integers(0, 2**31))
def test_identities_hold_for_any_size_and_soft_mask(size, people, seed):
    h, w, more_h, more_w = size
    g = torch.Generator().manual_seed(seed)
    d = torch.randn(2, 3, h, w, generator=g, dtype=torch.float64)
    m = torch.rand(2, people, h + more_h, w + more_w, generator=g, dtype=torch.float64)
    torch.testing.assert_close(masked_squared_norm(d, m), literal_norm(d, m), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(masked_sum(d[:, :1], m), literal_sum(d[:, :1], m), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(256, 16), (224, 14), (100, 12)])
def test_float32_is_within_1e_5_of_literal_values_and_gradients(size):
    H, h = size
    g = torch.Generator().manual_seed(1)
    d = torch.randn(1, 64, h, h, generator=g).requires_grad_()
    m = (torch.rand(1, 2, H, H, generator=g) > 0.5).float()
    ours, theirs = masked_squared_norm(d, m), literal_norm(d, m)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    mine, his = torch.autograd.grad(ours.sum(), d)[0], torch.autograd.grad(theirs.sum(), d)[0]
    assert (mine - his).norm() < 1e-5 * his.norm()


def test_gradcheck():
    g = torch.Generator().manual_seed(2)
    d = torch.randn(1, 2, 3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    m = torch.rand(1, 2, 7, 9, generator=g, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: masked_squared_norm(x, m), d)
    assert torch.autograd.gradcheck(lambda x: masked_sum(x, m), d[:, :1].detach().requires_grad_())


def test_no_upsampled_map_is_built(monkeypatch):
    """The largest tensor that either needs has the size of the mask or of the features."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    d, m = torch.randn(1, 64, 8, 8), torch.ones(1, 1, 64, 64)
    masked_squared_norm(d, m)  # the interpolation matrices are cached
    with Watch():
        masked_squared_norm(d, m)
        masked_sum(d[:, :1], m)
    assert largest == 64 * 8 * 8  # the upsampled map would have 64 * 64 * 64
