"""Distances between marginal distributions: literal definitions, known answers, padding and order."""

import numpy as np
import pytest

from ctdb.errors import MetricError
from ctdb.metrics.distances import marginal_kl, marginal_wasserstein

BOTH = [marginal_wasserstein, marginal_kl]


def activity(seed=0, shape=(10, 30, 3)):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("distance", BOTH)
def test_equal_distributions_are_at_zero_in_any_order(distance):
    x = activity()
    assert distance(x, x[::-1, ::-1]) == pytest.approx(0, abs=1e-12)
    assert distance(x, activity(1)) == distance(x[::-1], activity(1))
    assert distance(x, x + 0.5) > distance(x, x + 0.2) > distance(x, x)


def test_a_shift_is_twice_its_share_of_the_true_range():
    x = np.linspace(0, 4, 50)[:, None] * np.array([1.0, 10.0])
    assert marginal_wasserstein(x, x + np.array([1.0, 0.0])) == pytest.approx((2 * 1 / 4 + 0) / 2)
    assert marginal_wasserstein(100 * x, 100 * (x + np.array([1.0, 0.0]))) == pytest.approx(0.25)
    few, many = x[:1] * 0, np.array([[3.0, 0.0]])
    assert marginal_wasserstein(np.concatenate([few, few + 4]), many) == pytest.approx(
        2 * (3 + 1) / 2 / 4 / 2 + 2 * 2 / 4 / 2
    )


def test_a_channel_that_never_varies_is_left_out():
    x = activity()
    constant = np.concatenate([x, np.ones((10, 30, 1))], 2)
    other = np.concatenate([x + 1, activity(2)[..., :1]], 2)
    assert marginal_wasserstein(constant, other) == pytest.approx(marginal_wasserstein(x, x + 1))
    with pytest.raises(MetricError, match="no true channel varies"):
        marginal_wasserstein(np.ones((4, 2)), np.zeros((4, 2)))


def test_kl_is_that_of_the_histograms():
    true, inferred = activity()[..., :1], 0.5 * activity(1, (4, 50, 1))
    edges = np.linspace(min(true.min(), inferred.min()), max(true.max(), inferred.max()), 51)
    p, q = (np.histogram(a, edges)[0] + 1e-12 for a in (true, inferred))
    p, q = p / p.sum(), q / q.sum()
    assert marginal_kl(true, inferred) == pytest.approx((p * np.log(p / q)).sum())
    assert marginal_kl(true, inferred, pseudocount=1.0) < marginal_kl(true, inferred)
    assert marginal_kl(true, inferred) != pytest.approx(marginal_kl(inferred, true))
    halves = np.array([[0.0], [0.0], [0.0], [1.0]]), np.array([[0.0], [1.0]])
    assert marginal_kl(*halves, n_histogram_bins=2) == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert marginal_kl(np.ones((3, 1)), np.ones((2, 1))) == 0


@pytest.mark.parametrize("distance", BOTH)
def test_padding_does_not_enter(distance):
    n_bins = np.random.default_rng(0).integers(3, 30, 10)
    x, y = activity(), activity(1)
    valid = np.arange(30) < n_bins[:, None]
    expected = distance(x[valid], y[valid])
    x[~valid] = y[~valid] = np.nan
    assert distance(x, y, n_bins) == expected
    assert distance(x, activity(1), n_bins, np.full(10, 30)) == distance(x[valid], activity(1).reshape(-1, 3))


@pytest.mark.parametrize("distance", BOTH)
def test_errors(distance):
    with pytest.raises(MetricError, match="equal channels"):
        distance(activity(), activity()[..., :2])
    with pytest.raises(MetricError, match="NaN"):
        distance(activity() * np.nan, activity())
    with pytest.raises(MetricError, match="no valid bin"):
        distance(activity(), activity(), np.zeros(10, int))
