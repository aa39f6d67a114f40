"""Masked MSE: the plain loss where people, faces or hands are and nothing elsewhere, or the other way round."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from make_step import make_stack, make_step

from mldm_plugin.engine.term import Term
from mldm_plugin.errors import DataError, LossError
from mldm_plugin.hooks.masked_mse import MaskedMSE, hand_boxes, in_boxes, masked_error


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


# Faces, hands, everything but them, and what is divided by


def with_people(pred=None, **fields):
    """Two images of 64 pixels with a face in the left and two in the right half, and an arm."""
    given = step(torch.ones(2, 1, 64, 64, dtype=torch.uint8), pred)
    arm = torch.zeros(1, 17, 3)
    arm[0, 7], arm[0, 9] = torch.tensor([8.0, 32, 2]), torch.tensor([8.0, 42, 1])
    boxes = [torch.tensor([[0.0, 0, 16, 24]]), torch.tensor([[32.0, 0, 64, 8], [32, 0, 40, 64]])]
    return replace(given, face_boxes=boxes, keypoints=[arm, torch.zeros(0, 17, 3)], **fields)


def test_by_hand_in_each_normalisation():
    error = torch.tensor([[[[4.0, 8.0]]], [[[1.0, 3.0]]], [[[5.0, 7.0]]]])
    cover = torch.tensor([[[[0.5, 0.0]]], [[[1.0, 0.5]]], [[[0.0, 0.0]]]])
    for mode, expected in (
        ("area", [4, 2.5 / 1.5, 0]),
        ("batch", [2 / (2 / 3), 2.5 / (2 / 3), 0]),
        ("none", [1, 1.25, 0]),
    ):
        torch.testing.assert_close(masked_error(error, cover, mode), torch.tensor(expected, dtype=torch.float32))
    everything = masked_error(error, cover, "batch").mean()  # all masked pixels of the batch alike
    assert everything.item() == pytest.approx((error * cover).sum().item() / cover.sum().item())


@pytest.mark.parametrize("mode", ["area", "batch", "none"])
def test_gradcheck_equal_and_empty(mode):
    g = torch.Generator().manual_seed(0)
    error = torch.rand(2, 1, 3, 3, generator=g, dtype=torch.float64, requires_grad=True)
    cover = torch.rand(2, 1, 3, 3, generator=g, dtype=torch.float64)
    cover[1] = 0
    assert torch.autograd.gradcheck(lambda e: masked_error(e, cover, mode), error)
    value = masked_error(error, cover, mode)
    assert value[1] == 0
    assert torch.autograd.grad(value.sum(), error)[0][1].abs().max() == 0
    given = with_people()
    given = replace(given, target=given.model_pred.detach().clone())
    for of in ("people", "faces", "hands"):
        equal = MaskedMSE(of=of, normalise=mode)(given)
        assert equal.tolist() == [0, 0]
        assert torch.isfinite(torch.autograd.grad(equal.sum(), given.model_pred)[0]).all()


@pytest.mark.parametrize("of", ["faces", "hands"])
@pytest.mark.parametrize("part", ["inside", "outside"])
def test_what_is_seen_of_faces_and_hands(of, part):
    """The hand: its centre 3.3 px beyond the wrist at (8, 42), its side 15, so x from 0.5 to 15.5, y 37.8 to 52.8."""
    given = with_people()
    gradient = torch.autograd.grad(MaskedMSE(of=of, part=part)(given).sum(), given.model_pred)[0].abs().sum(1)
    seen = torch.zeros(2, 8, 8, dtype=torch.bool)
    whole = seen.clone()  # latent pixels that are covered by all of them, so that the other part does not see them
    if of == "faces":
        seen[0, :3, :2] = seen[1, :1, 4:] = seen[1, :, 4:5] = True
        whole = seen.clone()
    else:
        seen[0, 4:7, :2] = True
        whole[0, 5, 0] = True
    expected = seen if part == "inside" else ~whole
    assert torch.equal(gradient > 0, expected)


def test_hands_follow_openpose():
    arm = torch.zeros(1, 17, 3)
    arm[0, 6], arm[0, 8], arm[0, 10] = (torch.tensor(p) for p in ([0.0, 0, 2], [0.0, 40, 2], [0.0, 60, 1]))
    [box] = hand_boxes(arm)
    torch.testing.assert_close(box, torch.tensor([-27.0, 66.6 - 27, 27, 66.6 + 27]))  # 0.9 · 40 is longer than 20
    arm[0, 6, 2] = 0
    torch.testing.assert_close(hand_boxes(arm)[0], torch.tensor([-15.0, 51.6, 15, 81.6]))
    arm[0, 8, 2] = 0
    assert hand_boxes(arm).shape == (0, 4)


def test_boxes_grow_about_their_middle():
    assert in_boxes(torch.tensor([[2.0, 2, 4, 4]]), 2.0, 8, 8).sum() == 16
    assert in_boxes(torch.zeros(0, 4), 1.0, 8, 8).sum() == 0


@settings(max_examples=25, deadline=None)
@drawn(st.lists(st.tuples(*[st.floats(0, 16)] * 4), max_size=3), st.floats(0.2, 3))
def test_inside_and_outside_are_the_whole(corners, grow):
    boxes = torch.tensor([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners]).reshape(-1, 4)
    error = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    cover = torch.nn.functional.interpolate(in_boxes(boxes, grow, 16, 16)[None].float(), (4, 4), mode="area")
    parts = masked_error(error, cover, "none") + masked_error(error, 1 - cover, "none")
    torch.testing.assert_close(parts, error.mean((1, 2, 3)))


@pytest.mark.parametrize("mode", ["area", "none"])
@pytest.mark.parametrize("of", ["people", "faces", "hands"])
def test_a_batch_equals_its_images(of, mode):
    given, loss = with_people(), MaskedMSE(of=of, normalise=mode)
    torch.testing.assert_close(loss(given), torch.cat([loss(given.select([i])) for i in range(2)]))


def test_everything_but_the_face_is_learnt_and_the_face_is_not():
    """Weight 1 in a convex mix: nothing of the plain loss is left where there is a face; elsewhere all of it."""
    given = make_step((50, 700))
    given = replace(given, face_boxes=[given.face_boxes[0][:1], torch.zeros(0, 4)], base_loss=None)
    stack = make_stack(Term("masked_mse", MaskedMSE(of="faces", part="outside"), 1.0, None), decoder=None)
    report = stack(given)
    gradient = torch.autograd.grad(report.loss, given.model_pred)[0]
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[1:6, 1:5] = True  # the box is 4 to 20 and 4 to 24 of 32 pixels
    assert not gradient[0][:, inside].any()
    assert (gradient[0][:, ~inside] != 0).all()
    plain = torch.autograd.grad(torch.nn.functional.mse_loss(given.model_pred, given.target), given.model_pred)[0]
    torch.testing.assert_close(gradient[1], plain[1])
    assert stack.needs == {"face_boxes"}


def test_a_frame_of_unknown_size_is_refused():
    with pytest.raises(DataError, match="masked_mse of faces needs pixel_values or person_mask"):
        MaskedMSE(of="faces")(replace(with_people(), pixel_values=None, person_mask=None))


@pytest.mark.parametrize("part", ["inside", "outside"])
def test_an_image_without_an_arm_is_left_to_the_plain_loss(part):
    """Three images with keypoints: an arm, a nose alone, and an arm whose hand lies beyond the picture."""
    given = make_step((50, 50, 50))
    people = torch.zeros(3, 1, 17, 3)
    people[0, 0, 7], people[0, 0, 9] = torch.tensor([8.0, 8, 2]), torch.tensor([8.0, 18, 2])
    people[1, 0, 0] = torch.tensor([16.0, 4, 2])
    people[2, 0, 7], people[2, 0, 9] = torch.tensor([20.0, 1, 2]), torch.tensor([31.0, 1, 2])
    people[2, 0, [7, 9], 0] += torch.tensor([0.0, 24])
    given = replace(given, keypoints=list(people), base_loss=None)
    stack = make_stack(Term("masked_mse", MaskedMSE(of="hands", part=part), 0.5, None), decoder=None)
    report = stack(given)
    assert report.terms["masked_mse"].rows == [0]
    error = (given.model_pred - given.target).square().mean((1, 2, 3))
    own = MaskedMSE(of="hands", part=part)(given.select([0]))[0]
    torch.testing.assert_close(report.loss, (0.5 * own + 0.5 * error[0] + error[1] + error[2]) / 3)


def test_a_loss_may_say_which_images_have_what_it_looks_at():
    class EverySecond:
        needs = frozenset()

        def has(self, step):
            return torch.arange(len(step)) % 2 == 1

        def __call__(self, step):
            return step.model_pred.square().mean((1, 2, 3))

    stack = make_stack(Term("own", EverySecond(), 0.5, None), decoder=None)
    assert stack(make_step((50, 20, 900, 10))).terms["own"].rows == [1, 3]
    EverySecond.has = lambda self, step: [True]
    with pytest.raises(LossError, match="gave 1 values for 4 images"):
        stack(make_step((50, 20, 900, 10)))
