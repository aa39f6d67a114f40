"""Gated images in groups, each group's gradient taken at once: the same numbers from the memory of one group."""

from dataclasses import replace

import pytest
import torch
from make_step import make_step
from test_stack import FaceLoss, LatentLoss, PictureLoss, make_stack, two_terms

from mldm_plugin.decode.pixel_memory import PixelMemory
from mldm_plugin.engine.early_backward import with_gradient
from mldm_plugin.engine.term import Term
from mldm_plugin.perceptual.frozen import Frozen
from mldm_plugin.planning.tensor_memory import TensorMemory

TIMESTEPS = (50, 20, 900, 80, 3)


def loss_and_gradient(stack, step):
    report = stack(replace(step, base_loss=None))
    return report.loss.detach(), torch.autograd.grad(report.loss, step.model_pred)[0]


def decoded_in(stack):
    """The sizes of the decodes of a stack from here on."""
    sizes, original = [], stack.decoder._decode
    stack.decoder._decode = lambda latents: sizes.append(len(latents)) or original(latents)
    return sizes


def test_one_at_a_time_gives_the_same_loss_and_gradient_as_all_at_once():
    step = make_step(TIMESTEPS)
    step = replace(step, face_boxes=[b if i != 1 else torch.empty(0, 4) for i, b in enumerate(step.face_boxes)])
    terms = [Term("picture", PictureLoss(), 0.2), Term("face", FaceLoss(), 0.4, 60), Term("latent", LatentLoss(), 0.1)]
    together, alone = make_stack(*terms), make_stack(*terms, pixel_memory_gb=1e-6)
    for stack in (together, alone):
        stack(step)  # the start-up proof
    expected_sizes, sizes = decoded_in(together), decoded_in(alone)
    expected, found = loss_and_gradient(together, step), loss_and_gradient(alone, step)
    assert (expected_sizes, sizes) == ([4], [1, 1, 1, 1])
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-8)


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


def test_memory_is_that_of_one_group_however_many_images_are_gated():
    alone, together = (two_terms(pixel_memory_gb=gb) for gb in (1e-6, 1.0))
    few, many = make_step((50, 900, 900, 900)), make_step((50, 50, 50, 50))
    for stack in (alone, together):
        for step in (few, many):
            stack(replace(step, model_pred=step.model_pred.detach().requires_grad_(), base_loss=None))
            stack._checks_left = 0
    assert peak(alone, many)[0] < 1.3 * peak(alone, few)[0]
    assert peak(together, many)[0] > 2.5 * peak(together, few)[0]
    fewer = peak(two := two_terms(), few)[0]
    assert peak(two, many)[1] < 0.1 * fewer  # nothing of the decode is kept until the host's backward pass


def test_a_budget_decides_on_groups_and_on_checkpointing():
    step = make_step((50, 50, 50, 50))
    lines = []
    two_terms(announce=lines.append)(step)
    per_picture = two_terms_memory(step)
    for budget, sizes, checkpointing in (
        (4.5 * per_picture, [4], False),
        (2.5 * per_picture, [2, 2], False),
        (1.1 * per_picture, [1, 1, 1, 1], False),
        (0.95 * per_picture, [1, 1, 1, 1], True),
    ):
        stack = two_terms(pixel_memory_gb=budget / 1e9, announce=lines.append)
        stack.prove(step)
        found = decoded_in(stack)
        stack(step)
        assert (found[-len(sizes) :], stack.decoder.checkpointing) == (sizes, checkpointing), budget
        assert peak_of_pixels(stack, step) < 1.1 * budget
    assert "MB a picture (decoder" in lines[-1]
    assert "(checkpointed)" in lines[-1]
    two_terms(pixel_memory_gb=1e-6, announce=lines.append)(step)
    assert "warning: memory: " in lines[-1]


def two_terms_memory(step):
    stack = two_terms()
    stack.prove(step)
    return stack.pixel_path.memory.of_picture(32 * 32, 2)


def peak_of_pixels(stack, step):
    with torch.no_grad():
        plain = replace(step, model_pred=step.model_pred.detach().requires_grad_(), base_loss=None)
    with TensorMemory() as memory:
        stack(plain)
    return memory.peak


def test_pictures_with_many_faces_count_for_more():
    memory = PixelMemory(budget_gb=1.0)
    memory.learn("face", decoder=200_000_000, kept=400_000_000, peak=500_000_000, faces=2, pixels=1000)
    memory.learn("lpips", decoder=200_000_000, kept=250_000_000, peak=280_000_000, faces=None, pixels=1000)
    assert memory.of_picture(1000, 3) == 650_000_000
    assert memory.of_picture(2000, 1) == 800_000_000
    step = make_step((50,) * 4)
    faces = [torch.zeros(k, 4) for k in (0, 1, 9, 0)]
    assert list(memory.groups(replace(step, face_boxes=faces), [0, 1, 2, 3], 1000)) == [[0, 1], [2], [3]]
    assert list(memory.groups(step, [], 1000)) == []
    assert list(memory.groups(step, [0, 1], 1000)) == [[0], [1]]  # two faces each, 550 MB
    assert list(memory.groups(step, [0, 1], 1000, shares=[1.0, 0.1])) == [[0, 1]]
    assert memory.of_picture(1000, 2, 0.1) == pytest.approx(370_000_000)  # what passes by may be a whole decode


def test_bfloat16_where_the_host_computes_in_half_precision_and_never_float16():
    step = make_step((50, 20))
    terms = lambda: (Term("picture", PictureLoss(), 0.2),)  # noqa: E731
    exact = loss_and_gradient(make_stack(*terms()), step)
    for dtype, precision, expected in (
        (torch.float32, "auto", torch.float32),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.float16, "auto", torch.bfloat16),
        (torch.float16, "float32", torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
    ):
        lines = []
        stack = make_stack(*terms(), precision=precision, announce=lines.append)
        seen = []
        stack.decoder._vae.decoder.conv_out.register_forward_hook(lambda m, i, out, seen=seen: seen.append(out.dtype))
        # accelerate hands the output of a prepared network over in float32, whatever it computed in
        half = replace(step, latents=step.latents.to(dtype))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            stack.prove(half)
            seen.clear()
            value, gradient = loss_and_gradient(stack, half)
        assert set(seen) == {expected}
        assert value.dtype == torch.float32
        assert torch.cosine_similarity(gradient.float().flatten(), exact[1].flatten(), dim=0) > 0.99
        assert ("decoding by bfloat16: cosine" in lines[0]) == (expected == torch.bfloat16)


def test_what_a_later_picture_takes_is_judged_too(caplog):
    """The start-up picture is small; a larger one of a later bucket does not fit any more."""
    stack = two_terms(pixel_memory_gb=1.5 * two_terms_memory(make_step((50,))) / 1e9)
    stack(make_step((50,)))
    assert not stack.decoder.checkpointing
    stack(make_step((50,), size=64, latent_size=16))
    assert stack.decoder.checkpointing
    assert "a picture of 64 x 64 takes more than pixel_memory_gb" in caplog.text


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

    original = stack.decoder._decode
    stack.decoder._decode = lambda latents: original(BadForTheFirst.apply(latents) if len(latents) == 2 else latents)
    report = stack(replace(step, base_loss=None))
    assert report.terms["picture"].weight.tolist() == pytest.approx([0, 0.2])
    assert not report.terms["picture"].gradient_finite
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


def test_a_frozen_network_returns_float32_from_bfloat16():
    from mldm_plugin.perceptual.frozen import in_bfloat16

    network = Frozen(torch.nn.Conv2d(3, 4, 3))
    picture = torch.randn(1, 3, 8, 8, requires_grad=True)
    exact = network(picture)
    with in_bfloat16():
        rounded = network(picture)
        with in_bfloat16(False):
            assert torch.equal(network(picture), exact)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05
    assert network(picture.double()).dtype == torch.float64
    assert Frozen(torch.nn.Linear(8, 3))(torch.rand(2, 8)).shape == (2, 3)
    assert Frozen(torch.nn.Conv3d(1, 2, 1))(torch.rand(1, 1, 2, 2, 2)).shape == (1, 2, 2, 2, 2)
