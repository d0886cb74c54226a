"""Dynamical similarity analysis: what changes the distances, what must not, and what dsa-metric says."""

from itertools import pairwise

import numpy as np
import pytest

from ctdb.dynamics.dsa import choose_delays, dsa, wasserstein_distance
from ctdb.dynamics.systems import in_threads
from ctdb.errors import MetricError

TRIALS, BINS = 24, 90


def rotation(size, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def oscillator(frequency, seed=0, n_channels=5, noise=0.05, decay=0.98, n_trials=TRIALS, n_bins=BINS):
    """A noisy oscillation of `frequency` radians per bin in channels of its own."""
    r = np.random.default_rng(seed)
    A = decay * np.array([[np.cos(frequency), -np.sin(frequency)], [np.sin(frequency), np.cos(frequency)]])
    x = np.empty((n_trials, n_bins, 2))
    x[:, 0] = r.normal(size=(n_trials, 2))
    for t in range(1, n_bins):
        x[:, t] = x[:, t - 1] @ A.T + 0.1 * r.normal(size=(n_trials, 2))
    return x @ rotation(n_channels, 100 + seed)[:2] + noise * r.normal(size=(n_trials, n_bins, n_channels))


@pytest.fixture(scope="module")
def systems():
    return {f"{f} {s}": oscillator(f, 10 * i + s) for i, f in enumerate((0.1, 0.3, 0.6)) for s in range(2)}


def test_wasserstein_of_known_spectra():
    a = np.array([1.0, 0.5j, -0.5j])
    assert wasserstein_distance(a, a[[2, 0, 1]]) == 0
    assert wasserstein_distance(a, a + 0.1) == pytest.approx(0.01)
    with pytest.raises(MetricError, match="3 and 2"):
        wasserstein_distance(a, a[:2])


@pytest.mark.parametrize("metric", ["wasserstein", "angular"])
def test_rotation_scale_shift_and_order_of_trials_do_not_matter(metric):
    x = oscillator(0.3)
    y = 3 * x @ rotation(5, 1) + np.arange(5)
    found = dsa([x, y, y[::-1], oscillator(0.6)], metric, n_delays=3, rank=4, n_null=0)
    assert found.distances[:3, :3].max() < 1e-6
    assert found.distances[0, 3] > 0.01
    np.testing.assert_array_equal(found.distances, found.distances.T)
    assert not np.diag(found.distances).any()


def test_without_centring_a_shift_changes_the_distance():
    x = oscillator(0.3)
    assert dsa([x, x + 5], n_delays=3, rank=4, n_null=0, centre=False).distances[0, 1] > 1e-3


@pytest.mark.parametrize("metric", ["wasserstein", "angular"])
def test_systems_are_told_apart_and_their_halves_are_not(systems, metric):
    found = dsa(systems, metric, n_null=6 if metric == "angular" else 20)
    kind = np.repeat(np.arange(3), 2)
    same = (kind[:, None] == kind) & ~np.eye(6, dtype=bool)
    across = kind[:, None] != kind
    assert found.distances[same].max() < found.distances[across].min()
    assert found.different()[across].all()
    assert found.null.shape == (6, 6 if metric == "angular" else 20)
    assert found.null.max() < found.distances[across].min()
    assert found.names == tuple(systems)


def test_order_and_points_put_alike_systems_together(systems):
    shuffled = [5, 2, 0, 4, 3, 1]
    names = [list(systems)[i] for i in shuffled]
    found = dsa({name: systems[name] for name in names}, n_null=0)
    kinds = [found.names[i].split()[0] for i in found.order]
    assert len([1 for a, b in pairwise(kinds) if a != b]) == 2
    points = found.points()
    gaps = np.linalg.norm(points[:, None] - points, axis=2)
    nearest = (gaps + 9 * np.eye(6)).argmin(1)
    assert [names[i].split()[0] for i in nearest] == [name.split()[0] for name in names]


def test_farther_frequencies_are_farther():
    found = dsa([oscillator(f, noise=0.0) for f in (0.1, 0.2, 0.4, 0.8)], n_delays=1, rank=2, n_null=0)
    assert (np.diff(found.distances[0]) > 0).all()
    expected = abs(0.98 * np.exp(0.1j) - 0.98 * np.exp(0.8j)) ** 2
    assert found.distances[0, 3] == pytest.approx(expected, rel=0.1)


def test_the_settings_are_chosen_once_and_recorded(systems):
    choice = dsa(systems, n_null=0).settings["choice"]
    assert 2 <= choice.rank <= 6
    assert choice.relative_singular >= 1e-4
    assert 0.5 < choice.explained_variance <= 1
    assert choice.n_delays in choice.errors
    assert all(table.shape[0] == len(systems) for table in choice.errors.values())


def test_a_hidden_dimension_needs_delays():
    one_channel = [oscillator(f, n_channels=2, noise=0.0)[..., :1] for f in (0.2, 0.5)]
    choice = choose_delays(one_channel, (1, 2, 3))
    assert (choice.n_delays, choice.rank) == (2, 2)
    assert choice.errors[2][:, 1].max() < choice.errors[1].min()


def test_settings_are_judged_on_other_trials():
    noise = np.random.default_rng(0).normal(size=(8, 30, 6))
    errors = choose_delays([noise], 3).errors[3][0]
    assert errors[-1] > 1.05 * errors[0]  # on the trials of the fit it would fall
    assert errors[0] == pytest.approx(0.5, abs=0.05)  # no change is twice as bad as the mean


def test_lengths_obey_the_triangle_inequality():
    found = dsa([oscillator(f, noise=0.0) for f in (0.2, 0.4, 0.6)], n_delays=1, rank=2, n_null=0)
    assert found.distances[0, 2] > found.distances[0, 1] + found.distances[1, 2]
    assert found.lengths[0, 2] <= found.lengths[0, 1] + found.lengths[1, 2]
    angles = dsa([oscillator(0.2), oscillator(0.4)], "angular", n_delays=1, rank=2, n_null=0)
    np.testing.assert_array_equal(angles.lengths, angles.distances)


def test_a_rank_beyond_the_rounding_floor_is_never_chosen():
    smooth = np.stack([np.sin(0.1 * np.arange(80) + phase) for phase in np.linspace(0, 6, 12)])[..., None]
    choice = choose_delays([smooth, smooth[::-1]], 10)
    assert choice.rank == 2
    with pytest.raises(MetricError, match=r"'0'.*2 directions"):
        dsa([smooth, smooth], n_delays=10, rank=3, centre=False)


def test_padding_does_not_enter(systems):
    r = np.random.default_rng(0)
    n_bins = r.integers(40, BINS + 1, TRIALS)
    whole, rubbish = [], []
    for x in list(systems.values())[:3]:
        y = x.copy()
        y[np.arange(BINS) >= n_bins[:, None]] = np.nan
        whole.append(x)
        rubbish.append(y)
    a, b = (dsa(s, n_bins=n_bins, n_null=3) for s in (whole, rubbish))
    np.testing.assert_array_equal(a.distances, b.distances)
    np.testing.assert_array_equal(a.null, b.null)
    assert (dsa(whole, n_null=0).distances != a.distances)[0, 1]


@pytest.mark.parametrize("metric", ["wasserstein", "angular"])
def test_threads_and_repetition_change_nothing_and_neither_are_the_states(systems, metric):
    before = {name: x.copy() for name, x in systems.items()}
    one, two = (dsa(systems, metric, n_null=2, n_jobs=n, n_delays=3, rank=4) for n in (1, 2))
    np.testing.assert_array_equal(one.distances, two.distances)
    np.testing.assert_array_equal(one.null, two.null)
    for name, x in systems.items():
        np.testing.assert_array_equal(x, before[name])
    other = dsa(systems, metric, n_null=2, n_delays=3, rank=4, seed=1)
    assert (other.null != one.null).all()
    np.testing.assert_allclose(other.distances, one.distances, atol=1e-4)


def test_distances_are_those_of_dsa_metric(systems):
    library = pytest.importorskip("DSA", reason="dsa-metric is not installed")
    arrays = [x - x.mean((0, 1)) for x in list(systems.values())[::2]]
    theirs = library.DSA([x.copy() for x in arrays], n_delays=4, rank=6).fit_score()
    ours = dsa(arrays, n_delays=4, rank=6, n_null=0).distances
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    uncentred = [x + 2 for x in arrays]
    theirs = library.DSA([x.copy() for x in uncentred], n_delays=4, rank=6).fit_score()
    ours = dsa(uncentred, n_delays=4, rank=6, n_null=0, centre=False).distances
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_errors_say_what_is_wrong():
    x = oscillator(0.3)
    broken = x.copy()
    broken[2, 3] = np.nan
    with pytest.raises(MetricError, match=r"'b'.*NaN"):
        dsa({"a": x, "b": broken})
    with pytest.raises(MetricError, match="same trials and bins"):
        dsa([x, x[:-1]])
    with pytest.raises(MetricError, match="never changes"):
        dsa([x, np.ones_like(x)])
    with pytest.raises(MetricError, match="no system"):
        dsa([])
    with pytest.raises(MetricError, match="too few for 90 delays"):
        dsa([x, x], n_delays=90, rank=2)
    with pytest.raises(MetricError, match="too few for 40 delays"):
        dsa([x[:6], x[:6]], n_delays=40)
    with pytest.raises(MetricError, match="fewer than the rank 6"):
        dsa([x, x], n_delays=1, rank=6)
    with pytest.raises(MetricError, match="too few to choose"):
        dsa([x[:2], x[2:4]])
    with pytest.raises(MetricError, match="n_null to 0"):
        dsa([x[:1], x[1:2]], n_delays=1, rank=2)
    with pytest.raises(MetricError, match="at least 1"):
        in_threads(abs, [(1,)], 0)


def test_one_system_and_one_trial():
    x = oscillator(0.3)
    assert dsa([x]).distances.shape == (1, 1)
    assert dsa([x[:1], x[1:2]], n_delays=1, rank=2, n_null=0).distances[0, 1] >= 0
