"""Metrics against scikit-learn, scipy and literal re-implementations, with their invariances and their errors."""

import math

import numpy as np
import pytest
from scipy.stats import poisson
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from ctdb.errors import ConfigError, MetricError
from ctdb.metrics import METRICS, TrialSums, bits_per_spike, cycle_consistency, poisson_nll, rate_r2, state_r2
from ctdb.metrics.bits_per_spike import bits_per_spike_sums, poisson_nll_sums
from ctdb.metrics.cycle_consistency import cycle_consistency_sums
from ctdb.metrics.r2 import r2_sums, state_r2_sums

TRIALS, BINS, NEURONS = 12, 20, 7


def rng(seed=0):
    return np.random.default_rng(seed)


def flat(array):
    return array.reshape(-1, array.shape[-1])


def valid_samples(array, n_bins):
    return np.concatenate([trial[:length] for trial, length in zip(array, n_bins, strict=True)])


def random_lengths(n_trials=TRIALS, seed=5):
    return rng(seed).integers(3, BINS, size=n_trials)


def with_rubbish_in_the_padding(array, n_bins):
    changed = array.copy()
    changed[np.arange(array.shape[1]) >= n_bins[:, None]] = np.nan
    return changed


def make_rates(seed=0, n_trials=TRIALS):
    r = rng(seed)
    true = np.exp(r.normal(size=(n_trials, BINS, NEURONS)) * r.uniform(0.1, 1, NEURONS))
    return true, true * np.exp(0.3 * r.normal(size=true.shape))


# ------------------------------------------------------------------------------------------------------ rate R2


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
def test_rate_r2_equals_scikit_learn(scale):
    true, inferred = make_rates()
    true, inferred = scale * true, scale * inferred
    expected = r2_score(flat(true), flat(inferred), multioutput="variance_weighted")
    assert rate_r2(true, inferred) == pytest.approx(expected, rel=1e-10)
    assert rate_r2(flat(true), flat(inferred)) == pytest.approx(expected, rel=1e-10)
    assert rate_r2(true.astype(np.float32), inferred.astype(np.float32)) == pytest.approx(expected, rel=1e-5)


def test_rate_r2_of_a_bad_fit_is_negative_as_in_scikit_learn():
    true, _ = make_rates()
    inferred = 10 - true
    expected = r2_score(flat(true), flat(inferred), multioutput="variance_weighted")
    assert expected < -1
    assert rate_r2(true, inferred) == pytest.approx(expected, rel=1e-10)


def test_rate_r2_ignores_constant_neurons_as_scikit_learn_does():
    true, inferred = make_rates()
    true[:, :, 2] = np.float32(0.1)
    expected = r2_score(flat(true), flat(inferred), multioutput="variance_weighted")
    assert rate_r2(true, inferred) == pytest.approx(expected, rel=1e-10)


def test_rate_r2_is_one_for_equal_rates_and_zero_for_their_mean():
    true, _ = make_rates()
    assert rate_r2(true, true) == 1.0
    mean = np.broadcast_to(true.mean((0, 1)), true.shape)
    assert rate_r2(true, mean) == pytest.approx(0, abs=1e-12)


def test_rate_r2_masks_padding_as_if_the_bins_were_not_there():
    true, inferred = make_rates()
    n_bins = random_lengths()
    expected = r2_score(valid_samples(true, n_bins), valid_samples(inferred, n_bins), multioutput="variance_weighted")
    padded = [with_rubbish_in_the_padding(array, n_bins) for array in (true, inferred)]
    assert rate_r2(*padded, n_bins=n_bins) == pytest.approx(expected, rel=1e-10)
    assert rate_r2(true, inferred, n_bins=n_bins) != pytest.approx(rate_r2(true, inferred), rel=1e-6)
    assert rate_r2(true, inferred, n_bins=np.full(TRIALS, BINS)) == rate_r2(true, inferred)


# ----------------------------------------------------------------------------------------------------- state R2


def make_states(n_true=3, n_inferred=5, seed=1):
    r = rng(seed)
    mix = r.normal(size=(n_true, n_inferred))
    both = []
    for n_trials in (TRIALS, 8):
        true = r.normal(size=(n_trials, BINS, n_true)) + 3
        both += [true, np.tanh(true @ mix / 3) + 0.3 * r.normal(size=(n_trials, BINS, n_inferred)) - 1]
    return both


def state_r2_by_scikit_learn(source, target, source_eval, target_eval):
    regression = LinearRegression().fit(source, target)
    return r2_score(target_eval, regression.predict(source_eval), multioutput="variance_weighted")


@pytest.mark.parametrize(("n_true", "n_inferred"), [(3, 5), (5, 3), (1, 1), (4, 4)])
@pytest.mark.parametrize("direction", ["true_to_inferred", "inferred_to_true"])
def test_state_r2_equals_scikit_learn(direction, n_true, n_inferred):
    true, inferred, true_eval, inferred_eval = states = make_states(n_true, n_inferred)
    pairs = (true, inferred, true_eval, inferred_eval)
    if direction == "inferred_to_true":
        pairs = (inferred, true, inferred_eval, true_eval)
    expected = state_r2_by_scikit_learn(*(flat(array) for array in pairs))
    assert state_r2(*states, direction=direction) == pytest.approx(expected, rel=1e-9)
    assert state_r2(*(flat(array) for array in states), direction=direction) == pytest.approx(expected, rel=1e-9)


def test_state_r2_goes_from_true_to_inferred_unless_told_otherwise():
    states = make_states()
    assert state_r2(*states) == state_r2(*states, direction="true_to_inferred")
    assert state_r2(*states) != pytest.approx(state_r2(*states, direction="inferred_to_true"), abs=1e-3)


def test_state_r2_tells_invented_features_from_missing_ones():
    r = rng(2)
    true = r.normal(size=(TRIALS, BINS, 3))
    invented = np.concatenate([true, 3 * r.normal(size=true.shape)], axis=2)
    missing = true[:, :, :1]
    assert state_r2(true, invented, true, invented, "true_to_inferred") < 0.3
    assert state_r2(true, invented, true, invented, "inferred_to_true") > 0.999
    assert state_r2(true, missing, true, missing, "true_to_inferred") > 0.999
    assert state_r2(true, missing, true, missing, "inferred_to_true") < 0.5


@pytest.mark.parametrize("direction", ["true_to_inferred", "inferred_to_true"])
def test_state_r2_masks_padding_as_if_the_bins_were_not_there(direction):
    states = make_states()
    lengths = [random_lengths(), random_lengths(8, seed=6)]
    both = [lengths[0], lengths[0], lengths[1], lengths[1]]
    cut = [valid_samples(array, n_bins) for array, n_bins in zip(states, both, strict=True)]
    padded = [with_rubbish_in_the_padding(array, n_bins) for array, n_bins in zip(states, both, strict=True)]
    score = state_r2(*padded, direction=direction, n_bins_train=lengths[0], n_bins_eval=lengths[1])
    assert score == pytest.approx(state_r2(*cut, direction=direction), rel=1e-9)


def test_state_r2_with_redundant_states_equals_scikit_learn():
    true, inferred, true_eval, inferred_eval = make_states()
    twice, twice_eval = (np.concatenate([array, 2 * array], axis=2) for array in (true, true_eval))
    expected = state_r2_by_scikit_learn(*(flat(array) for array in (twice, inferred, twice_eval, inferred_eval)))
    assert state_r2(twice, inferred, twice_eval, inferred_eval) == pytest.approx(expected, rel=1e-8)


# ------------------------------------------------------------------------------------- bits per spike and likelihood


def make_spikes(seed=3):
    true, inferred = make_rates(seed)
    spikes = rng(seed + 1).poisson(true).astype(np.float32)
    return spikes, inferred, spikes.mean((0, 1))


def bits_by_scipy(rates, spikes, null):
    gain = poisson.logpmf(spikes, rates).sum() - poisson.logpmf(spikes, np.broadcast_to(null, spikes.shape)).sum()
    return gain / spikes.sum() / np.log(2)


def test_bits_per_spike_equals_the_formula_with_scipys_likelihood():
    spikes, rates, null = make_spikes()
    expected = bits_by_scipy(rates, spikes, null)
    assert abs(expected) > 0.01
    assert bits_per_spike(rates, spikes, null) == pytest.approx(expected, rel=1e-6)
    assert bits_per_spike(flat(rates), flat(spikes), null) == pytest.approx(expected, rel=1e-6)
    assert bits_per_spike(rates[:, :, 5:], spikes[:, :, 5:], null[5:]) == pytest.approx(
        bits_by_scipy(rates[:, :, 5:], spikes[:, :, 5:], null[5:]), rel=1e-6
    )


def test_bits_per_spike_of_the_null_model_is_exactly_zero():
    spikes, rates, null = make_spikes()
    assert bits_per_spike(np.broadcast_to(null, spikes.shape), spikes, null) == 0.0
    assert bits_per_spike(rates, spikes, rates) == 0.0
    assert bits_per_spike(flat(rates), flat(spikes), flat(rates)) == 0.0


def test_bits_per_spike_takes_null_rates_of_any_shape_that_broadcasts():
    spikes, rates, null = make_spikes()
    expected = bits_per_spike(rates, spikes, null)
    for shape in [(1, 1, NEURONS), (1, BINS, NEURONS), (TRIALS, 1, NEURONS), spikes.shape]:
        assert bits_per_spike(rates, spikes, np.broadcast_to(null, shape)) == pytest.approx(expected, rel=1e-12)
    samples = flat(spikes)
    for shape in [(1, NEURONS), samples.shape]:
        assert bits_per_spike(flat(rates), samples, np.broadcast_to(null, shape)) == pytest.approx(expected, rel=1e-12)
    assert bits_per_spike(rates, spikes, np.array(0.7)) == pytest.approx(bits_by_scipy(rates, spikes, 0.7), rel=1e-6)


def test_true_rates_beat_the_null_model_and_their_own_distortions():
    true, inferred = make_rates(seed=3, n_trials=100)
    spikes = rng(4).poisson(true)
    null = spikes.mean((0, 1))
    best = bits_per_spike(true, spikes, null)
    assert best > bits_per_spike(inferred, spikes, null)
    assert best > bits_per_spike(1.3 * true, spikes, null)
    assert best > 0


def test_bits_per_spike_masks_padding_as_if_the_bins_were_not_there():
    spikes, rates, null = make_spikes()
    n_bins = random_lengths()
    expected = bits_by_scipy(valid_samples(rates, n_bins), valid_samples(spikes, n_bins), null)
    padded = [with_rubbish_in_the_padding(array, n_bins) for array in (rates, spikes)]
    assert bits_per_spike(*padded, null, n_bins=n_bins) == pytest.approx(expected, rel=1e-6)


def test_a_spike_where_none_was_expected_costs_much_but_stays_finite():
    spikes, rates, null = make_spikes()
    rates[0, 0, 0], spikes[0, 0, 0] = 0.0, 1.0
    clipped = rates.copy()
    clipped[0, 0, 0] = 1e-9
    score = bits_per_spike(rates, spikes, null)
    assert score == pytest.approx(bits_by_scipy(clipped, spikes, null), rel=1e-6)
    assert math.isfinite(poisson_nll(rates, spikes))


def test_bits_per_spike_without_any_spike_is_not_a_number():
    _, rates, _ = make_spikes()
    assert math.isnan(bits_per_spike(rates, np.zeros_like(rates), np.full(NEURONS, 0.1)))


def test_poisson_nll_equals_scipy():
    spikes, rates, _ = make_spikes()
    expected = -poisson.logpmf(spikes, rates).mean()
    assert poisson_nll(rates, spikes) == pytest.approx(expected, rel=1e-10)
    assert poisson_nll(flat(rates), flat(spikes)) == pytest.approx(expected, rel=1e-10)
    n_bins = random_lengths()
    expected = -poisson.logpmf(valid_samples(spikes, n_bins), valid_samples(rates, n_bins)).mean()
    padded = [with_rubbish_in_the_padding(array, n_bins) for array in (rates, spikes)]
    assert poisson_nll(*padded, n_bins=n_bins) == pytest.approx(expected, rel=1e-10)


# -------------------------------------------------------------------------------------------- cycle consistency


def cycle_consistency_of_ctd(latents, rates, latents_eval):
    """Step by step as the reference is described: PCA of both, regression, pseudo-inverse of 99 % of its spectrum."""
    log_rates = np.log(flat(rates))
    latents, latents_eval = flat(latents), flat(latents_eval)
    latent_pca, rate_pca = PCA().fit(latents), PCA().fit(log_rates)
    regression = LinearRegression().fit(latent_pca.transform(latents), rate_pca.transform(log_rates))
    matrix, offset = regression.coef_, regression.intercept_
    left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    total, kept = (singular**2).sum(), 0.0
    for rank in range(1, len(singular) + 1):
        kept += singular[rank - 1] ** 2
        if kept / total >= 0.99:
            break
    inverse = np.linalg.pinv(left[:, :rank] @ np.diag(singular[:rank]) @ right[:rank])
    there = latent_pca.transform(latents_eval) @ matrix.T + offset
    back = (there - offset) @ inverse.T
    return r2_score(latent_pca.transform(latents_eval), back, multioutput="variance_weighted"), rank


def make_cycle(n_latents=6, idle=2, seed=7, n_neurons=15):
    """Latents of which the readout ignores the last ones, all but for a trace."""
    r = rng(seed)
    readout = r.normal(size=(n_latents, n_neurons))
    readout[n_latents - idle :] *= 0.02
    arrays = []
    for n_trials in (TRIALS, 8):
        latents = r.normal(size=(n_trials, BINS, n_latents)) * np.linspace(1, 2, n_latents) + 1
        arrays += [latents, np.exp(0.3 * latents @ readout - 1 + 0.1 * r.normal(size=(n_trials, BINS, n_neurons)))]
    return arrays


@pytest.mark.parametrize(("n_latents", "idle"), [(6, 0), (6, 2), (6, 5), (1, 0)])
def test_cycle_consistency_equals_a_literal_reimplementation(n_latents, idle):
    latents, rates, latents_eval, rates_eval = make_cycle(n_latents, idle)
    expected, rank = cycle_consistency_of_ctd(latents, rates, latents_eval)
    assert rank <= n_latents - idle
    assert cycle_consistency(latents, rates, latents_eval, rates_eval) == pytest.approx(expected, rel=1e-8, abs=1e-10)
    samples = [flat(array) for array in (latents, rates, latents_eval, rates_eval)]
    assert cycle_consistency(*samples) == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_cycle_consistency_with_more_latents_than_neurons_equals_a_literal_reimplementation():
    latents, rates, latents_eval, rates_eval = make_cycle(n_latents=9, idle=0, n_neurons=4)
    expected, _ = cycle_consistency_of_ctd(latents, rates, latents_eval)
    assert expected < 0.9
    assert cycle_consistency(latents, rates, latents_eval, rates_eval) == pytest.approx(expected, rel=1e-8)


def test_cycle_consistency_through_inferred_rates_inverts_the_rates_themselves():
    latents, rates, latents_eval, rates_eval = make_cycle()
    regression = LinearRegression().fit(flat(latents), np.log(flat(rates)))
    _, rank = cycle_consistency_of_ctd(latents, rates, latents_eval)
    left, singular, right = np.linalg.svd(regression.coef_.T, full_matrices=False)
    kept = left[:, :rank] @ np.diag(singular[:rank]) @ right[:rank]
    centre = flat(latents).mean(0)
    back = (np.log(flat(rates_eval)) - regression.predict(centre[None])) @ np.linalg.pinv(kept) + centre
    expected = r2_score(flat(latents_eval), back, multioutput="variance_weighted")
    assert cycle_consistency(latents, rates, latents_eval, rates_eval, "inferred") == pytest.approx(expected, rel=1e-8)
    worse = cycle_consistency(latents, rates, latents_eval, rates_eval[::-1], "inferred")
    assert worse < expected - 0.1  # the eval rates do count here
    predicted = cycle_consistency(latents, rates, latents_eval, rates_eval)
    assert cycle_consistency(latents, rates, latents_eval, rates_eval[::-1]) == predicted  # and not there


def test_cycle_consistency_is_one_for_an_exact_full_readout_and_falls_with_idle_latents():
    r = rng(8)
    latents = r.normal(size=(TRIALS, BINS, 3))
    rates = np.exp(latents @ np.linalg.qr(r.normal(size=(5, 5)))[0][:3])
    assert cycle_consistency(latents, rates, latents, rates) == pytest.approx(1, abs=1e-12)
    assert cycle_consistency(latents, rates, latents, rates, "inferred") == pytest.approx(1, abs=1e-12)
    idle = np.concatenate([latents, r.normal(size=latents.shape)], axis=2)
    assert cycle_consistency(idle, rates, idle, rates) == pytest.approx(0.5, abs=0.1)


def test_cycle_consistency_masks_padding_as_if_the_bins_were_not_there():
    arrays = make_cycle()
    lengths = [random_lengths(), random_lengths(8, seed=6)]
    both = [lengths[0], lengths[0], lengths[1], lengths[1]]
    cut = [valid_samples(array, n_bins) for array, n_bins in zip(arrays, both, strict=True)]
    padded = [with_rubbish_in_the_padding(array, n_bins) for array, n_bins in zip(arrays, both, strict=True)]
    for through in ("predicted", "inferred"):
        score = cycle_consistency(*padded, through, n_bins_train=lengths[0], n_bins_eval=lengths[1])
        assert score == pytest.approx(cycle_consistency(*cut, through), rel=1e-8)


# ------------------------------------------------------------------------------------------------- invariances


def test_order_of_trials_changes_no_score():
    order, order_eval = rng(1).permutation(TRIALS), rng(2).permutation(8)
    true, inferred = make_rates()
    assert rate_r2(true[order], inferred[order]) == pytest.approx(rate_r2(true, inferred), rel=1e-12)
    spikes, rates, null = make_spikes()
    assert bits_per_spike(rates[order], spikes[order], null) == pytest.approx(bits_per_spike(rates, spikes, null))
    for score, (a, b, c, d) in ((state_r2, make_states()), (cycle_consistency, make_cycle())):
        shuffled = score(a[order], b[order], c[order_eval], d[order_eval])
        assert shuffled == pytest.approx(score(a, b, c, d), rel=1e-9)


def test_rotating_and_shifting_latents_changes_no_score():
    true, inferred, true_eval, inferred_eval = make_states()
    turn, _ = np.linalg.qr(rng(3).normal(size=(5, 5)))
    turned = (inferred @ turn + 2, inferred_eval @ turn + 2)
    for direction in ("true_to_inferred", "inferred_to_true"):
        expected = state_r2(true, inferred, true_eval, inferred_eval, direction)
        assert state_r2(true, turned[0], true_eval, turned[1], direction) == pytest.approx(expected, rel=1e-9)
    latents, rates, latents_eval, rates_eval = make_cycle()
    turn, _ = np.linalg.qr(rng(3).normal(size=(6, 6)))
    for through in ("predicted", "inferred"):
        expected = cycle_consistency(latents, rates, latents_eval, rates_eval, through)
        score = cycle_consistency(latents @ turn - 1, rates, latents_eval @ turn - 1, rates_eval, through)
        assert score == pytest.approx(expected, rel=1e-8)


def test_any_invertible_map_of_the_inferred_states_leaves_the_readback_of_the_true_ones():
    true, inferred, true_eval, inferred_eval = make_states()
    map_ = rng(4).normal(size=(5, 5)) + 3 * np.eye(5)
    expected = state_r2(true, inferred, true_eval, inferred_eval, "inferred_to_true")
    score = state_r2(true, inferred @ map_, true_eval, inferred_eval @ map_, "inferred_to_true")
    assert score == pytest.approx(expected, rel=1e-9)


# --------------------------------------------------------------------------------------------------- intervals


def by_resampling(score, n_trials, seed, n_resamples, level):
    """Percentile interval from scores of really repeated trials, drawn with the weights that the seed gives."""
    drawn = np.random.default_rng(seed).multinomial(n_trials, np.full(n_trials, 1 / n_trials), size=n_resamples)
    scores = [score(np.repeat(np.arange(n_trials), weights)) for weights in drawn]
    return np.percentile(scores, [50 * (1 - level), 50 * (1 + level)])


def test_intervals_equal_scoring_resampled_trials():
    true, inferred = make_rates()
    spikes, rates, null = make_spikes()
    states, cycle = make_states(), make_cycle()
    n_bins = random_lengths()
    cases = {
        "rate R2": (r2_sums(true, inferred), lambda i: rate_r2(true[i], inferred[i])),
        "rate R2, padded": (
            r2_sums(true, inferred, n_bins),
            lambda i: rate_r2(true[i], inferred[i], n_bins[i]),
        ),
        "bits per spike": (
            bits_per_spike_sums(rates, spikes, null),
            lambda i: bits_per_spike(rates[i], spikes[i], null),
        ),
        "likelihood": (poisson_nll_sums(rates, spikes, n_bins), lambda i: poisson_nll(rates[i], spikes[i], n_bins[i])),
        "state R2": (state_r2_sums(*states), lambda i: state_r2(*states[:2], states[2][i], states[3][i])),
        "cycle consistency": (
            cycle_consistency_sums(*cycle, "inferred"),
            lambda i: cycle_consistency(*cycle[:2], cycle[2][i], cycle[3][i], "inferred"),
        ),
    }
    for name, (sums, score) in cases.items():
        n_trials = len(sums.terms)
        low, high = sums.interval(np.random.default_rng(4), level=0.9, n_resamples=60)
        expected = by_resampling(score, n_trials, seed=4, n_resamples=60, level=0.9)
        np.testing.assert_allclose([low, high], expected, rtol=1e-8, atol=1e-10, err_msg=name)
        assert low < high
        assert sums.value == pytest.approx(score(np.arange(n_trials)), rel=1e-12)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    r, covered = rng(9), 0
    for _ in range(300):
        x = r.exponential(size=60)  # a ratio of sums with true value 2: sum(2 x + noise) / sum(x)
        sums = TrialSums(np.stack([2 * x + r.normal(size=60), x], axis=1), lambda s: s[..., 0] / s[..., 1])
        low, high = sums.interval(r, n_resamples=400)
        covered += low <= 2 <= high
    assert 0.89 <= covered / 300 <= 0.99


def test_interval_is_reproducible_and_narrows_with_more_trials():
    def width(n_trials):
        true, inferred = make_rates(n_trials=n_trials)
        low, high = r2_sums(true, inferred).interval(rng(1))
        assert (low, high) == r2_sums(true, inferred).interval(rng(1))
        return high - low

    assert width(200) < 0.6 * width(20)


def test_interval_of_an_undefined_score_is_undefined():
    sums = bits_per_spike_sums(np.ones((4, 5, 2)), np.zeros((4, 5, 2)), np.ones(2))
    assert all(math.isnan(bound) for bound in sums.interval(rng()))


# ------------------------------------------------------------------------------------------------------ errors


ONES = np.ones((4, 5, 3))
RANDOM = np.random.default_rng(0).uniform(0.5, 1.5, (4, 5, 3))


@pytest.mark.parametrize(
    "score",
    [
        lambda a, b: rate_r2(a, b),
        lambda a, b: bits_per_spike(a, b, np.ones(1)),
        lambda a, b: poisson_nll(a, b),
        lambda a, b: state_r2(a, b, RANDOM, RANDOM),
        lambda a, b: state_r2(RANDOM, RANDOM, a, b),
        lambda a, b: cycle_consistency(a, b, RANDOM, RANDOM),
        lambda a, b: cycle_consistency(RANDOM, RANDOM, a, b),
        lambda a, b: cycle_consistency(RANDOM, RANDOM, a, b, "inferred"),
    ],
    ids=["rate_r2", "bps", "nll", "state_r2 train", "state_r2 eval", "cycle train", "cycle eval", "cycle inferred"],
)
@pytest.mark.parametrize("broken", ["other trials", "other bins", "one dimension", "not a number", "infinite"])
def test_arrays_that_do_not_fit_are_an_error_that_says_so(score, broken):
    second = {
        "other trials": RANDOM[:3],
        "other bins": RANDOM[:, :4],
        "one dimension": RANDOM[0, 0],
        "not a number": np.where(np.arange(4)[:, None, None] == 1, np.nan, RANDOM),
        "infinite": np.where(np.arange(4)[:, None, None] == 1, np.inf, RANDOM),
    }[broken]
    with pytest.raises(MetricError, match=r"NaN|shape"):
        score(RANDOM, second)


def test_arrays_of_other_channels_are_an_error_that_gives_both_numbers():
    with pytest.raises(MetricError, match="3 and 2"):
        rate_r2(RANDOM, RANDOM[:, :, :2])
    for function in (lambda a, b: bits_per_spike(a, b, np.ones(1)), poisson_nll):
        for other in (RANDOM[:, :, :2], RANDOM[:, :, :1]):
            with pytest.raises(MetricError, match=r"\(4, 5, 3\).*\(4, 5, [12]\)"):
                function(RANDOM, other)
    for function in (state_r2, cycle_consistency):
        for pair in ((RANDOM[:, :, :2], RANDOM), (RANDOM, RANDOM[:, :, :2])):
            with pytest.raises(MetricError, match=r"channels; found 2 and 3|3 channels.* 2;"):
                function(RANDOM, RANDOM, *pair)


def test_null_rates_that_do_not_fit_are_an_error():
    with pytest.raises(MetricError, match="null"):
        bits_per_spike(RANDOM, ONES, np.ones(2))
    with pytest.raises(MetricError, match="NaN"):
        bits_per_spike(RANDOM, ONES, np.array([1.0, np.nan, 1.0]))


def test_no_neurons_are_an_error_that_tells_how_to_hold_some_out():
    none = np.zeros((4, 5, 0))
    with pytest.raises(MetricError, match="n_heldout"):
        bits_per_spike(none, none, np.zeros(0))
    for score in (poisson_nll, rate_r2):
        with pytest.raises(MetricError):
            score(none, none)


def test_negative_rates_are_an_error_that_suspects_log_rates():
    negative = RANDOM - 1
    for call in (
        lambda: bits_per_spike(negative, ONES, np.ones(1)),
        lambda: bits_per_spike(RANDOM, ONES, -np.ones(1)),
        lambda: poisson_nll(negative, ONES),
        lambda: cycle_consistency(RANDOM, negative, RANDOM, RANDOM),
        lambda: cycle_consistency(RANDOM, RANDOM, RANDOM, negative, "inferred"),
    ):
        with pytest.raises(MetricError, match="log-rates"):
            call()


def test_targets_that_never_vary_are_an_error():
    with pytest.raises(MetricError, match="no channel of the target varies"):
        rate_r2(0.1 * ONES, RANDOM)
    with pytest.raises(MetricError, match="no channel of the target varies"):
        state_r2(RANDOM, ONES, RANDOM, ONES)
    with pytest.raises(MetricError, match="no channel of the target varies"):
        cycle_consistency(ONES, RANDOM, ONES, RANDOM)


def test_wrong_lengths_and_directions_are_errors():
    with pytest.raises(MetricError, match="n_bins has shape"):
        rate_r2(RANDOM, RANDOM, n_bins=np.array([5, 5]))
    with pytest.raises((MetricError, TypeError), match="direction"):  # the type checker of the tests may be faster
        state_r2(RANDOM, RANDOM, RANDOM, RANDOM, direction="backwards")


def test_unknown_metric_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'rate_r2'"):
        METRICS["rate_r3"]


def test_one_trial_has_no_interval():
    sums = TrialSums(np.array([[1.0, 2.0]]), lambda total: total[..., 0] / total[..., 1])
    assert sums.value == 0.5
    assert np.isnan(sums.interval(np.random.default_rng(0))).all()
