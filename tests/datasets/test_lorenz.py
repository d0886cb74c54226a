"""Lorenz spikes: states against scipy's integrator, rates and counts against the equations that name them."""

import functools

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.integrate import solve_ivp
from scipy.spatial import KDTree
from scipy.stats import chi2, poisson

from ctdb.datasets import SPLITS, read, write
from ctdb.datasets.lorenz import DEVIATION, MEAN, Lorenz, LorenzSettings, integrate

ATTRACTOR = np.array([[1.0, 2.0, 20.0], [-7.9, -3.3, 31.0], [12.0, 5.0, 38.0], [-0.5, 0.4, 8.0]])


@functools.cache
def made(**options):
    return Lorenz.prepare(
        LorenzSettings(**({"kind": "lorenz", "n_conditions": 6, "n_trials_per_condition": 8} | options))
    )


def whole(dataset, name):
    """All trials of all splits, in the order of their numbers."""
    values = np.concatenate([getattr(split, name) for split in dataset.splits.values()])
    return values[np.argsort(np.concatenate([split.trial for split in dataset.splits.values()]))]


def lorenz(_, state):
    x, y, z = state
    return [10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z]


def after(states, time):
    """Each state some time later, by an integrator of order 8."""
    done = [solve_ivp(lorenz, (0, time), state, method="DOP853", rtol=1e-11, atol=1e-11).y[:, -1] for state in states]
    return np.array(done)


def states_of(dataset):
    """True states in the units of the equations."""
    return whole(dataset, "latents").astype(np.float64) * DEVIATION + MEAN


def still(n_trials, n_bins):
    return np.zeros((n_trials, n_bins, 3))


def test_states_move_by_the_lorenz_equations():
    time = 1e-7
    states = integrate(ATTRACTOR, 2, time, still(4, 2))
    derivative = np.array([lorenz(0, state) for state in ATTRACTOR])
    np.testing.assert_allclose((states[:, 1] - states[:, 0]) / time, derivative, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(states[:, 0], ATTRACTOR)


def test_a_trajectory_is_that_of_an_integrator_of_order_8():
    n_bins = 60
    states = integrate(ATTRACTOR, n_bins, 0.02, still(4, n_bins))
    for trial, start in zip(states, ATTRACTOR, strict=True):
        times = 0.02 * np.arange(n_bins)
        expected = solve_ivp(lorenz, (0, 1.2), start, method="DOP853", t_eval=times, rtol=1e-11, atol=1e-11).y.T
        np.testing.assert_allclose(trial, expected, atol=1e-3)


def test_the_integrator_is_of_fourth_order():
    exact = after(ATTRACTOR, 0.16)
    errors = [np.abs(integrate(ATTRACTOR, n + 1, 0.16 / n, still(4, n + 1))[:, -1] - exact).max(1) for n in (2, 4)]
    order = np.log2(errors[0] / errors[1])
    assert ((order > 3.5) & (order < 5.5)).all()


def test_pulses_push_a_state_as_its_bin_begins():
    pulses = still(4, 5)
    pulses[1, 0, 2], pulses[2, 3, 0], pulses[3, 4] = -2.0, 1.5, [1, -1, 3]
    states = integrate(ATTRACTOR, 5, 0.02, pulses)
    np.testing.assert_allclose(states[:, 0], ATTRACTOR + pulses[:, 0], rtol=1e-12)
    for t in range(1, 5):
        np.testing.assert_allclose(states[:, t], after(states[:, t - 1], 0.02) + pulses[:, t], atol=1e-5)


def test_latents_are_standardised_states_of_the_flow():
    dataset = made(n_bins=6, time_per_bin=0.03)
    states = states_of(dataset)[::8]
    for t in range(1, 6):
        np.testing.assert_allclose(states[:, t], after(states[:, t - 1], 0.03), atol=1e-3)


def test_latents_have_mean_0_and_deviation_1_on_the_attractor():
    latents = whole(made(n_conditions=400, n_trials_per_condition=3), "latents").astype(np.float64)
    assert (np.abs(latents.mean((0, 1))) < 0.05).all()
    assert (np.abs(latents.std((0, 1)) - 1) < 0.03).all()
    assert (np.abs(latents[:, 0].std(0) - 1) < 0.15).all()  # trials begin all over it too
    assert (np.abs(latents[:, 0].mean(0)) < 0.15).all()


def test_starts_have_left_the_transient():
    starts = states_of(made(n_conditions=400, n_trials_per_condition=3))[::3, 0]
    random = MEAN + DEVIATION * np.random.default_rng(0).normal(size=(200, 3))
    attractor = KDTree(integrate(random, 400, 0.02, still(200, 400))[:, 200:].reshape(-1, 3))
    assert np.quantile(attractor.query(starts)[0], 0.95) < 0.5
    assert np.median(attractor.query(random)[0]) > 1.0  # the box around the attractor is mostly empty


def test_log_rates_are_linear_in_the_latents():
    dataset = made(n_heldin=30, n_heldout=10, base_rate_hz=5.0, bin_s=0.02)
    latents, truth = (whole(dataset, name).astype(np.float64) for name in ("latents", "truth"))
    source = np.column_stack([latents.reshape(-1, 3), np.ones(latents[..., 0].size)])
    log_rates = np.log(truth).reshape(-1, 40)
    weights = np.linalg.lstsq(source, log_rates, rcond=None)[0]
    np.testing.assert_allclose(source @ weights, log_rates, atol=2e-6)
    np.testing.assert_allclose(np.exp(weights[3]), 5.0 * 0.02, rtol=1e-5)
    assert np.abs(weights[:3]).max() < 1
    assert np.abs(weights[:3]).max() > 0.9  # 120 weights, uniform on [-1, 1]
    assert abs(weights[:3].mean()) < 0.2
    assert abs((weights[:3] ** 2).mean() - 1 / 3) < 0.1


def test_counts_are_poisson_with_the_true_rates():
    dataset = made(n_conditions=10, n_trials_per_condition=20, base_rate_hz=30.0)
    counts, truth = (whole(dataset, name).astype(np.float64) for name in ("recon_data", "truth"))
    assert abs((counts - truth).sum()) < 5 * np.sqrt(truth.sum())
    per_neuron = (counts - truth).sum((0, 1)) ** 2 / truth.sum((0, 1))
    assert chi2.sf(per_neuron.sum(), len(per_neuron)) > 1e-4
    for low, high in ((0.05, 0.06), (0.3, 0.31), (1.0, 1.1)):  # counts of bins of like rate, against the pmf
        chosen = (truth > low) & (truth < high)
        values = np.arange(5)
        expected = poisson.pmf(values[:, None], truth[chosen]).sum(1)
        observed = np.array([(counts[chosen] == value).sum() for value in values])
        assert (np.abs(observed - expected) < 5 * np.sqrt(expected + 1)).all()


def test_counts_of_neurons_and_trials_are_drawn_by_themselves():
    dataset = made(n_conditions=1, n_trials_per_condition=300, n_bins=5, base_rate_hz=50.0, n_heldin=8)
    scores = (whole(dataset, "recon_data") - whole(dataset, "truth")) / np.sqrt(whole(dataset, "truth"))
    correlation = np.corrcoef(scores.reshape(300, -1).T)[~np.eye(40, dtype=bool)]
    assert np.abs(correlation).max() < 5 / np.sqrt(300)


def test_trials_of_a_condition_share_their_start_and_other_conditions_do_not():
    dataset = made()
    latents, condition = whole(dataset, "latents"), whole(dataset, "condition")
    assert sorted(condition.tolist()) == sorted(list(range(6)) * 8)
    starts = []
    for number in range(6):
        own = latents[condition == number]
        assert (own == own[0]).all()
        starts.append(own[0, 0])
    assert len({tuple(start) for start in starts}) == 6
    assert (np.ptp(whole(dataset, "recon_data"), 0) > 0).any()  # the counts do differ


@pytest.mark.parametrize(
    ("valid", "test", "sizes"), [(0.16, 0.2, (5, 1, 2)), (0.5, 0.25, (2, 4, 2)), (0.01, 0.01, (6, 1, 1))]
)
def test_each_condition_is_in_every_split_by_its_share(valid, test, sizes):
    dataset = made(valid_fraction=valid, test_fraction=test)
    assert tuple(dataset.splits) == SPLITS
    for split, size in zip(SPLITS, sizes, strict=True):
        assert np.bincount(dataset[split].condition, minlength=6).tolist() == [size] * 6
    numbers = [number for split in dataset.splits.values() for number in split.trial.tolist()]
    assert sorted(numbers) == list(range(48))


def test_which_trials_of_a_condition_are_tested_is_drawn():
    dataset = made(n_conditions=40, n_bins=2, n_heldin=2)
    places = dataset["test"].trial % 8
    assert set(places.tolist()) == set(range(8))


def test_pulses_are_the_true_inputs_and_jumps_of_the_latents():
    dataset = made(pulse_probability=0.1, pulse_size=0.7, n_bins=40)
    pulses, latents = whole(dataset, "inputs_true").astype(np.float64), whole(dataset, "latents").astype(np.float64)
    assert dataset.names["inputs_true"] == ["x", "y", "z"]
    np.testing.assert_allclose(np.unique(np.abs(pulses)), [0, 0.7], rtol=1e-6)
    for trial in (0, 17, 40):
        states = latents[trial] * DEVIATION + MEAN
        undisturbed = (after(states[:-1], 0.02) - MEAN) / DEVIATION
        np.testing.assert_allclose(latents[trial, 1:] - undisturbed, pulses[trial, 1:], atol=1e-3)
    n = pulses.size
    assert abs((pulses != 0).mean() - 0.1) < 5 * np.sqrt(0.09 / n)
    assert abs((pulses > 0).sum() - (pulses < 0).sum()) < 5 * np.sqrt((pulses != 0).sum())
    assert len({trial.tobytes() for trial in pulses}) == len(pulses)  # other pulses in every trial of a condition


def test_a_pulse_spreads_over_its_bins_and_keeps_its_size():
    options = {"pulse_probability": 0.02, "pulse_size": 3.0, "n_bins": 40, "n_heldin": 2}
    short, long = (whole(made(pulse_bins=bins, **options), "inputs_true").astype(np.float64) for bins in (1, 4))
    expected = np.zeros_like(short)
    for trial, t, channel in np.argwhere(short):
        expected[trial, t : t + 4, channel] += short[trial, t, channel] / 4
    np.testing.assert_allclose(long, expected, atol=1e-6)
    assert (short != 0).sum() > 50


def test_without_pulses_there_are_no_inputs():
    dataset = made()
    assert dataset["train"].inputs_true is None
    assert "inputs_true" not in dataset.names


def test_held_out_neurons_are_the_last_ones():
    dataset = made(n_heldin=5, n_heldout=3)
    assert (dataset.n_heldin, dataset.n_neurons) == (5, 8)
    assert dataset.names["neurons"] == [f"neuron {i}" for i in range(8)]
    for split in dataset.splits.values():
        np.testing.assert_array_equal(split.encod_data, split.recon_data[:, :, :5])
        assert split.recon_data.shape[2] == split.truth.shape[2] == 8


def test_by_default_the_dataset_has_the_canonical_shape():
    dataset = Lorenz.prepare(LorenzSettings(kind="lorenz"))
    assert dataset["train"].recon_data.shape == (640, 100, 60)
    assert dataset["valid"].recon_data.shape == (160, 100, 60)
    assert dataset.n_heldin == 60
    assert dataset.bin_s == 0.01
    assert set(dataset["test"].condition.tolist()) == set(range(20))
    assert Lorenz.sources(LorenzSettings(kind="lorenz")) == []


def test_the_same_seed_gives_the_same_bytes_and_another_one_everything_else(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write(tmp_path / f"{name}.h5", made(seed=seed, pulse_probability=0.1))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    a, c = read(tmp_path / "a.h5"), read(tmp_path / "c.h5")
    for name in ("latents", "inputs_true", "recon_data"):
        assert not np.array_equal(whole(a, name), whole(c, name)), name
    assert a["test"].trial.tolist() != c["test"].trial.tolist()
    weights = [np.linalg.lstsq(whole(d, "latents")[:, 0], np.log(whole(d, "truth")[:, 0] / 0.01), rcond=None)[0] for d in (a, c)]  # fmt: skip
    assert not np.allclose(*weights, atol=0.1)
    assert a.provenance["seed"] == 0
    assert a.provenance["n_conditions"] == 6


def test_seeds_draw_other_starts_and_unrelated_counts():
    """Counts of high rates are the rate and a normal draw, which the same random numbers would make the same."""
    options = {"base_rate_hz": 1e7, "n_heldin": 10, "n_bins": 20}
    datasets = [made(seed=seed, **options) for seed in (0, 1)]
    assert not np.array_equal(*(whole(dataset, "latents") for dataset in datasets))
    counts, truth = ([whole(dataset, name).astype(np.float64).ravel() for dataset in datasets] for name in ("recon_data", "truth"))  # fmt: skip
    scores = [(n - rate) / np.sqrt(rate) for n, rate in zip(counts, truth, strict=True)]
    assert abs(np.corrcoef(*scores)[0, 1]) < 5 / np.sqrt(len(scores[0]))


def test_spikes_do_not_depend_on_how_trials_are_split():
    np.testing.assert_array_equal(whole(made(), "recon_data"), whole(made(test_fraction=0.4), "recon_data"))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"n_trials_per_condition": 2}, "n_trials_per_condition"),
        ({"n_bins": 0}, "n_bins"),
        ({"time_per_bin": 0.0}, "time_per_bin"),
        ({"pulse_probability": 1.0}, "pulse_probability"),
        ({"valid_fraction": 0.0}, "valid_fraction"),
        ({"rho": 28}, "rho"),
    ],
)
def test_settings_that_are_unknown_or_out_of_range_are_refused(options, key):
    with pytest.raises(ValidationError, match=key):
        LorenzSettings(kind="lorenz", **options)


def test_a_pulse_may_be_longer_than_the_trial():
    options = {"pulse_probability": 0.3, "n_bins": 4, "n_heldin": 2}
    short, long = (whole(made(pulse_bins=bins, **options), "inputs_true").astype(np.float64) for bins in (1, 6))
    np.testing.assert_allclose(long, np.cumsum(short, 1) / 6, rtol=1e-6)


@pytest.mark.parametrize(("valid", "test"), [(0.5, 0.5), (0.2, 0.9)])
def test_shares_that_leave_nothing_for_train_are_refused(valid, test):
    with pytest.raises(ValidationError, match="train"):
        LorenzSettings(kind="lorenz", valid_fraction=valid, test_fraction=test)
