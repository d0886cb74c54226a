"""Spikes from a saved activity: counts against their moments, the dataset against formulas on the saved arrays."""

import math

import numpy as np
import pytest
from scipy.special import expit

from ctdb import datasets
from ctdb.errors import DatasetError
from ctdb.files import write_hdf5
from ctdb.simulation import SimulationSettings, counts, ctd_counts, embedding, rectify, simulate, standardise

N_DRAWS = 200_000
RATES = (0.05, 0.4, 0.7, 1.0, 1.05, 1.3, 1.7, 2.05, 3.4, 9.2)


def draw(rate, dispersion, function=counts, seed=0):
    return function(np.full(N_DRAWS, rate), dispersion, np.random.default_rng([seed, round(1000 * rate)]))


def assert_moments(n, mean, variance):
    """Sample mean and variance within five standard errors of the exact ones."""
    n = n.astype(np.float64)
    assert abs(n.mean() - mean) <= 5 * math.sqrt(variance / len(n))
    deviation = n - mean
    fourth = (deviation**4).mean()
    standard_error = math.sqrt(max(fourth - variance**2, 0) / len(n))
    assert abs((deviation**2).mean() - variance) <= 5 * standard_error + 1e-12


def smallest_fano(rate):
    """No whole-number variable of this mean varies less than the one that only takes the two nearest whole numbers."""
    rest = rate - math.floor(rate)
    return rest * (1 - rest) / rate


@pytest.mark.parametrize("dispersion", [0.3, 0.5, 0.8, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("rate", RATES)
def test_counts_have_the_exact_mean_and_wherever_possible_the_exact_fano_factor(rate, dispersion):
    n = draw(rate, dispersion)
    assert n.dtype.kind == "i"
    assert n.min() >= 0
    assert_moments(n, rate, max(dispersion, smallest_fano(rate)) * rate)


@pytest.mark.parametrize("dispersion", [0.3, 0.5])
@pytest.mark.parametrize("rate", [0.05, 0.2, 0.45])
def test_counts_below_the_bound_are_single_spikes(rate, dispersion):
    """Where rate < 1 - dispersion the Fano factor is 1 - rate, the least there is."""
    n = draw(rate, dispersion)
    assert n.max() == 1
    assert_moments(n, rate, rate * (1 - rate))


@pytest.mark.parametrize("dispersion", [0.3, 1.0, 2.0])
def test_silent_bins_stay_silent(dispersion):
    assert (draw(0.0, dispersion) == 0).all()


def test_counts_of_mixed_rates_keep_each_bins_own_mean():
    rates = np.tile(np.linspace(0, 6, 61), (20_000, 1))
    for dispersion in (0.5, 1.0, 1.5):
        n = counts(rates, dispersion, np.random.default_rng(0))
        standard_error = np.sqrt(max(dispersion, 1) * rates[0] / len(rates))
        assert (np.abs(n.mean(0) - rates[0]) <= 5 * standard_error).all()


def test_poisson_counts_have_poisson_probabilities():
    n = draw(1.3, 1.0)
    for k in range(5):
        p = math.exp(-1.3) * 1.3**k / math.factorial(k)
        assert abs((n == k).mean() - p) < 5 * math.sqrt(p * (1 - p) / N_DRAWS)


def test_ctd_counts_reproduce_the_biased_original():
    n = draw(1.2, 0.5, ctd_counts)
    assert_moments(n, mean=1.0, variance=0.5)  # Binomial(int(1.2 / 0.5), 0.5): a mean of 1.0 where 1.2 was asked for
    n = draw(0.4, 0.5, ctd_counts)
    assert (n == 0).all()


@pytest.mark.parametrize("dispersion", [1.0, 1.5])
def test_ctd_counts_are_unbiased_from_dispersion_one_on(dispersion):
    assert_moments(draw(1.2, dispersion, ctd_counts), 1.2, 1.2 * dispersion)


def make_states(n_trials=40, n_bins=25, n_units=12, constant=(), seed=0):
    rng = np.random.default_rng(seed)
    scale, offset = rng.uniform(0.1, 2, n_units), rng.normal(size=n_units)
    states = rng.normal(size=(n_trials, n_bins, n_units)) * scale + offset
    states[:, :, list(constant)] = 0.3
    return states.astype(np.float32)


def test_standardisation_is_per_unit_unless_ctd_is_asked_for():
    states = make_states().astype(np.float64)
    own = standardise(states, "none")
    for unit in range(12):
        x = states[:, :, unit]
        np.testing.assert_allclose(own[:, :, unit], (x - np.mean(x)) / np.sqrt(np.mean((x - np.mean(x)) ** 2)))
    together = standardise(states, "ctd")
    mean = states.sum() / states.size
    deviation = math.sqrt(((states - mean) ** 2).sum() / states.size)
    np.testing.assert_allclose(together, (states - mean) / deviation)
    assert not np.allclose(together.std((0, 1)), 1, atol=0.2)


def test_rectifications_follow_their_formulas():
    drive = np.random.default_rng(0).normal(scale=2, size=(5, 6, 8))
    np.testing.assert_allclose(rectify(drive, "exp"), np.exp(drive))
    np.testing.assert_allclose(rectify(drive, "softplus"), np.log(1 + np.exp(drive)))
    sigmoid = rectify(drive, "sigmoid")
    for neuron in range(8):
        slope = 10 ** (0.2 + 0.8 * neuron / 7)
        np.testing.assert_allclose(sigmoid[:, :, neuron], 2 * expit(slope * drive[:, :, neuron]))


@pytest.mark.parametrize("n_neurons", [5, 12, 30])
def test_embedding_spreads_the_neurons_evenly_over_the_varying_units(n_neurons):
    states = make_states(constant=(2, 7)).astype(np.float64)
    units = embedding(states, n_neurons, seed=0)
    assert len(units) == n_neurons
    used = np.bincount(units, minlength=12)
    assert used[[2, 7]].tolist() == [0, 0]
    varying = np.delete(used, [2, 7])
    assert varying.max() - varying.min() <= 1
    for start in range(0, n_neurons, 10):
        block = units[start : start + 10]
        assert len(set(block.tolist())) == len(block)


def test_embedding_depends_on_the_seed():
    states = make_states().astype(np.float64)
    np.testing.assert_array_equal(embedding(states, 30, 1), embedding(states, 30, 1))
    assert not np.array_equal(embedding(states, 30, 1), embedding(states, 30, 2))


def test_states_that_never_vary_are_an_error():
    states = make_states(constant=range(12)).astype(np.float64)
    with pytest.raises(DatasetError, match="never vary"):
        embedding(states, 5, seed=0)
    with pytest.raises(DatasetError, match="never vary"):
        embedding(np.zeros((3, 4, 5)), 5, seed=0)


@pytest.fixture
def activity(tmp_path):
    rng = np.random.default_rng(1)
    states = make_states(constant=(4,))
    arrays = {
        "states": states,
        "outputs": rng.normal(size=(40, 25, 2)).astype(np.float32),
        "inputs": rng.normal(size=(40, 25, 3)).astype(np.float32),
        "inputs_true": rng.normal(size=(40, 25, 3)).astype(np.float32),
        "targets": np.zeros((40, 25, 2), np.float32),
        "loss_weight": np.ones((40, 25, 2), np.float32),
    }
    path = tmp_path / "activity.h5"
    write_hdf5(path, arrays, {"bin_s": 0.02, "input_names": ["a", "b", "c"], "output_names": ["x", "y"]})
    return path, arrays


def settings(**changed):
    defaults = {"kind": "simulated", "network": "some", "n_heldin": 9, "n_heldout": 6, "seed": 5}
    return SimulationSettings(**(defaults | changed))


def test_splits_are_disjoint_and_complete(activity):
    path, _ = activity
    dataset = simulate(path, settings(valid_fraction=0.2, test_fraction=0.1))
    trials = {name: split.trial.tolist() for name, split in dataset.splits.items()}
    assert {name: len(numbers) for name, numbers in trials.items()} == {"train": 28, "valid": 8, "test": 4}
    assert sorted(number for numbers in trials.values() for number in numbers) == list(range(40))
    assert trials["train"] != list(range(28))  # drawn, not the first ones


@pytest.mark.parametrize("rectification", ["exp", "softplus", "sigmoid"])
@pytest.mark.parametrize("compatibility", ["none", "ctd"])
def test_truth_is_the_formula_applied_to_the_saved_states(activity, rectification, compatibility):
    path, arrays = activity
    dataset = simulate(path, settings(rectification=rectification, compatibility=compatibility, rate_scale=4.0))
    states = arrays["states"].astype(np.float64)
    units = [int(name.removeprefix("unit ")) for name in dataset.names["neurons"]]
    assert len(units) == 15
    for split in dataset.splits.values():
        for neuron, unit in enumerate(units):
            pool = states if compatibility == "ctd" else states[:, :, unit]
            drive = (states[split.trial, :, unit] - pool.mean()) / pool.std() / 4.0
            expected = {
                "exp": np.exp(drive),
                "softplus": np.log1p(np.exp(drive)),
                "sigmoid": 2 * expit(10 ** (0.2 + 0.8 * neuron / 14) * drive),
            }[rectification]
            np.testing.assert_allclose(split.truth[:, :, neuron], expected, rtol=1e-5)


def test_states_and_inputs_are_the_very_arrays_behind_the_spikes(activity):
    path, arrays = activity
    dataset = simulate(path, settings())
    for split in dataset.splits.values():
        for ours, theirs in (("latents", "states"), ("ext_input", "inputs"), ("inputs_true", "inputs_true")):
            assert getattr(split, ours).tobytes() == arrays[theirs][split.trial].tobytes()
        np.testing.assert_array_equal(split.encod_data, split.recon_data[:, :, :9])
        assert split.recon_data.shape[2] == 15
    assert dataset.bin_s == 0.02
    assert dataset.names["inputs"] == ["a", "b", "c"]
    assert dataset.provenance["seed"] == 5


def test_spikes_scatter_about_the_truth_as_asked(activity):
    path, _ = activity
    for dispersion in (1.0, 2.0):
        dataset = simulate(path, settings(dispersion=dispersion))
        rates = np.concatenate([split.truth.ravel() for split in dataset.splits.values()]).astype(np.float64)
        spikes = np.concatenate([split.recon_data.ravel() for split in dataset.splits.values()])
        scatter = (spikes - rates) ** 2 / rates
        assert abs((spikes - rates).sum()) < 5 * math.sqrt(dispersion * rates.sum())
        assert abs(scatter.mean() - dispersion) < 5 * scatter.std() / math.sqrt(len(scatter))


def test_ctd_compatibility_brings_its_biased_counts_back(activity):
    path, _ = activity

    def excess(compatibility):
        dataset = simulate(path, settings(dispersion=0.5, compatibility=compatibility))
        truth = np.concatenate([split.truth for split in dataset.splits.values()])
        spikes = np.concatenate([split.recon_data for split in dataset.splits.values()])
        assert (spikes > truth / 0.5).any() == (compatibility == "none")  # theirs never exceed int(rate / d)
        return spikes.mean() - truth.mean()

    assert abs(excess("none")) < 0.03
    assert excess("ctd") < -0.1


def test_same_seed_same_bytes_other_seed_other_spikes(activity, tmp_path):
    path, _ = activity
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        datasets.write(tmp_path / f"{name}.h5", simulate(path, settings(seed=seed)))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    a, c = datasets.read(tmp_path / "a.h5"), datasets.read(tmp_path / "c.h5")
    assert not np.array_equal(a["train"].trial, c["train"].trial)
    assert a.names["neurons"] != c.names["neurons"]
    assert not np.array_equal(a["train"].recon_data, c["train"].recon_data)


def test_spikes_do_not_depend_on_how_trials_are_split(activity):
    path, _ = activity
    few, many = simulate(path, settings()), simulate(path, settings(valid_fraction=0.3, test_fraction=0.3))

    def by_trial(dataset):
        return {
            int(number): counts.tobytes()
            for split in dataset.splits.values()
            for number, counts in zip(split.trial, split.recon_data, strict=True)
        }

    assert by_trial(few) == by_trial(many)


def test_an_empty_split_is_an_error_with_a_remedy(activity):
    path, _ = activity
    with pytest.raises(DatasetError, match="no split may be empty"):
        simulate(path, settings(valid_fraction=0.001))
    with pytest.raises(ValueError, match="their sum must be below 1"):
        settings(valid_fraction=0.5, test_fraction=0.5)
