"""Keypoints loss: hands and bodies by hand-worked values, and the faults that published pose losses have."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from make_step import make_stack, make_step, pictures
from weights_entries import needs_weights

from mldm_plugin.engine.term import Term
from mldm_plugin.errors import CheckError, DataError
from mldm_plugin.hooks.keypoints import EXTENT, Keypoints, feature_distance, smallness
from mldm_plugin.perceptual.frozen import computing_in
from mldm_plugin.perceptual.limb_features import LIMB_NETWORKS, LimbFeatures, weight_files
from mldm_plugin.perceptual.limb_squares import body_squares, hand_squares

LEFT = (5, 7, 9)  # shoulder, elbow, wrist


def person(shoulder=(6.0, 4.0), elbow=(8.0, 8.0), wrist=(16.0, 16.0), seen=2.0):
    points = torch.zeros(1, 17, 3)
    for i, (x, y) in zip(LEFT, (shoulder, elbow, wrist), strict=True):
        points[0, i] = torch.tensor([x, y, seen])
    return points


NOBODY = torch.zeros(0, 17, 3)


def step_of(keypoints, pred=None, true=None, size=32):
    n = len(keypoints)
    return replace(
        make_step((50,) * n, size=size),
        keypoints=keypoints,
        pred_images=pictures(n, 1, size) if pred is None else pred,
        target_images=pictures(n, 2, size) if true is None else true,
    )


def small(**options):
    return Keypoints(weights="random", **{"smallest": 1, **options})


# The formula


def test_by_hand():
    """Two stages of two hands of two places: cosines 1 and 0.6, 0 and −1; 0.8 and 1, 1 and 1."""
    true = [torch.tensor([[1.0, 0.0], [1.0, 0.0]]).expand(2, 1, 2, 2), torch.tensor([[0.0, 2.0]]).expand(2, 1, 2, 2)]
    first = torch.tensor([[[[5.0, 0.0], [3.0, 4.0]]], [[[0.0, 1.0], [-2.0, 0.0]]]])
    last = torch.tensor([[[[3.0, 4.0], [0.0, 1.0]]], [[[0.0, 1.0], [0.0, 9.0]]]])
    found = feature_distance([first, last], true)
    torch.testing.assert_close(found, torch.tensor([(0.2 + 0.1) / 2, (1.5 + 0) / 2]))


def test_small_hands_weigh_more():
    sides = torch.tensor([16.0, 4.0])
    assert smallness(sides, picture=64, power=1).tolist() == [1, 4]
    assert smallness(sides, picture=64, power=0.5).tolist() == [1, 2]
    assert smallness(sides, picture=64, power=0).tolist() == [1, 1]


def test_a_picture_is_the_weighted_mean_of_its_hands():
    near, far = person(), person((20.0, 4.0), (21.0, 6.0), (24.0, 10.0))
    both = torch.cat([near, far])
    one, other = (small(smallness=0)(step_of([k]))[0] for k in (near, far))
    torch.testing.assert_close(small(smallness=0)(step_of([both]))[0], (one + other) / 2)
    a, b = smallness(hand_squares(both, EXTENT)[:, 2], 32, 0.5)
    assert b > a
    torch.testing.assert_close(small()(step_of([both]))[0], (a * one + b * other) / 2)
    hands, bodies = (small(of=of)(step_of([both])) for of in ("hands", "bodies"))
    torch.testing.assert_close(small(of="both")(step_of([both])), hands + bodies)


@pytest.mark.parametrize("of", ["hands", "bodies", "both"])
def test_equal_pictures_are_0(of):
    same = pictures(2, 1)
    assert small(of=of)(step_of([person(), person()], same, same)).tolist() == pytest.approx([0, 0], abs=1e-5)


def test_gradcheck():
    g = torch.Generator().manual_seed(0)
    pred, true = ([torch.randn(2, 3, 4, 5, generator=g, dtype=torch.float64) for _ in range(2)] for _ in range(2))
    pred = [p.requires_grad_() for p in pred]
    assert torch.autograd.gradcheck(lambda *p: feature_distance(p, true), pred)


@pytest.mark.parametrize("of", ["hands", "both"])
def test_gradcheck_of_the_whole_loss(of):
    pred, true = (pictures(2, seed, 12).double() for seed in (1, 2))
    arm = person((2.0, 2.0), (3.0, 4.0), (6.0, 7.0))
    loss = small(of=of)
    value = lambda p: loss(step_of([arm, arm], p, true, size=12))  # noqa: E731
    assert torch.autograd.gradcheck(value, pred.requires_grad_(), fast_mode=True)


# Where hands and bodies are


def test_a_hand_is_beyond_the_wrist_and_upright():
    right, up = person((0.0, 8.0), (4.0, 8.0), (10.0, 8.0)), person((8.0, 30.0), (8.0, 26.0), (8.0, 20.0))
    turned = hand_squares(torch.cat([right, up, person(seen=0)]), 2)
    torch.testing.assert_close(turned, torch.tensor([[11.98, 8, 12, torch.pi / 2], [8, 18.02, 12, 0]]))


def test_a_body_is_where_its_keypoints_are():
    people = torch.cat([person(), person(seen=0)])
    people[0, 0] = torch.tensor([5.0, 1.0, 1])  # a nose that is hidden counts
    assert body_squares(people).tolist() == [[10.5, 8.5, 18.75, 0]]
    people[0, 5, 2] = 0  # two points below the head are no pose
    assert body_squares(people).shape == (0, 4)


def test_nothing_outside_the_squares_has_gradient():
    pred = pictures(1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(small()(step_of([person()], pred)).sum(), pred)
    [[x, y, side, _]] = hand_squares(person(), EXTENT).tolist()
    rows, columns = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(32) + 0.5, indexing="ij")
    away = (rows - y).hypot(columns - x)
    reach = gradient[0].abs().sum(0) > 0
    assert reach[away < side / 2 - 1].float().mean() > 0.9
    assert not reach[away > side / 2**0.5 + 1.5].any()


def test_images_without_a_hand_are_0_and_left_to_the_plain_loss():
    tiny = person((1.0, 1.0), (1.0, 2.0), (1.0, 3.0))
    pred = pictures(4, 1).requires_grad_()
    loss = Keypoints(weights="random", smallest=8)
    step = step_of([NOBODY, person(seen=0), tiny, person()], pred)
    value = loss(step)
    (gradient,) = torch.autograd.grad(value.sum(), pred)
    assert loss.has(step) == [False, False, False, True]
    assert value[:3].tolist() == [0, 0, 0]
    assert value[3] > 0
    assert gradient.isfinite().all()
    assert gradient[:3].abs().sum() == 0
    assert small(of="bodies").has(step) == [False, False, True, True]


def test_a_hand_whose_middle_is_outside_the_picture_is_left_to_the_plain_loss():
    """Its wrist is seen, the hand is cut off: only the picture's edge, repeated, could be compared."""
    cut_off = person((10.0, 4.0), (20.0, 16.0), (31.0, 16.0))
    pred = pictures(2, 1).requires_grad_()
    step, loss = step_of([cut_off, torch.cat([cut_off, person()])], pred), small(smallness=0)
    value = loss(step)
    assert loss.has(step) == [False, True]
    assert value[0] == 0
    torch.testing.assert_close(value[1], loss(step_of([NOBODY, person()]))[1])
    assert torch.autograd.grad(value[0], pred)[0].abs().sum() == 0
    unseen = replace(step, pixel_values=None, person_mask=None)  # latents that were cached alone
    assert loss.has(unseen) == [True, True]


def test_bodies_of_a_few_pixels_are_left_out_too():
    far = person((1.0, 1.0), (1.0, 2.0), (1.0, 3.0))
    assert Keypoints(weights="random", of="bodies").has(step_of([far, person()])) == [False, True]


def test_no_image_with_a_hand_is_0_with_finite_gradient():
    pred = pictures(2, 1).requires_grad_()
    value = small(of="both")(step_of([NOBODY, person(seen=0)], pred))
    assert value.tolist() == [0, 0]
    assert torch.autograd.grad(value.sum(), pred)[0].abs().sum() == 0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-40, 70)] * 6), max_size=3), st.sampled_from(["hands", "bodies", "both"]))
def test_a_batch_is_its_images_wherever_arms_lie(arms, of):
    people = [person(*(a[i : i + 2] for i in (0, 2, 4))) for a in arms]
    step, loss = step_of([torch.cat([NOBODY, *people]), person()]), small(of=of)
    whole = loss(step)
    alone = [loss(step.select([i]))[0] for i in range(2)]
    assert whole.isfinite().all()
    assert torch.allclose(whole, torch.stack(alone), rtol=1e-4, atol=1e-6)


def test_what_is_missing_is_said():
    with pytest.raises(DataError, match="keypoints needs pred_images, target_images and keypoints"):
        small()(make_step((50,)))


def test_weights_are_those_of_the_parts():
    for of, names in (("hands", ["mediapipe_hand"]), ("bodies", ["mediapipe_pose"]), ("both", list(LIMB_NETWORKS))):
        assert weight_files({"of": of, "weights": "pretrained"}) == names
        assert weight_files({"of": of, "weights": "random"}) == []


# That it trains, and that losses like it which train nothing are stopped


def test_it_is_proved_and_trains():
    told = []
    stack = make_stack(Term("keypoints", small(of="both"), 0.5, None), announce=told.append)
    step = replace(make_step((50, 500, 50)), keypoints=[person(), person(), NOBODY])
    report = stack(step)
    report.loss.backward()
    assert "reaches the network" in told[0]
    assert report.terms["keypoints"].gated == 2
    assert step.model_pred.grad[:2].flatten(1).abs().sum(1).gt(0).all()


class Decoded(Keypoints):
    """GRPose's way: heat maps decoded under no_grad, through 8 bits and numpy, to points whose distance is the loss."""

    def __call__(self, step):
        [features], boxes = self.features.values(), [hand_squares(people) for people in step.keypoints]

        def points(images):
            heat = features(images, boxes)[-1].flatten(1)
            heat = ((heat - heat.min()) * 100).to(torch.uint8).numpy()
            return torch.from_numpy(heat.argmax(1)).float()

        with torch.no_grad():
            return (points(step.pred_images) - points(step.target_images)).abs()


def test_a_pose_loss_decoded_without_gradient_is_stopped():
    stack = make_stack(Term("keypoints", Decoded(weights="random"), 0.5, None))
    with pytest.raises(CheckError, match="'keypoints' would train nothing.*no_grad, detach, item, numpy or an integer"):
        stack(replace(make_step((50,)), keypoints=[person()]))


class OfTheFirst(Keypoints):
    """WithAnyone's gate: whether the loss applies is asked of the first image, for all of them."""

    def __call__(self, step):
        return super().__call__(step) * (step.timesteps[0] < 80)


def test_a_gate_by_the_first_images_timestep_is_stopped():
    stack = make_stack(Term("keypoints", OfTheFirst(weights="random"), 0.5, 100))
    with pytest.raises(CheckError, match=r"'keypoints' mixes images.*look for timesteps\[0\]"):
        stack(replace(make_step((50,)), keypoints=[person()]))


# With the networks themselves


@needs_weights(*LIMB_NETWORKS)
@pytest.mark.parametrize("of", ["hands", "bodies"])
def test_the_networks_see_that_a_hand_is_gone(of):
    true = torch.full((1, 3, 128, 128), -0.2)
    true[..., 20:100, 50:60] = 0.6  # a body, an arm and a hand of three fingers
    true[..., 40:46, 60:90] = 0.6
    for row in (36, 42, 48):
        true[..., row : row + 3, 90:106] = 0.6
    gone = true.clone()
    gone[..., 30:56, 90:] = -0.2
    arm = person((56.0, 42.0), (72.0, 43.0), (90.0, 43.0))
    noise = 0.05 * torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    right, gone = true + noise, (gone + noise).requires_grad_()
    loss = Keypoints(of=of)
    value = [loss(step_of([arm], p, true, size=128)) for p in (right, gone)]
    assert 0 < value[0] < value[1]
    (gradient,) = torch.autograd.grad(value[1].sum(), gone)
    assert gradient.isfinite().all()
    assert gradient[..., 30:56, 90:106].abs().max() > 0


@needs_weights(*LIMB_NETWORKS)
@pytest.mark.parametrize("of", ["hands", "bodies"])
def test_beside_a_decoder_in_bfloat16_its_gradient_is_that_of_float32(of):
    """In bfloat16 rounding would be most of it: their cosine is 0.4 to 0.8 here."""
    true, other = (F.interpolate(pictures(1, seed, side), (64, 64), mode="bicubic") for seed, side in ((1, 8), (2, 16)))
    loss, gradients = Keypoints(of=of), []
    for dtype in (torch.float32, torch.bfloat16):
        pred = (true + 0.05 * other).requires_grad_()
        with computing_in(dtype):
            value = loss(step_of([person((20.0, 20.0), (24.0, 28.0), (34.0, 34.0))], pred, true, size=64))
        gradients += torch.autograd.grad(value.sum(), pred)
    assert F.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0) > 0.999


@needs_weights(*LIMB_NETWORKS)
@pytest.mark.parametrize("name", LIMB_NETWORKS)
def test_stages_are_the_networks_own(name):
    found = LimbFeatures(name, "pretrained")
    stages = found(pictures(1, 1, 64), [torch.tensor([[32.0, 32, 64, 0.5]])])
    sides = {"mediapipe_hand": [14, 14, 7], "mediapipe_pose": [32]}[name]
    assert [stage.shape[:3] for stage in stages] == [(1, side, side) for side in sides]
    assert found.frozen.network.size == (found.size,) * 2
    assert found.networks


@needs_weights(*LIMB_NETWORKS)
@pytest.mark.parametrize("name", LIMB_NETWORKS)
def test_the_networks_take_no_squares_at_all(name):
    """As `of: both` gives them for a body whose hands are not seen."""
    images = pictures(1, 1, 64).requires_grad_()
    stages = LimbFeatures(name, "pretrained")(images, [torch.zeros(0, 4)])
    assert all(len(stage) == 0 for stage in stages)
    (gradient,) = torch.autograd.grad(sum(stage.sum() for stage in stages), images)
    assert gradient.abs().sum() == 0
