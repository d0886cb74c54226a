"""Linear models of delayed states (Hankel dynamic mode decomposition), fitted from their second moments."""

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
from jaxtyping import Complex, Float

from ctdb.errors import MetricError
from ctdb.metrics.trial_sums import masked, trials_of

SINGULAR_FLOOR = 1e-4
"""Smallest singular value of the delayed states, relative to the largest, that a model may use."""
RIDGE = 1e-8
"""Ridge penalty of the regression between singular vectors of unit norm, as in dsa-metric."""


@dataclass(frozen=True)
class DelayMoments:
    """Sums over trials and bins of products of delayed states, newest state first.

    Attributes
    ----------
    joint
        Products of (x[t+1], x[t], ..., x[t-n_delays+1]) with itself.
    whole
        Products of (x[t], ..., x[t-n_delays+1]) with itself, the last window of each trial included.
    n_channels, n_delays, n_windows
        Sizes; `n_windows` counts the windows of `whole`.
    """

    joint: Float[np.ndarray, "joined joined"]
    whole: Float[np.ndarray, "delayed delayed"]
    n_channels: int
    n_delays: int
    n_windows: int

    def fewer(self, n_delays: int) -> "DelayMoments":
        """Moments of the first `n_delays` delays over the same windows, so that all delays predict the same bins."""
        size = n_delays * self.n_channels
        joined = size + self.n_channels
        return replace(self, joint=self.joint[:joined, :joined], whole=self.whole[:size, :size], n_delays=n_delays)


@dataclass(frozen=True)
class DelayModel:
    """A linear map between successive delayed states, in coordinates of unit variance.

    Attributes
    ----------
    matrix
        The map A of ``v[t+1] = A v[t]``, with v the leading right singular vectors of the delayed states.
    singular
        All singular values of the delayed states, largest first.
    readout
        From v to the state x.
    whiten
        From the delayed states to v.
    """

    matrix: Float[np.ndarray, "rank rank"]
    singular: Float[np.ndarray, " delayed"]
    readout: Float[np.ndarray, "channels rank"]
    whiten: Float[np.ndarray, "delayed rank"]

    @property
    def eigenvalues(self) -> Complex[np.ndarray, " rank"]:
        """Eigenvalues per bin, largest modulus first; of equal moduli, in the order of their angle."""
        values = np.linalg.eigvals(self.matrix).astype(np.complex128)
        return values[np.lexsort((np.angle(values), -np.abs(values).round(12)))]


def delay_moments(
    states: Float[np.ndarray, "trials bins channels"], n_delays: int, n_bins: np.ndarray | None = None
) -> DelayMoments:
    """Moments of delayed states in one pass over the data per delay.

    A block of products one bin earlier differs from its neighbour only by the first and the last window of each trial,
    so that all pairs of delays cost as much as one row of them.

    Parameters
    ----------
    states
        Trajectories; they are copied to float64 and left as they are.
    n_delays
        Bins in a delay vector, 1 for the state alone.
    n_bins
        Valid bins of each trial.

    Raises
    ------
    MetricError
        If values are not finite or a trial has fewer than ``n_delays + 1`` bins.
    """
    if n_delays < 1:
        raise MetricError(f"n_delays is {n_delays}; it counts the bins of a delay vector and must be at least 1")
    states, valid = trials_of(states, n_bins=n_bins)
    lengths = valid.sum(1)
    if lengths.size == 0 or lengths.min() <= n_delays:
        raise MetricError(
            f"{n_delays} delays need trials of at least {n_delays + 1} bins; the shortest has "
            f"{lengths.min() if lengths.size else 0}. Use fewer delays or leave out short trials"
        )
    states = masked(states, valid)
    n_trials, _, n_channels = states.shape
    size = n_delays * n_channels
    rows = np.arange(n_trials)[:, None]
    lags = np.arange(n_delays)
    first = states[:, n_delays - 1 - lags].reshape(n_trials, size)
    last = states[rows, lengths[:, None] - 1 - lags].reshape(n_trials, size)
    last_moments = last.T @ last
    shift = first.T @ first - last_moments
    joint = np.empty((size + n_channels, size + n_channels))
    newest = np.ascontiguousarray(states[:, n_delays:]).reshape(-1, n_channels)
    for lag in range(n_delays + 1):
        older = states[:, n_delays - lag : states.shape[1] - lag].reshape(-1, n_channels)
        joint[:n_channels, lag * n_channels : (lag + 1) * n_channels] = newest.T @ older
    for lag in range(n_delays):
        here, later = slice(lag * n_channels, (lag + 1) * n_channels), slice((lag + 1) * n_channels, None)
        below = slice((lag + 1) * n_channels, (lag + 2) * n_channels)
        joint[below, later] = joint[here, lag * n_channels : size] + shift[here, lag * n_channels :]
    upper = np.triu(joint)
    joint = upper + np.triu(joint, 1).T
    return DelayMoments(
        joint, joint[n_channels:, n_channels:] + last_moments, n_channels, n_delays, int((lengths - n_delays + 1).sum())
    )


def fit_dmd(moments: DelayMoments, rank: int, ridge: float = RIDGE) -> DelayModel:
    r"""Principal-component regression between successive delay vectors.

    With the delay vectors in the rows of H = V S U', it solves
    :math:`A = \arg\min \sum_t |v_{t+1} - A v_t|^2 + \lambda |A|^2` for the leading `rank` columns of V, from the
    eigenvectors of H'H alone. The eigenvalues are those of dsa-metric's ``DMD``, which takes the singular value
    decomposition of H in float32.

    Raises
    ------
    MetricError
        If `rank` exceeds the directions whose relative singular value is above ``SINGULAR_FLOOR``.

    References
    ----------
    Arbabi & Mezic (2017), Hankel-DMD; Ostrow et al. (2023), Dynamical Similarity Analysis, section 3.
    """
    squares, vectors = scipy.linalg.eigh(moments.whole)
    singular, vectors = np.sqrt(np.maximum(squares[::-1], 0)), vectors[:, ::-1]
    usable = numerical_rank(singular)
    if not 1 <= rank <= usable:
        raise MetricError(
            f"rank {rank} is not between 1 and {usable}, the number of directions of {moments.n_delays} delayed states "
            f"whose singular value is at least {SINGULAR_FLOOR:g} of the largest; beyond it a model fits rounding"
        )
    n = moments.n_channels
    whiten = vectors[:, :rank] / singular[:rank]
    now = whiten.T @ moments.joint[n:, n:] @ whiten
    ahead = whiten.T @ moments.joint[n:, :-n] @ whiten
    matrix = np.linalg.solve(now + ridge * np.eye(rank), ahead).T
    return DelayModel(matrix, singular, vectors[:n, :rank] * singular[:rank], whiten)


def prediction_errors(model: DelayModel, other: DelayMoments, ranks: np.ndarray, fitted: DelayMoments) -> np.ndarray:
    """Squared error of the next state on `other` trials, relative to that of no change, for models of lower rank.

    Parameters
    ----------
    model
        A model of at least the largest rank, whose leading directions the lower ones use.
    other
        Moments of the trials that judge.
    ranks
        Ranks to judge.
    fitted
        Moments of the trials that fitted `model`.

    Returns
    -------
    One error per rank; 1 is as bad as to predict no change.
    """
    n = other.n_channels
    now = model.whiten.T @ fitted.joint[n:, n:] @ model.whiten
    ahead = model.whiten.T @ fitted.joint[n:, :-n] @ model.whiten
    there = model.whiten.T @ other.joint[n:, n:] @ model.whiten
    target = model.whiten.T @ other.joint[n:, :n]
    total = np.trace(other.joint[:n, :n])
    change = total + np.trace(other.joint[n : 2 * n, n : 2 * n]) - 2 * np.trace(other.joint[:n, n : 2 * n])
    errors = np.empty(len(ranks))
    for i, rank in enumerate(ranks):
        matrix = np.linalg.solve(now[:rank, :rank] + RIDGE * np.eye(rank), ahead[:rank, :rank]).T
        weights = model.readout[:, :rank] @ matrix
        residual = total - 2 * np.sum(weights.T * target[:rank]) + np.sum((weights @ there[:rank, :rank]) * weights)
        errors[i] = max(residual, 1e-12 * total) / max(change, 1e-12 * total)
    return errors


def numerical_rank(singular: np.ndarray) -> int:
    """Directions whose singular value is at least ``SINGULAR_FLOOR`` of the largest; none where all are zero."""
    return int((singular >= SINGULAR_FLOOR * singular[0]).sum()) if singular[0] > 0 else 0
