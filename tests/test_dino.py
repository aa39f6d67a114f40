"""DINO loss and its network: by hand, beside transformers' network, and that people alone are looked at."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from make_step import make_stack, make_step, people_mask

from mldm_plugin.engine.term import Term
from mldm_plugin.errors import WeightsError
from mldm_plugin.hooks.dino import Dino, patch_distance
from mldm_plugin.perceptual.dinov2 import GRID, PATCH, WEIGHTS, DINOFeatures, DINOv2
from mldm_plugin.perceptual.frozen import build_seeded, computing_in
from mldm_plugin.perceptual.weights import fill
from mldm_plugin.perceptual.weights.table import weight_file


def picture(n=1, height=28, width=42, seed=0):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def features(n=2, seed=0, dtype=torch.float64):
    return torch.randn(n, 5, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# The distance


def test_by_hand():
    """Three patches of 2×2 pixels: cosines 1, 0 and −1, covered whole, by half and not at all."""
    pred = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]]).view(1, 2, 1, 3)
    target = torch.tensor([[1.0, 1.0, -1.0], [0.0, 0.0, 0.0]]).view(1, 2, 1, 3)
    mask = torch.tensor([[1.0, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]]).view(1, 1, 2, 6)
    assert patch_distance(pred, target, mask).item() == pytest.approx((1 * 0 + 0.5 * 1) / 1.5)
    assert patch_distance(pred, target, torch.ones_like(mask)).item() == pytest.approx((0 + 1 + 2) / 3)


def test_equal_features_are_0_whatever_their_length():
    f = features()
    mask = torch.ones(2, 1, 4, 6, dtype=torch.float64)
    assert patch_distance(3 * f, f, mask) == pytest.approx([0, 0], abs=1e-12)


def test_gradcheck():
    mask = (torch.rand(2, 1, 4, 6, generator=torch.Generator().manual_seed(1)) > 0.4).double()
    target = features(seed=1)
    assert torch.autograd.gradcheck(lambda x: patch_distance(x, target, mask), features().requires_grad_())


def test_nothing_outside_the_mask_has_effect_or_gradient():
    f = features().requires_grad_()
    mask = torch.zeros(2, 1, 2, 3, dtype=torch.float64)
    mask[..., 0] = 1
    (gradient,) = torch.autograd.grad(patch_distance(f, features(seed=1), mask).sum(), f)
    assert gradient[..., 0].abs().sum() > 0
    assert gradient[..., 1:].abs().sum() == 0


def test_an_empty_mask_is_0_with_finite_gradient():
    f = features().requires_grad_()
    value = patch_distance(f, features(seed=1), torch.zeros(2, 1, 4, 6, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(value.sum(), f)
    assert value.tolist() == [0, 0]
    assert gradient.abs().sum() == 0


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 100))
def test_any_mask_gives_a_value_between_0_and_2(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    p, t = (torch.randn(2, 3, height, width, generator=generator) for _ in range(2))
    mask = (torch.rand(2, 1, 3 * height + 1, 5 * width, generator=generator) > 0.5).float()
    value = patch_distance(p, t, mask)
    assert ((value >= -1e-6) & (value <= 2 + 1e-6)).all()
    one = torch.cat([patch_distance(p[i : i + 1], t[i : i + 1], mask[i : i + 1]) for i in range(2)])
    assert torch.allclose(value, one, atol=1e-6)


# The network


def test_it_is_transformers_network():
    """The same weights under its names: `model.safetensors` of the Hub is made of the published file so."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=3 * PATCH, patch_size=PATCH
    )
    theirs = build_seeded(lambda: transformers.Dinov2Model(config), 1).eval()
    own = DINOv2(24, 2, 3, grid=3)
    own.load_state_dict({key: _of_transformers(theirs.state_dict(), key) for key in own.state_dict()})
    images = picture(2, 3 * PATCH, 3 * PATCH)
    with torch.no_grad():
        wanted = theirs(images).last_hidden_state[:, 1:]
        assert torch.allclose(own(images).flatten(2).mT, wanted, atol=1e-5)


def _of_transformers(state, key):
    """A weight of ours out of its network, whichever release of it names them."""
    if ".qkv." in key:
        _, place, _, _, kind = key.split(".")
        own = f"encoder.layer.{place}.attention."
        names = (("attention.query", "q_proj"), ("attention.key", "k_proj"), ("attention.value", "v_proj"))
        return torch.cat([_first(state, *(f"{own}{name}.{kind}" for name in either)) for either in names])
    if key.startswith("blocks."):
        key = key.replace("blocks.", "encoder.layer.").replace("attn.proj", "attention.output.dense")
        key = key.replace("ls1.gamma", "layer_scale1.lambda1").replace("ls2.gamma", "layer_scale2.lambda1")
        return _first(state, key, key.replace("output.dense", "o_proj"))
    key = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}.get(key, key)
    return state[
        key.replace("patch_embed.proj", "embeddings.patch_embeddings.projection").replace("norm.", "layernorm.")
    ]


def _first(state, *names):
    return next(state[name] for name in names if name in state)


def test_the_published_weights_fit_by_name_and_shape():
    """Names and shapes of dinov2_vits14_pretrain.pth, as the network that Meta loads them into has them."""
    shapes = {"cls_token": (1, 1, 384), "pos_embed": (1, 1370, 384), "mask_token": (1, 384)}
    shapes |= {"patch_embed.proj.weight": (384, 3, 14, 14), "patch_embed.proj.bias": (384,)}
    for i in range(12):
        block = {"attn.qkv": (1152, 384), "attn.proj": (384, 384), "mlp.fc1": (1536, 384), "mlp.fc2": (384, 1536)}
        for name, (rows, columns) in block.items():
            shapes |= {f"blocks.{i}.{name}.weight": (rows, columns), f"blocks.{i}.{name}.bias": (rows,)}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{i}.{name}"] = (384,)
    shapes |= {"norm.weight": (384,), "norm.bias": (384,)}
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    network = fill(DINOv2(), state, WEIGHTS, ignore=("mask_token",))
    assert sum(p.numel() for p in network.parameters()) == 22_056_192
    del state["norm.bias"]
    with pytest.raises(WeightsError, match=r"missing: norm\.bias"):
        fill(DINOv2(), state, WEIGHTS, ignore=("mask_token",))
    assert weight_file(WEIGHTS).terms == "Apache-2.0"


def test_positions_are_those_that_were_learnt_where_the_grid_is_theirs():
    network = build_seeded(lambda: DINOv2(8, 1, 2))
    assert network._positions(GRID, GRID) is network.pos_embed
    moved = network._positions(16, 20)
    assert moved.shape == (1, 1 + 16 * 20, 8)
    assert torch.equal(moved[:, 0], network.pos_embed[:, 0])
    flat = build_seeded(lambda: DINOv2(8, 1, 2))
    flat.pos_embed.data.fill_(0.5)
    assert torch.allclose(flat._positions(16, 20), torch.tensor(0.5), atol=1e-5)


@pytest.mark.parametrize(("sides", "grid"), [((64, 64), (4, 4)), ((64, 100), (4, 6)), ((300, 90), (13, 4))])
def test_the_shorter_side_is_brought_to_whole_patches(sides, grid):
    assert DINOFeatures("random", 56)(picture(1, *sides)).shape == (1, 48, *grid)


def test_it_stays_frozen_and_passes_gradient_on():
    found = DINOFeatures("random", 28)
    image = picture().requires_grad_()
    (gradient,) = torch.autograd.grad(found(image).square().sum(), image)
    assert gradient.abs().sum() > 0
    assert not any(p.requires_grad for p in found._network.network.parameters())
    with computing_in(torch.bfloat16):
        half = found(image)
    assert half.dtype == torch.float32
    assert F.cosine_similarity(half, found(image), dim=1).min() > 0.99


# The loss


def step_of(pred, true, mask):
    return replace(
        make_step((50,) * len(pred)), pred_images=pred, target_images=true, pixel_values=true, person_mask=mask
    )


def test_the_loss_of_a_batch_is_its_images():
    loss = Dino(weights="random", size=28)
    pred, true, mask = picture(2, 32, 32), picture(2, 32, 32, seed=1), people_mask(2)
    mask[1] = 0
    whole = loss(step_of(pred, true, mask))
    alone = [loss(step_of(pred[i : i + 1], true[i : i + 1], mask[i : i + 1])) for i in range(2)]
    assert torch.allclose(whole, torch.cat(alone), atol=1e-6)
    assert whole[0] > 0
    assert whole[1] == 0
    assert loss(step_of(true, true, people_mask(2))) == pytest.approx([0, 0], abs=1e-5)


def test_the_whole_picture_needs_no_mask():
    loss = Dino(where="picture", weights="random", size=28)
    pred, true = picture(1, 32, 32), picture(1, 32, 32, seed=1)
    everywhere = Dino(weights="random", size=28)(step_of(pred, true, torch.ones(1, 1, 32, 32)))
    assert loss.needs == {"pred_images"}
    assert torch.equal(loss(replace(step_of(pred, true, people_mask(1)), person_mask=None)), everywhere)


def test_it_is_proved_and_trains():
    told = []
    term = Term("dino", Dino(weights="random", size=28), 0.5, None)
    stack = make_stack(term, announce=told.append)
    step = make_step((50, 500))
    report = stack(step)
    report.loss.backward()
    assert "dino" in told[0]
    assert "reaches the network" in told[0]
    assert report.terms["dino"].gated == 2
    assert step.model_pred.grad.abs().sum() > 0


def test_pretrained_weights_that_are_not_here_say_what_to_do(weights_cache, monkeypatch):
    def refused(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("requests.Session.send", refused)
    with pytest.raises(WeightsError, match="dinov2_vits14_pretrain"):
        Dino()
