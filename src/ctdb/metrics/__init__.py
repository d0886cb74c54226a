"""Scores of a fit against the truth: pure functions on arrays.

Arrays are (trials, bins, channels), or (samples, channels) for what has no trials; `n_bins` masks the padding of trials
that end early. Most metrics are ratios of sums over trials, so that their bootstrap over trials costs nothing
(:mod:`ctdb.metrics.trial_sums`); those of whole distributions and shapes are not, and have no interval.
"""

from ctdb.metrics.behavior import behavior_r2
from ctdb.metrics.bits_per_spike import bits_per_spike, poisson_nll
from ctdb.metrics.case import COSTLY, METRICS, Case, NotApplicableError
from ctdb.metrics.cycle_consistency import cycle_consistency
from ctdb.metrics.r2 import rate_r2, state_r2
from ctdb.metrics.trial_sums import TrialSums

__all__ = [
    "COSTLY",
    "METRICS",
    "Case",
    "NotApplicableError",
    "TrialSums",
    "behavior_r2",
    "bits_per_spike",
    "cycle_consistency",
    "poisson_nll",
    "rate_r2",
    "state_r2",
]
