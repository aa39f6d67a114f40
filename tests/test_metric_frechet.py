"""Fréchet distances of sets of features."""

import functools

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seen_pictures import register, seen_picture

from mldm_plugin.errors import DataError, PresetError
from mldm_plugin.evaluation.statistics import set_difference
from mldm_plugin.hooks.metrics import frechet
from mldm_plugin.hooks.metrics.frechet import FrechetDistance, extrapolated, frechet_distance, register_metrics

SEEDS = st.integers(0, 2**31)


def draw(n, d, seed=0, scale=1.0, shift=0.0):
    """(n, d) of a Gaussian whose axes are neither alike nor those of the coordinates."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=g, dtype=torch.float64) / d**0.5
    return scale * torch.randn(n, d, generator=g, dtype=torch.float64) @ mixing + shift


def by_sqrtm(one, two):
    """The formula as it stands, with scipy's matrix root."""
    (m1, s1), (m2, s2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (one.numpy(), two.numpy()))
    root = scipy.linalg.sqrtm(s1 @ s2)
    return ((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * np.trace(root).real


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 12), (13, 400, 12), (13, 14, 12)])
def test_it_equals_the_matrix_root_where_that_exists(n, m, d):
    one, two = draw(n, d), draw(m, d, seed=1, scale=1.5, shift=0.2)
    assert frechet_distance(one, two) == pytest.approx(by_sqrtm(one, two), rel=1e-9)


@pytest.mark.parametrize(("n", "m", "d"), [(8, 9, 40), (8, 200, 40), (100, 20, 64)])
def test_fewer_rows_than_columns_equal_the_root_of_the_eigenvalues(n, m, d):
    """Σ₁Σ₂ is singular there: eigenvalues that are rounding errors of 0 are left out."""
    one, two = draw(n, d), draw(m, d, seed=1, scale=1.5, shift=0.2)
    s1, s2 = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    eigenvalues = np.sort(np.linalg.eigvals(s1 @ s2).real)[::-1][: min(n, m) - 1]
    apart = (one.mean(0) - two.mean(0)).square().sum().item()
    expected = apart + np.trace(s1) + np.trace(s2) - 2 * np.sqrt(eigenvalues.clip(0)).sum()
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-6)


def with_moments(rows, mean, covariance):
    """Rows moved so that their mean and covariance are exactly these."""
    centred = rows - rows.mean(0)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(torch.cov(centred.T)).mT, centred, upper=True, left=False
    )
    return white @ torch.linalg.cholesky(covariance).mT + mean


def test_gaussians_of_known_moments_have_the_closed_form():
    """Equal axes: Σ (μ₁ − μ₂)² + (σ₁ − σ₂)²."""
    m1, m2 = torch.tensor([0.0, 1, 2]).double(), torch.tensor([1.0, 1, -2]).double()
    s1, s2 = torch.tensor([1.0, 2, 3]).double(), torch.tensor([2.0, 2, 0.5]).double()
    one = with_moments(draw(50, 3), m1, torch.diag(s1**2))
    two = with_moments(draw(70, 3, seed=1), m2, torch.diag(s2**2))
    expected = ((m1 - m2) ** 2 + (s1 - s2) ** 2).sum().item()
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-9)


def test_it_equals_torch_fidelity():
    metric = pytest.importorskip("torch_fidelity.metric_fid", exc_type=ImportError)
    one, two = draw(300, 64).float(), draw(250, 64, seed=1, shift=0.1).float()
    statistics = [metric.fid_features_to_statistics(x) for x in (one, two)]
    theirs = metric.fid_statistics_to_metric(*statistics, verbose=False)[metric.KEY_METRIC_FID]
    assert frechet_distance(one, two) == pytest.approx(theirs, rel=1e-4)


class AsFeatures(torch.nn.Module):
    """A feature extractor for torchmetrics, whose pictures are features already."""

    num_features = 64

    def forward(self, x):
        return x


def test_it_equals_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid", exc_type=ImportError)
    metric = fid.FrechetInceptionDistance(feature=AsFeatures())
    one, two = draw(300, 64).float(), draw(250, 64, seed=1, shift=0.1).float()
    metric.update(two, real=True)
    metric.update(one, real=False)
    assert frechet_distance(one, two) == pytest.approx(metric.compute().item(), rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(2, 30), st.integers(2, 30), st.integers(1, 20))
def test_symmetric_and_blind_to_order_and_rotation(seed, n, m, d):
    one, two = draw(n, d, seed), draw(m, d, seed + 1, shift=0.3)
    value = frechet_distance(one, two)
    close = functools.partial(pytest.approx, rel=1e-6, abs=1e-9)
    assert value >= 0
    assert frechet_distance(two, one) == close(value)
    g = torch.Generator().manual_seed(seed)
    assert frechet_distance(one[torch.randperm(n, generator=g)], two) == close(value)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    assert frechet_distance(one @ rotation + 1, two @ rotation + 1) == close(value)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(2, 30), st.integers(1, 20))
def test_equal_sets_are_0_and_a_shift_is_its_square(seed, n, d):
    rows = draw(n, d, seed)
    assert frechet_distance(rows, rows.clone()) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(rows, rows + 2) == pytest.approx(4 * d, rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_extrapolated_one_is_that_of_infinite_sets(shift):
    """Twice as many rows as columns: the plain one is far too large, the other one right on average."""
    d, n = 24, 48
    spread = torch.arange(1, d + 1).double() ** -0.5
    plain, infinite = [], []
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        one, two = (torch.randn(n, d, generator=g, dtype=torch.float64) * spread for _ in range(2))
        one[:, 0] += shift
        plain.append(frechet_distance(one, two))
        infinite.append(extrapolated(one, two))
    assert min(plain) > shift**2 + 0.4
    mean, error = np.mean(infinite), np.std(infinite) / 20**0.5
    assert mean == pytest.approx(shift**2, abs=4 * error)
    assert error < 0.1


def test_the_line_is_fitted_from_half_of_each_set_to_all_of_it(monkeypatch):
    """A distance of a + c/n is extrapolated to a, whatever its parts are; a tenth or nine tenths would do that, too."""
    seen = []

    def distance(one, two):
        seen.append((len(one), len(two)))
        return 3 + 48 / len(one)

    monkeypatch.setattr(frechet, "frechet_distance", distance)
    assert extrapolated(draw(480, 4), draw(240, 4)) == pytest.approx(3, abs=1e-3)
    assert sorted(seen)[0] == (240, 120)
    assert sorted(seen)[-1] == (480, 240)
    assert len(set(seen)) == frechet.POINTS


def jackknifed(one, two):
    """Squared standard error by leaving out twentieths of the first set, as an evaluation does."""

    def of(_, some):
        return extrapolated(one[list(some)], two)

    return set_difference(of, None, (1, 0), len(one)).error ** 2


def test_the_jackknife_of_the_extrapolated_one_is_less_of_draws_and_more_of_rows(monkeypatch):
    """Parts that are drawn anew for each leave-out make the interval half as wide again."""
    real, errors = draw(400, 3), {}
    for name in ("own", "anew"):
        errors[name] = np.sqrt(np.mean([jackknifed(draw(60, 3, seed, shift=0.3), real) for seed in range(4)]))
        g = torch.Generator().manual_seed(0)
        monkeypatch.setattr(frechet, "_shuffled", lambda rows, seed, g=g: rows[torch.randperm(len(rows), generator=g)])
    assert errors["own"] < 0.8 * errors["anew"]


def test_the_order_of_rows_is_their_own():
    """Rows that stand elsewhere, or without their neighbours, fall into the same parts."""
    one, two = draw(40, 4), draw(50, 4, seed=1)
    turned = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    assert extrapolated(one[turned], two.flip(0)) == pytest.approx(extrapolated(one, two), rel=1e-9)
    whole = [tuple(row) for row in frechet._shuffled(one, 0).tolist()]
    some = [tuple(row) for row in frechet._shuffled(one[10:], 0).tolist()]
    gone = {tuple(row) for row in one[:10].tolist()}
    assert some == [row for row in whole if row not in gone]
    assert whole != [tuple(row) for row in frechet._shuffled(one, 1).tolist()]


def test_the_extrapolated_one_is_the_same_each_time_and_draws_nothing_from_the_host():
    one, two = draw(30, 4), draw(30, 4, seed=1)
    before = torch.get_rng_state()
    assert extrapolated(one, two) == extrapolated(one, two) != extrapolated(one, two, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("distance", [frechet_distance, extrapolated])
def test_bad_sets_are_told_in_one_line(distance):
    good = draw(5, 3)
    hole = good.clone()
    hole[1, 2] = torch.nan
    for pair, told in (
        ((good[:1], good), r"generated pictures: expected \(n, d\) with n at least 2, got \(1, 3\)"),
        ((good, good[0]), r"real pictures: expected \(n, d\)"),
        ((good, torch.zeros(0, 3)), r"got \(0, 3\)"),
        ((hole, good), r"1 of 5 rows are not finite"),
        ((good, draw(5, 4)), r"have 3 numbers each, of the real ones 4: compute both"),
    ):
        with pytest.raises(DataError, match=told) as error:
            distance(*pair)
        assert "\n" not in str(error.value)


def test_registered_names_titles_and_numbers_of_pictures():
    entries = register(register_metrics)
    assert set(entries) == {
        *("fd_vgg16", "fd_vgg16_person", "fd_vgg16_face", "fd_face"),
        *("fd_dinov2", "fd_dinov2_person", "fd_dinov2_face", "fid", "fid_person", "fid_face", "fid_infinite"),
    }
    made = {name: entries[name](weights="random") for name in entries if "dinov2" not in name}
    assert {name: (metric.title, metric.least) for name, metric in made.items()} == {
        "fd_vgg16": ("FD of pictures (VGG16)", 512),
        "fd_vgg16_person": ("FD of people (VGG16)", 512),
        "fd_vgg16_face": ("FD of faces (VGG16)", 512),
        "fd_face": ("FD of faces (dlib)", 128),
        "fid": ("FID", 2048),
        "fid_person": ("FD of people (Inception)", 2048),
        "fid_face": ("FD of faces (Inception)", 2048),
        "fid_infinite": ("FID∞", 4096),
    }
    assert {metric.better for metric in made.values()} == {"smaller"}
    assert made["fd_face"].networks == ()
    dinov2 = {name: entry.keywords for name, entry in entries.items() if "dinov2" in name}
    assert [given.get("of") for given in dinov2.values()] == [None, "person", "face"]


def test_from_pictures_to_a_distance():
    metric = FrechetDistance(of="face", network="dlib", weights="random")
    rows = [torch.cat([metric.features(seen_picture(seed)) for seed in seeds]) for seeds in ((1, 2), (3, 4))]
    assert [x.shape for x in rows] == [(4, 128), (4, 128)]
    assert metric.distance(*rows) > 0
    assert metric.distance(rows[0], rows[0]) == pytest.approx(0, abs=1e-9)
    infinite = FrechetDistance(of="face", network="dlib", weights="random", extrapolate=True)
    assert infinite.distance(*rows) == extrapolated(*rows)


def test_options_that_do_not_go_together():
    with pytest.raises(PresetError, match="dlib knows faces only, got of: person"):
        FrechetDistance(network="dlib", of="person", weights="random")
