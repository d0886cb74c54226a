"""Procrustes, CCA and CKA: known answers, and what must not change them."""

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes

from ctdb.errors import MetricError
from ctdb.metrics.geometry import canonical_correlations, cca, cka, procrustes_distance

ALL = [procrustes_distance, cca, cka]


def rng(seed=0):
    return np.random.default_rng(seed)


def cloud(seed=0, channels=4):
    return rng(seed).normal(size=(8, 25, channels)) * np.arange(1, channels + 1)


def rotation(size, seed=1):
    return np.linalg.qr(rng(seed).normal(size=(size, size)))[0]


def test_procrustes_is_the_angle_after_the_best_rotation():
    x, y = (c.reshape(-1, 4) - c.reshape(-1, 4).mean(0) for c in (cloud(), cloud() + 3 * cloud(5)))
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    Q, total = orthogonal_procrustes(x, y)
    assert procrustes_distance(x, y) == pytest.approx(np.arccos(total))
    assert procrustes_distance(x, y) == pytest.approx(np.arccos(np.sum(x @ Q * y)))


def test_rotation_scale_and_shift_do_not_matter():
    x, y = cloud(), cloud(2)
    moved = 0.2 * x @ rotation(4) - 11
    assert procrustes_distance(x, moved) < 1e-7
    assert cka(x, moved) == pytest.approx(1)
    for score in ALL:
        assert score(moved, y) == pytest.approx(score(x, y), abs=1e-9)
        assert score(y, x) == pytest.approx(score(x, y), abs=1e-9)
        assert score(x[::-1], y[::-1]) == pytest.approx(score(x, y), abs=1e-9)
        assert score(x[::-1], y) != pytest.approx(score(x, y), abs=1e-4)


def test_cca_alone_forgives_every_invertible_map():
    x, y = cloud(), cloud(2)
    sheared = x @ (np.eye(4) + 5 * np.triu(np.ones((4, 4)), 1)) * [1, 1e-4, 1e3, 1]
    assert cca(x, sheared) == pytest.approx(1)
    assert cca(sheared, y) == pytest.approx(cca(x, y), abs=1e-9)
    assert procrustes_distance(x, sheared) > 0.1
    assert cka(x, sheared) < 0.99


def test_canonical_correlations_count_what_is_shared():
    shared, own, other = cloud(0, 2), cloud(1, 2), cloud(2, 3)
    found = canonical_correlations(np.concatenate([shared, own], 2), np.concatenate([shared, other], 2))
    assert found.shape == (4,)
    np.testing.assert_allclose(found[:2], 1)
    assert found[2] < 0.4
    noisy = canonical_correlations(shared[..., :1], shared[..., :1] + shared[..., 1:])
    r = np.corrcoef(shared[..., 0].ravel(), shared.sum(2).ravel())[0, 1]
    assert noisy[0] == pytest.approx(abs(r))


def test_directions_that_are_rounding_are_not_counted():
    x = cloud(0, 2)
    embedded = x @ rng(3).normal(size=(2, 6))
    assert canonical_correlations(embedded, cloud(1, 4)).shape == (2,)
    assert cca(embedded, x) == pytest.approx(1)
    assert procrustes_distance(x, x @ rotation(6)[:2]) < 1e-7  # more channels, the same cloud


def test_noise_moves_them_apart_smoothly():
    x = cloud()
    for score, sign in ((procrustes_distance, 1), (cca, -1), (cka, -1)):
        scores = [sign * score(x, x + level * cloud(3)) for level in (0.0, 0.1, 0.3, 1.0, 3.0)]
        assert (np.diff(scores) > 0).all()
    assert procrustes_distance(x, x) < 1e-7


@pytest.mark.parametrize("score", ALL)
def test_padding_does_not_enter(score):
    n_bins = rng(0).integers(3, 25, 8)
    x, y = cloud(), cloud() + cloud(2)
    valid = np.arange(25) < n_bins[:, None]
    expected = score(x[valid], y[valid])
    x[~valid] = y[~valid] = np.nan
    assert score(x, y, n_bins) == expected


@pytest.mark.parametrize("score", ALL)
def test_errors(score):
    with pytest.raises(MetricError, match="same trials and bins"):
        score(cloud(), cloud()[1:])
    with pytest.raises(MetricError, match="single point"):
        score(cloud(), np.ones((8, 25, 2)))
    with pytest.raises(MetricError, match="NaN"):
        score(cloud() * np.nan, cloud())
