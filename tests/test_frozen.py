"""Frozen networks: their precision, their memory order, and random weights that touch nobody's generators."""

import ast
import contextlib
import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from make_step import FaceLoss, PictureLoss, loss_and_gradient, make_stack, make_step, tiny_vae
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.engine.pictures import has_bfloat16
from mldm_plugin.engine.term import Term
from mldm_plugin.perceptual.face_networks import FACE_NETWORKS
from mldm_plugin.perceptual.frozen import Frozen, build_seeded, build_to_fill, computing_in
from mldm_plugin.planning.tensor_memory import TensorMemory


def test_a_network_in_bfloat16_returns_float32_and_keeps_its_float32_weights():
    network = Frozen(nn.Conv2d(3, 4, 3))
    picture = torch.randn(1, 3, 8, 8, requires_grad=True)
    exact = network(picture)
    with computing_in(torch.bfloat16):
        rounded = network(picture)
        with computing_in(torch.float32):
            assert torch.equal(network(picture), exact)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05
    assert torch.equal(network(picture), exact)
    assert network(picture.double()).dtype == torch.float64
    assert Frozen(nn.Linear(8, 3))(torch.rand(2, 8)).shape == (2, 3)
    assert Frozen(nn.Conv3d(1, 2, 1))(torch.rand(1, 1, 2, 2, 2)).shape == (1, 2, 2, 2, 2)


@contextlib.contextmanager
def watched_dtypes():
    """Of the weights, and of what the group norms return, of all networks that run inside."""
    weights, norms = set(), set()

    def look(module, given, returned):
        weights.update(p.dtype for p in module.parameters(recurse=False))
        if isinstance(module, nn.GroupNorm):
            norms.add(returned.dtype)

    handle = register_module_forward_hook(look)
    try:
        yield weights, norms
    finally:
        handle.remove()


def test_bfloat16_means_weights_and_activations_so_a_decode_keeps_half():
    """Under autocast a GPU keeps weights and group norms in float32, and so twice as much."""
    vae = tiny_vae()
    decoder = LatentDecoder(vae)
    latents = torch.randn(1, 4, 16, 16).requires_grad_()
    kept = {}
    for dtype in (torch.float32, torch.bfloat16):
        with computing_in(dtype), torch.autocast("cpu", torch.bfloat16):
            decoder(latents)  # makes the copy
            with TensorMemory() as memory, watched_dtypes() as (weights, norms):
                pictures = decoder(latents)
                kept[dtype] = memory.live
            del pictures
        assert weights == norms == {dtype}
    assert kept[torch.bfloat16] < 0.6 * kept[torch.float32]


def test_float32_weights_leave_the_device_once_bfloat16_is_used(monkeypatch):
    network = Frozen(nn.Conv2d(3, 4, 3))
    moved, to = [], nn.Module.to
    monkeypatch.setattr(
        nn.Module, "to", lambda module, *where, **how: moved.append((module, where)) or to(module, *where, **how)
    )
    network.rest()
    assert moved == []  # float32 is what is used
    with computing_in(torch.bfloat16):
        network(torch.rand(1, 3, 8, 8))
    moved.clear()
    network.rest()
    assert moved == [(network.network, ("cpu",))]


def test_the_comparison_at_the_start_takes_no_more_than_half_as_much_again(monkeypatch):
    """It decodes in float32 with gradient inside the host's forward pass, and kept twice what the run keeps."""
    step = make_step((50,), size=128, latent_size=32)
    stack = make_stack(Term("picture", PictureLoss(), 0.2), precision="bfloat16")
    with TensorMemory() as first:
        stack(step)
    stack.start_up = None
    with TensorMemory() as later:
        stack(step)
    weights = 4 * sum(p.numel() for p in stack.decoder.vae.parameters())
    assert first.peak < 1.5 * later.peak + 3 * weights


def test_batch_norms_keep_their_statistics_in_float32():
    network = Frozen(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    network.network[1].running_mean.fill_(100.3)
    with computing_in(torch.bfloat16):
        out = network(torch.zeros(1, 3, 2, 2))
    bias = network.network[0].bias[:, None, None].bfloat16().float()
    torch.testing.assert_close(out[0], ((bias - 100.3) / (1 + 1e-5) ** 0.5).expand(4, 2, 2), rtol=4e-3, atol=0)


def test_a_locked_network_stays_in_evaluation_in_every_precision():
    network = Frozen(nn.Sequential(nn.Dropout(0.5), nn.Conv2d(1, 1, 1)))
    network.network.train()
    picture = torch.ones(1, 1, 4, 4)
    assert torch.equal(network(picture), network(picture))
    with computing_in(torch.bfloat16):
        assert torch.equal(network(picture), network(picture))


@pytest.mark.parametrize(
    ("host", "precision", "expected"),
    [
        (torch.float32, "auto", torch.float32),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.float16, "auto", torch.bfloat16),
        (torch.float16, "float32", torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
    ],
)
def test_bfloat16_where_the_host_computes_in_half_precision_and_never_float16(host, precision, expected):
    step = make_step((50, 20))
    exact = loss_and_gradient(make_stack(Term("picture", PictureLoss(), 0.2)), step)
    lines = []
    stack = make_stack(Term("picture", PictureLoss(), 0.2), precision=precision, announce=lines.append)
    # accelerate hands the output of a prepared network over in float32, whatever it computed in
    half = replace(step, latents=step.latents.to(host))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=host == torch.bfloat16):
        stack.prove(half)
        value, gradient = loss_and_gradient(stack, half)
    assert stack.pictures.dtype_for(half) == expected
    assert value.dtype == torch.float32
    assert torch.cosine_similarity(gradient.float().flatten(), exact[1].flatten(), dim=0) > 0.99
    assert ("decoding by bfloat16: cosine" in lines[0]) == (expected == torch.bfloat16)
    assert (not torch.equal(value, exact[0])) == (expected == torch.bfloat16)


def test_a_gpu_that_only_emulates_bfloat16_gets_float32(monkeypatch):
    asked = []
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: asked.append(including_emulation) or False
    )
    assert not has_bfloat16(torch.device("cuda"))
    assert asked == [False]
    assert has_bfloat16(torch.device("cpu"))


class Generators:
    """Stands in for the generators of all other devices: what torch.manual_seed would reseed."""

    def __init__(self, monkeypatch):
        self.reseeded = []
        for module in (torch.cuda, torch.mps, torch.xpu):
            for name in ("manual_seed", "manual_seed_all"):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, self.reseeded.append)


@pytest.mark.parametrize("build", [lambda: nn.Conv2d(3, 8, 3), *(n.build for n in FACE_NETWORKS.values())])
def test_random_weights_move_no_generator_of_any_device(build, monkeypatch):
    """torch.manual_seed inside fork_rng(devices=[]) reseeded every GPU for good: all ranks drew alike."""
    generators = Generators(monkeypatch)
    torch.manual_seed(3)
    assert generators.reseeded  # the stand-in sees what it is meant to see
    generators.reseeded.clear()
    before = torch.get_rng_state()
    one, other = build_seeded(build), build_seeded(build)
    assert generators.reseeded == []
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


class Sevens(nn.Module):
    """Its weight is zero where nobody calls torch.nn.init."""

    def __init__(self):
        super().__init__()
        self.weight, self.kept = nn.Parameter(torch.zeros(1, 3)), torch.ones(3)
        nn.init.constant_(self.weight, 7.0)
        nn.init.uniform_(tensor=self.weight)
        nn.init.kaiming_normal_(self.weight)


def test_what_is_filled_is_not_drawn_before():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    network = build_to_fill(Sevens)
    assert network.weight.tolist() == [[0, 0, 0]]
    assert network.kept.tolist() == [1, 1, 1], "all else is as it builds it"
    assert torch.equal(torch.get_rng_state(), before)
    assert build_seeded(lambda: nn.Linear(3, 3)).weight.any(), "and later networks are drawn again"


def reseeds_gpus(source):
    """Whether it seeds all generators where only that of the CPU is put back."""
    forks = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.With)]
    forks = [n for n in forks if any("fork_rng(devices=[])" in ast.unparse(i.context_expr) for i in n.items)]
    return any(re.search(r"\b(torch|random)\.(manual_seed|seed)\(|\bset_seed\(", ast.unparse(n)) for n in forks)


def test_no_source_file_seeds_gpus_and_leaves_them_so():
    root = Path(__file__).parent.parent
    sources = [*(root / "mldm_plugin").rglob("*.py"), *(root / "hooks").rglob("*.py")]
    assert [p for p in sources if reseeds_gpus(p.read_text(encoding="utf-8"))] == []
    with_fork = "with torch.random.fork_rng({}):\n    torch.manual_seed(0)"
    assert reseeds_gpus(with_fork.format("devices=[]"))
    assert not reseeds_gpus(with_fork.format(""))  # all generators are put back


@pytest.mark.parametrize(("has_group_norm", "on_gpu"), [(True, False), (False, True)])
def test_channels_last_on_a_gpu_only_without_group_norms(has_group_norm, on_gpu):
    """A group norm brings tensors back into contiguous order there, two copies each."""
    network = nn.Sequential(nn.Conv2d(8, 8, 3), *([nn.GroupNorm(2, 8)] if has_group_norm else []))
    frozen = Frozen(network)
    assert frozen.layout_on(torch.device("cuda")) == (torch.channels_last if on_gpu else torch.contiguous_format)
    assert frozen.layout_on(torch.device("cpu")) == torch.channels_last
    frozen(torch.rand(1, 8, 6, 6))
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_copy_of_the_vae_outlives_the_hosts():
    vae = tiny_vae()
    decoder, expected = LatentDecoder(vae), copy.deepcopy(vae)
    for parameter in vae.parameters():
        parameter.zero_()
    latents = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(decoder(latents), expected.decode(latents / 0.5).sample)
    assert isinstance(vae, AutoencoderKL)


def test_two_losses_in_bfloat16_share_one_decode():
    stack = make_stack(Term("picture", PictureLoss(), 0.2), Term("face", FaceLoss(), 0.2), precision="bfloat16")
    value, gradient = loss_and_gradient(stack, make_step((50, 20)))
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
