"""How well behaviour is decoded, and what the inferred inputs do for it."""

from typing import Literal

import numpy as np

from ctdb.datasets import Split
from ctdb.errors import MetricError
from ctdb.metrics.bits_per_spike import heldin_bits_per_spike
from ctdb.metrics.case import METRICS, Case, NotApplicableError
from ctdb.metrics.trial_sums import TrialSums
from ctdb.regression import ridge


def behavior_r2_sums(
    true: np.ndarray, decoded: np.ndarray, n_bins: np.ndarray | None = None, centre: np.ndarray | None = None
) -> TrialSums:
    """R2 of behaviour as sums over trials; see :func:`behavior_r2`. `centre` replaces the mean of `true`."""
    true, decoded = np.asarray(true, np.float64), np.asarray(decoded, np.float64)
    if true.ndim != 3 or true.shape != decoded.shape:
        raise MetricError(
            f"behaviour {true.shape} and decoded behaviour {decoded.shape} must be (trials, bins, channels) alike"
        )
    known = ~np.isnan(true)
    if centre is not None:
        known &= ~np.isnan(centre)
    if n_bins is not None:
        known &= (np.arange(true.shape[1]) < np.asarray(n_bins)[:, None])[..., None]
    if not np.isfinite(decoded[known]).all():
        raise MetricError("decoded behaviour holds NaN or infinite values where behaviour is known")
    count = np.maximum(known.sum((0, 1)), 1)
    mean = np.where(known, true, 0).sum((0, 1)) / count
    from_centre = np.where(known, true - (mean if centre is None else centre), 0)
    varies = np.sqrt((from_centre**2).sum((0, 1)) / count) > 1e-9 * np.maximum(np.abs(mean), 1e-300)
    if not varies.any():
        raise MetricError("R2 is undefined: no behaviour channel varies on these trials")
    residual = np.where(known, true - decoded, 0)[..., varies]
    from_centre, n_channels = from_centre[..., varies], int(varies.sum())
    terms = [(residual**2).sum(1), (from_centre**2).sum(1)]
    if centre is None:
        terms += [from_centre.sum(1), known[..., varies].sum(1)]

    def combine(sums: np.ndarray) -> np.ndarray:
        parts = [sums[..., i * n_channels : (i + 1) * n_channels] for i in range(len(terms))]
        total = parts[1] if centre is not None else parts[1] - parts[2] ** 2 / np.maximum(parts[3], 1)
        return (1 - parts[0] / total).mean(-1)

    return TrialSums(np.concatenate(terms, 1).astype(np.float64), combine)


def behavior_r2(true: np.ndarray, decoded: np.ndarray, n_bins: np.ndarray | None = None) -> float:
    """R2 of decoded behaviour, mean over channels, so that units do not weigh.

    Parameters
    ----------
    true, decoded
        Behaviour (trials, bins, channels); NaN in `true` is not known and left out.
    n_bins
        Valid bins of each trial.

    Raises
    ------
    MetricError
        If shapes differ, decoded values are not finite, or no channel varies.
    """
    return behavior_r2_sums(true, decoded, n_bins).value


@METRICS.register("behavior_r2")
def _behavior_r2(case: Case) -> TrialSums:
    """Of the model's own decoder."""
    true = case.known("behavior")
    return behavior_r2_sums(true, case.inferred("behavior")[:, : true.shape[1]], case.trials.n_bins)


@METRICS.register("behavior_r2_ridge")
def _behavior_r2_ridge(case: Case) -> TrialSums:
    """Of a ridge regression from the factors of the same bin."""
    return _ridge_score(case, "linear")


@METRICS.register("behavior_r2_ridge_sequence")
def _behavior_r2_ridge_sequence(case: Case) -> TrialSums:
    """Of a ridge regression from the factors of all bins."""
    return _ridge_score(case, "sequence")


@METRICS.register("behavior_r2_uive")
def _behavior_r2_uive(case: Case) -> TrialSums:
    """Of the model's own decoder, as a share of the variance that the condition means of the train trials leave."""
    true = case.known("behavior")
    decoded = case.inferred("behavior")[:, : true.shape[1]]
    return behavior_r2_sums(true, decoded, case.trials.n_bins, condition_means(case))


@METRICS.register("control_behavior_r2")
def _control_behavior_r2(case: Case) -> TrialSums:
    """R2 of behaviour that is lost when the inferred inputs are set to 0."""
    true = case.known("behavior")
    whole, without = (
        behavior_r2_sums(true, case.inferred(name)[:, : true.shape[1]], case.trials.n_bins)
        for name in ("behavior", "ablated_behavior")
    )
    width = whole.terms.shape[1]
    return TrialSums(
        np.concatenate([whole.terms, without.terms], 1),
        lambda sums: whole.combine(sums[..., :width]) - without.combine(sums[..., width:]),
    )


@METRICS.register("control_bits_per_spike")
def _control_bits_per_spike(case: Case) -> TrialSums:
    """Bits per spike of held-in neurons that are lost when the inferred inputs are set to 0."""
    whole, without = (heldin_bits_per_spike(case, name) for name in ("rates", "ablated_rates"))
    gain = whole.terms[:, 0] - without.terms[:, 0]
    return TrialSums(np.stack([gain, whole.terms[:, 1]], 1), whole.combine)


def decode(
    features: dict[str, np.ndarray], behavior: dict[str, np.ndarray], decoder: Literal["linear", "sequence"]
) -> dict[str, np.ndarray]:
    """Behaviour of each split by ridge regression from `features`; fitted on train, penalty chosen on valid.

    Parameters
    ----------
    features, behavior
        Split to (trials, bins, channels); NaN in behaviour is not known.
    decoder
        `linear`: from the features of the same bin; `sequence`: from those of all bins.
    """
    length = behavior["train"].shape[1]

    def samples(values: np.ndarray) -> np.ndarray:
        shape = (-1, values.shape[2]) if decoder == "linear" else (len(values), -1)
        return np.asarray(values[:, :length], np.float64).reshape(shape)

    weights, offset = ridge(*(samples(one[split]) for split in ("train", "valid") for one in (features, behavior)))
    return {
        split: (samples(values) @ weights + offset).reshape(len(values), length, -1)
        for split, values in features.items()
    }


def condition_means(case: Case) -> np.ndarray:
    """Mean behaviour of the train trials of each scored trial's condition (trials, bins, channels).

    Raises NotApplicableError where conditions are not known, and MetricError for one without train trials.
    """
    conditions, behavior = case.known("condition", "train"), known_behavior(case, "train")
    scored = case.known("condition")
    if unseen := sorted(set(scored.tolist()) - set(conditions.tolist())):
        raise MetricError(f"conditions {unseen} have no train trials, so no condition mean; pool conditions")
    means = np.full((len(scored), *behavior.shape[1:]), np.nan)
    for condition in np.unique(scored):
        own = behavior[conditions == condition]
        known = ~np.isnan(own)
        total = np.where(known, own, 0).sum(0)
        means[scored == condition] = np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)
    return means


def known_behavior(case: Case, split: str) -> np.ndarray:
    """Behaviour of a split with NaN in padding."""
    return _padded_with(np.nan, case.known("behavior", split), case.dataset[split])


def _padded_with(fill: float, values: np.ndarray, trials: Split) -> np.ndarray:
    """Values (trials, bins, channels) with `fill` in padding."""
    if trials.n_bins is None:
        return values
    return np.where((np.arange(values.shape[1]) < trials.n_bins[:, None])[..., None], values, fill)


def _ridge_score(case: Case, decoder: Literal["linear", "sequence"]) -> TrialSums:
    true = case.known("behavior")
    name = "factors" if "factors" in case.outputs[case.split] else "latents"
    if name not in case.outputs[case.split]:
        raise NotApplicableError("there are neither factors nor latents to decode from")
    splits = dict.fromkeys(("train", "valid", case.split))
    # A sequence is decoded from all bins, of which a trial has no more than its own.
    features = {split: _padded_with(0.0, case.inferred(name, split), case.dataset[split]) for split in splits}
    behavior = {split: known_behavior(case, split) for split in splits}
    return behavior_r2_sums(true, decode(features, behavior, decoder)[case.split], case.trials.n_bins)
