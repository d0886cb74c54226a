"""Does a fit move states as the true network does? One bin ahead, and many."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ctdb.errors import MetricError
from ctdb.metrics.r2 import linear_map, r2_sums
from ctdb.metrics.trial_sums import TrialSums, trials_of
from ctdb.regression import ridge

Step = Callable[[Tensor, Tensor], Tensor]
"""Next state (n, d) from a state (n, d) and an input (n, i)."""

CHUNK = 65536


@dataclass(frozen=True)
class AffineMap:
    """``target = source @ weights + offset``."""

    weights: Float[np.ndarray, "sources targets"]
    offset: Float[np.ndarray, " targets"]

    def __call__(self, source: Float[np.ndarray, "*n sources"]) -> Float[np.ndarray, "*n targets"]:
        """Mapped states."""
        return source @ self.weights + self.offset


@dataclass(frozen=True)
class Alignment:
    """Affine maps between the true state and a fit's latents, each a regression of its own.

    Attributes
    ----------
    to_fit
        From true states to latents.
    to_true
        From latents to true states.
    """

    to_fit: AffineMap
    to_true: AffineMap


def align(
    true_train: np.ndarray,
    fit_train: np.ndarray,
    true_valid: np.ndarray | None = None,
    fit_valid: np.ndarray | None = None,
    n_bins_train: np.ndarray | None = None,
    n_bins_valid: np.ndarray | None = None,
) -> Alignment:
    """Affine maps between true states and a fit's latents of the same bins, both ways.

    Parameters
    ----------
    true_train, fit_train
        States that fit the maps, (trials, bins, states) or (samples, states).
    true_valid, fit_valid
        States that choose the penalty of a ridge regression; ordinary least squares where they are None.
    n_bins_train, n_bins_valid
        Valid bins of each trial.

    Raises
    ------
    MetricError
        If shapes disagree or values are not finite.
    """
    true, fit, valid = trials_of(true_train, fit_train, n_bins=n_bins_train)
    true, fit = true[valid], fit[valid]
    if true_valid is None or fit_valid is None:
        return Alignment(AffineMap(*linear_map(true, fit)), AffineMap(*linear_map(fit, true)))
    true_other, fit_other, valid = trials_of(true_valid, fit_valid, n_bins=n_bins_valid)
    true_other, fit_other = true_other[valid], fit_other[valid]
    return Alignment(
        AffineMap(*ridge(true, fit, true_other, fit_other)), AffineMap(*ridge(fit, true, fit_other, true_other))
    )


def flow_field_sums(
    true_step: Step | None,
    fit_step: Step,
    alignment: Alignment,
    states: Float[np.ndarray, "trials bins states"],
    inputs: np.ndarray | None = None,
    fit_inputs: np.ndarray | None = None,
    n_bins: np.ndarray | None = None,
) -> TrialSums:
    """Flow-field error as sums over trials; see :func:`flow_field_error`."""
    states, drives, fit_drives, lengths = _prepared(states, inputs, fit_inputs, n_bins)
    now, drive, fit_drive = states[:, :-1], drives[:, 1:], fit_drives[:, 1:]
    velocity = (states[:, 1:] if true_step is None else _advance(true_step, now, drive)) - now
    latents = alignment.to_fit(now)
    moved = _advance(fit_step, latents, fit_drive) - latents
    sums = r2_sums(velocity, moved @ alignment.to_true.weights, lengths - 1)
    return TrialSums(sums.terms, lambda totals: 1 - sums.combine(totals))


def flow_field_error(
    true_step: Step | None,
    fit_step: Step,
    alignment: Alignment,
    states: Float[np.ndarray, "trials bins states"],
    inputs: np.ndarray | None = None,
    fit_inputs: np.ndarray | None = None,
    n_bins: np.ndarray | None = None,
) -> float:
    r"""Squared error of a fit's velocity at true states, relative to the variance of the true velocity.

    A true state x goes to the latent :math:`z = M(x)`; the fit's velocity there, :math:`f(z, u) - z`, comes back
    through the linear part of the inverse regression and is compared with :math:`F(x, u) - x`. It asks whether the law
    of motion is right wherever the true network goes, which trajectories that inputs hold in place cannot tell.

    Parameters
    ----------
    true_step, fit_step
        The two systems, ``step(state (n, d), input (n, i))``; the state of bin t is ``step`` of the state of bin t - 1
        and the input of bin t. Where `true_step` is None, the true velocity is what the states did, noise included.
    alignment
        Maps between their states, from other trials: see :func:`align`.
    states
        States of the true network.
    inputs
        What the true network was given (trials, bins, inputs); None for an input of no channels.
    fit_inputs
        What the fit is given instead, such as its inferred inputs; None for `inputs`.
    n_bins
        Valid bins of each trial.

    Returns
    -------
    0 for the same flow, 1 for one no better than the mean velocity; above 1 for one that is worse.

    Raises
    ------
    MetricError
        If shapes disagree, values are not finite, or the true state never moves.

    References
    ----------
    Versteeg et al. (2025) name the lack of a flow-field metric as a limitation of the benchmark.
    """
    return flow_field_sums(true_step, fit_step, alignment, states, inputs, fit_inputs, n_bins).value


@dataclass(frozen=True)
class Forecast:
    """Errors of a free run against its horizon.

    Attributes
    ----------
    error
        Squared error of the forecast 1, 2, ... bins ahead, relative to the variance of the true states: 1 is as bad as
        the mean state. NaN where no trial is long enough.
    persistence
        Error of predicting no change, likewise.
    n_forecasts
        Forecasts behind each error.
    """

    error: Float[np.ndarray, " horizon"]
    persistence: Float[np.ndarray, " horizon"]
    n_forecasts: Float[np.ndarray, " horizon"]

    @property
    def r2(self) -> Float[np.ndarray, " horizon"]:
        """``1 - error``."""
        return 1 - self.error


def forecast(
    fit_step: Step,
    alignment: Alignment,
    states: Float[np.ndarray, "trials bins states"],
    starts: np.ndarray | list[int],
    horizon: int,
    inputs: np.ndarray | None = None,
    n_bins: np.ndarray | None = None,
    latents: Float[np.ndarray, "trials bins latents"] | None = None,
) -> Forecast:
    """Free runs of a fit from true states, compared with what the true network did.

    Parameters
    ----------
    fit_step
        The fit, ``step(state (n, d), input (n, i))``.
    alignment
        Maps between states, from other trials: see :func:`align`.
    states
        States of the true network.
    starts
        Bins from whose states runs begin.
    horizon
        Bins that a run lasts; it ends early with its trial.
    inputs
        What the fit is given in each bin (trials, bins, inputs); None for an input of no channels.
    n_bins
        Valid bins of each trial.
    latents
        The fit's own latents, from which runs begin in place of the mapped true states.

    Raises
    ------
    MetricError
        If shapes disagree, values are not finite, a start is not a bin, or the states never vary.
    """
    states, drives, _, lengths = _prepared(states, inputs, None, n_bins)
    valid = np.arange(states.shape[1]) < lengths[:, None]
    starts = np.asarray(starts, np.int64)
    if horizon < 1 or not starts.size or starts.min() < 0 or starts.max() >= states.shape[1] - 1:
        raise MetricError(f"starts must be bins 0 to {states.shape[1] - 2} and the horizon at least 1 bin")
    variance = float(states[valid].var(0).sum())
    if variance <= 0:
        raise MetricError("the true states never vary, so there is nothing to forecast")
    begin = alignment.to_fit(states) if latents is None else trials_of(states, latents, n_bins=n_bins)[1]
    squares, persisted, counts = np.zeros((3, horizon))
    for start in starts:
        state = begin[:, start]
        for ahead in range(1, min(horizon, states.shape[1] - 1 - start) + 1):
            t = start + ahead
            state = _advance(fit_step, state, drives[:, t])
            seen = valid[:, t]
            target = states[seen, t]
            squares[ahead - 1] += ((alignment.to_true(state[seen]) - target) ** 2).sum()
            persisted[ahead - 1] += ((states[seen, start] - target) ** 2).sum()
            counts[ahead - 1] += seen.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        return Forecast(squares / (counts * variance), persisted / (counts * variance), counts)


def _prepared(
    states: np.ndarray, inputs: np.ndarray | None, fit_inputs: np.ndarray | None, n_bins: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """States and inputs with the first valid state of a trial, and no input, in its padding; and the valid lengths."""
    if np.ndim(states) != 3:
        raise MetricError(f"states are (trials, bins, states); found shape {np.shape(states)}")
    none = np.zeros((*np.shape(states)[:2], 0))
    inputs = none if inputs is None else inputs
    fit_inputs = inputs if fit_inputs is None else fit_inputs
    states, inputs, fit_inputs, valid = trials_of(states, inputs, fit_inputs, n_bins=n_bins)
    lengths = valid.sum(1)
    if not lengths.size or lengths.min() < 2:
        raise MetricError("a velocity needs trials of at least 2 valid bins; leave out shorter ones")
    padding = ~valid[..., None]
    return (
        np.where(padding, states[:, :1], states),
        np.where(padding, 0.0, inputs),
        np.where(padding, 0.0, fit_inputs),
        lengths,
    )


def _advance(step: Step, states: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Next states of states (..., d) under inputs (..., i)."""
    flat = states.reshape(-1, states.shape[-1])
    drive = inputs.reshape(len(flat), inputs.shape[-1])
    after = []
    with torch.no_grad():
        for begin in range(0, len(flat), CHUNK):
            part = slice(begin, begin + CHUNK)
            after.append(step(torch.from_numpy(flat[part].copy()), torch.from_numpy(drive[part].copy())).cpu().numpy())
    return np.concatenate(after).astype(np.float64).reshape(states.shape)
