"""Coefficients of determination: of rates as they are, of states through a regression."""

from typing import Literal

import numpy as np
from jaxtyping import Float

from ctdb.errors import MetricError
from ctdb.metrics.case import METRICS, Case
from ctdb.metrics.trial_sums import TrialSums, masked, trials_of

Direction = Literal["true_to_inferred", "inferred_to_true"]


def r2_sums(target: np.ndarray, prediction: np.ndarray, n_bins: np.ndarray | None = None) -> TrialSums:
    r"""Variance-weighted :math:`R^2 = 1 - \sum_d SS^{res}_d / \sum_d SS^{tot}_d` as sums over trials.

    Channels of `target` without variance are left out of both sums, as in scikit-learn.
    """
    target, prediction, valid = trials_of(target, prediction, n_bins=n_bins)
    if target.shape != prediction.shape:
        raise MetricError(f"R2 compares equal channels; found {target.shape[2]} and {prediction.shape[2]}")
    target_of_valid = target[valid]
    centre = target_of_valid.mean(0)
    varies = target_of_valid.std(0) > 1e-12 * np.maximum(np.abs(centre), 1e-300)
    if not varies.any():
        raise MetricError("R2 is undefined: no channel of the target varies")
    centred = masked(target - centre, valid)[..., varies]
    residual = masked(target - prediction, valid)[..., varies]
    n_channels = int(varies.sum())
    per_trial = [
        (residual**2).sum((1, 2))[:, None],
        (centred**2).sum((1, 2))[:, None],
        valid.sum(1)[:, None].astype(np.float64),
        centred.sum(1),
    ]

    def combine(sums: np.ndarray) -> np.ndarray:
        residuals, squares, count, totals = (
            sums[..., 0],
            sums[..., 1],
            sums[..., 2],
            sums[..., 3 : 3 + n_channels],
        )
        return 1 - residuals / (squares - (totals**2).sum(-1) / count)

    return TrialSums(np.concatenate(per_trial, axis=1), combine)


def rate_r2(true: np.ndarray, inferred: np.ndarray, n_bins: np.ndarray | None = None) -> float:
    """Variance-weighted R2 of inferred against true rates.

    Parameters
    ----------
    true, inferred
        Rates, (trials, bins, neurons) or (samples, neurons).
    n_bins
        Valid bins of each trial.

    Returns
    -------
    1 for equal rates, about 0 for constant ones.

    Raises
    ------
    MetricError
        If shapes differ, values are not finite, or no true rate varies.

    References
    ----------
    Versteeg et al. (2025), Computation-through-Dynamics Benchmark, "Rate R2".
    """
    return r2_sums(true, inferred, n_bins).value


def state_r2_sums(
    true_train: np.ndarray,
    inferred_train: np.ndarray,
    true_eval: np.ndarray,
    inferred_eval: np.ndarray,
    direction: Direction = "true_to_inferred",
    n_bins_train: np.ndarray | None = None,
    n_bins_eval: np.ndarray | None = None,
) -> TrialSums:
    """State R2 as sums over trials; see :func:`state_r2`."""
    if direction not in ("true_to_inferred", "inferred_to_true"):
        raise MetricError(f"direction is {direction!r}; expected 'true_to_inferred' or 'inferred_to_true'")
    pairs = (true_train, inferred_train, true_eval, inferred_eval)
    source, target, source_eval, target_eval = (
        pairs if direction == "true_to_inferred" else (inferred_train, true_train, inferred_eval, true_eval)
    )
    *train, valid = trials_of(source, target, n_bins=n_bins_train)
    weights, offset = linear_map(*(array[valid] for array in train))
    source_eval = np.asarray(source_eval, np.float64)
    check_channels(source_eval, weights)
    return r2_sums(target_eval, source_eval @ weights + offset, n_bins_eval)


def state_r2(
    true_train: np.ndarray,
    inferred_train: np.ndarray,
    true_eval: np.ndarray,
    inferred_eval: np.ndarray,
    direction: Direction = "true_to_inferred",
    n_bins_train: np.ndarray | None = None,
    n_bins_eval: np.ndarray | None = None,
) -> float:
    """Variance-weighted R2 of a linear regression between true and inferred states.

    `true_to_inferred` falls when the model invents features that the system does not have; `inferred_to_true` falls
    when it misses features that the system has.

    Parameters
    ----------
    true_train, inferred_train
        States that fit the regression, (trials, bins, states) or (samples, states); the sizes may differ.
    true_eval, inferred_eval
        States that score it.
    direction
        What is regressed on what.
    n_bins_train, n_bins_eval
        Valid bins of each trial.

    Raises
    ------
    MetricError
        If shapes disagree, values are not finite, or the target does not vary.

    References
    ----------
    Versteeg et al. (2025), "State R2" (`true_to_inferred`).
    """
    return state_r2_sums(
        true_train, inferred_train, true_eval, inferred_eval, direction, n_bins_train, n_bins_eval
    ).value


def check_channels(source: np.ndarray, weights: np.ndarray) -> None:
    """Raise MetricError where `source` has other channels than the arrays that `weights` were fitted on."""
    if source.shape[-1] != len(weights):
        raise MetricError(
            f"the arrays that fit the regression have {len(weights)} channels, those that score it {source.shape[-1]}; "
            "give both from the same model"
        )


def linear_map(
    source: Float[np.ndarray, "samples inputs"], target: Float[np.ndarray, "samples outputs"]
) -> tuple[Float[np.ndarray, "inputs outputs"], Float[np.ndarray, " outputs"]]:
    """Least-squares weights and offset of ``target = source @ weights + offset``; of minimal norm if rank-deficient."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    weights = np.linalg.lstsq(source - source_mean, target - target_mean, rcond=None)[0]
    return weights, target_mean - source_mean @ weights


@METRICS.register("rate_r2")
def _rate_r2(case: Case) -> TrialSums:
    return r2_sums(case.known("truth"), case.inferred("rates"), case.trials.n_bins)


@METRICS.register("state_r2_true_to_inferred")
def _state_r2_true_to_inferred(case: Case) -> TrialSums:
    return _state_r2(case, "true_to_inferred")


@METRICS.register("state_r2_inferred_to_true")
def _state_r2_inferred_to_true(case: Case) -> TrialSums:
    return _state_r2(case, "inferred_to_true")


@METRICS.register("input_r2_true_to_inferred")
def _input_r2_true_to_inferred(case: Case) -> TrialSums:
    return _regressed_r2(case, "inputs_true", "co_means", "true_to_inferred")


@METRICS.register("input_r2_inferred_to_true")
def _input_r2_inferred_to_true(case: Case) -> TrialSums:
    return _regressed_r2(case, "inputs_true", "co_means", "inferred_to_true")


def _state_r2(case: Case, direction: Direction) -> TrialSums:
    return _regressed_r2(case, "latents", "latents", direction)


def _regressed_r2(case: Case, known: str, inferred: str, direction: Direction) -> TrialSums:
    return state_r2_sums(
        case.known(known, "train"),
        case.inferred(inferred, "train"),
        case.known(known),
        case.inferred(inferred),
        direction,
        case.train.n_bins,
        case.trials.n_bins,
    )
