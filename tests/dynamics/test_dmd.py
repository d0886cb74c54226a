"""Moments of delayed states and the linear models from them, against plain linear algebra and against dsa-metric."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from ctdb.dynamics.dmd import delay_moments, fit_dmd, numerical_rank, prediction_errors
from ctdb.errors import MetricError


def oscillators(n_trials=30, n_bins=80, n_channels=6, noise=0.05, seed=0):
    r = np.random.default_rng(seed)
    a, b = 0.2, 0.55
    A = np.zeros((4, 4))
    A[:2, :2] = 0.99 * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    A[2:, 2:] = 0.95 * np.array([[np.cos(b), -np.sin(b)], [np.sin(b), np.cos(b)]])
    x = np.empty((n_trials, n_bins, 4))
    x[:, 0] = r.normal(size=(n_trials, 4))
    for t in range(1, n_bins):
        x[:, t] = x[:, t - 1] @ A.T + noise * r.normal(size=(n_trials, 4))
    return x @ r.normal(size=(4, n_channels)), A


def windows(trial, n_delays):
    return np.stack([trial[t - n_delays + 1 : t + 1][::-1].ravel() for t in range(n_delays - 1, len(trial))])


def apart(first, second):
    cost = np.abs(np.asarray(first)[:, None] - np.asarray(second))
    return cost[linear_sum_assignment(cost)].max()


@pytest.mark.parametrize("n_delays", [1, 2, 7])
@pytest.mark.parametrize("ragged", [False, True])
def test_moments_are_those_of_all_windows(n_delays, ragged):
    r = np.random.default_rng(1)
    x = r.normal(size=(5, 20, 3))
    n_bins = np.array([20, 8, 13, 9, 20]) if ragged else None
    if ragged:
        x[np.arange(20) >= n_bins[:, None]] = np.nan
    whole, joint, count = 0, 0, 0
    for trial, length in zip(x, n_bins if ragged else [20] * 5, strict=True):
        h = windows(trial[:length], n_delays)
        pair = windows(trial[:length], n_delays + 1)
        whole, joint, count = whole + h.T @ h, joint + pair.T @ pair, count + len(h)
    moments = delay_moments(x, n_delays, n_bins)
    np.testing.assert_allclose(moments.whole, whole, atol=1e-12 * whole.max())
    np.testing.assert_allclose(moments.joint, joint, atol=1e-12 * whole.max())
    assert moments.n_windows == count


def test_fewer_delays_are_fitted_to_the_same_bins():
    x, _ = oscillators()
    fewer = delay_moments(x, 6).fewer(2)
    np.testing.assert_allclose(fewer.joint, delay_moments(x[:, 4:], 2).joint, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(fewer.whole, delay_moments(x[:, 4:], 2).whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("n_delays", "rank"), [(1, 4), (3, 8), (8, 10)])
def test_the_model_is_the_regression_between_singular_vectors(n_delays, rank):
    x, _ = oscillators()
    h = np.stack([windows(trial, n_delays) for trial in x])
    _, singular, right = np.linalg.svd(h.reshape(-1, h.shape[-1]), full_matrices=False)
    v = h @ right[:rank].T / singular[:rank]
    before, after = v[:, :-1].reshape(-1, rank), v[:, 1:].reshape(-1, rank)
    expected = np.linalg.solve(before.T @ before + 1e-8 * np.eye(rank), before.T @ after).T
    model = fit_dmd(delay_moments(x, n_delays), rank)
    assert apart(model.eigenvalues, np.linalg.eigvals(expected)) < 1e-9
    assert np.linalg.norm(model.matrix) == pytest.approx(np.linalg.norm(expected), rel=1e-9)
    np.testing.assert_allclose(model.singular[:rank], singular[:rank], rtol=1e-9)


@pytest.mark.parametrize(("n_delays", "rank"), [(1, 4), (5, 8), (10, 6)])
def test_eigenvalues_are_those_of_dsa_metric(n_delays, rank):
    library = pytest.importorskip("DSA", reason="dsa-metric is not installed")
    x, _ = oscillators()
    x -= x.mean((0, 1))
    reference = library.DMD(x.copy(), n_delays=n_delays, rank=rank)
    reference.fit()
    expected = np.linalg.eigvals(reference.A_v.numpy().astype(np.float64))
    assert apart(fit_dmd(delay_moments(x, n_delays), rank).eigenvalues, expected) < 1e-5


def test_eigenvalues_of_a_known_linear_system():
    x, A = oscillators(noise=0.0)
    model = fit_dmd(delay_moments(x, 1), 4)
    assert apart(model.eigenvalues, np.linalg.eigvals(A)) < 1e-7
    expected = np.sort(np.abs(np.linalg.eigvals(A)))[::-1]
    np.testing.assert_allclose(np.abs(model.eigenvalues), expected, atol=1e-7)


def test_prediction_error_is_that_of_the_predictions():
    x, _ = oscillators()
    fitted, other = delay_moments(x[:15], 3), delay_moments(x[15:], 3)
    model = fit_dmd(fitted, 6)
    errors = prediction_errors(model, other, np.array([2, 6]), fitted)
    h = np.stack([windows(trial, 3) for trial in x[15:]])
    predicted = h[:, :-1] @ model.whiten @ model.matrix.T @ model.readout.T
    target = x[15:, 3:]
    expected = ((predicted - target) ** 2).sum() / ((target - x[15:, 2:-1]) ** 2).sum()
    assert errors[1] == pytest.approx(expected, rel=1e-9)
    assert errors[0] > errors[1]


def test_states_are_left_as_they_are():
    x, _ = oscillators()
    before = x.copy()
    fit_dmd(delay_moments(x, 4), 5)
    np.testing.assert_array_equal(x, before)


def test_errors_say_what_is_wrong():
    x, _ = oscillators()
    with pytest.raises(MetricError, match="at least 91 bins"):
        delay_moments(x, 90)
    with pytest.raises(MetricError, match="must be at least 1"):
        delay_moments(x, 0)
    with pytest.raises(MetricError, match="NaN"):
        delay_moments(np.where(x == x[0, 0, 0], np.nan, x), 2)
    with pytest.raises(MetricError, match="between 1 and 4"):
        fit_dmd(delay_moments(oscillators(noise=0.0)[0], 3), 5)
    assert numerical_rank(np.zeros(3)) == 0
