"""Flow-field error and forecasts of systems that are known to be right, wrong, or a change of coordinates away."""

import numpy as np
import pytest
import torch

from ctdb.dynamics.flow import AffineMap, Alignment, align, flow_field_error, flow_field_sums, forecast
from ctdb.errors import MetricError

TRIALS, BINS, STATES, INPUTS = 20, 40, 3, 2


def rng(seed=0):
    return np.random.default_rng(seed)


W = rng(1).normal(size=(STATES, STATES)) * 0.9
B = rng(2).normal(size=(INPUTS, STATES)) * 0.5
M = rng(3).normal(size=(STATES, 5))  # latents of the fit have five dimensions
SHIFT = rng(4).normal(size=5)


def true_step(state, input):
    return torch.tanh(state @ torch.from_numpy(W) + input @ torch.from_numpy(B))


def fit_step(state, input):
    back = torch.from_numpy(np.linalg.pinv(M))
    shift = torch.from_numpy(SHIFT)
    return true_step((state - shift) @ back, input) @ torch.from_numpy(M) + shift


def still(state, input):
    return state.clone()


@pytest.fixture(scope="module")
def runs():
    u = rng(5).normal(size=(TRIALS, BINS, INPUTS))
    x = np.empty((TRIALS, BINS, STATES))
    state = torch.from_numpy(rng(6).normal(size=(TRIALS, STATES)))
    for t in range(BINS):
        state = true_step(state, torch.from_numpy(u[:, t]))
        x[:, t] = state.numpy()
    return x, u


@pytest.fixture(scope="module")
def alignment(runs):
    x, _ = runs
    return align(x[:10], x[:10] @ M + SHIFT)


def identity(size):
    same = AffineMap(np.eye(size), np.zeros(size))
    return Alignment(same, same)


def test_alignment_finds_the_affine_maps(runs, alignment):
    x, _ = runs
    np.testing.assert_allclose(alignment.to_fit(x), x @ M + SHIFT, atol=1e-9)
    np.testing.assert_allclose(alignment.to_true(x @ M + SHIFT), x, atol=1e-9)
    ridged = align(x[:10], x[:10] @ M + SHIFT, x[10:], x[10:] @ M + SHIFT)
    np.testing.assert_allclose(ridged.to_true(x @ M + SHIFT), x, atol=1e-3)


def test_the_same_flow_in_other_coordinates_has_no_error(runs, alignment):
    x, u = runs
    assert flow_field_error(true_step, fit_step, alignment, x[10:], u[10:]) == pytest.approx(0, abs=1e-12)


def test_no_better_than_the_mean_velocity_is_one(runs):
    x, u = runs
    next_state = true_step(torch.from_numpy(x[:, :-1].reshape(-1, 3)), torch.from_numpy(u[:, 1:].reshape(-1, 2)))
    mean = (next_state.numpy() - x[:, :-1].reshape(-1, 3)).mean(0)
    error = flow_field_error(true_step, lambda s, i: s + torch.from_numpy(mean), identity(3), x, u)
    assert error == pytest.approx(1)
    assert flow_field_error(true_step, still, identity(3), x, u) >= 1


def test_a_little_wrong_is_a_little_error(runs, alignment):
    x, u = runs

    def wrong(size):
        return lambda s, i: fit_step(s, i) + size * (fit_step(s, i) - s)

    errors = [flow_field_error(true_step, wrong(size), alignment, x, u) for size in (0.1, 0.2)]
    assert errors[1] == pytest.approx(4 * errors[0], rel=1e-6)  # a velocity too fast by a share
    deaf = flow_field_error(true_step, lambda s, i: fit_step(s, 0 * i), alignment, x, u)
    assert 0.1 < deaf < 1.5
    assert flow_field_error(true_step, fit_step, alignment, x, u, fit_inputs=0 * u) == pytest.approx(deaf)


def test_the_input_is_that_of_the_bin_that_is_reached(runs, alignment):
    x, u = runs
    late = np.concatenate([u[:, :1] * 0, u[:, :-1]], 1)
    assert flow_field_error(true_step, fit_step, alignment, x, u, fit_inputs=late) > 0.1


def test_sums_over_trials_give_the_error(runs, alignment):
    x, u = runs
    sums = flow_field_sums(true_step, still, identity(3), x, u)
    assert sums.value == flow_field_error(true_step, still, identity(3), x, u)
    low, high = sums.interval(rng(0))
    assert low < sums.value < high
    reversed_error = flow_field_error(true_step, still, identity(3), x[::-1], u[::-1])
    assert reversed_error == pytest.approx(sums.value, rel=1e-12)


def test_padding_enters_neither_flow_nor_forecast(runs, alignment):
    x, u = (a.copy() for a in runs)
    n_bins = rng(0).integers(20, BINS + 1, TRIALS)
    slow = lambda s, i: s + 0.5 * (fit_step(s, i) - s)  # noqa: E731
    clean = flow_field_error(true_step, slow, alignment, x, u, n_bins=n_bins)
    run = forecast(slow, alignment, x, [0, 15], 30, u, n_bins)
    x[np.arange(BINS) >= n_bins[:, None]] = np.nan
    u[np.arange(BINS) >= n_bins[:, None]] = np.nan
    assert flow_field_error(true_step, slow, alignment, x, u, n_bins=n_bins) == clean
    again = forecast(slow, alignment, x, [0, 15], 30, u, n_bins)
    np.testing.assert_array_equal(again.error, run.error)
    expected = [(n_bins > h).sum() + (n_bins > 15 + h).sum() for h in range(1, 31)]
    np.testing.assert_array_equal(run.n_forecasts, expected)


def test_velocities_end_with_the_trial(runs, alignment):
    x, u = runs
    slow = lambda s, i: s + 0.5 * (fit_step(s, i) - s)  # noqa: E731
    cut = flow_field_error(true_step, slow, alignment, x[:, :25], u[:, :25])
    assert flow_field_error(true_step, slow, alignment, x, u, n_bins=np.full(TRIALS, 25)) == pytest.approx(
        cut, rel=1e-12
    )


def test_the_right_system_forecasts_without_error(runs, alignment):
    x, u = runs
    run = forecast(fit_step, alignment, x, [0, 10], 25, u)
    np.testing.assert_allclose(run.error, 0, atol=1e-12)
    np.testing.assert_allclose(run.r2, 1)
    assert run.persistence.min() > 0.1
    own = forecast(fit_step, alignment, x, [0, 10], 25, u, latents=x @ M + SHIFT)
    np.testing.assert_allclose(own.error, 0, atol=1e-12)


def test_standing_still_is_persistence_and_the_mean_is_one(runs):
    x, u = runs
    run = forecast(still, identity(3), x, list(range(0, 30)), 5, u)
    np.testing.assert_allclose(run.error, run.persistence)
    mean = torch.from_numpy(x.reshape(-1, 3).mean(0))
    flat = forecast(lambda s, i: mean.expand(len(s), -1), identity(3), x, list(range(BINS - 1)), 1, u)
    assert flat.error[0] == pytest.approx(1, abs=0.05)


def test_errors_of_a_forecast_grow_and_end_with_the_trial(runs, alignment):
    x, u = runs
    start = forecast(lambda s, i: fit_step(s, 0.8 * i), alignment, x, [0], 3, u).error
    assert (start > 0).all()
    run = forecast(fit_step, alignment, x, [BINS - 3], 5, u)
    np.testing.assert_array_equal(np.isnan(run.error), [False, False, True, True, True])


def test_a_system_without_inputs_and_a_float32_step():
    x = np.cumsum(rng(0).normal(size=(4, 10, 2)), 1)
    error = flow_field_error(lambda s, i: 0.5 * s, lambda s, i: (0.5 * s).float(), identity(2), x)
    assert error == pytest.approx(0, abs=1e-10)


def test_errors(runs, alignment):
    x, u = runs
    with pytest.raises(MetricError, match="same trials and bins"):
        flow_field_error(true_step, fit_step, alignment, x, u[:, 1:])
    with pytest.raises(MetricError, match="at least 2 valid bins"):
        flow_field_error(true_step, fit_step, alignment, x, u, n_bins=np.full(TRIALS, 1))
    with pytest.raises(MetricError, match="starts"):
        forecast(fit_step, alignment, x, [BINS], 3, u)
    with pytest.raises(MetricError, match="never vary"):
        forecast(still, identity(3), np.ones((2, 5, 3)), [0], 2)
    with pytest.raises(MetricError, match="R2 is undefined"):
        flow_field_error(still, still, identity(3), x)
