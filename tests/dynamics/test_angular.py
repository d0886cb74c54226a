"""The angle between linear systems: exact cases, exhaustive search, and dsa-metric's own optimiser."""

import numpy as np
import pytest

from ctdb.dynamics.angular import angular_distance
from ctdb.errors import MetricError


def rng(seed=0):
    return np.random.default_rng(seed)


def rotation(size, seed=0):
    return np.linalg.qr(rng(seed).normal(size=(size, size)))[0]


def system(size, seed=0):
    """Slow oscillations that decay, in non-orthogonal coordinates."""
    r = rng(seed)
    blocks = np.zeros((size, size))
    for i in range(0, size - 1, 2):
        angle, decay = r.uniform(0.05, 1.0), r.uniform(0.7, 1.0)
        blocks[i : i + 2, i : i + 2] = decay * np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
    if size % 2:
        blocks[-1, -1] = 0.5
    frame = np.eye(size) + 0.3 * r.normal(size=(size, size)) / np.sqrt(size)
    return frame @ blocks @ np.linalg.inv(frame)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 12])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_rotated_scaled_copy_is_at_zero(size, mirrored):
    A, Q = system(size, 3), rotation(size, 4)
    Q[:, 0] *= -1 if mirrored != (np.linalg.det(Q) < 0) else 1
    assert angular_distance(A, 7 * Q @ A @ Q.T) < 1e-5


@pytest.mark.parametrize("seed", range(4))
def test_rank_two_agrees_with_exhaustive_search(seed):
    A, B = rng(seed).normal(size=(2, 2)), rng(seed + 50).normal(size=(2, 2))
    angles = np.linspace(0, 2 * np.pi, 20001)
    turned = np.array([[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]]).transpose(2, 0, 1)
    maps = np.concatenate([turned, turned @ np.diag([1.0, -1.0])])
    cosines = np.einsum("ij,kij->k", A, maps @ B @ maps.mT) / np.linalg.norm(A) / np.linalg.norm(B)
    assert angular_distance(A, B) == pytest.approx(np.arccos(cosines.max()), abs=1e-6)


def test_opposite_signs_are_furthest():
    assert angular_distance(np.eye(3), -np.eye(3)) == pytest.approx(np.pi)
    assert angular_distance(np.array([[2.0]]), np.array([[-1.0]])) == pytest.approx(np.pi)


def test_it_sees_non_normality_and_frequency():
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    shear = np.array([[1.0, 5.0], [0.0, 1.0]])
    assert angular_distance(turn, shear @ turn @ np.linalg.inv(shear)) > 0.5
    slower, faster = (np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in (0.4, 1.0))
    assert angular_distance(turn, slower) == pytest.approx(0.1, abs=1e-6)
    assert angular_distance(turn, faster) == pytest.approx(0.7, abs=1e-6)


@pytest.mark.parametrize("size", [4, 10])
def test_at_or_below_dsa_metric_which_is_given_copies(size):
    simdist = pytest.importorskip("DSA.simdist", reason="dsa-metric is not installed")
    import torch

    torch.manual_seed(0)
    A, B = system(size, 1), system(size, 2)
    before = A.copy(), B.copy()
    ours = angular_distance(A, B)
    np.testing.assert_array_equal(A, before[0])
    np.testing.assert_array_equal(B, before[1])
    single = A.astype(np.float32), B.astype(np.float32)
    library = simdist.SimilarityTransformDist(iters=1500, score_method="angular", lr=5e-3)
    theirs = float(library.fit_score(single[0].copy(), single[1].copy()))
    assert ours <= theirs + 1e-3 * theirs
    assert ours > 0.3 * theirs


def test_models_of_dsa_metric_are_left_as_they_are():
    library = pytest.importorskip("DSA", reason="dsa-metric is not installed")
    models = [library.DMD(rng(seed).normal(size=(10, 30, 4)), n_delays=2, rank=5) for seed in range(2)]
    for model in models:
        model.fit()
    before = [model.A_v.clone() for model in models]
    angular_distance(*(model.A_v.numpy() for model in models))
    assert all(np.array_equal(model.A_v.numpy(), old.numpy()) for model, old in zip(models, before, strict=True))


def test_symmetric_and_the_same_every_time():
    A, B = system(7, 1), system(7, 2)
    assert angular_distance(A, B) == angular_distance(A, B)
    assert angular_distance(A, B) == pytest.approx(angular_distance(B, A), abs=1e-5)
    assert angular_distance(A, B, seed=1) == pytest.approx(angular_distance(A, B), abs=1e-5)


def test_errors():
    with pytest.raises(MetricError, match="ranks 3 and 4"):
        angular_distance(np.eye(3), np.eye(4))
    with pytest.raises(MetricError, match="not zero"):
        angular_distance(np.zeros((3, 3)), np.eye(3))
    with pytest.raises(MetricError, match="finite"):
        angular_distance(np.full((3, 3), np.nan), np.eye(3))
