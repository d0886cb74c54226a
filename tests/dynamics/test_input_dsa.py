"""InputDSA: how inputs enter is seen, coordinates are not."""

import numpy as np
import pytest

from ctdb.dynamics.input_dsa import controllability_distance, input_dsa
from ctdb.errors import MetricError

TRIALS, BINS = 30, 60


def rng(seed=0):
    return np.random.default_rng(seed)


def rotation(size, seed):
    return np.linalg.qr(rng(seed).normal(size=(size, size)))[0]


A1 = rotation(4, 1) * np.array([0.95, 0.9, 0.8, 0.7])
A2 = 0.85 * rotation(4, 2)
B1, B2 = rng(3).normal(size=(4, 2)), rng(4).normal(size=(4, 2))


def driven(A, B, frame, seed, noise=0.02):
    r = rng(seed)
    u = r.normal(size=(TRIALS, BINS, B.shape[1]))
    x, y = np.zeros((TRIALS, len(A))), []
    for t in range(BINS):
        y.append(x @ frame)
        x = x @ A.T + u[:, t] @ B.T + noise * r.normal(size=x.shape)
    return np.stack(y, 1), u


@pytest.fixture(scope="module")
def four():
    """A system, the same in other coordinates and other trials, one of other dynamics, one of other inputs."""
    frame, other = rotation(6, 5)[:4], rotation(6, 6)[:4]
    return [driven(A1, B1, frame, 1), driven(A1, B1, other, 2), driven(A2, B1, frame, 3), driven(A1, B2, frame, 4)]


def compared(four, **settings):
    pytest.importorskip("DSA", reason="dsa-metric is not installed")
    return input_dsa([y for y, _ in four], [u for _, u in four], **settings)


def test_a_rotated_copy_of_the_matrices_is_at_zero():
    Q = rotation(4, 7)
    assert controllability_distance(A1, B1, Q @ A1 @ Q.T, Q @ B1) < 1e-9
    assert controllability_distance(A1, B1, A1, B2) > 0.5


@pytest.mark.parametrize(
    ("compare", "alike", "unlike"), [("joint", [1], [2, 3]), ("control", [1], [3]), ("state", [1, 3], [2])]
)
def test_each_comparison_sees_its_part(four, compare, alike, unlike):
    distances = compared(four, compare=compare, n_null=0).distances
    np.testing.assert_array_equal(distances, distances.T)
    assert distances[0, unlike].min() > 5 * distances[0, alike].max()


def test_halves_of_a_system_are_alike_and_settings_are_recorded(four):
    found = compared(four, n_null=4)
    assert found.settings["rank"] == 4
    assert found.settings["state_matrices"].shape == (4, 4, 4)
    expected = np.sort(np.abs(np.linalg.eigvals(A1)))
    np.testing.assert_allclose(
        np.sort(np.abs(np.linalg.eigvals(found.settings["state_matrices"][0]))), expected, atol=0.02
    )
    assert found.different()[0].tolist() == [False, False, True, True]


def test_scale_shift_padding_and_threads_do_not_matter(four):
    whole = compared(four, n_null=2)
    moved = compared([(5 * y + 3, u) for y, u in four], n_null=2, n_jobs=2)
    np.testing.assert_allclose(moved.distances, whole.distances, atol=1e-6)
    n_bins = rng(0).integers(30, BINS + 1, TRIALS)
    padded = []
    for y, u in four:
        y, u = y.copy(), u.copy()
        y[np.arange(BINS) >= n_bins[:, None]] = u[np.arange(BINS) >= n_bins[:, None]] = np.nan
        padded.append((y, u))
    cut, clean = (compared(s, n_bins=n_bins, n_null=1) for s in (padded, four))
    np.testing.assert_array_equal(cut.distances, clean.distances)
    np.testing.assert_array_equal(cut.null, clean.null)


def test_errors(four):
    y, u = four[0]
    with pytest.raises(MetricError, match="more than 81 bins"):
        compared(four, n_delays=40)
    with pytest.raises(MetricError, match="needs inputs"):
        compared([(y, u), (y, u[..., :1])])
    with pytest.raises(MetricError, match="need more"):
        compared([(y[:2], u[:2])] * 2, n_delays=10)
    with pytest.raises(MetricError, match="NaN"):
        compared([(y, u), (np.full_like(y, np.nan), u)])
    with pytest.raises(MetricError, match="between 1 and 18"):
        compared([(y, u), (y, u)], rank=20, n_delays=3, n_null=0)
    exact = driven(A1, B1, rotation(6, 5)[:4], 1, noise=0.0)
    with pytest.raises(MetricError, match=r"'0'.*fewer than the rank 6"):
        compared([exact, exact], rank=6, n_null=0)
