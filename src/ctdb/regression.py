"""Ridge regression whose penalty is chosen on valid trials; targets may be missing."""

import numpy as np
from jaxtyping import Float

PENALTIES = np.logspace(-6, 4, 21)
"""Penalties tried, relative to the mean squared singular value of the source."""


def ridge(
    source: Float[np.ndarray, "samples inputs"],
    target: Float[np.ndarray, "samples outputs"],
    valid_source: Float[np.ndarray, "valid_samples inputs"],
    valid_target: Float[np.ndarray, "valid_samples outputs"],
) -> tuple[Float[np.ndarray, "inputs outputs"], Float[np.ndarray, " outputs"]]:
    """Weights and offset of ``target = source @ weights + offset``, with one penalty for all outputs.

    Parameters
    ----------
    source, target
        What fits; a NaN in `target` is missing and its sample is left out for that output alone.
    valid_source, valid_target
        What chooses the penalty: the lowest squared error, each output in units of its own variance. Where nothing
        of it is known, the penalty is the middle one.

    Returns
    -------
    Weights and offset; both NaN for an output that is never observed.

    References
    ----------
    Hoerl & Kennard (1970).
    """
    observed = ~np.isnan(target)
    patterns, member = np.unique(observed, axis=1, return_inverse=True)
    count = np.maximum(observed.sum(0), 1)
    centred = np.where(observed, target - np.nansum(target, 0) / count, 0)
    spread = (centred**2).sum(0) / count
    largest = np.abs(np.where(observed, target, 0)).max(0, initial=0)
    spread = np.where(spread > (1e-9 * largest) ** 2, spread, np.inf)  # what never varies has no say in the penalty
    weights = np.full((len(PENALTIES), source.shape[1], target.shape[1]), np.nan)
    offset = np.full((len(PENALTIES), target.shape[1]), np.nan)
    for index in range(patterns.shape[1]):
        rows, columns = patterns[:, index], np.flatnonzero(member.ravel() == index)
        if not rows.any():
            continue
        x, y = source[rows], target[np.ix_(rows, columns)]
        x_mean, y_mean = x.mean(0), y.mean(0)
        left, singular, right = np.linalg.svd(x - x_mean, full_matrices=False)
        projected = left.T @ (y - y_mean)
        unit = max(float((singular**2).mean()), np.finfo(float).tiny)
        for i, penalty in enumerate(PENALTIES):
            weights[i][:, columns] = right.T @ ((singular / (singular**2 + penalty * unit))[:, None] * projected)
            offset[i, columns] = y_mean - x_mean @ weights[i][:, columns]
    errors = [
        np.nansum((valid_target - valid_source @ w - o) ** 2 / spread) for w, o in zip(weights, offset, strict=True)
    ]
    if np.isnan(valid_target).all():
        return weights[len(PENALTIES) // 2], offset[len(PENALTIES) // 2]
    best = int(np.argmin(errors))
    return weights[best], offset[best]
