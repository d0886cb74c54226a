"""The wheel that the mouse turns: from irregular samples of its position to velocity, and to means over bins."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ctdb.errors import IblPrepareError

SAMPLE_RATE_HZ, CUTOFF_HZ, ORDER = 1000.0, 20.0, 8


class Wheel(NamedTuple):
    """Movement of the wheel on a grid of `SAMPLE_RATE_HZ`: times (s), position (rad) and velocity (rad/s)."""

    times: Float[np.ndarray, " samples"]
    position: Float[np.ndarray, " samples"]
    velocity: Float[np.ndarray, " samples"]


def movement(
    times: Float[np.ndarray, " times"], position: Float[np.ndarray, " positions"], where: str = "wheel"
) -> Wheel:
    """Position interpolated linearly and low-pass filtered without delay, and its differences as velocity.

    The filter is a Butterworth one of order 8 at 20 Hz, run forth and back, as in the International Brain Laboratory's
    own `brainbox.behavior.wheel`. Times stay float64: at 4000 s a float32 has steps of 0.24 ms.

    Parameters
    ----------
    times
        Of the samples, s, not decreasing.
    position
        Of the wheel, rad; turns add up.
    where
        Name of the source, for the message.

    Raises
    ------
    IblPrepareError
        If times and position do not go together, are not finite, run backwards or last less than 0.1 s.

    References
    ----------
    International Brain Laboratory, brainbox.behavior.wheel: `interpolate_position`, `velocity_filtered`.
    """
    from scipy.signal import butter, sosfiltfilt  # half a second to import, and only wanted here

    if times.shape != position.shape or times.ndim != 1:
        raise IblPrepareError(
            f"{where}: {times.shape} times but {position.shape} positions; expected one time for each position: fetch "
            "the wheel again"
        )
    if not (np.isfinite(times).all() and np.isfinite(position).all()):
        raise IblPrepareError(f"{where}: holds times or positions that are not finite; leave the session out")
    if (np.diff(times) < 0).any():
        at = int(np.argmax(np.diff(times) < 0))
        raise IblPrepareError(
            f"{where}: time runs backwards after sample {at} ({times[at]:g} s); expected times that do not decrease"
        )
    if len(times) == 0 or times[-1] - times[0] < 0.1:
        raise IblPrepareError(f"{where}: {len(times)} samples last less than 0.1 s; leave the session out")
    n_samples = int(np.floor((times[-1] - times[0]) * SAMPLE_RATE_HZ)) + 1
    grid = times[0] + np.arange(n_samples) / SAMPLE_RATE_HZ
    low_pass = butter(ORDER, CUTOFF_HZ, output="sos", fs=SAMPLE_RATE_HZ)
    smooth = sosfiltfilt(low_pass, np.interp(grid, times, position))
    return Wheel(grid, smooth, np.diff(smooth, prepend=smooth[0]) * SAMPLE_RATE_HZ)


def bin_means(
    times: Float[np.ndarray, " samples"],
    values: Float[np.ndarray, " samples"],
    edges: Float[np.ndarray, "windows edges"],
) -> Float[np.ndarray, "windows bins"]:
    """Mean of the samples in each bin; a bin holds its lower edge and not its upper one.

    Parameters
    ----------
    times
        Of the samples, s, sorted.
    values
        Of the signal.
    edges
        Of the bins of each window, s, increasing along a window.

    Raises
    ------
    IblPrepareError
        If a bin holds no sample.
    """
    border = np.searchsorted(times, edges)
    n_samples = np.diff(border)
    if not n_samples.all():
        window, at = np.argwhere(n_samples == 0)[0]
        raise IblPrepareError(
            f"the bin from {edges[window, at]:g} s to {edges[window, at + 1]:g} s holds no sample of the wheel, which "
            f"is known from {times[0]:g} s to {times[-1]:g} s every {1000 / SAMPLE_RATE_HZ:g} ms; use wider bins"
        )
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return np.diff(total[border]) / n_samples
