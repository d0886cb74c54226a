"""The systems that a comparison is given: equal trials and bins for all, and jobs over them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ctdb.dynamics.embedding import classical_mds, cluster_order
from ctdb.errors import MetricError
from ctdb.metrics.trial_sums import masked, trials_of

Systems = Sequence[np.ndarray] | Mapping[str, np.ndarray]
"""Trajectories (trials, bins, channels) of each system; a mapping names them."""


@dataclass(frozen=True)
class Comparison:
    """Distances between systems, beside distances between trials of one system.

    Attributes
    ----------
    names
        The systems.
    distances
        Symmetric, zero on the diagonal.
    null
        Distances between two random halves of the trials of each system, under the same settings. Halves have half of
        the trials, so they lie further apart than two whole samples would: a strict null.
    settings
        What was compared and how: metric, `n_delays`, `rank` and how they were chosen.
    """

    names: tuple[str, ...]
    distances: Float[np.ndarray, "systems systems"]
    null: Float[np.ndarray, "systems halves"]
    settings: Mapping[str, Any]

    def different(self, level: float = 0.95) -> Bool[np.ndarray, "systems systems"]:
        """Pairs further apart than the `level` quantile of the halves of either of the two; none without a null."""
        if not self.null.shape[1]:
            return np.zeros(self.distances.shape, bool)
        limit = np.quantile(self.null, level, axis=1)
        return self.distances > np.maximum(limit[:, None], limit)

    @property
    def lengths(self) -> Float[np.ndarray, "systems systems"]:
        """Distances that obey the triangle inequality: the square root of a mean of squares, others as they are."""
        return np.sqrt(self.distances) if self.settings["metric"] == "wasserstein" else self.distances

    def points(self, n_dimensions: int = 2) -> Float[np.ndarray, "systems dimensions"]:
        """Systems as points; see :func:`classical_mds`."""
        return classical_mds(self.lengths, n_dimensions)

    @property
    def order(self) -> np.ndarray:
        """Order of the systems in which neighbours are alike; see :func:`cluster_order`."""
        return cluster_order(self.lengths)


def prepared(
    systems: Systems, n_bins: np.ndarray | None, centre: bool, unit: bool = False
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Names, and float64 copies with zeros in the padding.

    Parameters
    ----------
    systems
        Trajectories of equal trials and bins.
    n_bins
        Valid bins of each trial, the same in all systems.
    centre
        Whether to subtract each system's mean state.
    unit
        Whether to divide each system by its root mean square.

    Raises
    ------
    MetricError
        If there is no system, trials or bins differ between systems, values are not finite, or a state never changes.
    """
    names = tuple(systems) if isinstance(systems, Mapping) else tuple(str(i) for i in range(len(systems)))
    arrays = [np.asarray(array) for array in (systems.values() if isinstance(systems, Mapping) else systems)]
    if not arrays:
        raise MetricError("there is no system to compare")
    shapes = {name: array.shape for name, array in zip(names, arrays, strict=True)}
    if any(len(shape) != 3 for shape in shapes.values()) or len({shape[:2] for shape in shapes.values()}) != 1:
        raise MetricError(
            "systems are arrays (trials, bins, channels) with the same trials and bins, because distances depend on "
            f"how much was seen of a system; found {shapes}. Cut all to the fewest trials and bins"
        )
    ready = []
    for name, array in zip(names, arrays, strict=True):
        try:
            states, valid = trials_of(array, n_bins=n_bins)
        except MetricError as error:
            raise MetricError(f"system {name!r}: {error}") from error
        seen = states[valid]
        if not len(seen) or not (np.ptp(seen, axis=0) > 1e-12 * np.abs(seen).max()).any():
            raise MetricError(f"system {name!r}: its state never changes, so it has no dynamics to compare")
        shifted = states - seen.mean(0) if centre else states
        size = np.sqrt((shifted[valid] ** 2).mean()) if unit else 1.0
        ready.append(np.array(masked(shifted / size, valid)))
    return names, ready


def in_threads(function: Callable[..., Any], jobs: Iterable[tuple], n_jobs: int) -> list:
    """Results of ``function(*job)`` in the order of the jobs, whatever the number of threads."""
    jobs = list(jobs)
    if n_jobs < 1:
        raise MetricError(f"n_jobs is {n_jobs}; expected at least 1")
    if n_jobs == 1 or len(jobs) < 2:
        return [function(*job) for job in jobs]
    with ThreadPoolExecutor(n_jobs) as pool:
        return list(pool.map(lambda job: function(*job), jobs))


def all_pairs(distance: Callable[[Any, Any], float], models: Sequence[Any], n_jobs: int) -> np.ndarray:
    """Symmetric matrix of the distances between models, zero on the diagonal."""
    pairs = list(combinations(range(len(models)), 2))
    distances = np.zeros((len(models), len(models)))
    found = in_threads(lambda i, j: distance(models[i], models[j]), pairs, n_jobs)
    for (i, j), value in zip(pairs, found, strict=True):
        distances[i, j] = distances[j, i] = value
    return distances


def halves(n_trials: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two random halves of the trials, of equal size."""
    drawn = rng.permutation(n_trials)
    size = n_trials // 2
    return np.sort(drawn[:size]), np.sort(drawn[size : 2 * size])
