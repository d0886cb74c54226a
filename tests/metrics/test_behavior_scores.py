"""Scores of behaviour against scikit-learn and loops, with values that are not known and trials that end early."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import poisson
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from ctdb.datasets import SpikeDataset, Split
from ctdb.errors import MetricError
from ctdb.metrics import METRICS, Case, NotApplicableError, behavior_r2
from ctdb.metrics.behavior import behavior_r2_sums, condition_means, decode
from ctdb.regression import PENALTIES

BINS, CHANNELS, FACTORS = 6, 3, 4
UNITS = np.array([0.01, 1.0, 300.0])


def make_behavior(seed=0, n_trials=15):
    rng = np.random.default_rng(seed)
    true = (rng.normal(size=(n_trials, BINS, CHANNELS)) + 5) * UNITS
    return true, true + rng.normal(size=true.shape) * UNITS * [0.3, 0.9, 1.5]


def with_gaps(true, seed=1, share=0.3):
    return np.where(np.random.default_rng(seed).random(true.shape) < share, np.nan, true)


def by_channel(true, decoded):
    """Mean over channels of scikit-learn's R2 of the samples that are known."""
    scores = []
    for channel in range(true.shape[-1]):
        known = ~np.isnan(true[..., channel])
        scores.append(r2_score(true[..., channel][known], decoded[..., channel][known]))
    return np.mean(scores)


def cut(array, n_bins):
    return np.concatenate([trial[:length] for trial, length in zip(array, n_bins, strict=True)])


# ------------------------------------------------------------------------------------------------------ behaviour R2


def test_behavior_r2_is_scikit_learns_average_over_channels():
    true, decoded = make_behavior()
    expected = r2_score(true.reshape(-1, 3), decoded.reshape(-1, 3), multioutput="uniform_average")
    assert behavior_r2(true, decoded) == pytest.approx(expected, rel=1e-10)
    assert behavior_r2(true * [1e3, 1e-3, 1], decoded * [1e3, 1e-3, 1]) == pytest.approx(expected, rel=1e-10)
    weighted = r2_score(true.reshape(-1, 3), decoded.reshape(-1, 3), multioutput="variance_weighted")
    assert abs(weighted - expected) > 0.1


def test_behavior_r2_of_equal_and_of_mean_behaviour_is_1_and_0():
    true, _ = make_behavior()
    assert behavior_r2(true, true) == 1
    assert behavior_r2(true, np.broadcast_to(true.mean((0, 1)), true.shape)) == pytest.approx(0, abs=1e-12)


def test_unknown_values_and_padding_are_left_out_one_by_one():
    true, decoded = make_behavior()
    gaps = with_gaps(true)
    decoded_gaps = np.where(np.isnan(gaps), np.inf, decoded)  # whatever stands there
    assert behavior_r2(gaps, decoded_gaps) == pytest.approx(by_channel(gaps, decoded), rel=1e-10)
    n_bins = np.random.default_rng(2).integers(2, BINS + 1, len(true))
    padded = np.where((np.arange(BINS) < n_bins[:, None])[..., None], decoded_gaps, np.nan)
    rubbish = np.where((np.arange(BINS) < n_bins[:, None])[..., None], gaps, 1e6)
    expected = by_channel(cut(gaps, n_bins), cut(decoded, n_bins))
    assert behavior_r2(rubbish, padded, n_bins) == pytest.approx(expected, rel=1e-10)
    assert behavior_r2(gaps, decoded) != pytest.approx(expected, rel=1e-3)


def test_a_channel_that_does_not_vary_does_not_count():
    true, decoded = make_behavior()
    true[:, :, 1] = 7.0
    expected = np.mean([r2_score(true[..., c].ravel(), decoded[..., c].ravel()) for c in (0, 2)])
    assert behavior_r2(true, decoded) == pytest.approx(expected, rel=1e-10)
    true[:, :, 2] = np.nan
    assert behavior_r2(true, decoded) == pytest.approx(
        r2_score(true[..., 0].ravel(), decoded[..., 0].ravel()), rel=1e-10
    )


def test_behaviour_that_cannot_be_scored_is_an_error():
    true, decoded = make_behavior()
    with pytest.raises(MetricError, match="no behaviour channel varies"):
        behavior_r2(np.ones_like(true), decoded)
    with pytest.raises(MetricError, match="no behaviour channel varies"):
        behavior_r2(np.full_like(true, np.nan), decoded)
    broken = decoded.copy()
    broken[3, 2, 1] = np.nan
    with pytest.raises(MetricError, match="NaN or infinite values where behaviour is known"):
        behavior_r2(true, broken)
    for other in (decoded[:, :, :2], decoded[:4], decoded[0]):
        with pytest.raises(MetricError, match=r"\(15, 6, 3\).*must be \(trials, bins, channels\) alike"):
            behavior_r2(true, other)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_intervals_equal_scoring_resampled_trials(gaps, centred):
    true, decoded = make_behavior()
    true = with_gaps(true) if gaps else true
    centre = make_behavior(9)[0] if centred else None
    drawn = np.random.default_rng(4).multinomial(15, np.full(15, 1 / 15), size=50)

    def score(trials):
        known = ~np.isnan(true[trials])
        residual = np.where(known, true[trials] - decoded[trials], 0)
        mean = np.nanmean(true[trials], (0, 1)) if centre is None else centre[trials]
        total = np.where(known, true[trials] - mean, 0)
        return (1 - (residual**2).sum((0, 1)) / (total**2).sum((0, 1))).mean()

    expected = np.percentile([score(np.repeat(np.arange(15), weights)) for weights in drawn], [5, 95])
    sums = behavior_r2_sums(true, decoded, centre=centre)
    low, high = sums.interval(np.random.default_rng(4), level=0.9, n_resamples=50)
    np.testing.assert_allclose([low, high], expected, rtol=1e-8)
    assert sums.value == pytest.approx(score(np.arange(15)), rel=1e-10)


# ------------------------------------------------------------------------------------------------- registered scores


def make_case(split="test", gaps=False, lengths=False, seed=0, n_bins=BINS, behavior_bins=None):
    """A dataset with behaviour that depends on factors of all bins and on the condition, and a fit's outputs."""
    rng = np.random.default_rng(seed)
    map_, means = rng.normal(size=(n_bins * FACTORS, n_bins * CHANNELS)), 2 * rng.normal(size=(4, n_bins, CHANNELS))
    splits, outputs = {}, {}
    for name, n_trials in (("train", 60), ("valid", 30), ("test", 25)):
        factors = rng.normal(size=(n_trials, n_bins, FACTORS))
        condition = rng.permutation(np.arange(n_trials) % 4)
        behavior = (factors.reshape(n_trials, -1) @ map_).reshape(n_trials, n_bins, CHANNELS) / 3 + means[condition]
        behavior = (behavior + rng.normal(size=behavior.shape)) * UNITS
        rates = rng.gamma(4, 0.25, (n_trials, n_bins, 5))
        decoded = behavior + UNITS * rng.normal(size=behavior.shape)
        known = with_gaps(behavior, seed=n_trials, share=0.2) if gaps else behavior
        recon = rng.poisson(rates).astype(np.float32)
        splits[name] = Split(
            encod_data=recon[:, :, :4],
            recon_data=recon,
            behavior=known[:, :behavior_bins].astype(np.float32),
            condition=condition,
            n_bins=rng.choice([3, n_bins - 1, n_bins], n_trials) if lengths else None,
        )
        outputs[name] = {
            "factors": factors,
            "latents": rng.normal(size=factors.shape),
            "rates": rates * rng.gamma(9, 1 / 9, rates.shape),
            "ablated_rates": rates * rng.gamma(2, 1 / 2, rates.shape),
            "behavior": decoded,
            "ablated_behavior": decoded + 2 * UNITS * rng.normal(size=behavior.shape),
        }
    return Case(SpikeDataset(splits, 0.01), outputs, split)


SHAPES = {
    "plain": {},
    "unknown values": {"gaps": True},
    "padded": {"gaps": True, "lengths": True},
    "valid": {"split": "valid"},
}


def masked(trials):
    """Behaviour with NaN in padding too."""
    behavior = trials.behavior.astype(np.float64)
    if trials.n_bins is None:
        return behavior
    return np.where((np.arange(behavior.shape[1]) < trials.n_bins[:, None])[..., None], behavior, np.nan)


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_the_models_own_behaviour_is_scored(options):
    case = make_case(**options)
    expected = by_channel(masked(case.trials), case.outputs[case.split]["behavior"])
    assert METRICS["behavior_r2"](case).value == pytest.approx(expected, rel=1e-9)


def ridge_by_scikit_learn(train, valid, source):
    """Prediction of each output by itself, with the one penalty that predicts all outputs of valid best."""
    (x, y), (valid_x, valid_y) = train, valid
    best = None
    for penalty in PENALTIES:
        error, found = 0.0, np.full((len(source), y.shape[1]), np.nan)
        for output in range(y.shape[1]):
            rows, valid_rows = ~np.isnan(y[:, output]), ~np.isnan(valid_y[:, output])
            if not rows.any():
                continue
            unit = np.linalg.svd(x[rows] - x[rows].mean(0), compute_uv=False)
            model = Ridge(alpha=penalty * (unit**2).mean(), solver="svd").fit(x[rows], y[rows, output])
            residual = valid_y[valid_rows, output] - model.predict(valid_x[valid_rows]) if valid_rows.any() else 0.0
            error += (residual**2).sum() / y[rows, output].var() if valid_rows.any() else 0.0
            found[:, output] = model.predict(source)
        if best is None or error < best[0]:
            best = (error, found)
    return best[1]


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("metric", "rows"), [("behavior_r2_ridge", True), ("behavior_r2_ridge_sequence", False)])
def test_ridge_scores_are_those_of_scikit_learn(metric, rows, options):
    case = make_case(**options)

    def samples(array):
        return array.reshape(-1, array.shape[2]) if rows else array.reshape(len(array), -1)

    def factors(split):  # a sequence has nothing of the bins after its end
        values, n_bins = case.outputs[split]["factors"], case.dataset[split].n_bins
        return samples(values if n_bins is None else values * (np.arange(BINS) < n_bins[:, None])[..., None])

    pairs = [(factors(split), samples(masked(case.dataset[split]))) for split in ("train", "valid")]
    true = masked(case.trials)
    decoded = ridge_by_scikit_learn(*pairs, factors(case.split)).reshape(true.shape)
    assert METRICS[metric](case).value == pytest.approx(by_channel(true, decoded), rel=1e-4)


def test_a_sequence_decodes_what_one_bin_cannot():
    case = make_case()
    assert METRICS["behavior_r2_ridge_sequence"](case).value > METRICS["behavior_r2_ridge"](case).value + 0.05


def test_ridge_scores_take_latents_where_there_are_no_factors_and_need_one_of_them():
    case = make_case()
    moved = {split: {"latents": arrays["factors"]} for split, arrays in case.outputs.items()}
    expected = METRICS["behavior_r2_ridge"](case).value
    assert METRICS["behavior_r2_ridge"](replace(case, outputs=moved)).value == pytest.approx(expected, rel=1e-9)
    with pytest.raises(NotApplicableError, match="neither factors nor latents"):
        METRICS["behavior_r2_ridge"](replace(case, outputs={split: {} for split in case.outputs}))


def test_behaviour_of_the_bins_seen_is_scored_in_these_bins():
    case = make_case(behavior_bins=5)
    expected = by_channel(case.trials.behavior.astype(float), case.outputs["test"]["behavior"][:, :5])
    assert METRICS["behavior_r2"](case).value == pytest.approx(expected, rel=1e-9)
    for metric in ("behavior_r2_ridge", "behavior_r2_ridge_sequence", "behavior_r2_uive", "control_behavior_r2"):
        cut_outputs = {s: {k: v[:, :5] for k, v in arrays.items()} for s, arrays in case.outputs.items()}
        expected = METRICS[metric](replace(case, outputs=cut_outputs)).value
        assert METRICS[metric](case).value == pytest.approx(expected, rel=1e-9), metric


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_uive_is_a_share_of_what_the_condition_means_of_train_leave(options):
    case = make_case(**options)
    train, true, decoded = masked(case.train), masked(case.trials), case.outputs[case.split]["behavior"]
    scores = []
    for channel in range(CHANNELS):
        residual = total = 0.0
        for i, condition in enumerate(case.trials.condition):
            for t in range(BINS):
                if np.isnan(true[i, t, channel]):
                    continue
                own = [train[j, t, channel] for j in range(60) if case.train.condition[j] == condition]
                mean = np.mean([value for value in own if not np.isnan(value)])
                residual += (true[i, t, channel] - decoded[i, t, channel]) ** 2
                total += (true[i, t, channel] - mean) ** 2
        scores.append(1 - residual / total)
    assert METRICS["behavior_r2_uive"](case).value == pytest.approx(np.mean(scores), rel=1e-6)


def test_uive_of_the_condition_means_themselves_is_0():
    case = make_case(gaps=True)
    means = condition_means(case)
    outputs = {"test": {"behavior": means}}
    assert METRICS["behavior_r2_uive"](replace(case, outputs=outputs)).value == pytest.approx(0, abs=1e-9)
    assert METRICS["behavior_r2"](replace(case, outputs=outputs)).value > 0.2


def test_uive_leaves_out_samples_without_a_condition_mean_and_not_their_channel():
    case = make_case()
    case.train.behavior[case.train.condition == 2, 4, 1] = np.nan
    left_out = case.trials.behavior.copy()
    left_out[case.trials.condition == 2, 4, 1] = np.nan
    expected = replace(case, dataset=SpikeDataset({**case.dataset.splits, "test": replace(case.trials, behavior=left_out)}, 0.01))  # fmt: skip
    means = condition_means(case)
    assert np.isnan(means).sum() == (case.trials.condition == 2).sum() > 0
    centre = np.nan_to_num(means)
    value = behavior_r2_sums(left_out, case.outputs["test"]["behavior"], centre=centre).value
    assert METRICS["behavior_r2_uive"](expected).value == pytest.approx(value, rel=1e-9)
    assert METRICS["behavior_r2_uive"](case).value == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("numbers", [(0, 1, 2, 3), (-1, 0, 1, 2), (-3, 20131003, 7, 8)])
def test_uive_does_not_depend_on_how_conditions_are_numbered(numbers):
    case = make_case()
    expected = METRICS["behavior_r2_uive"](case).value
    for split in case.dataset.splits.values():
        split.condition[:] = np.array(numbers)[split.condition]
    assert METRICS["behavior_r2_uive"](case).value == pytest.approx(expected, rel=1e-12)


def test_uive_needs_conditions_with_train_trials():
    case = make_case()
    without = {name: replace(split, condition=None) for name, split in case.dataset.splits.items()}
    with pytest.raises(NotApplicableError, match="no condition") as raised:
        METRICS["behavior_r2_uive"](replace(case, dataset=SpikeDataset(without, 0.01)))
    assert raised.value.of_dataset
    case.trials.condition[3] = 17
    with pytest.raises(MetricError, match=r"conditions \[17\] have no train trials"):
        METRICS["behavior_r2_uive"](case)


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_control_scores_are_what_is_lost_without_the_inferred_inputs(options):
    case = make_case(**options)
    true, outputs = masked(case.trials), case.outputs[case.split]
    expected = by_channel(true, outputs["behavior"]) - by_channel(true, outputs["ablated_behavior"])
    assert expected > 0.05
    assert METRICS["control_behavior_r2"](case).value == pytest.approx(expected, rel=1e-8)

    spikes, observed = case.trials.recon_data[:, :, :4], np.ones((len(true), BINS), bool)
    if case.trials.n_bins is not None:
        observed = np.arange(BINS) < case.trials.n_bins[:, None]
    gain = [poisson.logpmf(spikes, outputs[name][:, :, :4])[observed].sum() for name in ("rates", "ablated_rates")]
    expected = (gain[0] - gain[1]) / spikes[observed].sum() / np.log(2)
    assert expected > 0.05
    assert METRICS["control_bits_per_spike"](case).value == pytest.approx(expected, rel=1e-8)


def test_control_scores_resample_both_scores_together():
    case = make_case()
    drawn = np.random.default_rng(3).multinomial(25, np.full(25, 1 / 25), size=40)

    def score(metric, i):
        split = case.trials.take(i)
        dataset = SpikeDataset({**case.dataset.splits, "test": split}, 0.01)
        outputs = {**case.outputs, "test": {name: value[i] for name, value in case.outputs["test"].items()}}
        whole = METRICS[metric](Case(dataset, outputs, "test")).value
        outputs["test"] |= {name: outputs["test"][f"ablated_{name}"] for name in ("behavior", "rates")}
        return whole - METRICS[metric](Case(dataset, outputs, "test")).value

    for metric, control in (
        ("behavior_r2", "control_behavior_r2"),
        ("bits_per_spike_heldin", "control_bits_per_spike"),
    ):
        expected = np.percentile([score(metric, np.repeat(np.arange(25), weights)) for weights in drawn], [2.5, 97.5])
        found = METRICS[control](case).interval(np.random.default_rng(3), n_resamples=40)
        np.testing.assert_allclose(found, expected, rtol=1e-7, err_msg=control)


@pytest.mark.parametrize(
    ("metric", "array"),
    [
        ("behavior_r2", "behavior"),
        ("behavior_r2_uive", "behavior"),
        ("control_behavior_r2", "ablated_behavior"),
        ("control_bits_per_spike", "ablated_rates"),
    ],
)
def test_a_score_needs_what_the_model_infers(metric, array):
    case = make_case()
    without = {split: {k: v for k, v in arrays.items() if k != array} for split, arrays in case.outputs.items()}
    with pytest.raises(NotApplicableError, match=f"there are no inferred {array}") as raised:
        METRICS[metric](replace(case, outputs=without))
    assert not raised.value.of_dataset


def test_scores_of_behaviour_need_behaviour():
    case = make_case()
    without = {name: replace(split, behavior=None) for name, split in case.dataset.splits.items()}
    for metric in (
        "behavior_r2",
        "behavior_r2_ridge",
        "behavior_r2_ridge_sequence",
        "behavior_r2_uive",
        "control_behavior_r2",
    ):
        with pytest.raises(NotApplicableError, match="the dataset has no behavior") as raised:
            METRICS[metric](replace(case, dataset=SpikeDataset(without, 0.01)))
        assert raised.value.of_dataset


def test_decoding_gives_every_split_in_the_shape_of_its_behaviour():
    case = make_case(behavior_bins=5)
    features = {split: arrays["factors"] for split, arrays in case.outputs.items()}
    behavior = {split: case.dataset[split].behavior for split in features}
    for decoder in ("linear", "sequence"):
        found = decode(features, behavior, decoder)
        assert {split: value.shape for split, value in found.items()} == {
            split: value.shape for split, value in behavior.items()
        }
    exact = {split: (value[:, :5] @ np.ones((FACTORS, 2)) + 3) for split, value in features.items()}
    for decoder in ("linear", "sequence"):
        found = decode({split: value[:, :5] for split, value in features.items()}, exact, decoder)
        np.testing.assert_allclose(found["test"], exact["test"], atol=1e-3)
