"""Cycle consistency: how much of the latent state can be read back from the rates it makes."""

from typing import Literal

import numpy as np

from ctdb.metrics.bits_per_spike import RATE_FLOOR, check_rates
from ctdb.metrics.case import METRICS, Case
from ctdb.metrics.r2 import check_channels, linear_map, r2_sums
from ctdb.metrics.trial_sums import TrialSums, trials_of

VARIANCE_KEPT = 0.99


def cycle_consistency_sums(
    latents_train: np.ndarray,
    rates_train: np.ndarray,
    latents_eval: np.ndarray,
    rates_eval: np.ndarray,
    through: Literal["predicted", "inferred"] = "predicted",
    n_bins_train: np.ndarray | None = None,
    n_bins_eval: np.ndarray | None = None,
) -> TrialSums:
    """Cycle consistency as sums over trials; see :func:`cycle_consistency`."""
    latents, rates, valid = trials_of(latents_train, rates_train, n_bins=n_bins_train)
    check_rates(rates, valid)
    log_rates = np.log(np.maximum(rates[valid], RATE_FLOOR))
    weights, offset = linear_map(latents[valid], log_rates)
    left, singular, right = np.linalg.svd(weights, full_matrices=False)
    share = np.cumsum(singular**2) / max((singular**2).sum(), np.finfo(float).tiny)
    rank = min(int(np.searchsorted(share, VARIANCE_KEPT)) + 1, len(singular))
    inverse = right[:rank].T @ np.diag(1 / singular[:rank]) @ left[:, :rank].T if singular[0] > 0 else weights.T * 0
    latents_eval, rates_eval, valid_eval = trials_of(latents_eval, rates_eval, n_bins=n_bins_eval)
    check_rates(rates_eval, valid_eval)
    check_channels(latents_eval, weights)
    check_channels(rates_eval, weights.T)
    if through == "predicted":
        log_rates_eval = latents_eval @ weights + offset
    else:
        log_rates_eval = np.log(np.maximum(rates_eval, RATE_FLOOR))
    centre = latents[valid].mean(0)
    returned = (log_rates_eval - (centre @ weights + offset)) @ inverse + centre
    return r2_sums(latents_eval, returned, n_bins_eval)


def cycle_consistency(
    latents_train: np.ndarray,
    rates_train: np.ndarray,
    latents_eval: np.ndarray,
    rates_eval: np.ndarray,
    through: Literal["predicted", "inferred"] = "predicted",
    n_bins_train: np.ndarray | None = None,
    n_bins_eval: np.ndarray | None = None,
) -> float:
    """Variance-weighted R2 of latents that were sent to log-rates and back.

    A linear readout from latents to log-rates is fitted on train trials and inverted in the fewest directions that
    hold 99 % of its squared singular values. Latents that the readout ignores do not come back, so extra dimensions
    lower the score.

    Parameters
    ----------
    latents_train, rates_train, latents_eval, rates_eval
        Inferred latents and rates (not log-rates), (trials, bins, channels) or (samples, channels).
    through
        `predicted`: the log-rates that the readout predicts from the latents are inverted, as in CtDB, which ignores
        `rates_eval`. `inferred`: the model's own log-rates are.
    n_bins_train, n_bins_eval
        Valid bins of each trial.

    Raises
    ------
    MetricError
        If shapes disagree, values are not finite, rates are negative, or the latents do not vary.

    References
    ----------
    Versteeg et al. (2025), "Cycle consistency"; the hard cut at 99 % makes it jump between near-equal fits.
    """
    return cycle_consistency_sums(
        latents_train, rates_train, latents_eval, rates_eval, through, n_bins_train, n_bins_eval
    ).value


@METRICS.register("cycle_consistency")
def _cycle_consistency(case: Case) -> TrialSums:
    return _score(case, "predicted")


@METRICS.register("cycle_consistency_inferred")
def _cycle_consistency_inferred(case: Case) -> TrialSums:
    return _score(case, "inferred")


def _score(case: Case, through: Literal["predicted", "inferred"]) -> TrialSums:
    return cycle_consistency_sums(
        case.inferred("latents", "train"),
        case.inferred("rates", "train"),
        case.inferred("latents"),
        case.inferred("rates"),
        through,
        case.train.n_bins,
        case.trials.n_bins,
    )
