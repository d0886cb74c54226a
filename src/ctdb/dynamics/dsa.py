"""Dynamical similarity analysis: distances between the linear operators that best move delayed states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from ctdb.dynamics.angular import angular_distance
from ctdb.dynamics.dmd import DelayModel, delay_moments, fit_dmd, numerical_rank, prediction_errors
from ctdb.dynamics.systems import Comparison, Systems, all_pairs, halves, in_threads, prepared
from ctdb.errors import MetricError
from ctdb.seeds import numpy_generator

Metric = Literal["wasserstein", "angular"]
DELAYS = (1, 2, 5, 10, 20)
"""Numbers of delays that are tried where none is given."""
MAX_RANK = 100
EXPLAINED_VARIANCE = 0.99
TOLERANCE = 0.2
"""A smaller model is taken if its prediction error is at most this share above the lowest."""


@dataclass(frozen=True)
class DelayChoice:
    """One number of delays and one rank for all systems, and why.

    Attributes
    ----------
    n_delays, rank
        What was chosen, or given.
    errors
        Number of delays to the errors (systems, ranks) of predicting the next state of other trials with rank 1, 2,
        ..., relative to predicting no change. Empty if both were given.
    explained_variance
        Least share of the delayed states' variance that the rank holds in any system.
    relative_singular
        Least singular value that the rank uses in any system, relative to that system's largest.
    """

    n_delays: int
    rank: int
    errors: Mapping[int, np.ndarray]
    explained_variance: float
    relative_singular: float


def wasserstein_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Mean squared distance between eigenvalues under their best one-to-one match.

    This is dsa-metric's `wasserstein`: the square of the 2-Wasserstein distance between two spectra of equal size.

    Raises
    ------
    MetricError
        If the numbers of eigenvalues differ.
    """
    if len(first) != len(second):
        raise MetricError(f"spectra of one size are compared; found {len(first)} and {len(second)} eigenvalues")
    cost = np.abs(np.asarray(first)[:, None] - np.asarray(second)) ** 2
    return float(cost[linear_sum_assignment(cost)].mean())


def choose_delays(
    systems: Systems,
    n_delays: int | Sequence[int] = DELAYS,
    rank: int | None = None,
    n_bins: np.ndarray | None = None,
    centre: bool = True,
    seed: int = 0,
    n_jobs: int = 1,
) -> DelayChoice:
    """One number of delays and one rank for all systems.

    Each system's trials are halved at random; a model of one half predicts the next state of the other, both ways.
    Ranks go up to what explains 99 % of the variance of every system, and never beyond the singular values that are at
    least 1e-4 of the largest in each. The fewest delays, and then the lowest rank, whose mean error is at most a fifth
    above the lowest are taken: a rank beyond the noise floor changes distances more than the choice of metric does.

    Parameters
    ----------
    systems
        Trajectories (trials, bins, channels) with equal trials and bins.
    n_delays
        Number of delays, or those to choose from; those that trials are too short for are left out.
    rank
        Rank, if it is not to be chosen.
    n_bins, centre
        See :func:`dsa`.
    seed
        Seed of the halves.
    n_jobs
        Threads.

    Raises
    ------
    MetricError
        If trials are too few or short for all of `n_delays`, there are fewer than 4 trials to choose by, or `rank` is
        beyond what a system has.
    """
    names, arrays = prepared(systems, n_bins, centre)
    return _choose(names, arrays, n_delays, rank, n_bins, seed, n_jobs)


def dsa(
    systems: Systems,
    metric: Metric = "wasserstein",
    n_delays: int | Sequence[int] = DELAYS,
    rank: int | None = None,
    n_bins: np.ndarray | None = None,
    centre: bool = True,
    n_null: int = 20,
    seed: int = 0,
    n_jobs: int = 1,
) -> Comparison:
    """Distances between all pairs of systems by dynamical similarity analysis.

    Parameters
    ----------
    systems
        Trajectories (trials, bins, channels) with equal trials and bins; channels may differ. Never changed.
    metric
        `wasserstein` compares the operators' eigenvalues, is hundreds of times faster and tells most systems apart as
        well, but cannot see non-normality; `angular` compares operators up to a rotation, in radians.
    n_delays, rank
        Given, or chosen for all systems together by :func:`choose_delays`. Distances compare only at equal settings.
    n_bins
        Valid bins of each trial, the same in all systems.
    centre
        Whether to subtract each system's mean state, without which a shift of the latents changes the distance.
        dsa-metric does not.
    n_null
        Number of random halvings of each system's trials.
    seed
        Seed of the halves and of the optimiser's starts.
    n_jobs
        Threads; the result does not depend on it.

    Returns
    -------
    Comparison
        `settings` holds `metric`, `centre`, `eigenvalues` (systems, rank) and the :class:`DelayChoice` as `choice`.

    Raises
    ------
    MetricError
        If systems differ in trials or bins, hold NaN, never change, are too short for the delays, or have fewer
        directions than `rank`.

    References
    ----------
    Ostrow, Eisen, Kozachkov & Fiete (2023), Beyond Geometry: Comparing the Temporal Structure of Computation in Neural
    Circuits with Dynamical Similarity Analysis; Redman et al. (2024) for the spectra.
    """
    if metric not in ("wasserstein", "angular"):
        raise MetricError(f"metric is {metric!r}; expected 'wasserstein' or 'angular'")
    names, arrays = prepared(systems, n_bins, centre)
    choice = _choose(names, arrays, n_delays, rank, n_bins, seed, n_jobs)
    n_trials = len(arrays[0])
    if n_null and n_trials < 2:
        raise MetricError("a null distribution halves the trials, of which there is one; set n_null to 0")

    def fit(array: np.ndarray, trials: np.ndarray) -> DelayModel:
        lengths = None if n_bins is None else np.asarray(n_bins)[trials]
        return fit_dmd(delay_moments(array[trials], choice.n_delays, lengths), choice.rank)

    def distance(first: DelayModel, second: DelayModel) -> float:
        if metric == "wasserstein":
            return wasserstein_distance(first.eigenvalues, second.eigenvalues)
        return angular_distance(first.matrix, second.matrix, seed)

    def between_halves(system: int, draw: int) -> float:
        parts = halves(n_trials, numpy_generator("dsa null", seed, draw))
        return distance(*(fit(arrays[system], part) for part in parts))

    models = in_threads(fit, [(array, np.arange(n_trials)) for array in arrays], n_jobs)
    null = in_threads(between_halves, [(i, draw) for i in range(len(arrays)) for draw in range(n_null)], n_jobs)
    settings = {
        "metric": metric,
        "centre": centre,
        "choice": choice,
        "eigenvalues": np.stack([model.eigenvalues for model in models]),
    }
    distances = all_pairs(distance, models, n_jobs)
    return Comparison(names, distances, np.asarray(null, np.float64).reshape(len(arrays), n_null), settings)


def _choose(
    names: Sequence[str],
    arrays: Sequence[np.ndarray],
    n_delays: int | Sequence[int],
    rank: int | None,
    n_bins: np.ndarray | None,
    seed: int,
    n_jobs: int,
) -> DelayChoice:
    n_trials = len(arrays[0])
    lengths = np.full(n_trials, arrays[0].shape[1]) if n_bins is None else np.asarray(n_bins)
    asked = [n_delays] if isinstance(n_delays, int | np.integer) else sorted(set(n_delays))
    channels = max(array.shape[2] for array in arrays)
    judged = len(asked) > 1 or rank is None
    share = 2 if judged else 1
    possible = [d for d in asked if d < lengths.min() and (lengths - d).sum() // share >= d * channels]
    if not possible:
        raise MetricError(
            f"{n_trials} trials of {lengths.min()} to {lengths.max()} bins are too few for {min(asked)} delays of "
            f"{channels} channels: trials need more bins than delays, and all of them together {share} windows per "
            "delayed channel. Use fewer delays, more trials, or the leading principal components"
        )
    if judged and n_trials < 4:
        raise MetricError(f"{n_trials} trials are too few to choose by prediction; give one n_delays and a rank")
    errors: dict[int, np.ndarray] = {}
    if judged:
        parts = halves(n_trials, numpy_generator("dsa delays", seed))
        moments = in_threads(
            lambda array, part: delay_moments(array[part], max(possible), lengths[part]),
            [(array, part) for array in arrays for part in parts],
            n_jobs,
        )
        for d in possible:
            fewer = [m.fewer(d) for m in moments]
            limits = in_threads(lambda m: _largest_rank(m.whole), [(m,) for m in fewer], n_jobs)
            numeric, explaining = (np.array(column) for column in zip(*limits, strict=True))
            if rank is not None and rank > numeric.min():
                continue
            ranks = np.arange(1, min(numeric.min(), explaining.max(), MAX_RANK) + 1) if rank is None else [rank]
            top = int(ranks[-1])
            both = in_threads(
                lambda a, b, ranks=ranks, top=top: prediction_errors(fit_dmd(a, top), b, ranks, a),
                [(fewer[i], fewer[i ^ 1]) for i in range(len(fewer))],
                n_jobs,
            )
            errors[d] = np.reshape(both, (len(arrays), 2, -1)).mean(1)
        if errors:
            lowest = {d: float(e.mean(0).min()) for d, e in errors.items()}
            limit = (1 + TOLERANCE) * min(lowest.values())
            chosen = min(d for d in errors if lowest[d] <= limit)
            mean = errors[chosen].mean(0)
            best = rank if rank is not None else int(np.flatnonzero(mean <= (1 + TOLERANCE) * mean.min())[0]) + 1
        else:
            chosen, best = possible[-1], rank
    else:
        chosen, best = possible[0], rank
    shares, smallest = [], []
    for name, array in zip(names, arrays, strict=True):
        squares = np.linalg.eigvalsh(delay_moments(array, chosen, lengths).whole)[::-1]
        singular = np.sqrt(np.maximum(squares, 0))
        usable = numerical_rank(singular)
        if best > usable:
            raise MetricError(
                f"system {name!r}: {chosen} delayed states have {usable} directions above the rounding floor, fewer "
                f"than the rank {best}. Give a lower rank, more delays, or leave rank to be chosen"
            )
        shares.append(float((singular[:best] ** 2).sum() / (singular**2).sum()))
        smallest.append(float(singular[best - 1] / singular[0]))
    return DelayChoice(int(chosen), int(best), errors, min(shares), min(smallest))


def _largest_rank(whole: Float[np.ndarray, "delayed delayed"]) -> tuple[int, int]:
    """Directions above the rounding floor, and those that explain most of the variance."""
    squares = np.maximum(np.linalg.eigvalsh(whole)[::-1], 0)
    share = np.cumsum(squares) / max(squares.sum(), np.finfo(float).tiny)
    return max(numerical_rank(np.sqrt(squares)), 1), int(np.searchsorted(share, EXPLAINED_VARIANCE)) + 1
