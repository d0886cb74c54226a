"""Accuracy of conditions that are read from what was inferred of a trial."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from ctdb.datasets import SpikeDataset, Split
from ctdb.errors import MetricError
from ctdb.metrics import METRICS, Case, NotApplicableError
from ctdb.metrics.condition import balanced_accuracy_sums

BINS, SIZES = 20, {"train": 200, "valid": 80, "test": 120}
SCORE = METRICS["condition_accuracy"]


def make(signal=1.0, lengths=False, names=("left", "right", "none"), seed=0):
    """Trials of unequally many conditions, which the factors of the second half of a trial tell apart."""
    rng = np.random.default_rng(seed)
    splits, outputs = {}, {}
    for name, n_trials in SIZES.items():
        condition = rng.choice(3, p=[0.5, 0.3, 0.2], size=n_trials)
        condition[:3] = [0, 1, 2]
        factors = rng.normal(size=(n_trials, BINS, 4))
        factors[:, BINS // 2 :, 0] += signal * (condition[:, None] - 1)
        counts = np.ones((n_trials, BINS, 2), np.float32)
        n_bins = rng.integers(12, BINS + 1, n_trials) if lengths else None
        splits[name] = Split(encod_data=counts, recon_data=counts, condition=condition, n_bins=n_bins)
        outputs[name] = {"factors": factors, "latents": rng.normal(size=(n_trials, BINS, 4))}
    return Case(SpikeDataset(splits, 0.02, {"condition": list(names)}), outputs, "test")


def test_it_is_scikit_learn_s_regression_of_means_over_tenths_of_the_trial():
    case = make(signal=0.7)
    features = {
        split: own["factors"].reshape(len(own["factors"]), 10, 2, 4).mean(2).reshape(len(own["factors"]), -1)
        for split, own in case.outputs.items()
    }
    mean, deviation = features["train"].mean(0), features["train"].std(0)
    features = {split: (values - mean) / deviation for split, values in features.items()}
    true = {split: case.dataset[split].condition for split in features}
    found = []
    for penalty in (1e-3, 1e-2, 1e-1, 1.0, 10.0):
        model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000)
        model.fit(features["train"], true["train"])
        scores = {s: balanced_accuracy_score(true[s], model.predict(features[s])) for s in ("valid", "test")}
        found.append((scores["valid"], -len(found), scores["test"]))
    assert SCORE(case).value == pytest.approx(max(found)[2], abs=1e-12)
    assert 0.5 < SCORE(case).value < 0.99


def test_it_is_1_for_what_tells_all_and_chance_for_what_tells_nothing():
    assert SCORE(make(signal=30.0)).value == 1
    chance = [SCORE(make(signal=0.0, seed=seed)).value for seed in range(4)]
    assert np.mean(chance) == pytest.approx(1 / 3, abs=0.1)


def test_states_stand_in_for_factors_that_are_not_there():
    case = make(signal=30.0)
    blind = Case(case.dataset, {split: {"latents": own["latents"]} for split, own in case.outputs.items()}, "test")
    assert SCORE(blind).value < 0.6
    with pytest.raises(NotApplicableError, match="latents"):
        SCORE(Case(case.dataset, {split: {} for split in SIZES}, "test"))


def test_padding_does_not_enter():
    case = make(lengths=True)
    poisoned = {
        split: {
            "factors": np.where(
                (np.arange(BINS) < case.dataset[split].n_bins[:, None])[..., None], own["factors"], np.nan
            )
        }
        for split, own in case.outputs.items()
    }
    assert SCORE(Case(case.dataset, poisoned, "test")).value == SCORE(case).value


def test_rare_conditions_count_as_much_as_common_ones():
    true, decoded = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 0])
    sums = balanced_accuracy_sums(true, decoded)
    assert sums.value == pytest.approx((3 / 4 + 1 / 2) / 2)
    low, high = sums.interval(np.random.default_rng(0))
    assert low < sums.value < high


def test_what_has_no_accuracy_says_why():
    case = make()
    with pytest.raises(NotApplicableError, match="no names"):
        SCORE(replace(case, dataset=replace(case.dataset, names={})))
    one = {name: replace(split, condition=np.zeros(SIZES[name], int)) for name, split in case.dataset.splits.items()}
    with pytest.raises(MetricError, match="one condition"):
        SCORE(replace(case, dataset=replace(case.dataset, splits=one)))
