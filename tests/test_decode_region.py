"""Region decode: with the statistics of the same latents a window is the whole decode, in value and gradient."""

import copy
import math

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel
from diffusers.models.autoencoders.vae import Decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from make_step import tiny_vae
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mldm_plugin.decode.region.region_decode import RegionDecode
from mldm_plugin.decode.region.windows import GRID, Window
from mldm_plugin.demo.fit import encode, load_pictures
from mldm_plugin.demo.photos import RESOLUTION, WINDOWS, labels, load_annotations, stored_side
from mldm_plugin.demo.pipeline import FITTED, build_vae, load_fitted
from mldm_plugin.engine.schedule import stable_diffusion_snr
from mldm_plugin.errors import PresetError


def lively_vae():
    """A tiny VAE (factor 4) in float64 whose norms and biases are not those of a fresh network."""
    vae = tiny_vae()
    g = torch.Generator().manual_seed(5)
    for parameter in vae.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=g) * 0.3)
    return vae.double().eval()


VAE = lively_vae()
REGION = RegionDecode(copy.deepcopy(VAE))
BOX = torch.tensor([[43.0, 51.5, 52.0, 57.0]])
# In a picture of 128 x 112 pixels: all ways to touch an edge, and the middle.
PLACES = {
    "middle": [50, 60, 66, 72],
    "left": [0, 60, 12, 75],
    "right": [100, 60, 112, 75],
    "top": [50, -9, 60, 7],
    "bottom": [50, 120, 60, 140],
    "corner": [101.5, 118, 112, 128],
    "near the left": [5, 60, 17, 75],
    "near the bottom": [50, 105, 60, 121],
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norms_after_the_middle(vae):
    names = [n for n, m in vae.decoder.named_modules() if isinstance(m, nn.GroupNorm) and "mid_block" not in n]
    return [vae.decoder.get_submodule(name) for name in names], names


def measured_by_hand(vae, z):
    """Mean and variance by group of what enters each norm after the middle block, in the order of calls."""
    found = []

    def look(norm, inputs):
        groups = inputs[0].reshape(len(z), norm.num_groups, -1)
        mean = groups.mean(dim=2)
        found.append((mean, ((groups - mean[..., None]) ** 2).mean(dim=2)))

    handles = [norm.register_forward_pre_hook(look) for norm in norms_after_the_middle(vae)[0]]
    vae.decode(z)
    for handle in handles:
        handle.remove()
    return found


class HeldNorm(nn.Module):
    """A group norm that normalises by the mean and variance it is made with."""

    def __init__(self, norm, mean, variance):
        super().__init__()
        self.norm, self.mean, self.variance = norm, mean, variance

    def forward(self, x):
        mean, variance = (
            v.repeat_interleave(x.shape[1] // v.shape[1], dim=1)[..., None, None] for v in (self.mean, self.variance)
        )
        normal = (x - mean) / (variance + self.norm.eps).sqrt()
        return normal * self.norm.weight[:, None, None] + self.norm.bias[:, None, None]


def with_held_norms(vae, clean):
    """A copy of `vae` whose norms after the middle block hold the statistics of `clean`."""
    found, held = iter(measured_by_hand(vae, clean)), copy.deepcopy(vae)
    for norm, name in zip(*norms_after_the_middle(held), strict=True):
        parent, _, last = name.rpartition(".")
        setattr(held.decoder.get_submodule(parent), last, HeldNorm(norm, *next(found)))
    return held


def pixels_of(windows, height, width, factor=4):
    """(1, 1, H, W) bool: which pixels lie in any of the windows."""
    inside = torch.zeros(1, 1, height * factor, width * factor, dtype=torch.bool)
    for top, left, tall, wide in windows:
        inside[:, :, top * factor : (top + tall) * factor, left * factor : (left + wide) * factor] = True
    return inside


coordinates = st.tuples(*[st.floats(-0.2, 1.2)] * 2, *[st.floats(0, 0.6)] * 2)


def boxes_of(drawn, height, width, factor=4):
    return torch.tensor(
        [
            [x * width * factor, y * height * factor, (x + w) * width * factor, (y + h) * height * factor]
            for x, y, w, h in drawn
        ]
    ).reshape(-1, 4)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.lists(coordinates, max_size=3), st.integers(0, 2**31))
def test_windows_are_the_whole_decode_and_the_rest_is_the_background(height, width, drawn, seed):
    z, boxes = draw(1, 4, height, width, seed=seed), boxes_of(drawn, height, width)
    background = draw(1, 3, height * 4, width * 4, seed=seed + 1)
    whole = VAE.decode(z).sample
    made = REGION(z, [boxes], REGION.statistics(z)[0], background)
    inside = pixels_of(REGION.windows(boxes, height, width), height, width)
    torch.testing.assert_close(made, torch.where(inside, whole, background), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("layers", [1, 2])
def test_a_window_anywhere_is_exact_in_float32(place, layers):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        layers_per_block=layers,
        use_post_quant_conv=layers == 1,
    ).eval()
    region, z = RegionDecode(copy.deepcopy(vae)), draw(1, 4, 64, 56).float()
    boxes = torch.tensor([PLACES[place]])
    [window] = region.windows(boxes, 64, 56)
    assert region.share([boxes], 64, 56) < 0.6
    with torch.no_grad():
        off = region(z, [boxes], region.statistics(z)[0], torch.zeros(1, 3, 128, 112)) - vae.decode(z).sample
    assert off[pixels_of([window], 64, 56, 2).expand_as(off)].abs().max() < 1e-5


@pytest.mark.parametrize("place", PLACES)
def test_the_gradient_is_that_of_the_whole_decode_with_the_same_statistics(place):
    clean, z = draw(1, 4, 32, 28), draw(1, 4, 32, 28, seed=1).requires_grad_()
    boxes = torch.tensor([PLACES[place]])
    made = REGION(z, [boxes], REGION.statistics(clean)[0], torch.zeros(1, 3, 128, 112, dtype=torch.float64))
    whole = with_held_norms(VAE, clean).decode(z).sample
    windows = REGION.windows(boxes, 32, 28)
    assert windows != [Window(0, 0, 32, 28)]
    weights = draw(1, 3, 128, 112, seed=2) * pixels_of(windows, 32, 28)
    torch.testing.assert_close(made * (weights != 0), whole * (weights != 0), rtol=1e-9, atol=1e-9)
    [got], [wanted] = (torch.autograd.grad((picture * weights).sum(), z) for picture in (made, whole))
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-12)


def test_statistics_are_mean_and_variance_by_group_and_the_picture_is_the_decode():
    z = draw(2, 4, 9, 6)
    by_hand = [torch.stack(pair, dim=1) for pair in measured_by_hand(VAE, z)]
    statistics, pictures = REGION.statistics(z)
    torch.testing.assert_close(statistics, torch.cat(by_hand, dim=2).flatten(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pictures, VAE.decode(z).sample, rtol=1e-9, atol=1e-9)
    assert not statistics.requires_grad
    assert not pictures.requires_grad
    assert RegionDecode(tiny_vae()).statistics(z.float())[0].dtype == torch.float32


def test_pictures_and_faces_in_one_call_are_what_they_are_one_by_one():
    clean, z = draw(4, 4, 32, 28), draw(4, 4, 32, 28, seed=1).requires_grad_()
    background = draw(4, 3, 128, 112, seed=2)
    regions = [torch.tensor([PLACES[p] for p in places]) for places in (["middle", "left"], ["corner"], ["top"])]
    regions.insert(2, torch.zeros(0, 4))
    statistics = REGION.statistics(clean)[0]
    weights = draw(4, 3, 128, 112, seed=3)
    together = REGION(z, regions, statistics, background)
    one_by_one = torch.cat(
        [REGION(z[i : i + 1], [regions[i]], statistics[i : i + 1], background[i : i + 1]) for i in range(4)]
    )
    torch.testing.assert_close(together, one_by_one, rtol=1e-9, atol=1e-9)
    [got], [wanted] = (torch.autograd.grad((picture * weights).sum(), z) for picture in (together, one_by_one))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    assert (got[2] == 0).all()
    assert (got[[0, 1, 3]].abs().amax(dim=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize("boxes", [torch.zeros(0, 4), torch.tensor([[-30.0, 5.0, -2.0, 20.0], [9.0, 9.0, 9.0, 12.0]])])
def test_without_a_region_it_is_the_background_with_a_gradient_of_zeros(boxes):
    z, background = draw(2, 4, 8, 8).requires_grad_(), draw(2, 3, 32, 32)
    made = REGION(z, [boxes, boxes], REGION.statistics(z)[0], background)
    assert torch.equal(made, background)
    made.sum().backward()
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_overlapping_regions_become_one_window_where_that_is_cheaper_and_far_ones_stay_apart():
    a, b, far = [20, 20, 36, 36], [24, 20, 36, 40], [230, 230, 246, 246]
    [window] = REGION.windows(torch.tensor([a, b]), 64, 64)
    assert window == Window(4, 5, 8, 4)  # 20 to 36 px are latents 5 to 9; 20 to 40 px are 5 to 10, made 8
    assert len(REGION.windows(torch.tensor([a, b, far]), 64, 64)) == 2


def test_windows_that_overlap_but_are_not_merged_are_pasted_with_the_whole_gradient():
    """A tall and a wide one that cross at a corner: their rectangle would cost more than both."""
    boxes = torch.tensor([[16.0, 16.0, 32.0, 240.0], [16.0, 224.0, 240.0, 240.0]])
    windows = REGION.windows(boxes, 64, 64)
    assert len(windows) == 2
    z = draw(1, 4, 64, 64).requires_grad_()
    made = REGION(z, [boxes], REGION.statistics(z)[0], torch.zeros(1, 3, 256, 256, dtype=torch.float64))
    whole = with_held_norms(VAE, z.detach()).decode(z).sample
    weights = draw(1, 3, 256, 256, seed=1) * pixels_of(windows, 64, 64)
    [got], [wanted] = (torch.autograd.grad((picture * weights).sum(), z) for picture in (made, whole))
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-12)


def test_a_region_as_large_as_the_picture_is_plainly_decoded_whatever_the_statistics():
    z, boxes = draw(1, 4, 20, 17).requires_grad_(), torch.tensor([[-5.0, -5.0, 70.0, 90.0]])
    assert REGION.windows(boxes, 20, 17) == [Window(0, 0, 20, 17)]
    others = REGION.statistics(draw(1, 4, 20, 17, seed=1))[0]
    made, plain = REGION(z, [boxes], others, torch.zeros(1, 3, 80, 68, dtype=torch.float64)), VAE.decode(z).sample
    torch.testing.assert_close(made, plain, rtol=1e-9, atol=1e-9)
    got, wanted = (torch.autograd.grad(picture.square().sum(), z)[0] for picture in (made, plain))
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-12)


def test_windows_that_cost_more_than_the_picture_become_one():
    """Three on the diagonal, no two of which are cheaper as one: 1.24 times the whole."""
    boxes = torch.tensor([[side, side, side + 48.0, side + 48.0] for side in (0.0, 24.0, 48.0)])
    assert [len(REGION.windows(boxes[[i, j]], 24, 24)) for i, j in ((0, 1), (0, 2), (1, 2))] == [2, 2, 2]
    assert REGION.windows(boxes, 24, 24) == [Window(0, 0, 24, 24)]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.lists(coordinates, max_size=6))
def test_windows_hold_their_regions_lie_inside_and_cost_no_more_than_one_by_one(height, width, drawn):
    boxes = boxes_of(drawn, height, width)
    windows = REGION.windows(boxes, height, width)
    for top, left, tall, wide in windows:
        assert 0 <= top <= top + tall <= height
        assert 0 <= left <= left + wide <= width
        assert tall == height or tall % GRID == 0
        assert wide == width or wide % GRID == 0
    inside = pixels_of(windows, height, width)[0, 0]
    for x0, y0, x1, y1 in boxes.tolist():
        x0, y0, x1, y1 = max(0, x0), max(0, y0), min(4 * width, x1), min(4 * height, y1)
        if x0 < x1 and y0 < y1:
            assert inside[int(y0) : math.ceil(y1), int(x0) : math.ceil(x1)].all()
    alone = sum(REGION.share([box[None]], height, width) for box in boxes)
    assert REGION.share([boxes], height, width) <= min(1, alone) + 1e-9


def stable_diffusion_vae():
    with torch.device("meta"):
        return AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("boxes", [[[200, 180, 283, 263]], [[0, 0, 30, 40], [300, 400, 390, 470]]])
def test_the_estimated_share_is_what_is_counted_and_nothing_waits_for_the_device(boxes):
    """A meta tensor has no values: whatever asked it for one, as `.item()` does, would raise."""
    vae = stable_diffusion_vae()
    region, boxes = RegionDecode(vae), [torch.tensor(boxes, dtype=torch.float32)]
    z = torch.zeros(1, 4, 64, 64, device="meta", requires_grad=True)
    statistics, background = region.statistics(z)
    assert statistics.shape == (1, 1600)
    trunk = flops(lambda: vae.decoder.mid_block(vae.decoder.conv_in(vae.post_quant_conv(z))))
    whole = flops(lambda: vae.decode(z)) - trunk
    windows = flops(lambda: region(z, boxes, statistics, background)) - trunk
    assert windows / whole == pytest.approx(region.share(boxes, 64, 64), rel=1e-6)
    assert (windows + trunk) / (whole + trunk) < 0.2
    region(z, boxes, statistics, background).sum().backward()
    assert z.grad.shape == z.shape


def refused(vae, pattern):
    with pytest.raises(PresetError, match=rf"{pattern}.*Set decode: full\."):
        RegionDecode(vae)


def test_other_autoencoders_are_refused_with_what_to_do():
    refused(
        AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4),
        "is an AutoencoderTiny",
    )
    refused(VQModel(block_out_channels=(8,), norm_num_groups=4), "is a VQModel")
    dc = AutoencoderDC(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        latent_channels=4,
    )
    refused(dc, "is an AutoencoderDC")


def test_decoders_of_another_structure_are_refused_with_what_to_do():
    vae = tiny_vae()
    sizes = {"block_out_channels": (32, 32), "in_channels": 4}
    vae.decoder = Decoder(up_block_types=("UpDecoderBlock2D",) * 2, norm_type="spatial", **sizes)
    refused(vae, "normalises with SpatialNorm, expected GroupNorm")
    vae.decoder = Decoder(up_block_types=("UpDecoderBlock2D", "AttnUpDecoderBlock2D"), **sizes)
    refused(vae, "has an AttnUpDecoderBlock2D")
    vae = tiny_vae()
    vae.decoder.conv_out = nn.Conv2d(8, 3, 3, padding=1, padding_mode="reflect")
    refused(vae, "has the convolution Conv2d.*reflect")
    vae = tiny_vae()
    vae.decoder.up_blocks[0].resnets[1].time_emb_proj = nn.Linear(4, 8)
    refused(vae, "has a ResnetBlock2D of a kind that is not known")
    vae = tiny_vae()
    vae.decoder.up_blocks[0].resnets[0].norm2 = nn.GroupNorm(4, 8, affine=False)
    refused(vae, "group norms without weights")


def test_bfloat16_autocast_is_near_float32_and_keeps_statistics_in_float32():
    region, z = RegionDecode(copy.deepcopy(VAE).float()), draw(1, 4, 24, 24).float().requires_grad_()
    background = torch.zeros(1, 3, 96, 96)
    exact = region(z, [BOX], region.statistics(z)[0], background)
    with torch.autocast("cpu", torch.bfloat16):
        statistics = region.statistics(z)[0]
        made = region(z, [BOX], statistics, background)
    assert statistics.dtype == torch.float32
    assert made.dtype == torch.float32
    assert (made - exact).abs().max() < 0.03 * exact.abs().max()
    got, wanted = (torch.autograd.grad(p.square().sum(), z)[0].flatten() for p in (made, exact))
    assert torch.cosine_similarity(got, wanted, dim=0) > 0.99


def test_channels_last_stays_channels_last():
    region = RegionDecode(copy.deepcopy(VAE).to(memory_format=torch.channels_last))
    z = draw(2, 4, 24, 24).to(memory_format=torch.channels_last)
    seen = []
    for module in region.decoder.up_blocks.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, x: seen.append(x[0].is_contiguous(memory_format=torch.channels_last))
            )
    statistics, background = REGION.statistics(z)[0], draw(2, 3, 96, 96)
    made = region(z, [BOX, BOX + 30], statistics, background)
    assert seen
    assert all(seen)
    torch.testing.assert_close(made, REGION(z, [BOX, BOX + 30], statistics, background), rtol=1e-9, atol=1e-9)


def test_without_gradients_it_gives_the_same():
    z, background = draw(1, 4, 24, 24).requires_grad_(), draw(1, 3, 96, 96)
    statistics = REGION.statistics(z)[0]
    with torch.no_grad():
        made = REGION(z, [BOX], statistics, background)
    assert not made.requires_grad
    assert torch.equal(made, REGION(z, [BOX], statistics, background))


def gradient(region, z):
    """Where the gradient of the pixels in the window reaches: at the latents, and at the middle block's output."""
    statistics, caught = region.statistics(z.detach())[0], []

    def keep(module, inputs, output):
        output.retain_grad()
        caught.append(output)

    handle = region.decoder.mid_block.register_forward_hook(keep)
    made = region(z, [BOX], statistics, torch.zeros(1, 3, 160, 160, dtype=torch.float64))
    handle.remove()
    made.square().sum().backward()
    return z.grad.abs().sum(dim=(0, 1)) > 0, caught[0].grad.abs().sum(dim=(0, 1)) > 0


def bounds(where):
    y, x = where.nonzero(as_tuple=True)
    return y.min().item(), x.min().item(), y.max().item() + 1, x.max().item() + 1


def test_beyond_its_receptive_field_a_window_reaches_latents_through_the_middle_block_alone():
    """At the middle block's output the gradient ends where the halo ends. At the latents it is everywhere: attention
    and the middle block's own norms see all of them. Without these two it ends with the trunk's five convolutions."""
    z = draw(1, 4, 40, 40)
    [window] = REGION.windows(BOX, 40, 40)
    halo = 8  # 1 of the output, 4 of two residual blocks; (5+1)/2, +4; (7+1)/2, +4
    latents, middle = gradient(REGION, z.clone().requires_grad_())
    reached = (0, 0, window.top + window.height + halo, window.left + window.width + halo)
    assert bounds(middle)[2:] == reached[2:]
    assert latents.all()
    vae = copy.deepcopy(VAE)
    vae.decoder.mid_block.attentions = nn.ModuleList([None])
    for resnet in vae.decoder.mid_block.resnets:
        resnet.norm1, resnet.norm2 = nn.Identity(), nn.Identity()
    latents, middle = gradient(RegionDecode(vae), z.clone().requires_grad_())
    assert bounds(middle)[2:] == reached[2:]
    assert bounds(latents)[2:] == tuple(side + 5 for side in reached[2:])


def test_a_plain_decode_stays_what_it_was():
    vae, z = copy.deepcopy(VAE), draw(1, 4, 16, 16)
    before = vae.decode(z).sample
    names = [name for name, _ in vae.named_modules()]
    region = RegionDecode(vae)
    region(z, [BOX], region.statistics(z * 2)[0], before)
    assert torch.equal(vae.decode(z).sample, before)
    assert [name for name, _ in vae.named_modules()] == names


def test_a_copy_decodes_with_its_own_weights():
    z, background = draw(1, 4, 16, 16), draw(1, 3, 64, 64)
    statistics = REGION.statistics(z)[0]
    other = copy.deepcopy(REGION)
    for parameter in other.parameters():
        parameter.zero_()
    [(top, left, tall, wide)] = REGION.windows(BOX, 16, 16)
    blank = other(z, [BOX], statistics, background)[..., top * 4 : (top + tall) * 4, left * 4 : (left + wide) * 4]
    assert (blank == 0).all()


def test_on_the_demos_fitted_vae_clean_statistics_lose_less_than_a_hundredth_of_the_gradient():
    """A face of one of the demo's photographs, an estimate at t = 50 whose noise prediction is wrong by 0.3."""
    vae = build_vae(FITTED).eval()
    load_fitted("vae", vae)
    region, [window] = RegionDecode(copy.deepcopy(vae)), [w for w in WINDOWS if w.name == "astronaut"]
    boxes = torch.tensor(labels(window, load_annotations())[1]) * RESOLUTION / stored_side(window)
    picture = load_pictures()[WINDOWS.index(window)][None]
    clean = encode(vae, picture)
    noise = draw(*clean.shape).float() / vae.config.scaling_factor
    z = (clean - 0.3 * stable_diffusion_snr()[50] ** -0.5 * noise).float().requires_grad_()
    assert region.share([boxes], 32, 32) < 0.2
    made, plain = region(z, [boxes], region.statistics(clean)[0], picture), vae.decode(z).sample
    inside = pixels_of(region.windows(boxes, 32, 32), 32, 32, 8)
    [got], [wanted] = (torch.autograd.grad(((p - picture) * inside).square().sum(), z) for p in (made, plain))
    assert torch.cosine_similarity(got.flatten(), wanted.flatten(), dim=0) > 0.99
    assert ((made - plain).abs() * inside).max() < 0.02
