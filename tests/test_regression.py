"""Ridge regression against scikit-learn and a brute-force choice of the penalty."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from ctdb.regression import PENALTIES, ridge

SAMPLES, VALID, INPUTS, OUTPUTS = 40, 25, 6, 4
UNITS = np.array([0.01, 1.0, 10.0, 1000.0])


def make_data(noise=1.0, seed=0, n_inputs=INPUTS):
    rng = np.random.default_rng(seed)
    scales, map_, offset = (
        rng.uniform(0.3, 3, n_inputs),
        rng.normal(size=(n_inputs, OUTPUTS)),
        rng.normal(2, 1, OUTPUTS),
    )

    def draw(n):
        source = rng.normal(1, 2, (n, n_inputs)) * scales
        return source, (source @ map_ + offset + noise * rng.normal(size=(n, OUTPUTS))) * UNITS

    return *draw(SAMPLES), *draw(VALID)


def best_by_hand(source, target, valid_source, valid_target):
    """Coefficients and offsets of the penalty whose squared error on valid samples, per train variance, is lowest."""
    results = []
    for penalty in PENALTIES:
        weights, offset, error = (
            np.full((source.shape[1], target.shape[1]), np.nan),
            np.full(target.shape[1], np.nan),
            0,
        )
        for output in range(target.shape[1]):
            rows, valid_rows = ~np.isnan(target[:, output]), ~np.isnan(valid_target[:, output])
            if not rows.any():
                continue
            x, y = source[rows], target[rows, output]
            eigenvalues = np.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0)))
            unit = eigenvalues[::-1][: min(x.shape)].mean()
            model = Ridge(alpha=penalty * unit, solver="svd").fit(x, y)
            weights[:, output], offset[output] = model.coef_, model.intercept_
            if valid_rows.any():
                residual = valid_target[valid_rows, output] - model.predict(valid_source[valid_rows])
                error += (residual**2).sum() / y.var()
        results.append((error, weights, offset))
    best = min(range(len(results)), key=lambda index: results[index][0])
    return best, *results[best][1:]


def assert_equal(found, weights, offset):
    np.testing.assert_allclose(found[0] / UNITS, weights / UNITS, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found[1] / UNITS, offset / UNITS, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("noise", "n_inputs"), [(0.01, INPUTS), (3.0, INPUTS), (5.0, 30), (2.0, 60), (30.0, INPUTS)])
def test_ridge_equals_scikit_learns_with_the_penalty_that_predicts_valid_samples_best(noise, n_inputs):
    data = make_data(noise, n_inputs=n_inputs)
    assert_equal(ridge(*data), *best_by_hand(*data)[1:])


def test_the_more_noise_the_larger_the_penalty():
    chosen = [best_by_hand(*make_data(noise, n_inputs=30))[0] for noise in (1e-3, 5.0, 100.0)]
    norms = [np.linalg.norm(ridge(*make_data(noise, n_inputs=30))[0][:, 0]) for noise in (1e-3, 5.0, 100.0)]
    assert chosen == sorted(set(chosen))
    assert norms[2] < norms[1]


def test_a_missing_target_leaves_its_sample_out_for_that_output_alone():
    source, target, valid_source, valid_target = make_data(2.0)
    rng = np.random.default_rng(1)
    target[rng.random(target.shape) < 0.3] = np.nan
    target[:, 3] = np.where(np.isnan(target[:, 0]), np.nan, target[:, 3])
    target[np.isnan(target[:, 3]), 0] = np.nan  # the same samples as output 0
    valid_target[rng.random(valid_target.shape) < 0.3] = np.nan
    _, weights, offset = best_by_hand(source, target, valid_source, valid_target)
    assert_equal(ridge(source, target, valid_source, valid_target), weights, offset)


def test_an_output_that_is_never_observed_has_no_weights_and_does_not_disturb_the_others():
    source, target, valid_source, valid_target = make_data(2.0)
    whole = ridge(source, target[:, :3], valid_source, valid_target[:, :3])
    target[:, 3] = np.nan
    found = ridge(source, target, valid_source, valid_target)
    assert np.isnan(found[0][:, 3]).all()
    assert np.isnan(found[1][3])
    np.testing.assert_allclose(found[0][:, :3], whole[0], rtol=1e-12)
    np.testing.assert_allclose(found[1][:3], whole[1], rtol=1e-12)


def test_an_output_that_is_never_observed_on_valid_samples_is_fitted_with_the_others_penalty():
    source, target, valid_source, valid_target = make_data(2.0)
    valid_target[:, 2] = np.nan
    _, weights, offset = best_by_hand(source, target, valid_source, valid_target)
    assert_equal(ridge(source, target, valid_source, valid_target), weights, offset)


def test_a_map_without_noise_is_recovered():
    source, target, valid_source, valid_target = make_data(0.0)
    weights, offset = ridge(source, target, valid_source, valid_target)
    np.testing.assert_allclose(
        valid_source @ weights + offset, valid_target, rtol=1e-3, atol=1e-3 * target.std(0).max()
    )
    exact = np.linalg.lstsq(np.column_stack([source, np.ones(SAMPLES)]), target, rcond=None)[0]
    np.testing.assert_allclose(weights, exact[:-1], rtol=1e-3)


def test_a_constant_source_or_target_gives_the_mean():
    source, target, valid_source, valid_target = make_data(1.0)
    weights, offset = ridge(np.ones_like(source), target, np.ones_like(valid_source), valid_target)
    np.testing.assert_allclose(np.ones(INPUTS) @ weights + offset, target.mean(0), rtol=1e-9)
    weights, offset = ridge(source, np.full_like(target, 3.0), valid_source, np.full_like(valid_target, 3.0))
    np.testing.assert_allclose(weights, 0, atol=1e-9)
    np.testing.assert_allclose(offset, 3, rtol=1e-9)


def test_an_output_that_is_constant_in_training_does_not_choose_the_penalty():
    source, target, valid_source, valid_target = make_data(100.0, n_inputs=30)
    target[:, 3] = 0.1
    valid_target[:, 3] = 0.1
    valid_target[0, 3] = 0.2
    whole = ridge(source, target[:, :3], valid_source, valid_target[:, :3])
    found = ridge(source, target, valid_source, valid_target)
    np.testing.assert_allclose(found[0][:, :3], whole[0], rtol=1e-9)
