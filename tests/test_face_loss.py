"""The face loss: its values, its gradient, and each fault of the released code it must not have."""

import doctest
from typing import get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_step import face_step, pictures
from torch import nn
from weights_entries import unreachable

from mldm_plugin.engine.step import DiffusionStep, clip_boxes
from mldm_plugin.errors import DataError, PresetError, WeightsError
from mldm_plugin.hooks import face
from mldm_plugin.hooks.face import Face, face_distance
from mldm_plugin.perceptual.face_crops import FaceCrop, crop_faces
from mldm_plugin.perceptual.face_networks import FACE_NETWORKS, FaceNetwork, vggface2_input
from mldm_plugin.planning.tensor_memory import TensorMemory

FORMS = ["spatial", "features"]


class Tiny(nn.Module):
    """A face network of five small stages."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(5))

    def forward(self, x):
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
            x = torch.tanh(x)
        return features


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    known = FaceNetwork(Tiny, FaceCrop(8, 1.3), lambda faces: faces, (0.3, 0.1, 0.2, 0.5, 0.4), ())
    monkeypatch.setitem(FACE_NETWORKS, "tiny", known)


def tiny_loss(**options):
    return Face(network="tiny", weights="random", **options)


ONE = [[8, 8, 20, 22]]
BOXES = [[[8, 8, 20, 22], [2, 3, 9, 9]], ONE, [[0, 4, 30, 30], [10, 10, 14, 14], [20, 0, 31, 12]]]


# The pure function


def test_values_by_hand():
    pred = [torch.tensor([[1.0, 3.0], [0.0, 0.0], [2.0, 2.0]]).view(3, 2, 1, 1), torch.ones(3, 1, 2, 2)]
    target = [torch.zeros(3, 2, 1, 1), torch.tensor([1.0, 0.5, 3.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)]
    # mean|Δ|: stage 1: 2, 0, 2; stage 2: 0, 0.5, 2. With α = 0.1, 10: faces 0.2, 5, 20.2.
    torch.testing.assert_close(face_distance(pred, target, [0.1, 10]), torch.tensor([0.2, 5.0, 20.2]))


def test_gradcheck_of_the_distance():
    generator = torch.Generator().manual_seed(0)
    pred = [torch.randn(3, 2, 2, 2, dtype=torch.float64, generator=generator).requires_grad_() for _ in "ab"]
    target = [torch.randn(3, 2, 2, 2, dtype=torch.float64, generator=generator) for _ in "ab"]
    assert torch.autograd.gradcheck(lambda *p: face_distance(p, target, [0.3, 2.0]), pred)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_of_the_whole_loss(form):
    pred = pictures(2, 1, size=9).double().requires_grad_()
    target = pictures(2, 2, size=9).double()
    loss = tiny_loss(form=form)
    boxes = [[[1, 1, 5, 7], [4, 4, 8, 8]], [[0, 0, 4, 3]]]
    assert torch.autograd.gradcheck(lambda p: loss(face_step(boxes, p, target)), pred, fast_mode=True)


def test_stages_and_weights_of_another_number_are_refused():
    with pytest.raises(ValueError, match="zip"):
        face_distance([torch.zeros(1, 1, 1, 1)], [torch.zeros(1, 1, 1, 1)], [1.0, 2.0])


# The loss


def test_docstring_examples():
    result = doctest.testmod(face)
    assert result.attempted > 0
    assert result.failed == 0


def test_registers_as_face():
    registered = {}
    face.register_losses(registered.__setitem__)
    assert registered == {"face": Face}
    options = get_type_hints(Face.__init__)
    assert set(options) == {"form", "network", "weights", "layer_weights", "max_faces", "return"}
    assert Face.needs == {"pred_images", "face_boxes"}


@pytest.mark.parametrize("network", ["vggface2_resnet50", "vggface2_inception"])
@pytest.mark.parametrize("form", FORMS)
def test_smoke(network, form):
    step = face_step([ONE, ONE])
    value = Face(form=form, network=network, weights="random")(step)
    assert value.shape == (2,)
    assert ((value > 0.001) & (value < 10)).all()
    value.sum().backward()
    assert torch.isfinite(step.pred_images.grad).all()
    assert step.pred_images.grad.abs().sum() > 0


def test_alphas_are_the_released_ones_and_can_be_changed():
    loss = Face(weights="random")
    assert loss.layer_weights == (0.1, 0.0025, 0.025, 0.05, 0.005)
    only_last = tiny_loss(layer_weights=(0, 0, 0, 0, 2.0))
    step = face_step([ONE])
    crops = [crop_faces(p, step.face_boxes, FaceCrop(8, 1.3)) for p in (step.pred_images, step.target_images)]
    pred, target = (only_last.features(c)[-1] for c in crops)
    torch.testing.assert_close(only_last(step)[0], 2 * (pred - target).abs().mean())


@pytest.mark.parametrize(
    "options",
    [
        {"layer_weights": (1.0, 1.0)},
        {"layer_weights": (0.0,) * 5},
        {"layer_weights": (1.0, 1.0, 1.0, 1.0, -1.0)},
        {"layer_weights": (1.0, 1.0, 1.0, 1.0, float("nan"))},
        {"max_faces": 0},
    ],
)
def test_bad_options(options):
    with pytest.raises(PresetError, match=next(iter(options))):
        tiny_loss(**options)


def test_missing_weights_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MLDM_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    unreachable(monkeypatch, "vggface2_resnet50")
    with pytest.raises(WeightsError, match=r"No such file.*resnet50_ft_weight\.pkl"):
        Face()


def test_a_step_without_pictures_is_refused():
    z = torch.zeros(1, 4, 4, 4)
    bare = DiffusionStep(latents=z, noise=z, noisy_latents=z, timesteps=torch.tensor([0]), model_pred=z, target=z)
    with pytest.raises(DataError, match="pred_images"):
        tiny_loss()(bare)


@pytest.mark.parametrize("form", FORMS)
def test_equal_pictures_give_0(form):
    same = pictures(2, 3)
    step = face_step([ONE, ONE], same.clone().requires_grad_(), same)
    value = tiny_loss(form=form)(step)
    assert value.tolist() == [0, 0]
    value.sum().backward()
    assert torch.isfinite(step.pred_images.grad).all()


@pytest.mark.parametrize("form", FORMS)
def test_parity_with_a_loop_over_images_faces_and_stages(form):
    loss, step = tiny_loss(form=form), face_step(BOXES)
    network = loss.features.frozen.network
    expected = []
    for pred, target, boxes in zip(step.pred_images, step.target_images, step.face_boxes, strict=True):
        values = []
        for x0, y0, x1, y1 in boxes.tolist():
            half = 1.3 * max(x1 - x0, y1 - y0) / 2
            cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
            square = torch.tensor([[cx - half, cy - half, cx + half, cy + half]])
            f, g = (network(crop_faces(x[None], [square], FaceCrop(8, 1.0))) for x in (pred, target))
            stages = zip((0.3, 0.1, 0.2, 0.5, 0.4), f, g, strict=True)
            values.append(sum(a * (p - t).abs().mean() for a, p, t in stages))
        expected.append(sum(values) / (len(values) if form == "spatial" else 1))
    torch.testing.assert_close(loss(step), torch.stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_equals_its_images(form):
    loss, step = tiny_loss(form=form), face_step(BOXES)
    (batch_gradient,) = torch.autograd.grad(loss(step).sum(), step.pred_images)
    for i in range(3):
        single = step.select([i])
        torch.testing.assert_close(loss(single)[0], loss(step)[i], rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(loss(single).sum(), step.pred_images)
        torch.testing.assert_close(gradient[i], batch_gradient[i], rtol=1e-5, atol=1e-6)


def test_a_batch_equals_its_images_in_the_published_network():
    loss = Face(weights="random")
    step = face_step([BOXES[0], ONE])
    batch = loss(step).detach()
    singles = torch.cat([loss(step.select([i])) for i in range(2)]).detach()
    torch.testing.assert_close(batch, singles, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_outside_the_extended_box_has_effect_or_gradient(form):
    loss, step = tiny_loss(form=form), face_step([[[12, 12, 20, 20]]])
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[9:23, 9:23] = True  # 16 ± 5.2, and the pixel that bilinear reading takes beside it
    changed = torch.where(inside, step.pred_images.detach(), 5.0).requires_grad_()
    value = loss(face_step([[[12, 12, 20, 20]]], changed, step.target_images))
    torch.testing.assert_close(value, loss(step))
    value.sum().backward()
    assert not changed.grad[..., ~inside].any()
    assert (changed.grad[..., 12:20, 12:20] != 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_defect_8_images_without_a_face(form):
    """The released test for `no face` crashed for batches, and padding gave crops of size 0."""
    loss = tiny_loss(form=form)
    padded = [[0, 0, 0, 0], *ONE, [0, 0, 0, 0]]
    boxes = [clip_boxes(torch.tensor(b, dtype=torch.float32), 32, 32).tolist() for b in (padded, [[0] * 4])]
    step = face_step([*boxes, []])
    value = loss(step)
    torch.testing.assert_close(value[0], loss(face_step([ONE, ONE, ONE]))[0])
    assert value[1:].tolist() == [0, 0]
    value.sum().backward()
    assert torch.isfinite(step.pred_images.grad).all()
    assert not step.pred_images.grad[1:].any()


def test_a_batch_without_any_face_is_0_with_a_gradient_and_calls_no_network():
    loss = tiny_loss()
    loss.features.frozen.network.forward = None
    step = face_step([[], []], pred=torch.full((2, 3, 32, 32), torch.inf, requires_grad=True))
    value = loss(step)
    assert value.tolist() == [0, 0]
    value.sum().backward()
    assert not step.pred_images.grad.any()


# Each defect of the released code that is this loss's affair


def test_defect_4_forehead_and_chin_of_a_tall_box_count():
    step = face_step([[[12, 2, 20, 30]]])
    tiny_loss()(step).sum().backward()
    gradient = step.pred_images.grad[0].abs().sum(0)
    assert (gradient[2:30, 12:20] > 0).all()


@pytest.mark.parametrize("faces", [3, 4, 6, 9])
def test_defect_5_many_faces_are_compared_in_pairs(faces):
    """`faces[:6]` of the list real + generated paired real faces with each other."""
    boxes = [[3.0 * i, 4, 3.0 * i + 3, 8] for i in range(faces)]
    step = face_step([boxes])
    loss = tiny_loss(form="features")
    singles = [tiny_loss()(face_step([[b]], step.pred_images, step.target_images)) for b in boxes]
    torch.testing.assert_close(loss(step)[0], torch.stack(singles).sum())
    loss(step).sum().backward()
    middles = step.pred_images.grad[0].abs().sum(0)[6, [3 * i + 1 for i in range(faces)]]
    assert (middles > 0).all()


def test_defect_5_a_cap_takes_the_largest_pairs_of_each_image():
    step = face_step(BOXES)
    capped = tiny_loss(max_faces=2)(step)
    kept = [BOXES[0], BOXES[1], [BOXES[2][0], BOXES[2][2]]]
    torch.testing.assert_close(capped, tiny_loss()(face_step(kept, step.pred_images, step.target_images)))


def test_defect_6_a_crowd_weighs_no_more_than_a_portrait():
    pred, target = pictures(1, 1).expand(2, -1, -1, -1), pictures(1, 2).expand(2, -1, -1, -1)
    step = face_step([ONE, ONE * 5], pred, target)
    one, five = tiny_loss()(step)
    torch.testing.assert_close(one, five)
    one, five = tiny_loss(form="features")(step)  # as eq. 1 has it
    torch.testing.assert_close(5 * one, five)


def test_defect_6_the_target_has_no_graph_and_each_branch_is_one_call():
    target = pictures(3, 2).requires_grad_()
    loss, step = tiny_loss(), face_step(BOXES, target=target)
    calls, features = [], loss.features.frozen.network.forward

    def spy(faces):
        calls.append((len(faces), torch.is_grad_enabled()))
        return features(faces)

    loss.features.frozen.network.forward = spy
    loss(step).sum().backward()
    assert sorted(calls) == [(6, False), (6, True)]
    assert target.grad is None


@pytest.mark.parametrize("form", FORMS)
def test_many_faces_take_the_memory_of_eight(form):
    """All at once they kept 82 MB each, 2.45 GB at 30."""

    def peak(faces):
        corners = torch.arange(faces)[:, None] % 20 + torch.tensor([0.0, 0.0, 12.0, 10.0])
        step = face_step([corners.tolist()])
        with TensorMemory() as memory:
            value = loss(step)
        return memory.peak, value, torch.autograd.grad(value.sum(), step.pred_images)[0]

    loss = Face(network="dlib_resnet", weights="random", form=form)
    few, many = peak(8), peak(24)
    assert many[0] < 1.3 * few[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(face, "FACES_TOGETHER", 100)
        together = peak(24)
    assert together[0] > 2 * many[0]
    torch.testing.assert_close(many[1], together[1])
    assert (many[2] - together[2]).norm() < 1e-3 * together[2].norm()  # rounding turns some ReLUs the other way


def test_defect_9_a_face_partly_outside_counts():
    boxes = clip_boxes(torch.tensor([[-10.0, 4, 8, 20], [25, 25, 50, 60]]), 32, 32).tolist()
    step = face_step([boxes])
    value = tiny_loss(form="features")(step)
    value.sum().backward()
    assert (step.pred_images.grad[0, :, 4:20, :8] != 0).all()
    assert (step.pred_images.grad[0, :, 25:, 25:] != 0).all()


def test_defect_11_saturated_pixels_keep_their_gradient():
    """Clamping to [-1, 1] would silence them."""
    step = face_step([ONE], pred=(pictures(1, 1) + 3).requires_grad_())
    tiny_loss()(step).sum().backward()
    assert (step.pred_images > 1).all()
    assert (step.pred_images.grad[0, :, 8:22, 8:20] != 0).all()


def test_defect_2_the_loss_changes_nothing_of_its_network():
    loss = Face(network="vggface2_inception", weights="random")
    network = loss.features.frozen.network
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.train()
    loss(face_step([ONE])).sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_defect_3_the_network_is_given_bgr_of_its_size():
    loss, step = Face(weights="random"), face_step([ONE])
    inputs = []
    loss.features.frozen.network.conv1.register_forward_hook(lambda m, args, out: inputs.append(args[0]))
    loss(step)
    assert [tuple(x.shape) for x in inputs] == [(1, 3, 224, 224)] * 2
    crops = crop_faces(step.pred_images, step.face_boxes)
    assert any(torch.equal(x, vggface2_input(crops)) for x in inputs)


def test_autocast_changes_nothing():
    loss, step = tiny_loss(), face_step(BOXES)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(step)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(step))


corner = st.floats(-40, 60, width=32)
side = st.floats(0, 60, width=32)
some_boxes = st.lists(st.tuples(corner, corner, side, side), max_size=4)


@settings(max_examples=40, deadline=None)
@given(per_image=st.lists(some_boxes, min_size=1, max_size=3), form=st.sampled_from(FORMS))
def test_any_boxes_give_finite_values_and_gradients(per_image, form):
    known = FaceNetwork(Tiny, FaceCrop(8, 1.3), lambda faces: faces, (0.3, 0.1, 0.2, 0.5, 0.4), ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FACE_NETWORKS, "tiny", known)
        loss = tiny_loss(form=form)
    raw = [torch.tensor([[x, y, x + w, y + h] for x, y, w, h in b]).reshape(-1, 4) for b in per_image]
    step = face_step([clip_boxes(b, 32, 32).tolist() for b in raw])
    value = loss(step)
    assert value.shape == (len(raw),)
    for boxes, v in zip(step.face_boxes, value.tolist(), strict=True):
        assert v > 0 if len(boxes) else v == 0
    value.sum().backward()
    assert torch.isfinite(step.pred_images.grad).all()
