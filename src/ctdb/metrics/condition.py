"""How well a trial's condition, such as an animal's choice, is read from what a model inferred of the trial."""

import numpy as np
from jaxtyping import Float, Int

from ctdb.errors import MetricError
from ctdb.metrics.case import METRICS, Case, NotApplicableError
from ctdb.metrics.trial_sums import TrialSums, masked, trials_of

PIECES = 10
"""Pieces of equal length that a trial is averaged in before it is read."""
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse strengths of the L2 penalty that the valid trials choose from."""


def balanced_accuracy_sums(true: Int[np.ndarray, " trials"], decoded: Int[np.ndarray, " trials"]) -> TrialSums:
    """Mean over the conditions that occur of the share of their trials that are decoded right, as sums over trials.

    Chance is one over the number of conditions, however often each occurs.

    Raises
    ------
    MetricError
        If there is no trial.
    """
    if not len(true):
        raise MetricError("accuracy is undefined: there is no trial")
    member = (true[:, None] == np.unique(true)).astype(np.float64)
    right = member * (true == decoded)[:, None]
    n_conditions = member.shape[1]

    def combine(sums: np.ndarray) -> np.ndarray:
        return np.nanmean(sums[..., :n_conditions] / sums[..., n_conditions:], axis=-1)

    return TrialSums(np.concatenate([right, member], 1), combine)


@METRICS.register("condition_accuracy")
def _condition_accuracy(case: Case) -> TrialSums:
    """Balanced accuracy of a logistic regression from the factors of the whole trial.

    Of data sets whose conditions have names. The regression is fitted on the train trials, its penalty chosen on the
    valid ones; the states stand in for factors where a model has none.
    """
    if not case.dataset.names.get("condition"):
        raise NotApplicableError("its conditions have no names, and are not decoded", of_dataset=True)
    condition = {split: case.known("condition", split) for split in ("train", "valid", case.split)}
    if len(np.unique(condition["train"])) < 2:
        raise MetricError("accuracy is undefined: all train trials have one condition")
    name = "factors" if "factors" in case.outputs[case.split] else "latents"
    features = {
        split: _pieces(case.inferred(name, split), case.dataset[split].n_bins).reshape(len(own), -1)
        for split, own in condition.items()
    }
    return balanced_accuracy_sums(condition[case.split], _decode(features, condition, case.split))


def _pieces(
    factors: Float[np.ndarray, "trials bins factors"], n_bins: Int[np.ndarray, " trials"] | None
) -> Float[np.ndarray, "trials pieces factors"]:
    """Means over pieces of the trial; 0 where a piece holds no valid bin."""
    factors, valid = trials_of(factors, n_bins=n_bins)
    edges = np.unique(np.linspace(0, factors.shape[1], PIECES + 1).round().astype(int))
    total = np.add.reduceat(masked(factors, valid), edges[:-1], axis=1)
    count = np.add.reduceat(valid, edges[:-1], axis=1)
    return total / np.maximum(count, 1)[..., None]


def _decode(
    features: dict[str, Float[np.ndarray, "_ features"]], condition: dict[str, Int[np.ndarray, " _"]], split: str
) -> Int[np.ndarray, " trials"]:
    from sklearn.linear_model import LogisticRegression  # takes a second, and few scores need it

    mean, deviation = features["train"].mean(0), features["train"].std(0)
    scaled = {name: (values - mean) / np.where(deviation > 1e-8, deviation, 1) for name, values in features.items()}
    best, highest = None, -np.inf
    for penalty in PENALTIES:
        decoder = LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000)
        decoder.fit(scaled["train"], condition["train"])
        accuracy = balanced_accuracy_sums(condition["valid"], decoder.predict(scaled["valid"])).value
        if accuracy > highest:
            best, highest = decoder, accuracy
    return best.predict(scaled[split])
