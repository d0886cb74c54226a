"""Pictures of a distance matrix: points in a plane, and an order in which neighbours are alike."""

import numpy as np
import scipy.cluster.hierarchy
import scipy.spatial.distance
from jaxtyping import Float, Int

from ctdb.errors import MetricError


def classical_mds(distances: np.ndarray, n_dimensions: int = 2) -> Float[np.ndarray, "systems dimensions"]:
    """Points whose Euclidean distances are nearest to `distances`, in their principal axes.

    Parameters
    ----------
    distances
        Symmetric distances (systems, systems) with a zero diagonal.
    n_dimensions
        Coordinates of a point; those that the distances do not fill are 0.

    Returns
    -------
    Points around 0; each coordinate's largest entry is positive, so that the picture does not flip.

    Raises
    ------
    MetricError
        If `distances` are not symmetric with a zero diagonal.

    References
    ----------
    Torgerson (1952).
    """
    distances = _checked(distances)
    centring = np.eye(len(distances)) - 1 / len(distances)
    values, vectors = np.linalg.eigh(-centring @ distances**2 @ centring / 2)
    values, vectors = values[::-1][:n_dimensions], vectors[:, ::-1][:, :n_dimensions]
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])] < 0, -1, 1)
    points = np.zeros((len(distances), n_dimensions))
    points[:, : vectors.shape[1]] = vectors * np.sqrt(np.maximum(values, 0))
    return points


def cluster_order(distances: np.ndarray) -> Int[np.ndarray, " systems"]:
    """Order of the systems, by their distances (systems, systems), as leaves of an average-linkage tree.

    Raises
    ------
    MetricError
        If `distances` are not symmetric with a zero diagonal.

    References
    ----------
    Bar-Joseph et al. (2001), optimal leaf ordering; scipy.
    """
    distances = _checked(distances)
    if len(distances) < 2:
        return np.arange(len(distances))
    condensed = scipy.spatial.distance.squareform(distances, checks=False)
    tree = scipy.cluster.hierarchy.linkage(condensed, "average", optimal_ordering=True)
    return scipy.cluster.hierarchy.leaves_list(tree).astype(np.int64)


def _checked(distances: np.ndarray) -> np.ndarray:
    distances = np.asarray(distances, np.float64)
    square = distances.ndim == 2 and distances.shape[0] == distances.shape[1]
    if not square or not np.isfinite(distances).all() or np.diag(distances).any() or (distances != distances.T).any():
        raise MetricError("distances must be a symmetric, finite matrix with a zero diagonal")
    return distances
