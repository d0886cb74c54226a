"""Scores as the table asks for them: of one split of a dataset beside what a fit inferred."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import poisson, wasserstein_distance
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from ctdb.datasets import SpikeDataset, Split
from ctdb.metrics import METRICS, Case, NotApplicableError
from ctdb.metrics.bits_per_spike import bits_per_spike_sums, poisson_nll_sums
from ctdb.metrics.nonlinear_cycle import nonlinear_cycle_consistency

HELDIN, NEURONS, BINS, RECON = 4, 6, 7, 11


def make_case(split="test", missing=0.0, lengths=False, n_recon_bins=RECON, heldin=HELDIN, seed=0):
    rng = np.random.default_rng(seed)
    splits, outputs = {}, {}
    mix = rng.normal(size=(2, 3))
    for name, n_trials in (("train", 20), ("valid", 8), ("test", 9)):
        rates = rng.gamma(3, 0.4, (n_trials, n_recon_bins, NEURONS)) * np.linspace(0.3, 2, n_recon_bins)[:, None]
        recon = rng.poisson(rates).astype(np.float32)
        recon[rng.random(recon.shape) < missing] = np.nan
        pulses = rng.normal(size=(n_trials, n_recon_bins, 2))
        splits[name] = Split(
            encod_data=recon[:, :BINS, :heldin],
            recon_data=recon,
            ext_input=rng.normal(size=(n_trials, n_recon_bins, 1)).astype(np.float32),
            inputs_true=pulses.astype(np.float32),
            n_bins=rng.integers(8, n_recon_bins + 1, n_trials) if lengths else None,
        )
        inferred = pulses @ mix + 0.5 * rng.normal(size=(n_trials, n_recon_bins, 3))
        outputs[name] = {"rates": rates * rng.gamma(9, 1 / 9, rates.shape), "co_means": inferred}
    return Case(SpikeDataset(splits, 0.01, missing_spikes=missing > 0), outputs, split)


def entries(case, split, bins, neurons):
    """Counts and rates, neuron by neuron, of the entries that are there: flat lists of one array per neuron."""
    trials = case.dataset[split]
    found = []
    for neuron in neurons:
        pairs = [
            (trials.recon_data[i, t, neuron], case.outputs[split]["rates"][i, t, neuron])
            for i in range(trials.n_trials)
            for t in bins
            if not np.isnan(trials.recon_data[i, t, neuron]) and (trials.n_bins is None or t < trials.n_bins[i])
        ]
        found.append(np.array(pairs, np.float64).T)
    return found


def bits_by_hand(case, bins, neurons, null_split="train"):
    gain = n_spikes = 0.0
    nulls = [counts.mean() for counts, _ in entries(case, null_split, bins, neurons)]
    for (counts, rates), null in zip(entries(case, case.split, bins, neurons), nulls, strict=True):
        gain += poisson.logpmf(counts, rates).sum() - poisson.logpmf(counts, null).sum()
        n_spikes += counts.sum()
    return gain / n_spikes / np.log(2)


SHAPES = {
    "plain": {},
    "valid": {"split": "valid"},
    "missing": {"missing": 0.3},
    "padded": {"lengths": True},
    "both": {"missing": 0.3, "lengths": True},
}


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_bits_per_spike_count_what_is_there_in_their_bins_and_neurons(options):
    case = make_case(**options)
    seen, later, whole = range(BINS), range(BINS, RECON), range(RECON)
    expected = {
        "bits_per_spike_heldin": bits_by_hand(case, seen, range(HELDIN)),
        "bits_per_spike_heldout": bits_by_hand(case, seen, range(HELDIN, NEURONS)),
        "bits_per_spike_forward": bits_by_hand(case, later, range(HELDIN)),
        "co_bps_ctd": bits_by_hand(case, whole, range(1, NEURONS), null_split=case.split),
    }
    assert len({round(value, 6) for value in expected.values()}) == 4
    for metric, value in expected.items():
        assert METRICS[metric](case).value == pytest.approx(value, rel=1e-7), metric


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_the_likelihood_is_the_mean_over_what_is_there(options):
    case = make_case(**options)
    pairs = np.concatenate(entries(case, case.split, range(RECON), range(NEURONS)), 1)
    expected = -poisson.logpmf(*pairs).mean()
    assert METRICS["poisson_nll"](case).value == pytest.approx(expected, rel=1e-9)


def test_what_is_missing_does_not_depend_on_the_rates_inferred_there():
    case = make_case(missing=0.3)
    changed = {
        split: {**arrays, "rates": np.where(np.isnan(case.dataset[split].recon_data), 1e3, arrays["rates"])}
        for split, arrays in case.outputs.items()
    }
    for metric in (
        "bits_per_spike_heldin",
        "bits_per_spike_heldout",
        "bits_per_spike_forward",
        "poisson_nll",
        "co_bps_ctd",
    ):
        score, other = METRICS[metric](case), METRICS[metric](replace(case, outputs=changed))
        assert score.value == other.value
        assert score.interval(np.random.default_rng(0)) == other.interval(np.random.default_rng(0))


def test_intervals_with_missing_counts_equal_scoring_resampled_trials():
    case = make_case(missing=0.3)
    spikes, rates = case.trials.recon_data, case.outputs["test"]["rates"]
    null = np.nanmean(spikes, (0, 1))
    drawn = np.random.default_rng(4).multinomial(9, np.full(9, 1 / 9), size=50)

    def nll(i):
        known = ~np.isnan(spikes[i])
        return -poisson.logpmf(spikes[i][known], rates[i][known]).mean()

    def bits(i):
        known = ~np.isnan(spikes[i])
        baseline = np.broadcast_to(null, known.shape)[known]
        gain = poisson.logpmf(spikes[i][known], rates[i][known]) - poisson.logpmf(spikes[i][known], baseline)
        return gain.sum() / spikes[i][known].sum() / np.log(2)

    for sums, score in ((poisson_nll_sums(rates, spikes), nll), (bits_per_spike_sums(rates, spikes, null), bits)):
        expected = np.percentile([score(np.repeat(np.arange(9), weights)) for weights in drawn], [5, 95])
        found = sums.interval(np.random.default_rng(4), level=0.9, n_resamples=50)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_neuron_that_is_never_recorded_in_the_scored_trials_is_left_out():
    case = make_case()
    for split in case.dataset.splits.values():
        split.recon_data[:, :, 2] = np.nan
    expected = bits_by_hand(case, range(BINS), (0, 1, 3))
    assert METRICS["bits_per_spike_heldin"](case).value == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("direction", ["true_to_inferred", "inferred_to_true"])
def test_input_r2_regresses_on_train_and_scores_on_the_split(direction, lengths):
    case = make_case(lengths=lengths)

    def samples(split, name):
        trials = case.dataset[split]
        array = trials.inputs_true if name == "inputs_true" else case.outputs[split]["co_means"]
        n_bins = [RECON] * trials.n_trials if trials.n_bins is None else trials.n_bins
        return np.concatenate([trial[:n] for trial, n in zip(array, n_bins, strict=True)])

    names = ("inputs_true", "co_means") if direction == "true_to_inferred" else ("co_means", "inputs_true")
    model = LinearRegression().fit(*(samples("train", name) for name in names))
    source, target = (samples("test", name) for name in names)
    expected = r2_score(target, model.predict(source), multioutput="variance_weighted")
    assert METRICS[f"input_r2_{direction}"](case).value == pytest.approx(expected, rel=1e-5)


def test_the_two_directions_of_input_r2_tell_invented_inputs_from_missing_ones():
    case = make_case()
    rng = np.random.default_rng(1)
    for split, arrays in case.outputs.items():
        pulses = case.dataset[split].inputs_true
        arrays["co_means"] = np.concatenate([pulses[:, :, :1], 3 * rng.normal(size=pulses.shape)], 2)
    assert METRICS["input_r2_true_to_inferred"](case).value < 0.2  # most of what is inferred is invented
    assert 0.3 < METRICS["input_r2_inferred_to_true"](case).value < 0.7  # one of two is found


def test_input_r2_needs_true_and_inferred_inputs():
    case = make_case()
    bare = {name: replace(split, inputs_true=None) for name, split in case.dataset.splits.items()}
    for direction in ("true_to_inferred", "inferred_to_true"):
        with pytest.raises(NotApplicableError, match="the dataset has no inputs_true") as raised:
            METRICS[f"input_r2_{direction}"](replace(case, dataset=SpikeDataset(bare, 0.01)))
        assert raised.value.of_dataset
        with pytest.raises(NotApplicableError, match="there are no inferred co_means") as raised:
            METRICS[f"input_r2_{direction}"](replace(case, outputs={split: {} for split in case.outputs}))
        assert not raised.value.of_dataset


def test_forward_and_held_out_bits_need_later_bins_and_held_out_neurons():
    with pytest.raises(NotApplicableError, match="no bins follow those that the model sees") as raised:
        METRICS["bits_per_spike_forward"](make_case(n_recon_bins=BINS))
    assert raised.value.of_dataset
    with pytest.raises(NotApplicableError, match="no neurons are held out") as raised:
        METRICS["bits_per_spike_heldout"](make_case(heldin=NEURONS))
    assert raised.value.of_dataset


def test_a_signal_that_is_no_count_has_no_bits_and_no_poisson_likelihood():
    case = make_case()
    case = replace(case, dataset=replace(case.dataset, signal="continuous"))
    for metric in ("poisson_nll", "bits_per_spike_heldin", "bits_per_spike_heldout", "bits_per_spike_forward", "co_bps_ctd", "control_bits_per_spike"):  # fmt: skip
        with pytest.raises(NotApplicableError, match="the dataset holds no spike counts") as raised:
            METRICS[metric](case)
        assert raised.value.of_dataset
    assert METRICS["input_r2_true_to_inferred"](case).value > 0


def state_case(n_bins=None, rng_seed=0):
    """Rates that follow latents, and a fit that knows both only in part."""
    rng = np.random.default_rng(rng_seed)
    splits, outputs = {}, {}
    weights = rng.normal(size=(3, NEURONS))
    for name, n_trials in (("train", 12), ("test", 10)):
        latents = np.cumsum(rng.normal(size=(n_trials, 40, 3)), 1) / 4
        truth = np.exp(0.4 * latents @ weights - 1)
        splits[name] = Split(
            encod_data=rng.poisson(truth[:, :, :HELDIN]).astype(np.float32),
            recon_data=rng.poisson(truth).astype(np.float32),
            truth=truth,
            latents=latents,
        )
        outputs[name] = {
            "latents": latents @ rng.normal(size=(3, 5)) + 0.3 * rng.normal(size=(n_trials, 40, 5)),
            "rates": truth * rng.gamma(20, 1 / 20, truth.shape),
        }
    return Case(SpikeDataset(splits, 0.01), outputs, "test")


SKILLS = ("marginal_wasserstein_skill", "marginal_kl_skill", "power_spectrum_skill")


@pytest.mark.parametrize("metric", SKILLS)
def test_skill_is_1_for_the_true_rates_0_for_their_means_and_between_for_a_fit(metric):
    case = state_case()
    perfect = Case(case.dataset, {"test": {"rates": case.trials.truth}}, "test")
    mean = case.train.recon_data.mean((0, 1), dtype=np.float64)
    floor = Case(case.dataset, {"test": {"rates": np.broadcast_to(mean, case.trials.truth.shape)}}, "test")
    assert METRICS[metric](perfect) == pytest.approx(1, abs=1e-7)
    assert METRICS[metric](floor) == pytest.approx(0, abs=1e-12)
    assert 0.1 < METRICS[metric](case) < 0.99


def test_wasserstein_skill_is_that_of_scipy():
    case = state_case()
    true, found = case.trials.truth, case.outputs["test"]["rates"]
    mean = case.train.recon_data.mean((0, 1), dtype=np.float64)

    def distance(other):
        one = [wasserstein_distance(true[..., i].ravel(), other[..., i].ravel()) for i in range(NEURONS)]
        return np.mean(one / np.ptp(true, axis=(0, 1)))

    expected = 1 - distance(found) / distance(np.broadcast_to(mean, true.shape))
    assert METRICS["marginal_wasserstein_skill"](case) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("metric", ["procrustes_similarity", "cca", "cka"])
def test_shapes_of_states_are_alike_in_whatever_trials_order_and_rotation(metric):
    case = state_case()
    rng = np.random.default_rng(5)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    score = METRICS[metric]

    def of(latents):
        return score(Case(case.dataset, {"test": {"latents": latents}}, "test"))

    true = case.trials.latents
    assert of(2 * true @ rotation + 1) == pytest.approx(1, abs=1e-6)
    value = of(case.outputs["test"]["latents"])
    turned = case.outputs["test"]["latents"] @ np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert of(turned) == pytest.approx(value, rel=1e-9)
    assert 0.3 < value < 0.999
    assert of(rng.normal(size=(10, 40, 5))) < 0.5 * value
    order = rng.permutation(10)
    split = replace(case.trials, latents=true[order])
    moved = Case(replace(case.dataset, splits={**case.dataset.splits, "test": split}), case.outputs, "test")
    mixed = Case(moved.dataset, {"test": {"latents": case.outputs["test"]["latents"][order]}}, "test")
    assert score(mixed) == pytest.approx(value, rel=1e-9)
    assert score(moved) < value  # states of other trials


def test_cca_is_that_of_scikit_learn_on_leading_components():
    case = state_case()
    clouds = []
    for states in (case.trials.latents, case.outputs["test"]["latents"]):
        clouds.append(PCA(0.95, svd_solver="full").fit_transform(states.reshape(-1, states.shape[-1])))
    n = min(cloud.shape[1] for cloud in clouds)
    assert n >= 2
    pairs = zip(*CCA(n, scale=False, max_iter=10000, tol=1e-12).fit_transform(*clouds), strict=True)
    columns = [np.stack(list(side), 0) for side in zip(*pairs, strict=True)]
    expected = np.mean([np.corrcoef(columns[0][:, i], columns[1][:, i])[0, 1] for i in range(n)])
    assert METRICS["cca"](case) == pytest.approx(expected, rel=1e-6)


def test_nonlinear_cycle_is_the_score_of_its_function():
    case = state_case()
    one, other = case.outputs["train"], case.outputs["test"]
    expected = nonlinear_cycle_consistency(one["latents"], one["rates"], other["latents"], other["rates"])
    assert METRICS["nonlinear_cycle_consistency"](case).value == expected.r2[0]
