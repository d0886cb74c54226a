"""Compare the fixed points of a network with those of a model that was fitted to its spikes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ctdb.dynamics.jacobians import Step
from ctdb.dynamics.points import FixedPoints
from ctdb.errors import DynamicsError
from ctdb.metrics.r2 import linear_map

KICK = 1e-3
"""How far from a point its unstable manifold is entered, in radii of the visited states."""
ARRIVED = 1e-2
"""Distance to a stable point, in radii, at which a state that no longer moves has arrived."""
AT_REST = 1e-6
"""Speed, in radii per bin, of a state that no longer moves."""


@dataclass(frozen=True)
class FixedPointComparison:
    r"""How well found fixed points agree with true ones; what has no meaning, such as a mean of nothing, is NaN.

    Attributes
    ----------
    pairs
        Numbers of true and found points that match, (matches, 2).
    recall, precision
        Share of the true points that were found, and of the found ones that are true.
    distance
        Of each pair, in units of the true states' spread, the root of their total variance.
    distance_mean
        Mean of `distance`.
    stability_agreement, index_agreement
        Share of the pairs with equal stability, and with the same number of unstable directions.
    time_constant_ratio
        Of each pair, found over true time constant of the mode of largest eigenvalue; negative where it grows in one
        and dies out in the other.
    time_constant_agreement
        Share of the pairs with a ratio between 1/2 and 2.
    edge_agreement
        Jaccard index of the connections (:func:`connections`) between matched points; NaN where no steps were given.
    alignment_r2
        How well the found states explain the true ones, variance-weighted; distances mean little where it is low.
    """

    pairs: Int[np.ndarray, "matches 2"]
    recall: float
    precision: float
    distance: Float[np.ndarray, " matches"]
    distance_mean: float
    stability_agreement: float
    index_agreement: float
    time_constant_ratio: Float[np.ndarray, " matches"]
    time_constant_agreement: float
    edge_agreement: float
    alignment_r2: float

    def row(self) -> dict[str, float]:
        """The scores, without arrays."""
        return {name: value for name, value in vars(self).items() if isinstance(value, float)}


def compare_fixed_points(
    truth: FixedPoints,
    found: FixedPoints,
    truth_states: Any,
    found_states: Any,
    *,
    within: float = 0.2,
    truth_step: Step | None = None,
    found_step: Step | None = None,
) -> FixedPointComparison:
    """Match found fixed points to true ones, one to one, and compare the dynamics around them.

    Found points are carried into the true state space by the linear regression of state R2 (inferred to true), and
    matched so that as many pairs as possible lie within `within`, at the least total distance.

    Parameters
    ----------
    truth, found
        Fixed points of the network and of the model.
    truth_states, found_states
        States of both in the same bins, arrays or tensors (trials, bins, states) or (samples, states), which fit the
        regression.
    within
        Largest distance of a pair, in units of the true states' spread. The points of a cube, as of three bits, lie
        0.58 apart.
    truth_step, found_step
        Both steps, to compare which points the unstable manifolds connect.

    Raises
    ------
    DynamicsError
        If the states are not those of the same bins, or not finite, or the points have other sizes than the states.
    """
    true, inferred = (_flat(values) for values in (truth_states, found_states))
    if len(true) != len(inferred):
        raise DynamicsError(f"{len(true)} true and {len(inferred)} found states; give both in the same bins")
    for name, points, states in (("true", truth, true), ("found", found, inferred)):
        if not np.isfinite(states).all():
            raise DynamicsError(f"{name} states hold NaN or infinity; leave such bins out on both sides")
        if points.x.shape[1] != states.shape[1]:
            raise DynamicsError(f"{name} points have {points.x.shape[1]} units, {name} states {states.shape[1]}")
    weights, offset = linear_map(inferred, true)
    variance = float(true.var(0).sum())
    if variance == 0:
        raise DynamicsError("the true states do not vary, so that there is no unit of distance; give those of trials")
    unexplained = float(((true - inferred @ weights - offset) ** 2).mean(0).sum())
    aligned = found.x.numpy() @ weights + offset
    distances = np.linalg.norm(truth.x.numpy()[:, None] - aligned[None], axis=2) / np.sqrt(variance)
    # Where a pair is too far, it costs more than all near ones together.
    rows, columns = linear_sum_assignment(np.where(distances <= within, distances, within * (len(distances) + 1)))
    near = distances[rows, columns] <= within
    pairs = np.stack([rows[near], columns[near]], 1)
    i, j = torch.from_numpy(pairs).T
    distance = distances[pairs[:, 0], pairs[:, 1]]
    growth = [points.eigenvalues[:, 0].abs().log() / (points.bin_s or 1.0) for points in (truth, found)]
    ratio = (growth[0][i] / growth[1][j]).numpy()
    edges = float("nan")
    if truth_step is not None and found_step is not None:
        true_edges = connections(truth, truth_step)[i][:, i]
        found_edges = connections(found, found_step)[j][:, j]
        either = int((true_edges | found_edges).sum())
        edges = int((true_edges & found_edges).sum()) / either if either else float("nan")
    return FixedPointComparison(
        pairs=pairs,
        recall=_share(len(pairs), len(truth)),
        precision=_share(len(pairs), len(found)),
        distance=distance,
        distance_mean=_share(distance.sum(), len(pairs)),
        stability_agreement=_share((truth.stable[i] == found.stable[j]).sum(), len(pairs)),
        index_agreement=_share((truth.index[i] == found.index[j]).sum(), len(pairs)),
        time_constant_ratio=ratio,
        time_constant_agreement=_share(((ratio >= 0.5) & (ratio <= 2)).sum(), len(pairs)),
        edge_agreement=edges,
        alignment_r2=1 - unexplained / variance,
    )


def connections(points: FixedPoints, step: Step, max_bins: int = 10_000) -> Bool[Tensor, "k k"]:
    """Which points the unstable manifold of each leads to: ``[a, b]`` is whether it leads from a to the stable b.

    The system runs from each unstable point, moved a little along plus and minus each unstable eigenvector (the real
    and the imaginary part of a complex one), until it rests or `max_bins` are over.

    Parameters
    ----------
    points
        The points, under one input each.
    step
        The system whose they are.
    max_bins
        How long to wait; who has not arrived then has no connection.
    """
    k = len(points)
    found = torch.zeros(k, k, dtype=torch.bool)
    starts, origin = [], []
    for a in (points.index > 0).nonzero()[:, 0].tolist():
        for mode in range(int(points.index[a])):
            vector = points.right_eigenvectors[a, :, mode]
            conjugate = points.eigenvalues[a, mode].imag < 0
            direction = vector.imag if conjugate else vector.real
            direction = direction / direction.norm()
            starts += [points.x[a] + sign * KICK * points.radius * direction for sign in (1, -1)]
            origin += [a, a]
    if not starts:
        return found
    x, origin = torch.stack(starts), torch.tensor(origin)
    input, going = points.input[origin], torch.arange(len(starts))
    with torch.no_grad():
        for _ in range(max_bins):
            new = step(x[going], input[going])
            speed = (new - x[going]).norm(dim=1)
            x[going] = new
            left = (new - points.x[origin[going]]).norm(dim=1) > ARRIVED * points.radius  # the start is slow as well
            going = going[~((speed < AT_REST * points.radius) & left) & new.isfinite().all(1)]
            if not len(going):
                break
    distance = torch.cdist(x, points.x)
    distance[:, ~points.stable] = torch.inf
    distance[(input[:, None] != points.input[None]).any(2)] = torch.inf
    nearest, end = distance.min(1)
    ended = nearest < ARRIVED * points.radius
    found[origin[ended], end[ended]] = True
    return found


def _flat(values: Any) -> Float[np.ndarray, "samples states"]:
    values = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, np.float64)
    return values.reshape(-1, values.shape[-1])


def _share(part: Any, whole: int) -> float:
    return float(part) / whole if whole else float("nan")
