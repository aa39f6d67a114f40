"""CMMD of sets of embeddings."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seen_pictures import register, seen_picture
from small_transformers import save_clip

from mldm_plugin.errors import DataError
from mldm_plugin.hooks.metrics import cmmd
from mldm_plugin.hooks.metrics.cmmd import clip_mmd, register_metrics


def draw(n, d=16, seed=0, shift=0.0):
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=g, dtype=torch.float64) + shift
    return rows / rows.norm(dim=1, keepdim=True)


def published(x, y):
    """The formula of the paper's program, in numpy: google-research/cmmd, distance.py."""

    def mean_kernel(a, b):
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
        return np.exp(-squares / (2 * 10**2)).mean()

    return 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 25), st.integers(2, 25), st.integers(2, 10))
def test_it_is_the_published_formula_and_symmetric_and_blind_to_order_and_length(seed, n, m, d):
    x, y = draw(n, d, seed), draw(m, d, seed + 1, shift=0.5)
    value = clip_mmd(x, y)
    for other in (published(x.numpy(), y.numpy()), clip_mmd(y, x), clip_mmd(x.flip(0), y), clip_mmd(3 * x, y)):
        assert other == pytest.approx(value, rel=1e-6, abs=1e-9)
    assert clip_mmd(x, x.clone()) == pytest.approx(0, abs=1e-9)


def test_many_pictures_are_taken_a_block_at_a_time(monkeypatch):
    x, y = draw(50), draw(40, seed=1)
    whole = clip_mmd(x, y)
    monkeypatch.setattr(cmmd, "ROWS", 7)
    assert clip_mmd(x, y) == pytest.approx(whole, rel=1e-9)


def test_it_sees_means_and_next_to_nothing_of_the_spread():
    """The two terms that the docstring gives are all of it, and the second is small."""
    x, y = draw(60), draw(70, seed=1, shift=0.4)
    first = 9.9 * (x.mean(0) - y.mean(0)).square().sum().item()
    second = 0.05 * (x.T @ x / 60 - y.T @ y / 70).square().sum().item()
    assert clip_mmd(x, y) == pytest.approx(first + second, rel=1e-3)
    assert second < 0.02 * first


def test_it_is_biased_by_the_spread_over_n():
    values = [clip_mmd(draw(20, seed=2 * k), draw(30, seed=2 * k + 1)) for k in range(200)]
    assert np.mean(values) == pytest.approx(10 * (1 / 20 + 1 / 30), rel=0.05)  # tr Σ is 1 about the mean 0


def test_bad_sets_are_told():
    with pytest.raises(DataError, match=r"n at least 2, got \(1, 16\)"):
        clip_mmd(draw(1), draw(5))


def test_from_pictures_to_a_distance(tmp_path):
    folder = save_clip(tmp_path / "clip")
    entries = register(register_metrics)
    titles = {name: entry(path=folder).title for name, entry in entries.items()}
    assert titles == {"cmmd": "CMMD", "cmmd_person": "CMMD of people (CLIP)", "cmmd_face": "CMMD of faces (CLIP)"}
    metric = entries["cmmd"](path=folder)
    assert (metric.title, metric.better, metric.least) == ("CMMD", "smaller", 100)
    assert metric.networks == (f"clip from {folder} (your own)",)
    rows = [torch.cat([metric.features(seen_picture(seed)) for seed in seeds]) for seeds in ((1, 2), (3, 4))]
    assert metric.distance(*rows) == clip_mmd(*rows) > 0
