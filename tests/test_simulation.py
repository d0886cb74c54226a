"""Spikes from a saved activity: counts against their moments, the dataset against formulas on the saved arrays."""

import math

import numpy as np
import pytest
from scipy.special import expit

from ctdb import datasets
from ctdb.errors import DatasetError
from ctdb.files import write_hdf5
from ctdb.simulation import (
    SimulationSettings,
    biases,
    counts,
    ctd_counts,
    embedding,
    nonlinear_embedding,
    rectify,
    simulate,
    standardise,
)

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


def explained(x, y):
    """Share of the variance of y (samples, neurons) that a linear map of x explains, by neuron."""
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return 1 - rest.var(0) / y.var(0)


def test_a_nonlinear_embedding_gives_each_neuron_a_function_of_all_units_that_is_no_linear_one(activity):
    path, arrays = activity
    dataset = simulate(path, settings(embedding="mlp", rate_scale=4.0, n_heldin=50))
    trials = np.concatenate([split.trial for split in dataset.splits.values()])
    log_rates = np.log(np.concatenate([split.truth for split in dataset.splits.values()]).astype(np.float64))
    np.testing.assert_allclose(log_rates.mean((0, 1)), 0, atol=1e-6)
    np.testing.assert_allclose(log_rates.std((0, 1)), 1 / 4, rtol=1e-5)
    states = arrays["states"][trials].reshape(-1, 12).astype(np.float64)
    log_rates = log_rates.reshape(-1, 56)
    share = explained(states, log_rates)
    assert share.min() > 0.2
    assert share.max() < 0.95
    one = [explained(states[:, [unit]], log_rates) for unit in range(12) if unit != 4]
    assert np.max(one) < 0.6
    assert dataset.names["neurons"] == [f"function {neuron}" for neuron in range(56)]


def test_a_nonlinear_embedding_is_a_fixed_function_of_the_state_by_seed():
    states = make_states(n_trials=6, constant=(4,)).astype(np.float64)
    states[5, 3] = states[0, 0]
    drive = nonlinear_embedding(states, 7, seed=1)
    np.testing.assert_array_equal(drive[5, 3], drive[0, 0])
    assert drive.shape == (6, 25, 7)
    np.testing.assert_allclose(nonlinear_embedding(3 * states - 2, 7, seed=1), drive)  # units have no unit
    assert not np.allclose(nonlinear_embedding(states, 7, seed=2), drive)
    far = nonlinear_embedding(np.concatenate([states, 1e4 * states[:1]]), 7, seed=1)
    assert np.isfinite(far).all()
    with pytest.raises(DatasetError, match="never vary"):
        nonlinear_embedding(np.zeros((3, 4, 5)), 5, seed=0)


def test_padding_changes_no_nonlinear_embedding(activity, tmp_path):
    _, arrays = activity
    lengths = np.random.default_rng(3).integers(5, 26, size=40)
    inside = np.arange(25) < lengths[:, None]
    facts, found = {"bin_s": 0.02, "input_names": ["a", "b", "c"], "output_names": ["x", "y"]}, []
    for fill in (0.0, 1e3):
        padded = arrays | {"states": np.where(inside[..., None], arrays["states"], fill).astype(np.float32)}
        write_hdf5(tmp_path / "padded.h5", padded | {"n_bins": lengths}, facts)
        found.append(simulate(tmp_path / "padded.h5", settings(embedding="mlp"))["train"])
    np.testing.assert_array_equal(found[0].truth, found[1].truth)
    valid = np.arange(25) < found[0].n_bins[:, None]
    assert (found[0].truth[~valid] == 0).all()
    assert (found[0].truth[valid] > 0).all()


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


# -------------------------------------------------------------------------------------------- trials of unequal lengths

LENGTHS = np.random.default_rng(8).integers(6, 26, 40)
PADDING = np.arange(25) >= LENGTHS[:, None]


@pytest.fixture
def record(tmp_path):
    """Write an activity with a body and named conditions; `padding` fills what stands beyond each trial's end."""

    def write(padding=None, n_trials=40):
        rng = np.random.default_rng(1)
        arrays = {
            "states": make_states(n_trials),
            "inputs": rng.normal(size=(n_trials, 25, 3)).astype(np.float32),
            "inputs_true": rng.normal(size=(n_trials, 25, 2)).astype(np.float32),
            "behavior": rng.normal(size=(n_trials, 25, 4)).astype(np.float32),
            "condition": rng.integers(0, 2, n_trials),
        }
        if padding is not None:
            arrays["n_bins"] = np.resize(LENGTHS, n_trials)
            for name in ("states", "inputs", "inputs_true", "behavior"):
                arrays[name][np.arange(25) >= arrays["n_bins"][:, None]] = padding
        names = {
            "input_names": ["a", "b", "c"],
            "output_names": ["x"],
            "true_input_names": ["a", "b"],
            "behavior_names": ["pos_x", "pos_y", "vel_x", "vel_y"],
            "condition_names": ["left", "right"],
        }
        write_hdf5(tmp_path / "recorded.h5", arrays, {"bin_s": 0.02, **names})
        return tmp_path / "recorded.h5", arrays

    return write


HOW = {
    "exp": {},
    "dispersed": {"dispersion": 1.5},
    "narrow": {"dispersion": 0.5},
    "ctd": {"compatibility": "ctd", "dispersion": 0.5},
    "sigmoid": {"rectification": "sigmoid", "mean_rate_hz": 20.0},
    "softplus": {"rectification": "softplus", "mean_rate_hz": 20.0, "mean_rate_spread": 0.5},
    "mean rate": {"mean_rate_hz": 20.0, "mean_rate_spread": 0.5},
    "skipped": {"skip_bins": 4},
}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_what_stands_in_the_padding_of_an_activity_changes_no_bit_and_the_dataset_has_0_there(record, tmp_path, how):
    written = []
    for padding in (0.0, 1e6, -1e30, np.nan):
        dataset = simulate(record(padding)[0], settings(behavior=["pos_x"], **how))
        datasets.write(tmp_path / "some.h5", dataset)
        written.append((tmp_path / "some.h5").read_bytes())
    assert len(set(written)) == 1
    back = datasets.read(tmp_path / "some.h5")
    for split in back.splits.values():
        np.testing.assert_array_equal(split.n_bins, LENGTHS[split.trial] - how.get("skip_bins", 0))
        padding = np.arange(split.recon_data.shape[1]) >= split.n_bins[:, None]
        assert padding.any()
        for name in ("encod_data", "recon_data", "ext_input", "inputs_true", "behavior", "latents", "truth"):
            assert not getattr(split, name)[padding].any(), name
            assert getattr(split, name)[~padding].any(), name


def test_a_unit_far_from_0_overflows_no_rate_in_padding(record):
    """Standardised, the 0 of the padding is then beyond what any rectification takes."""
    path, arrays = record(0.0)
    arrays["states"][:, :, 3] = np.where(PADDING, 0, -1e4 + arrays["states"][:, :, 3])
    write_hdf5(path, arrays, {"bin_s": 0.02, "input_names": ["a", "b", "c"], "behavior_names": list("abcd")})
    with np.errstate(all="raise", under="ignore"):
        dataset = simulate(path, settings())
    assert dataset["train"].truth.max() < 1e3


def test_states_are_standardised_over_valid_bins(record):
    path, arrays = record(0.0)
    dataset = simulate(path, settings())
    states = arrays["states"].astype(np.float64)
    for neuron, name in enumerate(dataset.names["neurons"]):
        own = states[:, :, int(name.removeprefix("unit "))]
        for split in dataset.splits.values():
            drive = (own[split.trial] - own[~PADDING].mean()) / own[~PADDING].std() / 2.0
            inside = ~PADDING[split.trial]
            np.testing.assert_allclose(split.truth[:, :, neuron][inside], np.exp(drive)[inside], rtol=1e-5)


def pooled(dataset, name):
    """Valid samples (samples, channels) of all splits."""
    parts = []
    for split in dataset.splits.values():
        n_bins = np.full(split.n_trials, 25) if split.n_bins is None else split.n_bins
        parts.append(getattr(split, name)[np.arange(split.recon_data.shape[1]) < n_bins[:, None]])
    return np.concatenate(parts).astype(np.float64)


@pytest.mark.parametrize("dispersion", [0.7, 1.0, 2.0])
def test_mean_rate_fano_factor_and_split_are_those_of_the_settings_where_trials_end_early(record, dispersion):
    asked = {"mean_rate_hz": 25.0, "rate_scale": 4.0, "valid_fraction": 0.25, "test_fraction": 0.15}
    dataset = simulate(record(1e6, n_trials=400)[0], settings(dispersion=dispersion, **asked))
    assert {name: split.n_trials for name, split in dataset.splits.items()} == {"train": 240, "valid": 100, "test": 60}
    rates, spikes = pooled(dataset, "truth"), pooled(dataset, "recon_data")
    np.testing.assert_allclose(rates.mean(0), 0.5, rtol=1e-5)
    standard_error = np.sqrt(dispersion * 0.5 / len(spikes))
    assert (np.abs(spikes.mean(0) - 0.5) < 5 * standard_error).all()
    least = (rates - np.floor(rates)) * (1 - rates + np.floor(rates)) / rates
    fano = (spikes - rates) ** 2 / rates - np.maximum(dispersion, least)
    assert abs(fano.mean()) < 5 * fano.std() / math.sqrt(fano.size)


# --------------------------------------------------------------------------------- mean rates, first bins and behaviour


@pytest.mark.parametrize("rectification", ["exp", "softplus", "sigmoid"])
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_biases_give_each_neuron_the_mean_rate_that_was_asked_for(rectification, spread):
    drive = np.random.default_rng(0).normal(scale=0.5, size=(5000, 12)) * np.linspace(0.1, 3, 12)
    asked = settings(rectification=rectification, mean_rate_hz=15.0, mean_rate_spread=spread)
    means = rectify((drive + biases(drive, asked, bin_s=0.02))[None], rectification)[0].mean(0)
    assert means.mean() == pytest.approx(0.3, rel=1e-9)
    if not spread:
        np.testing.assert_allclose(means, 0.3, rtol=1e-9)
    else:
        assert means.std() > 0.05


def test_mean_rates_spread_with_the_asked_deviation_of_their_logarithm_and_mean_1():
    drive, n_neurons = np.zeros((2, 4000)), 4000
    means = np.exp(biases(drive, settings(mean_rate_hz=10.0, mean_rate_spread=0.7), bin_s=0.02))
    assert means.mean() == pytest.approx(0.2, rel=1e-12)
    assert abs(np.log(means).std() - 0.7) < 5 * 0.7 / math.sqrt(2 * n_neurons)
    other = np.exp(biases(drive, settings(mean_rate_hz=10.0, mean_rate_spread=0.7, seed=6), bin_s=0.02))
    assert not np.array_equal(means, other)


@pytest.mark.parametrize("rectification", ["exp", "softplus", "sigmoid"])
def test_truth_and_spikes_have_the_mean_rate_that_was_asked_for(activity, rectification):
    dataset = simulate(activity[0], settings(rectification=rectification, mean_rate_hz=30.0, rate_scale=4.0))
    np.testing.assert_allclose(pooled(dataset, "truth").mean(0), 0.6, rtol=1e-5)
    assert (np.abs(pooled(dataset, "recon_data").mean(0) - 0.6) < 5 * math.sqrt(0.6 / 1000)).all()


def test_a_mean_rate_beyond_what_a_sigmoid_gives_is_refused(activity):
    with pytest.raises(DatasetError, match=r"asks for 2\.2 spikes per bin, but a sigmoid ends at 2; lower it, or take"):
        simulate(activity[0], settings(rectification="sigmoid", mean_rate_hz=110.0))
    with pytest.raises(DatasetError, match="a sigmoid ends at 2"):  # of the fastest neuron alone
        simulate(activity[0], settings(rectification="sigmoid", mean_rate_hz=60.0, mean_rate_spread=1.0))
    assert simulate(activity[0], settings(mean_rate_hz=110.0))["train"].truth.max() > 2


def test_a_spread_of_mean_rates_without_a_mean_rate_is_refused():
    with pytest.raises(ValueError, match="mean_rate_spread spreads the neurons about mean_rate_hz, which is not set"):
        settings(mean_rate_spread=0.5)


@pytest.mark.parametrize("padding", [None, 1e6])
def test_first_bins_are_left_out_of_everything(record, padding):
    path, arrays = record(padding)
    dataset = simulate(path, settings(skip_bins=4))
    for split in dataset.splits.values():
        assert split.recon_data.shape[1] == split.encod_data.shape[1] == split.truth.shape[1] == 21
        inside = np.ones((split.n_trials, 21), bool) if padding is None else ~PADDING[split.trial, 4:]
        sources = {"latents": "states", "ext_input": "inputs", "inputs_true": "inputs_true", "behavior": "behavior"}
        for ours, theirs in sources.items():
            np.testing.assert_array_equal(getattr(split, ours)[inside], arrays[theirs][split.trial, 4:][inside])
        assert (split.n_bins is None) == (padding is None)
        if padding is not None:
            np.testing.assert_array_equal(split.n_bins, LENGTHS[split.trial] - 4)
    cut = arrays["states"][:, 4:].astype(np.float64)
    cut = cut.reshape(-1, 12) if padding is None else cut[~PADDING[:, 4:]]
    unit, split = int(dataset.names["neurons"][0].removeprefix("unit ")), dataset["test"]
    first = (split.latents[:, 0, unit] - cut[:, unit].mean()) / cut[:, unit].std() / 2
    np.testing.assert_allclose(split.truth[:, 0, 0], np.exp(first), rtol=1e-5)  # what is left out has no say


def test_more_first_bins_than_the_shortest_trial_has_are_refused(record, activity):
    assert simulate(record(0.0)[0], settings(skip_bins=int(LENGTHS.min()) - 1))["train"].n_bins.min() >= 1
    for path, skip in ((record(0.0)[0], int(LENGTHS.min())), (activity[0], 25), (activity[0], 30)):
        with pytest.raises(DatasetError, match=rf"skip_bins {skip} leaves no bin of the shortest trial; lower it"):
            simulate(path, settings(skip_bins=skip))


@pytest.mark.parametrize(
    ("chosen", "columns"), [(None, [0, 1, 2, 3]), (["vel_y", "pos_x"], [3, 0]), (["pos_y"], [1]), ([], None)]
)
def test_behaviour_is_the_channels_that_were_asked_for_in_that_order(record, tmp_path, chosen, columns):
    path, arrays = record()
    datasets.write(tmp_path / "some.h5", simulate(path, settings(behavior=chosen)))
    dataset = datasets.read(tmp_path / "some.h5")
    for split in dataset.splits.values():
        if columns is None:
            assert split.behavior is None
        else:
            np.testing.assert_array_equal(split.behavior, arrays["behavior"][split.trial][:, :, columns])
    names = ["pos_x", "pos_y", "vel_x", "vel_y"]
    assert dataset.names.get("behavior") == (None if columns is None else [names[column] for column in columns])


def test_unknown_behaviour_is_refused_with_the_nearest_name(record, activity):
    with pytest.raises(DatasetError, match=r"no channel 'vel_z'; did you mean 'vel_y'\?"):
        simulate(record()[0], settings(behavior=["pos_x", "vel_z"]))
    with pytest.raises(DatasetError, match="no channel 'pos_x'; there is none to choose from"):
        simulate(activity[0], settings(behavior=["pos_x"]))
    assert simulate(activity[0], settings())["train"].behavior is None


def test_names_of_inputs_and_conditions_are_kept(record, activity, tmp_path):
    path, arrays = record()
    datasets.write(tmp_path / "some.h5", simulate(path, settings()))
    dataset = datasets.read(tmp_path / "some.h5")
    assert dataset.names["inputs"] == ["a", "b", "c"]
    assert dataset.names["inputs_true"] == ["a", "b"]
    assert dataset.names["condition"] == ["left", "right"]
    for split in dataset.splits.values():
        np.testing.assert_array_equal(split.condition, arrays["condition"][split.trial])
    assert set(simulate(activity[0], settings()).names) == {"neurons", "inputs"}  # a task without names has none
