"""A score as a function of sums over trials, which makes its bootstrap over trials a matrix product."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ctdb.errors import MetricError


@dataclass(frozen=True)
class TrialSums:
    """A score ``combine(terms.sum(0))``.

    Attributes
    ----------
    terms
        What each trial adds (trials, terms).
    combine
        Maps summed terms (resamples, terms) to the scores (resamples,).
    """

    terms: Float[np.ndarray, "trials terms"]
    combine: Callable[[np.ndarray], np.ndarray]

    @property
    def value(self) -> float:
        """The score."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(self.combine(self.terms.sum(0, keepdims=True))[0])

    def __float__(self) -> float:
        return self.value

    def interval(self, rng: np.random.Generator, level: float = 0.95, n_resamples: int = 1000) -> tuple[float, float]:
        """Percentile bootstrap interval over trials.

        Parameters
        ----------
        rng
            Source of the resamples.
        level
            Share of resamples inside the interval.
        n_resamples
            Number of resamples.

        Returns
        -------
        Lower and upper bound; NaN for fewer than two trials, which say nothing about their spread.

        References
        ----------
        Efron & Tibshirani (1993), An introduction to the bootstrap, chapter 13.
        """
        n_trials = len(self.terms)
        if n_trials < 2:
            return np.nan, np.nan
        drawn = rng.multinomial(n_trials, np.full(n_trials, 1 / n_trials), size=n_resamples)
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = self.combine(drawn.astype(np.float64) @ self.terms)
        tail = 100 * (1 - level) / 2
        low, high = np.nanpercentile(scores, [tail, 100 - tail]) if np.isfinite(scores).any() else (np.nan, np.nan)
        return float(low), float(high)


def trials_of(*arrays: np.ndarray, n_bins: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Arrays as float64 (trials, bins, channels), and the mask (trials, bins) of valid bins last.

    Arrays (samples, channels) become trials of one bin each.

    Raises
    ------
    MetricError
        If the arrays disagree in trials or bins, hold NaN, or `n_bins` does not fit.
    """
    shaped = [np.asarray(array, np.float64) for array in arrays]
    shaped = [array[:, None] if array.ndim == 2 else array for array in shaped]
    if any(array.ndim != 3 for array in shaped) or len({array.shape[:2] for array in shaped}) != 1:
        raise MetricError(
            "a metric needs arrays (trials, bins, channels) with the same trials and bins, or (samples, channels) with "
            f"the same samples; found shapes {[np.shape(array) for array in arrays]}"
        )
    n_trials, length = shaped[0].shape[:2]
    valid = np.ones((n_trials, length), bool)
    if n_bins is not None:
        n_bins = np.asarray(n_bins)
        if n_bins.shape != (n_trials,):
            raise MetricError(f"n_bins has shape {n_bins.shape}; expected one length for each of the {n_trials} trials")
        valid = np.arange(length) < n_bins[:, None]
    for array in shaped:
        if not np.isfinite(array[valid]).all():
            raise MetricError("a metric was given NaN or infinite values in valid bins; mask those bins with n_bins")
    return *shaped, valid


def masked(array: Float[np.ndarray, "trials bins channels"], valid: Bool[np.ndarray, "trials bins"]) -> np.ndarray:
    """`array` with zeros in bins that are not valid."""
    return array if valid.all() else np.where(valid[..., None], array, 0.0)
