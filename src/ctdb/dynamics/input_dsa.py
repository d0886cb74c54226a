"""InputDSA: distances between driven systems, by their dynamics and by how inputs enter."""

from typing import Literal

import numpy as np
from jaxtyping import Float

from ctdb.dynamics.dmd import numerical_rank
from ctdb.dynamics.dsa import wasserstein_distance
from ctdb.dynamics.systems import Comparison, Systems, all_pairs, halves, in_threads, prepared
from ctdb.errors import MetricError
from ctdb.seeds import numpy_generator

Compare = Literal["joint", "control", "state"]
ENERGY = 0.999
"""Share of the squared singular values that the chosen rank holds in every system."""

Driven = tuple[np.ndarray, np.ndarray, np.ndarray]
"""State matrix A, input matrix B, and the singular values behind the rank."""


def input_dsa(
    systems: Systems,
    inputs: Systems,
    compare: Compare = "joint",
    n_delays: int = 5,
    rank: int | None = None,
    n_bins: np.ndarray | None = None,
    n_null: int = 10,
    seed: int = 0,
    n_jobs: int = 1,
) -> Comparison:
    """Distances between all pairs of driven systems.

    dsa-metric's ``SubspaceDMDc`` identifies ``v[t+1] = A v[t] + B u[t]`` from outputs and inputs. Its ``DMDc`` is not
    offered, for it does not tell different B apart, nor is its `joint` distance used: release 2.0.2 applies the inverse
    of the best rotation, so that a rotated copy of a system is far from it. Each system is centred and divided by its
    root mean square; inputs are centred and keep their units.

    Parameters
    ----------
    systems
        Trajectories (trials, bins, channels) with equal trials and bins. Never changed.
    inputs
        What drives each of them, (trials, bins, inputs), with the same number of channels.
    compare
        `joint`: Frobenius distance between the controllability matrices, of powers of A and A' times B, after the best
        rotation; `control`: between the B alone; `state`: :func:`wasserstein_distance` of the eigenvalues of A.
    n_delays
        Bins of the past, and of the future, that the identification sees.
    rank
        States of the identified systems; None for the fewest that hold 99.9 % of the squared singular values of each.
    n_bins
        Valid bins of each trial, the same in all systems.
    n_null
        Number of random halvings of each system's trials.
    seed
        Seed of the halves.
    n_jobs
        Threads.

    Returns
    -------
    Comparison
        `settings` holds `metric`, `n_delays`, `rank`, `state_matrices` and `input_matrices`.

    Raises
    ------
    MetricError
        If dsa-metric is not installed, shapes disagree, trials are too short or few, or `rank` is beyond a system.

    References
    ----------
    Huang, Ostrow et al. (2025), InputDSA; Van Overschee & De Moor (1996), N4SID.
    """
    if compare not in ("joint", "control", "state"):
        raise MetricError(f"compare is {compare!r}; expected 'joint', 'control' or 'state'")
    names, outputs = prepared(systems, n_bins, centre=True, unit=True)
    input_names, drives = prepared(inputs, n_bins, centre=True)
    if len(names) != len(input_names) or any(
        y.shape[:2] != u.shape[:2] or u.shape[2] != drives[0].shape[2] for y, u in zip(outputs, drives, strict=False)
    ):
        raise MetricError("each system needs inputs of the same trials and bins, with one number of input channels")
    n_trials = len(outputs[0])
    lengths = np.full(n_trials, outputs[0].shape[1]) if n_bins is None else np.asarray(n_bins)
    _check_size(outputs, drives, lengths, n_delays, 2 if n_null else 1)
    if rank is None:
        found = in_threads(
            lambda y, u: _identify(y, u, lengths, n_delays, 1)[2], zip(outputs, drives, strict=True), n_jobs
        )
        rank = min(max(_holding(s) for s in found), min(numerical_rank(s) for s in found))

    most = n_delays * min(y.shape[2] for y in outputs)
    if not 1 <= rank <= most:
        raise MetricError(f"rank {rank} is not between 1 and {most}, the channels of {n_delays} delays")

    def fit(y: np.ndarray, u: np.ndarray, trials: np.ndarray) -> Driven:
        return _identify(y[trials], u[trials], lengths[trials], n_delays, rank)

    def distance(first: Driven, second: Driven) -> float:
        return _distance(first, second, compare)

    def between_halves(system: int, draw: int) -> float:
        parts = halves(n_trials, numpy_generator("input dsa null", seed, draw))
        return distance(*(fit(outputs[system], drives[system], part) for part in parts))

    models = in_threads(fit, [(y, u, np.arange(n_trials)) for y, u in zip(outputs, drives, strict=True)], n_jobs)
    for name, model in zip(names, models, strict=True):
        if rank > numerical_rank(model[2]):
            raise MetricError(
                f"system {name!r}: its {n_delays} delays show {numerical_rank(model[2])} states, fewer than the rank "
                f"{rank}. Give a lower rank or more delays"
            )
    null = in_threads(between_halves, [(i, draw) for i in range(len(names)) for draw in range(n_null)], n_jobs)
    settings = {
        "metric": "wasserstein" if compare == "state" else compare,
        "n_delays": n_delays,
        "rank": rank,
        "state_matrices": np.stack([model[0] for model in models]),
        "input_matrices": np.stack([model[1] for model in models]),
    }
    distances = all_pairs(distance, models, n_jobs)
    return Comparison(names, distances, np.asarray(null, np.float64).reshape(len(names), n_null), settings)


def controllability_distance(
    state_a: Float[np.ndarray, "rank rank"],
    input_a: Float[np.ndarray, "rank inputs"],
    state_b: Float[np.ndarray, "rank rank"],
    input_b: Float[np.ndarray, "rank inputs"],
) -> float:
    """Frobenius distance between controllability matrices ``[B, AB, A'B, AAB, ...]`` after the best rotation.

    Orthogonal Procrustes has a closed form: the squared distance is the sum of the squared norms less twice the sum of
    the singular values of the matrices' product (Schoenemann, 1966).
    """
    return _procrustes(_controllability(state_a, input_a), _controllability(state_b, input_b))


def _distance(first: Driven, second: Driven, compare: Compare) -> float:
    if compare == "state":
        return wasserstein_distance(np.linalg.eigvals(first[0]), np.linalg.eigvals(second[0]))
    if compare == "control":
        return _procrustes(first[1], second[1])
    return controllability_distance(first[0], first[1], second[0], second[1])


def _controllability(state: np.ndarray, drive: np.ndarray) -> np.ndarray:
    blocks, forward, backward = [drive], drive, drive
    for _ in range(1, len(state)):
        forward, backward = state @ forward, state.T @ backward
        blocks += [forward, backward]
    return np.hstack(blocks)


def _procrustes(first: np.ndarray, second: np.ndarray) -> float:
    left, _, right = np.linalg.svd(first @ second.T)
    return float(np.linalg.norm(first - left @ right @ second))


def _holding(singular: np.ndarray) -> int:
    share = np.cumsum(singular**2) / (singular**2).sum()
    return min(int(np.searchsorted(share, ENERGY)) + 1, len(singular))


def _check_size(
    outputs: list[np.ndarray], drives: list[np.ndarray], lengths: np.ndarray, n_delays: int, share: int
) -> None:
    if n_delays < 1 or lengths.min() <= 2 * n_delays + 1:
        raise MetricError(
            f"{n_delays} delays need trials of more than {2 * n_delays + 1} bins; the shortest has {lengths.min()}"
        )
    rows = max(2 * n_delays * (y.shape[2] + u.shape[2]) for y, u in zip(outputs, drives, strict=True))
    windows = int((lengths - 2 * n_delays).sum()) // share
    if windows <= rows or len(lengths) < share:
        raise MetricError(
            f"{len(lengths)} trials hold {windows} windows of {2 * n_delays} bins{' per half' if share == 2 else ''}; "
            f"their {rows} channels need more. Use fewer delays, more trials, or the leading principal components"
        )


def _identify(y: np.ndarray, u: np.ndarray, lengths: np.ndarray, n_delays: int, rank: int) -> Driven:
    from DSA import SubspaceDMDc  # slow to import, and not needed by anything else

    outputs = [trial[:length].copy() for trial, length in zip(y, lengths, strict=True)]
    drives = [trial[:length].copy() for trial, length in zip(u, lengths, strict=True)]
    try:
        model = SubspaceDMDc(outputs, control_data=drives, n_delays=n_delays, rank=rank)
        model.fit()
    except (np.linalg.LinAlgError, ValueError) as error:
        raise MetricError(
            f"the driven system cannot be identified with {n_delays} delays, rank {rank}: {error}"
        ) from error
    return np.asarray(model.A_v), np.asarray(model.B_v), np.asarray(model.info["singular_values_O"])
