"""Angle between two linear systems after the best orthogonal change of coordinates."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from ctdb.errors import MetricError
from ctdb.seeds import numpy_generator

N_MATCHED, N_RANDOM = 12, 12
"""Starts whose eigenvectors are matched, and starts drawn at random, beside the identity and a swap of two axes."""
N_SCREENED, N_REFINED, N_POLISHED = 60, 1000, 3
"""Iterations of all starts, iterations of the best of them, and how many those are."""


def angular_distance(first: np.ndarray, second: np.ndarray, seed: int = 0) -> float:
    r"""Smallest angle between A and C B C' over orthogonal C, in radians from 0 to pi.

    It ascends :math:`\langle A, C B C^\top\rangle` by
    :math:`C \leftarrow \mathrm{polar}(A Y B^\top + A^\top Y B + s Y)`, where Y extrapolates the last step of C
    (Nesterov), from many starts at once. What it finds is an upper bound, in practice at or below that of dsa-metric
    after 1500 iterations of Adam.

    Parameters
    ----------
    first, second
        Linear maps A and B (rank, rank), such as :attr:`DelayModel.matrix`; they are left as they are.
    seed
        Seed of the random starts.

    Raises
    ------
    MetricError
        If sizes differ, or a matrix is zero or not finite.

    References
    ----------
    Ostrow et al. (2023), Dynamical Similarity Analysis, equation 6.
    """
    a, b = _normalised(first), _normalised(second)
    if a.shape != b.shape:
        raise MetricError(f"the angle compares systems of one rank; found ranks {len(a)} and {len(b)}")
    if len(a) == 1:
        return float(np.pi) if a[0, 0] * b[0, 0] < 0 else 0.0
    maps = _ascend(a, b, _starts(a, b, numpy_generator("angular starts", seed)), N_SCREENED)
    best = np.argsort(-_overlap(a, b, maps), kind="stable")[:N_POLISHED]
    maps = _ascend(a, b, maps[best], N_REFINED)
    gaps = np.linalg.norm(a - maps @ b @ maps.mT, axis=(1, 2))
    return float(2 * np.arcsin(min(gaps.min() / 2, 1.0)))  # of unit matrices; arccos would lose half of the digits


def _normalised(matrix: np.ndarray) -> np.ndarray:
    matrix = np.array(matrix, np.float64)
    size = np.linalg.norm(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(size) or size == 0:
        raise MetricError(f"a linear system is a square, finite matrix that is not zero; found shape {matrix.shape}")
    return matrix / size


def _overlap(a: np.ndarray, b: np.ndarray, maps: np.ndarray) -> np.ndarray:
    return np.einsum("kij,kij->k", a @ maps @ b.T, maps)


def _polar(matrices: np.ndarray) -> np.ndarray:
    left, _, right = np.linalg.svd(matrices)
    return left @ right


def _ascend(a: np.ndarray, b: np.ndarray, maps: np.ndarray, n_iterations: int) -> np.ndarray:
    shift = np.linalg.norm(a, 2) * np.linalg.norm(b, 2)
    shifts = np.full((len(maps), 1, 1), shift)
    before, value, steps = maps, _overlap(a, b, maps), np.zeros(len(maps))
    for _ in range(n_iterations):
        ahead = maps + (steps / (steps + 3))[:, None, None] * (maps - before)
        tried = _polar(a @ ahead @ b.T + a.T @ ahead @ b + shifts * ahead)
        reached = _overlap(a, b, tried)
        better = reached >= value - 1e-15
        gain = np.abs(reached - value)
        shifts = np.where((~better & (steps == 0))[:, None, None], 2 * shifts, shifts)  # too bold without momentum
        before = np.where(better[:, None, None], maps, before)
        maps = np.where(better[:, None, None], tried, maps)
        value, steps = np.where(better, reached, value), np.where(better, steps + 1, 0)
        if better.all() and gain.max() < 1e-14:
            break
    return maps


def _starts(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rank = len(a)
    identity = np.eye(rank)
    matched = [_polar(matrix) for matrix in _matched(a, b, rng)]
    drawn = [np.linalg.qr(rng.normal(size=(rank, rank)))[0] for _ in range(N_RANDOM)]
    return np.stack([identity, identity[[1, 0, *range(2, rank)]], *matched, *drawn])


def _matched(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Maps from the eigenvectors of B to those of A with the nearest eigenvalues; their phases are free, so random."""
    values, vectors = np.linalg.eig(a)
    values_b, vectors_b = np.linalg.eig(b)
    of_a, of_b = linear_sum_assignment(np.abs(values[:, None] - values_b))
    values, vectors, vectors_b = values[of_a], vectors[:, of_a], vectors_b[:, of_b]
    pair = np.unique(np.abs(values.imag).round(9), return_inverse=True)[1]
    maps = []
    for i in range(N_MATCHED):
        turn, sign = rng.uniform(0, 2 * np.pi, len(a))[pair], rng.choice([-1.0, 1.0], len(a))
        phases = np.where(values.imag == 0, sign, np.exp(1j * np.sign(values.imag) * turn))
        maps.append(((vectors * phases) @ (np.linalg.pinv(vectors_b) if i % 2 else vectors_b.conj().T)).real)
    return maps
