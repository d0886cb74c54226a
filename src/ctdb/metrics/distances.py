"""Distances between the distributions of two activities, channel by channel, whatever their order in time."""

import functools
from collections.abc import Callable

import numpy as np
import scipy.stats
from jaxtyping import Float

from ctdb.errors import MetricError
from ctdb.metrics.case import METRICS, Case
from ctdb.metrics.trial_sums import trials_of

HISTOGRAM_BINS = 50
PSEUDOCOUNT = 1e-12


def marginal_wasserstein(
    true: np.ndarray,
    inferred: np.ndarray,
    n_bins: np.ndarray | None = None,
    n_bins_inferred: np.ndarray | None = None,
) -> float:
    """Mean over channels of twice the 1-Wasserstein distance, in units of the range of the true channel.

    Parameters
    ----------
    true, inferred
        Activity in the same channels, (trials, bins, channels) or (samples, channels); trials and bins may differ.
    n_bins
        Valid bins of each true trial, and of each inferred one if they have the same shape.
    n_bins_inferred
        Valid bins of each inferred trial.

    Returns
    -------
    0 for equal distributions. True channels that never vary are left out.

    Raises
    ------
    MetricError
        If channels differ, values are not finite, or no true channel varies.

    References
    ----------
    Patel & Ott (2023), Chaos 33, arXiv:2207.00521; CtDToolkit's marginal CDF-Wasserstein.
    """
    true, inferred = _samples(true, inferred, n_bins, n_bins_inferred)
    extent = np.ptp(true, axis=0)
    varies = np.flatnonzero(extent > 0)
    if not len(varies):
        raise MetricError("the distance is in units of the true range, and no true channel varies")
    return float(
        np.mean([2 * scipy.stats.wasserstein_distance(true[:, c], inferred[:, c]) / extent[c] for c in varies])
    )


def marginal_kl(
    true: np.ndarray,
    inferred: np.ndarray,
    n_bins: np.ndarray | None = None,
    n_bins_inferred: np.ndarray | None = None,
    n_histogram_bins: int = HISTOGRAM_BINS,
    pseudocount: float = PSEUDOCOUNT,
) -> float:
    r"""Mean over channels of :math:`KL(p_{true} \| p_{inferred})` between histograms, in nats.

    The histogram of a channel has equal bins over the range of both. `pseudocount` is added to every count; at
    CtDToolkit's 1e-12 a true sample where nothing was inferred costs about ``log(1e12 n)`` nats, so the value hangs on
    the tails: give 1 for a milder one.

    Parameters
    ----------
    true, inferred, n_bins, n_bins_inferred
        See :func:`marginal_wasserstein`.
    n_histogram_bins
        Bins of the histograms.
    pseudocount
        What is added to each count.

    Returns
    -------
    0 for equal histograms, which two constant, equal channels have too.

    Raises
    ------
    MetricError
        If channels differ or values are not finite.

    References
    ----------
    CtDToolkit's marginal histogram KL.
    """
    true, inferred = _samples(true, inferred, n_bins, n_bins_inferred)
    divergences = []
    for t, i in zip(true.T, inferred.T, strict=True):
        low, high = min(t.min(), i.min()), max(t.max(), i.max())
        if high <= low:
            divergences.append(0.0)
            continue
        edges = np.linspace(low, high, n_histogram_bins + 1)
        p, q = (np.histogram(values, edges)[0] + pseudocount for values in (t, i))
        p, q = p / p.sum(), q / q.sum()
        divergences.append(float(np.sum(p * np.log(p / q))))
    return float(np.mean(divergences))


@METRICS.register("marginal_wasserstein_skill")
def _marginal_wasserstein_skill(case: Case) -> float:
    return skill(case, marginal_wasserstein)


@METRICS.register("marginal_kl_skill")
def _marginal_kl_skill(case: Case) -> float:
    """With a pseudocount of 1: CtDToolkit's hangs on single samples in the tails."""
    return skill(case, functools.partial(marginal_kl, pseudocount=1.0))


def skill(case: Case, distance: Callable[..., float]) -> float:
    """Skill score of inferred rates: one minus their distance from the true rates in units of the floor's distance.

    1 for the true distribution, 0 for each neuron's mean rate, and below 0 for worse than that (Murphy, 1988).
    MetricError where the mean rates are at no distance.
    """
    true, lengths = case.known("truth"), case.trials.n_bins
    of_floor = distance(true, np.broadcast_to(case.mean_rates, true.shape), lengths)
    if of_floor == 0:
        raise MetricError("skill is undefined: the true rates are no distance from their means")
    return 1 - distance(true, case.inferred("rates"), lengths) / of_floor


def _samples(
    true: np.ndarray, inferred: np.ndarray, n_bins: np.ndarray | None, n_bins_inferred: np.ndarray | None
) -> tuple[Float[np.ndarray, "samples channels"], Float[np.ndarray, "others channels"]]:
    if n_bins_inferred is None and np.shape(true)[:-1] == np.shape(inferred)[:-1]:
        n_bins_inferred = n_bins
    (true, valid), (inferred, valid_inferred) = (
        trials_of(true, n_bins=n_bins),
        trials_of(inferred, n_bins=n_bins_inferred),
    )
    if true.shape[2] != inferred.shape[2] or true.shape[2] == 0:
        raise MetricError(f"equal channels are compared; found {true.shape[2]} and {inferred.shape[2]}")
    if not valid.any() or not valid_inferred.any():
        raise MetricError("there is no valid bin to compare")
    return true[valid], inferred[valid_inferred]
