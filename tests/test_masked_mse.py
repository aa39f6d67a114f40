"""Masked MSE: the plain loss where people are, and nothing elsewhere."""

from dataclasses import replace

import pytest
import torch
from make_step import make_step

from mldm_plugin.hooks.masked_mse import MaskedMSE


def step(mask, pred=None, target=None):
    """Pictures of 64 pixels, latents of 8."""
    g = torch.Generator().manual_seed(0)
    pred = torch.randn(len(mask), 4, 8, 8, generator=g).requires_grad_() if pred is None else pred
    target = torch.randn(len(mask), 4, 8, 8, generator=g) if target is None else target
    made = make_step((50,) * len(mask), size=64)
    return replace(made, model_pred=pred, target=target, person_mask=mask)


def test_where_people_are_everywhere_it_is_the_plain_loss():
    given = step(torch.full((2, 1, 64, 64), 3, dtype=torch.uint8))
    plain = (given.model_pred - given.target).square().mean((1, 2, 3))
    torch.testing.assert_close(MaskedMSE()(given), plain)


def test_nothing_outside_the_mask_is_seen_and_half_a_pixel_counts_half():
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    mask[..., 16:32, 8:12] = 1  # latents of rows 2 and 3 in column 1, each by half
    given = step(mask)
    error = (given.model_pred - given.target).square().mean(1)[0]
    [value] = MaskedMSE()(given)
    torch.testing.assert_close(value, (error[2, 1] + error[3, 1]) / 2)
    [gradient] = torch.autograd.grad(value, given.model_pred)
    assert gradient[..., 2:4, 1].abs().min() > 0
    gradient[..., 2:4, 1] = 0
    assert not gradient.any()


@pytest.mark.parametrize("scale", [1, 4])
def test_a_small_person_counts_as_much_as_a_large_one(scale):
    """The same error on every pixel of the person gives the same value, whatever the person's size."""
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    mask[..., : 16 * scale, : 16 * scale] = 1
    pred = torch.zeros(1, 4, 8, 8)
    pred[..., : 2 * scale, : 2 * scale] = 0.5
    [value] = MaskedMSE()(step(mask, pred, torch.zeros(1, 4, 8, 8)))
    assert value.item() == pytest.approx(0.25)
