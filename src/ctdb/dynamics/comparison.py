"""Compare the fixed points of a network with those of a model that was fitted to its spikes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ctdb.dynamics.jacobians import Step
from ctdb.dynamics.known import EXACT
from ctdb.dynamics.points import FixedPoints
from ctdb.errors import DynamicsError
from ctdb.metrics.r2 import linear_map

KICK = 1e-3
"""How far from a point its unstable manifold is entered, in radii of the visited states."""
AT_REST = 1e-4
"""Speed, in radii per bin, of a state that has arrived: gates that hardly move take ten thousands of bins to rest."""
LOOK = 10
"""Bins between looks at where the states are."""


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
        Jaccard index of the connections (:func:`connections`) between matched points, from those with one unstable
        direction: a manifold of more has ends beyond number, of which eigenvectors that are alike pick any. NaN where
        no steps were given.
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
    within: float = 0.3,
    variance_kept: float = 0.9,
    truth_step: Step | None = None,
    found_step: Step | None = None,
) -> FixedPointComparison:
    """Match found fixed points to true ones, one to one, and compare the dynamics around them.

    Found points are carried into the true state space by the linear regression of state R2 (inferred to true), and
    matched so that as many pairs as possible lie within `within`, at the least total distance. Distances count in the
    true states' leading principal components alone: fixed points often lie off the visited states, in directions of
    which a fit cannot know, because nothing varied along them.

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
    variance_kept
        Share of the true states' variance that the components hold in which distances count.
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
    centred = true - true.mean(0)
    singular, axes = np.linalg.svd(centred, full_matrices=False)[1:]
    variance = float((singular**2).sum()) / len(true)
    if variance == 0:
        raise DynamicsError("the true states do not vary, so that there is no unit of distance; give those of trials")
    unexplained = float(((true - inferred @ weights - offset) ** 2).mean(0).sum())
    aligned = found.x.numpy() @ weights + offset
    held = np.cumsum(singular**2) / (variance * len(true))
    axes = axes[: 1 + int(np.searchsorted(held, variance_kept))]
    between = (truth.x.numpy()[:, None] - aligned[None]) @ axes.T
    distances = np.linalg.norm(between, axis=2) / np.sqrt(variance)
    # Where a pair is too far, it costs more than all near ones together.
    rows, columns = linear_sum_assignment(np.where(distances <= within, distances, within * (len(distances) + 1)))
    near = distances[rows, columns] <= within
    pairs = np.stack([rows[near], columns[near]], 1)
    i, j = torch.from_numpy(pairs).T
    distance = distances[pairs[:, 0], pairs[:, 1]]
    growth = [points.eigenvalues[:, 0].abs().log() / (points.bin_s or 1.0) for points in (truth, found)]
    own, other = growth[0][i], growth[1][j]
    ratio = torch.where(own == other, 1.0, own / other).numpy()  # of 0 or infinity too, which have no quotient
    edges = float("nan")
    if truth_step is not None and found_step is not None:
        lines = (truth.index[i] == 1) | (found.index[j] == 1)
        true_edges = connections(truth, truth_step)[i][lines][:, i]
        found_edges = connections(found, found_step)[j][lines][:, j]
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
    and the imaginary part of a complex one), until it hardly moves, and is nearest to a stable point and less than half
    as far from it as from the next stable one; or until `max_bins` are over.

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
    input, end = points.input[origin], torch.full((len(starts),), -1)
    lost = torch.zeros(len(starts), dtype=torch.bool)
    out_of_reach = (input[:, None] != points.input[None]).any(2)
    for bin in range(max_bins):
        going = ((end < 0) & ~lost).nonzero()[:, 0]
        if not len(going):
            break
        before = x[going]
        with torch.no_grad():
            x[going] = step(before, input[going])
        if bin % LOOK:
            continue
        distance = torch.cdist(x[going], points.x, compute_mode=EXACT).masked_fill(out_of_reach[going], torch.inf)
        nearest = distance.argmin(1)
        to_stable = distance.masked_fill(~points.stable, torch.inf).sort(1)[0][:, :2]
        second = to_stable[:, 1] if to_stable.shape[1] > 1 else torch.inf
        at_rest = (x[going] - before).norm(dim=1) < AT_REST * points.radius
        arrived = at_rest & points.stable[nearest] & (to_stable[:, 0] < 0.5 * second)
        arrived &= to_stable[:, 0] < 0.5 * points.radius
        end[going[arrived]] = nearest[arrived]
        # Who stands still to the last bit, on a saddle by symmetry, stays; and who has left the numbers comes not back.
        lost[going] = (x[going] == before).all(1) | ~x[going].isfinite().all(1)
    found[origin[end >= 0], end[end >= 0]] = True
    return found


def _flat(values: Any) -> Float[np.ndarray, "samples states"]:
    values = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, np.float64)
    return values.reshape(-1, values.shape[-1])


def _share(part: Any, whole: int) -> float:
    return float(part) / whole if whole else float("nan")
