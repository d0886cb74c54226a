"""How alike two clouds of states are, sample by sample, up to a class of changes of coordinates."""

import numpy as np
from jaxtyping import Float

from ctdb.errors import MetricError
from ctdb.metrics.case import METRICS, Case
from ctdb.metrics.trial_sums import trials_of

CCA_VARIANCE = 0.95
"""Share of the variance in the principal components that the score `cca` compares."""
RANK_FLOOR = 1e-8
"""Singular values below this share of the largest are rounding, and no direction of the data."""


def procrustes_distance(first: np.ndarray, second: np.ndarray, n_bins: np.ndarray | None = None) -> float:
    r"""Angle between two clouds after the best rotation or reflection, in radians from 0 to pi/2.

    :math:`\arccos \|X^\top Y\|_*` of the centred clouds of unit Frobenius norm: a metric that no rotation, reflection,
    shift or scale changes.

    Parameters
    ----------
    first, second
        States of the same samples, (trials, bins, channels) or (samples, channels); channels may differ.
    n_bins
        Valid bins of each trial.

    Raises
    ------
    MetricError
        If trials or bins differ, values are not finite, or a state never changes.

    References
    ----------
    Williams et al. (2021), Generalized shape metrics on neural representations.
    """
    x, y = _centred(first, second, n_bins)
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    left, _, right = np.linalg.svd(x.T @ y, full_matrices=False)
    # From the gap rather than the arc cosine, which cannot tell angles below 1e-8 from 0.
    gap = np.linalg.norm(x @ left @ right - y) if x.shape[1] <= y.shape[1] else np.linalg.norm(x - y @ right.T @ left.T)
    return float(2 * np.arcsin(min(gap / 2, 1.0)))


def canonical_correlations(
    first: np.ndarray, second: np.ndarray, n_bins: np.ndarray | None = None
) -> Float[np.ndarray, " correlations"]:
    """Correlations between matched linear readouts of two clouds, largest first; as many as the smaller rank.

    Parameters, Raises
        See :func:`procrustes_distance`.

    References
    ----------
    Hotelling (1936); Bjoerck & Golub (1973) for the computation.
    """
    x, y = _centred(first, second, n_bins)
    bases = []
    for cloud in (x, y):
        scaled = cloud / np.maximum(np.linalg.norm(cloud, axis=0), np.finfo(float).tiny)
        left, singular, _ = np.linalg.svd(scaled, full_matrices=False)
        bases.append(left[:, singular > RANK_FLOOR * singular[0]])
    return np.clip(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False), 0, 1)


def cca(first: np.ndarray, second: np.ndarray, n_bins: np.ndarray | None = None) -> float:
    """Mean canonical correlation, 0 to 1; no invertible linear map of either cloud changes it.

    Directions of little variance count as much as others: compare the leading principal components of noisy states. See
    :func:`canonical_correlations`.
    """
    return float(canonical_correlations(first, second, n_bins).mean())


def cka(first: np.ndarray, second: np.ndarray, n_bins: np.ndarray | None = None) -> float:
    r"""Linear centred kernel alignment :math:`\|X^\top Y\|_F^2 / (\|X^\top X\|_F \|Y^\top Y\|_F)`, 0 to 1.

    Unchanged by rotation, shift and scale, but not by other linear maps. See :func:`procrustes_distance`.

    References
    ----------
    Kornblith et al. (2019).
    """
    x, y = _centred(first, second, n_bins)
    return float(np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


@METRICS.register("procrustes_similarity")
def _procrustes_similarity(case: Case) -> float:
    """One minus the angle of :func:`procrustes_distance` in right angles: 1 for clouds that a rotation maps."""
    return 1 - procrustes_distance(*_clouds(case)) / (np.pi / 2)


@METRICS.register("cca")
def _cca(case: Case) -> float:
    leading = []
    for cloud in _clouds(case):
        components, held = principal_components(cloud)
        leading.append(components[:, : int(np.searchsorted(held, CCA_VARIANCE)) + 1])
    return cca(*leading)


@METRICS.register("cka")
def _cka(case: Case) -> float:
    return cka(*_clouds(case))


def _clouds(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """True and inferred states of the valid bins of the scored split."""
    true, inferred, valid = trials_of(case.known("latents"), case.inferred("latents"), n_bins=case.trials.n_bins)
    return true[valid], inferred[valid]


def principal_components(
    cloud: Float[np.ndarray, "samples channels"],
) -> tuple[Float[np.ndarray, "samples components"], Float[np.ndarray, " components"]]:
    """Centred states in their principal axes, and the share of the variance that the axes up to each one hold."""
    left, singular, _ = np.linalg.svd(cloud - cloud.mean(0), full_matrices=False)
    return left * singular, np.cumsum(singular**2) / max((singular**2).sum(), np.finfo(float).tiny)


def _centred(first: np.ndarray, second: np.ndarray, n_bins: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    *clouds, valid = trials_of(first, second, n_bins=n_bins)
    centred = []
    for cloud in clouds:
        cloud = cloud[valid]
        if not len(cloud) or not (np.ptp(cloud, axis=0) > 1e-12 * np.abs(cloud).max()).any():
            raise MetricError("one of the clouds is a single point, which has no shape to compare")
        centred.append(cloud - cloud.mean(0))
    return centred[0], centred[1]
