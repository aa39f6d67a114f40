"""Gated images in groups, each group's gradient taken at once: the same numbers from the memory of one group."""

from dataclasses import replace

import pytest
import torch
from make_step import FaceLoss, LatentLoss, PictureLoss, loss_and_gradient, make_stack, make_step, two_terms

from mldm_plugin.engine.term import Term
from mldm_plugin.perceptual.known_gradient import with_gradient
from mldm_plugin.planning.tensor_memory import TensorMemory

TIMESTEPS = (50, 20, 900, 80, 3)


def decoded_in(stack):
    """The sizes of the decodes of a stack from here on."""
    sizes, original = [], stack.decoder.vae.decode
    stack.decoder.vae.decode = lambda z, **options: sizes.append(len(z)) or original(z, **options)
    return sizes


def test_one_at_a_time_gives_the_same_loss_and_gradient_as_all_at_once():
    step = make_step(TIMESTEPS)
    step = replace(step, face_boxes=[b if i != 1 else torch.empty(0, 4) for i, b in enumerate(step.face_boxes)])
    terms = [Term("picture", PictureLoss(), 0.2), Term("face", FaceLoss(), 0.4, 60), Term("latent", LatentLoss(), 0.1)]
    together, alone, pairs = (make_stack(*terms, decode_batch=n) for n in (None, 1, 3))
    for stack in (together, alone, pairs):
        stack.prove(step)
        stack.start_up = None
    expected_sizes, sizes, others = decoded_in(together), decoded_in(alone), decoded_in(pairs)
    expected = loss_and_gradient(together, step)
    for found in (loss_and_gradient(alone, step), loss_and_gradient(pairs, step)):
        torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-8)
    assert (expected_sizes, sizes, others) == ([4], [1, 1, 1, 1], [3, 1])


def test_the_clean_estimate_is_computed_of_gated_images_alone(monkeypatch):
    step = make_step(TIMESTEPS)
    stack = make_stack(Term("picture", PictureLoss(), 0.2), Term("latent", LatentLoss(), 0.1, 10), decode_batch=2)
    stack.prove(step)
    stack.start_up = None
    estimated, original = [], stack.schedule.pred_latents
    monkeypatch.setattr(
        stack.schedule, "pred_latents", lambda step: estimated.append(step.timesteps.tolist()) or original(step)
    )
    stack(make_step((900, 800)))
    assert estimated == []
    stack(step)
    assert estimated == [[50, 20], [80, 3], [3]]


def test_so_many_pictures_share_a_decode_as_have_the_pixels_of_one_of_512():
    """The rule that is printed, without decoding anything."""
    lines = []
    for side, together in ((64, 64), (256, 4), (257 // 8 * 8 + 8, 3), (512, 1), (1024, 1)):
        step = make_step((50,), size=side, latent_size=side // 4)
        assert two_terms().pictures.together(step) == together
    assert two_terms(decode_batch=2).pictures.together(make_step((50,), size=1024, latent_size=256)) == 2
    two_terms(announce=lines.append)(make_step((50,)))
    assert "pictures of 32x32 are decoded 256 at a time in float32, activations kept" in lines[0]


def test_memory_is_that_of_one_group_however_many_images_are_gated():
    alone, together = (two_terms(decode_batch=n) for n in (1, 4))
    few, many = make_step((50, 900, 900, 900)), make_step((50, 50, 50, 50))
    for stack in (alone, together):
        stack(few)
        stack.start_up = None
    assert peak(alone, many)[0] < 1.3 * peak(alone, few)[0]
    assert peak(together, many)[0] > 2.5 * peak(together, few)[0]
    assert peak(alone, many)[1] < 0.1 * peak(alone, few)[0]  # nothing of the decode waits for the host's backward pass


@pytest.mark.parametrize("upstream", [1.0, 65536.0])
def test_the_gradient_is_scaled_as_the_host_scales_its_loss(upstream):
    step = make_step((50, 20))
    stack = two_terms()
    (plain,) = torch.autograd.grad(stack(replace(step, base_loss=None)).loss, step.model_pred)
    (scaled,) = torch.autograd.grad(stack(replace(step, base_loss=None)).loss * upstream, step.model_pred)
    torch.testing.assert_close(scaled, plain * upstream)


def test_a_known_gradient_is_what_backward_gives():
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: with_gradient((weights * x).sum().detach(), x, weights), x)
    half = x.detach().bfloat16().requires_grad_()
    with_gradient(torch.tensor(1.0), half, weights.float()).backward()
    assert half.grad.dtype == torch.bfloat16


def peak(stack, step):
    with TensorMemory() as memory:
        report = stack(replace(step, base_loss=None))
        left = memory.live
        report.loss.backward()
    return memory.peak, left


def test_a_nan_of_the_decoders_own_backward_pass_stays_out_of_the_network():
    step = make_step((50, 20))
    stack = make_stack(Term("picture", PictureLoss(), 0.2))
    stack(step)

    class BadForTheFirst(torch.autograd.Function):
        @staticmethod
        def forward(ctx, latents):
            return latents.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.tensor([float("nan"), 1.0])[:, None, None, None]

    stack.start_up = None
    original = stack.decoder.vae.decode
    stack.decoder.vae.decode = lambda z, **options: original(BadForTheFirst.apply(z) if len(z) == 2 else z, **options)
    report = stack(replace(step, base_loss=None))
    assert report.terms["picture"].weight.tolist() == pytest.approx([0, 0.2])
    assert not report.terms["picture"].gradients_finite
    (gradient,) = torch.autograd.grad(report.loss, step.model_pred)
    (plain,) = torch.autograd.grad(torch.nn.functional.mse_loss(step.model_pred, step.target), step.model_pred)
    torch.testing.assert_close(gradient[0], plain[0])


def test_an_image_that_is_left_out_gives_the_network_nothing():
    """A loss whose gradient is NaN by the picture and finite by the latents: all of it is left out."""

    class Mixed(PictureLoss):
        bad = False

        def __call__(self, step):
            root = (step.pred_images * 0).square().flatten(1).sum(1).sqrt() if self.bad else 0
            return super().__call__(step) + root + step.pred_latents.abs().flatten(1).mean(1)

    loss = Mixed()
    stack = make_stack(Term("mixed", loss, 0.2), Term("face", FaceLoss(), 0.3))
    step = make_step((50, 20))
    stack(step)
    loss.bad = True
    value, gradient = loss_and_gradient(stack, step)
    expected = loss_and_gradient(make_stack(Term("face", FaceLoss(), 0.3)), step)
    torch.testing.assert_close((value, gradient), expected)


def test_without_a_gradient_to_train_none_is_computed():
    step = make_step((50, 50))
    stack = two_terms()
    stack(step)
    detached = replace(step, model_pred=step.model_pred.detach(), base_loss=None)
    with TensorMemory() as memory:
        stack(detached)
    with torch.no_grad(), TensorMemory() as without:
        stack(detached)
    assert memory.peak <= 1.05 * without.peak
