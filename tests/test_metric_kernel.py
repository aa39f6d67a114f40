"""Kernel distances of sets of features."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seen_pictures import register, seen_picture

from mldm_plugin.errors import DataError
from mldm_plugin.hooks.metrics import kernel
from mldm_plugin.hooks.metrics.kernel import KernelDistance, kernel_distance, register_metrics


def draw(n, d=16, seed=0, shift=0.0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64) + shift


def test_by_hand():
    """d = 2, k(x, y) = (xᵀy/2 + 1)³: between the xs 1, between the ys 8, across 3.375, 1, 1 and 1 of four."""
    x, y = torch.tensor([[1.0, 0], [0, 1.0]]), torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert kernel_distance(x, y) == pytest.approx(1 + 8 - 2 * 3.375)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 25), st.integers(2, 25), st.integers(1, 10))
def test_it_is_the_formula_and_symmetric_and_blind_to_order_and_rotation(seed, n, m, d):
    x, y = draw(n, d, seed), draw(m, d, seed + 1, shift=0.5)
    across, xx, yy = ((a @ b.T / d + 1).numpy() ** 3 for a, b in ((x, y), (x, x), (y, y)))
    expected = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy)) - 2 * across.mean()
    value = kernel_distance(x, y)
    for other in (
        expected,
        kernel_distance(y, x),
        kernel_distance(x.flip(0), y),
        kernel_distance(*(rows @ torch.linalg.qr(draw(d, d, seed)).Q for rows in (x, y))),
    ):
        assert other == pytest.approx(value, rel=1e-9, abs=1e-9)


def test_many_pictures_are_taken_a_block_at_a_time(monkeypatch):
    x, y = draw(50), draw(40, seed=1)
    whole = kernel_distance(x, y)
    monkeypatch.setattr(kernel, "ROWS", 7)
    assert kernel_distance(x, y) == pytest.approx(whole, rel=1e-12)


def test_it_is_unbiased():
    """One number a picture: (E x³ − E y³)² + 3 (E x² − E y²)² + 3 (E x − E y)², however few there are."""

    def moments(mean, spread):
        return np.array([mean, mean**2 + spread**2, mean**3 + 3 * mean * spread**2])

    for mean, spread in ((0.0, 1.0), (0.3, 1.2)):
        true = (np.array([3, 3, 1]) * (moments(mean, spread) - moments(0, 1)) ** 2).sum()
        g = torch.Generator().manual_seed(1)
        made = torch.randn(4000, 8, 1, generator=g, dtype=torch.float64) * spread + mean
        real = torch.randn(4000, 5, 1, generator=g, dtype=torch.float64)
        values = [kernel_distance(x, y) for x, y in zip(made, real, strict=True)]
        mean_value, error = np.mean(values), np.std(values) / 4000**0.5
        assert mean_value == pytest.approx(true, abs=4 * error)
        assert min(values) < 0 < max(values)


def test_it_equals_torch_fidelity_on_one_subset_of_all():
    metric = pytest.importorskip("torch_fidelity.metric_kid", exc_type=ImportError)
    x, y = draw(120, 64).float(), draw(120, 64, seed=1, shift=0.2).float()
    theirs = metric.kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=120, verbose=False)
    assert kernel_distance(x, y) == pytest.approx(theirs[metric.KEY_METRIC_KID_MEAN], rel=1e-4)


class AsFeatures(torch.nn.Module):
    """A feature extractor for torchmetrics, whose pictures are features already."""

    def forward(self, x):
        return x


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_it_equals_torchmetrics_on_one_subset_of_all():
    kid = pytest.importorskip("torchmetrics.image.kid", exc_type=ImportError)
    metric = kid.KernelInceptionDistance(feature=AsFeatures(), subsets=1, subset_size=120)
    x, y = draw(120, 64).float(), draw(120, 64, seed=1, shift=0.2).float()
    metric.update(y, real=True)
    metric.update(x, real=False)
    assert kernel_distance(x, y) == pytest.approx(metric.compute()[0].item(), rel=1e-4)


def test_bad_sets_are_told():
    with pytest.raises(DataError, match=r"n at least 2, got \(1, 16\)"):
        kernel_distance(draw(1), draw(5))
    with pytest.raises(DataError, match="1 of 5 rows are not finite"):
        kernel_distance(draw(5), draw(5).index_fill(0, torch.tensor(2), torch.inf))


def test_registered_names_and_titles():
    entries = register(register_metrics)
    made = {name: entries[name](weights="random") for name in entries}
    assert {name: metric.title for name, metric in made.items()} == {
        "kd_vgg16": "KD of pictures (VGG16)",
        "kd_vgg16_face": "KD of faces (VGG16)",
        "kd_face": "KD of faces (dlib)",
        "kd_alexnet_person": "KD of people (AlexNet)",
        "kd_faceres": "KD of faces (FaceRes)",
        "kid": "KID",
        "kid_person": "KD of people (Inception)",
        "kid_face": "KD of faces (Inception)",
    }
    assert {(metric.better, metric.least, metric.networks) for metric in made.values()} == {("smaller", 50, ())}


def test_from_pictures_to_a_distance():
    metric = KernelDistance(of="face", network="dlib", weights="random")
    rows = [torch.cat([metric.features(seen_picture(seed)) for seed in seeds]) for seeds in ((1, 2), (3, 4))]
    assert metric.distance(*rows) == kernel_distance(*rows)
