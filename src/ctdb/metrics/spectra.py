"""Distance between power spectra: do two activities move at the same speeds?"""

import functools

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d

from ctdb.errors import MetricError
from ctdb.metrics.case import METRICS, Case
from ctdb.metrics.distances import skill
from ctdb.metrics.trial_sums import trials_of


def power_spectrum(
    activity: Float[np.ndarray, "trials bins channels"],
    n_bins: np.ndarray | None = None,
    window: int | None = None,
    smoothing: float = 1.0,
) -> Float[np.ndarray, "frequencies channels"]:
    """Power at each frequency above 0, smoothed, summing to 1 in each channel.

    Each trial is cut into windows of equal length from its first bin on, without overlap; what is left is not used. A
    window's mean is subtracted, and power is averaged over windows and trials.

    Parameters
    ----------
    activity
        Activity in equal bins.
    n_bins
        Valid bins of each trial.
    window
        Bins of a window; None for the shortest trial.
    smoothing
        Standard deviation of the Gaussian over neighbouring frequencies.

    Returns
    -------
    Power at the frequencies 1, 2, ... ``window // 2`` per `window` bins; 0 for a channel that never varies.

    Raises
    ------
    MetricError
        If values are not finite, or no trial has a window of at least 4 bins.
    """
    activity, valid = trials_of(activity, n_bins=n_bins)
    lengths = valid.sum(1)
    window = int(lengths.min(initial=activity.shape[1])) if window is None else window
    if window < 4 or window > lengths.max(initial=0):
        raise MetricError(
            f"a spectrum needs windows of 4 bins or more that fit into a trial; the window has {window} bins, trials "
            f"have up to {lengths.max(initial=0)}"
        )
    windows = [
        trial[start : start + window]
        for trial, length in zip(activity, lengths, strict=True)
        for start in range(0, length - window + 1, window)
    ]
    cut = np.stack(windows)
    cut = cut - cut.mean(1, keepdims=True)
    scale = np.abs(activity[valid]).max(0)
    cut = np.where(np.abs(cut).max((0, 1)) > 1e-12 * scale, cut, 0.0)
    power = (np.abs(np.fft.rfft(cut, axis=1)) ** 2).mean(0)[1:]
    if smoothing > 0:
        power = gaussian_filter1d(power, smoothing, axis=0, mode="nearest")
    total = power.sum(0)
    return power / np.where(total > 0, total, 1)


def power_spectrum_distance(
    true: np.ndarray,
    inferred: np.ndarray,
    n_bins: np.ndarray | None = None,
    n_bins_inferred: np.ndarray | None = None,
    window: int | None = None,
    smoothing: float = 1.0,
) -> float:
    r"""Mean over channels of the Hellinger distance :math:`\sqrt{1 - \sum_f \sqrt{p_f q_f}}` between power spectra.

    Parameters
    ----------
    true, inferred
        Activity (trials, bins, channels) in the same channels and bins of the same duration.
    n_bins
        Valid bins of each true trial, and of each inferred one if they have the same shape.
    n_bins_inferred
        Valid bins of each inferred trial.
    window, smoothing
        See :func:`power_spectrum`; the window is by default the shortest trial of both.

    Returns
    -------
    0 for equal spectra, 1 for spectra without a common frequency or for one channel that never varies beside one that
    does. Shift and scale of a channel do not matter.

    Raises
    ------
    MetricError
        If channels differ, values are not finite, or trials are too short.

    References
    ----------
    Mikhaeil, Monfared & Durstewitz (2022); Hess et al. (2023), generalized teacher forcing, :math:`D_H`.
    """
    if n_bins_inferred is None and np.shape(true)[:2] == np.shape(inferred)[:2]:
        n_bins_inferred = n_bins
    if np.ndim(true) != 3 or np.ndim(inferred) != 3 or np.shape(true)[2] != np.shape(inferred)[2]:
        raise MetricError(
            f"activities are (trials, bins, channels) with equal channels; found {np.shape(true)}, {np.shape(inferred)}"
        )
    if window is None:
        window = min(
            int(np.min(np.shape(activity)[1] if lengths is None else lengths))
            for activity, lengths in ((true, n_bins), (inferred, n_bins_inferred))
        )
    p = power_spectrum(true, n_bins, window, smoothing)
    q = power_spectrum(inferred, n_bins_inferred, window, smoothing)
    common = np.where((p.sum(0) == 0) & (q.sum(0) == 0), 1.0, np.sqrt(p * q).sum(0))
    return float(np.sqrt(np.maximum(1 - common, 0)).mean())


@METRICS.register("power_spectrum_skill")
def _power_spectrum_skill(case: Case) -> float:
    """In windows as long as the median trial; shorter trials are left out."""
    trials = case.trials
    window = trials.recon_data.shape[1] if trials.n_bins is None else int(np.median(trials.n_bins))
    return skill(case, functools.partial(power_spectrum_distance, window=window))
