"""Masked LPIPS in both published forms."""

import copy
from dataclasses import replace

import lpips
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from make_step import make_step, people_mask

from mldm_plugin.hooks.masked_lpips import MaskedLPIPS, feature_distance, spatial_distance, split_people


@pytest.fixture(scope="module")
def spatial():
    return MaskedLPIPS(weights="random")


def variant(loss, **options):
    """The same network with other options, without building VGG16 again."""
    other = object.__new__(MaskedLPIPS)
    other.__dict__.update(loss.__dict__, **options)
    return other


@pytest.fixture(scope="module")
def features(spatial):
    return variant(spatial, form="features", people="each")


@pytest.fixture(scope="module")
def reference(spatial):
    """The lpips package itself, with the same VGG16 weights."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = lpips.LPIPS(net="vgg", pnet_rand=True, spatial=True, verbose=False).eval()
    model.net.load_state_dict(spatial.network.trunk.state_dict())
    return model


def pictures(n=2, size=64, seed=0, noise=0.2):
    g = torch.Generator().manual_seed(seed)
    target = F.interpolate(torch.rand(n, 3, 8, 8, generator=g), size=size, mode="bicubic") * 2 - 1
    return (target + noise * torch.randn(target.shape, generator=g)).requires_grad_(), target


def seen(predicted, target, mask):
    """A step as the stack hands it to a loss."""
    step = make_step((50,) * len(mask))
    return replace(
        step, pixel_values=None, person_mask=mask, face_boxes=None, pred_images=predicted, target_images=target
    )


@pytest.mark.parametrize("size", [64, 100])
def test_spatial_equals_the_lpips_package_times_mask_over_area(spatial, reference, size):
    predicted, target = pictures(size=size)
    mask = people_mask(2, size)
    mask[1] = 0
    mask[1, 0, 3:20, 5:40] = 7  # an odd rectangle, one label that is not 1
    binary = (mask > 0).float()
    theirs = (reference(predicted, target) * binary).sum((1, 2, 3)) / binary.sum((1, 2, 3))
    ours = spatial(seen(predicted, target, mask))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    exact = predicted.detach().double().requires_grad_()  # in float32 a rounded sum may switch a ReLU
    twin = copy.deepcopy(reference).double()
    theirs = (twin(exact, target.double()) * binary).sum((1, 2, 3)) / binary.sum((1, 2, 3))
    ours = spatial(seen(exact, target.double(), mask))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    mine, his = torch.autograd.grad(ours.sum(), exact)[0], torch.autograd.grad(theirs.sum(), exact)[0]
    assert (mine - his).norm() <= 1e-5 * his.norm()


@pytest.mark.parametrize("people", ["union", "each"])
@pytest.mark.parametrize("divide_by", ["area", "image"])
def test_features_equals_upsampling_and_masking_literally(features, people, divide_by):
    loss = variant(features, people=people, divide_by=divide_by)
    predicted, target = pictures()
    label_map = people_mask(2, 64, people=3)
    ours = loss(seen(predicted, target, label_map))
    f, g = loss.network(predicted), loss.network(target)
    masks = split_people(label_map) if people == "each" else label_map > 0
    theirs = torch.zeros(2)
    for k in range(masks.shape[1]):
        mask = masks[:, k : k + 1].float()
        size = mask.sum((1, 2, 3)) if divide_by == "area" else 64 * 64
        for a, b in zip(f, g, strict=True):
            up = F.interpolate(a - b, size=64, mode="bilinear", align_corners=False)
            theirs = theirs + 0.2 * ((up * mask).square().sum((1, 2, 3)) / size).sqrt()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    mine, his = torch.autograd.grad(ours.sum(), predicted)[0], torch.autograd.grad(theirs.sum(), predicted)[0]
    assert (mine - his).norm() <= 2e-5 * his.norm()


def test_by_hand():
    """One layer, two features over four pixels: differences 1 and 3 become 1, 1.5, 2.5, 3."""
    f, g = [torch.tensor([[[[2.0, 4.0]]]])], [torch.tensor([[[[1.0, 1.0]]]])]
    mask = torch.tensor([[[[0.0, 1.0, 1.0, 0.0]]]])
    # spatial normalises (3, 4) and (0, 2) to (.6, .8) and (0, 1), and upsamples the squares 1 and 9: 1, 3, 7, 9
    raw = [torch.tensor([[[[3.0, 0.0]], [[4.0, 2.0]]]])]
    unit = [torch.tensor([[[[1.6, 0.0]], [[0.8, -2.0]]]])]
    assert spatial_distance(raw, unit, [torch.full((1, 2, 1, 1), 0.5)], mask).item() == pytest.approx(0.5 * (3 + 7))
    size = torch.tensor([[2.0]])
    assert feature_distance(f, g, [0.2], mask, size).item() == pytest.approx(0.2 * ((1.5**2 + 2.5**2) / 2) ** 0.5)


@pytest.mark.parametrize("form", ["spatial", "features"])
def test_equal_pictures_are_0_with_finite_gradient(spatial, features, form):
    loss = {"spatial": spatial, "features": features}[form]
    predicted, _ = pictures()
    value = loss(seen(predicted, predicted.detach(), people_mask(2, 64)))
    value.sum().backward()
    assert value.abs().max() == 0
    assert torch.isfinite(predicted.grad).all()


@pytest.mark.parametrize("form", ["spatial", "features"])
def test_empty_mask_is_0_with_finite_gradient(spatial, features, form):
    """Defect 10 of the released code: an empty mask gave 0/0."""
    loss = {"spatial": spatial, "features": features}[form]
    predicted, target = pictures()
    mask = people_mask(2, 64)
    mask[1] = 0
    value = loss(seen(predicted, target, mask))
    value.sum().backward()
    assert value[0] > 0
    assert value[1] == 0
    assert torch.isfinite(predicted.grad).all()
    assert predicted.grad[1].abs().max() == 0
    assert loss(seen(predicted, target, torch.zeros_like(mask))).tolist() == [0, 0]


@pytest.mark.parametrize("colour", [-1.0, 0.0, 1.0])
def test_flat_pictures_have_a_finite_gradient(spatial, colour):
    """lpips itself gives NaN where all features of a pixel are 0."""
    predicted = torch.full((1, 3, 32, 32), colour, requires_grad=True)
    spatial(seen(predicted, torch.rand(1, 3, 32, 32), people_mask(1))).sum().backward()
    assert torch.isfinite(predicted.grad).all()


def test_a_pixel_without_features_has_gradient_0(spatial):
    from mldm_plugin.perceptual.unit_difference import unit_normalise

    features = torch.zeros(1, 3, 2, 2)
    features[0, :, 0, 0] = torch.tensor([3.0, 0, 4])
    features.requires_grad_()
    normalised = unit_normalise(features)
    torch.testing.assert_close(normalised[0, :, 0, 0], torch.tensor([0.6, 0, 0.8]))
    normalised.square().sum().backward()
    assert torch.isfinite(features.grad).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_nothing_outside_the_mask_has_effect_or_gradient_at_feature_level(seed):
    """A feature that no masked pixel is interpolated from has neither."""
    g = torch.Generator().manual_seed(seed)
    f = torch.randn(1, 4, 8, 8, generator=g).requires_grad_()
    target = torch.randn(1, 4, 8, 8, generator=g)
    mask = torch.zeros(1, 1, 32, 32)
    y, x = torch.randint(0, 20, (2,), generator=g).tolist()
    mask[..., y : y + 6, x : x + 6] = 1
    support = F.interpolate(torch.eye(64).view(64, 1, 8, 8), size=32, mode="bilinear", align_corners=False)
    reached = (support * mask).sum((1, 2, 3)).view(8, 8) > 0
    for value in (
        spatial_distance([f], [target], [torch.ones(1, 4, 1, 1)], mask),
        feature_distance([f], [target], [1.0], mask, torch.ones(1, 1)),
    ):
        (gradient,) = torch.autograd.grad(value.sum(), f, retain_graph=True)
        assert gradient[..., ~reached].abs().max() == 0
        assert gradient[..., reached].abs().max() > 0


def test_gradcheck():
    g = torch.Generator().manual_seed(0)
    f = [torch.randn(1, 3, s, s, generator=g, dtype=torch.float64, requires_grad=True) for s in (6, 3)]
    t = [torch.randn(1, 3, s, s, generator=g, dtype=torch.float64) for s in (6, 3)]
    mask = (torch.rand(1, 2, 12, 12, generator=g) > 0.4).double()
    w = [torch.rand(1, 3, 1, 1, generator=g, dtype=torch.float64) for _ in f]
    size = mask.sum((-2, -1))
    assert torch.autograd.gradcheck(lambda *x: spatial_distance(x, t, w, mask), f)
    assert torch.autograd.gradcheck(lambda *x: feature_distance(x, t, [0.5, 0.5], mask, size), f)


@pytest.mark.parametrize("form", ["spatial", "features"])
def test_batch_equals_its_images_one_by_one(spatial, features, form):
    loss = {"spatial": spatial, "features": features}[form]
    predicted, target = pictures(n=3)
    masks = torch.cat([people_mask(1, 64, k) for k in (1, 2, 4)])
    together = loss(seen(predicted, target, masks))
    alone = [loss(seen(predicted[i : i + 1], target[i : i + 1], masks[i : i + 1])) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=0)


def test_each_sums_over_people_and_union_does_not(spatial):
    """Defect 15 of the released code: one union mask instead of the sum over people of eq. 2."""
    predicted, target = pictures()
    label_map = people_mask(2, 64, people=2)
    each = variant(spatial, people="each")(seen(predicted, target, label_map))
    apart = [spatial(seen(predicted, target, (label_map == k).byte())) for k in (1, 2)]
    torch.testing.assert_close(each, apart[0] + apart[1], rtol=1e-5, atol=0)
    union = spatial(seen(predicted, target, label_map))
    torch.testing.assert_close(union, each / 2, rtol=1e-5, atol=0)  # two people of equal area


@pytest.mark.parametrize("people", ["union", "each"])
def test_labels_need_not_be_consecutive_and_no_label_is_no_person(features, people):
    """A 0/255 mask is one person, not 255."""
    loss = variant(features, people=people)
    predicted, target = pictures()
    mask = people_mask(2, 64, people=1)
    torch.testing.assert_close(loss(seen(predicted, target, mask * 255)), loss(seen(predicted, target, mask)))
    nobody = loss(seen(predicted, target, torch.zeros_like(mask)))
    nobody.sum().backward()
    assert nobody.tolist() == [0, 0]
    assert split_people(mask * 255).shape[1] == 1


def test_saturated_pixels_keep_their_gradient(spatial):
    """Defect 11 of the released code: clamping to [-1, 1] cut the gradient of saturated pixels."""
    _, target = pictures(n=1)
    predicted = torch.full_like(target, 1.5).requires_grad_()
    spatial(seen(predicted, target, people_mask(1, 64))).sum().backward()
    assert predicted.grad.abs().max() > 0


def test_the_network_learns_nothing_and_the_target_has_no_graph(spatial):
    """Defects 2 and 6 of the released code, for VGG16."""
    predicted, target = pictures()
    target.requires_grad_()
    spatial(seen(predicted, target, people_mask(2, 64))).sum().backward()
    assert target.grad is None
    network = spatial.network.trunk
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert not any(m.training for m in network.modules())


def test_pretrained_weights_are_torchvisions(tmp_path, monkeypatch):
    """torchvision's names end up in the right slices; a missing one is named."""
    import torchvision

    import mldm_plugin.perceptual.lpips_network as module
    from mldm_plugin.errors import WeightsError

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        vgg = torchvision.models.vgg16(weights=None).eval()
    state = {f"features.{key}": value for key, value in vgg.features.state_dict().items()}
    monkeypatch.setattr(module, "load_state_dict", lambda name: state)
    network = module.LPIPSNetwork("vgg", "pretrained")
    images = pictures(n=1)[1]
    scaled = network.scaling(images)
    for own, last in zip(network.trunk(scaled), (4, 9, 16, 23, 30), strict=True):
        torch.testing.assert_close(own, vgg.features[:last](scaled))
    del state["features.7.weight"]
    with pytest.raises(WeightsError, match=r"slice2.7.weight"):
        module.LPIPSNetwork("vgg", "pretrained")


def test_random_weights_are_seeded_and_draw_nothing_from_the_host():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = MaskedLPIPS(weights="random"), MaskedLPIPS(weights="random")
    assert torch.equal(torch.get_rng_state(), before)
    first = next(one.network.trunk.parameters())
    assert torch.equal(first, next(two.network.trunk.parameters()))
