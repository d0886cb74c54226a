"""Spikes in bins: against a loop over spikes, on edges, and of a real recording."""

from itertools import pairwise

import numpy as np
import pytest

from ctdb.datasets.ibl.binning import bin_spikes


def by_hand(times, clusters, units, edges):
    """Spike by spike and bin by bin."""
    counts = np.zeros((len(edges), edges.shape[1] - 1, len(units)))
    for window, own in enumerate(edges):
        for t, (low, high) in enumerate(pairwise(own)):
            for time, cluster in zip(times, clusters, strict=True):
                if low <= time < high and cluster in units:
                    counts[window, t, list(units).index(cluster)] += 1
    return counts


@pytest.mark.parametrize("units", [[0, 1, 2, 3, 4], [3, 0], [4], [2, 9]])
@pytest.mark.parametrize("seed", [0, 1])
def test_counts_are_those_of_a_loop_over_spikes(units, seed):
    rng = np.random.default_rng(seed)
    align = rng.uniform(-0.5, 10.5, 7)  # some windows reach beyond the spikes, some overlap
    edges = align[:, None] + (-0.3 + 0.1 * np.arange(9))
    times = np.sort(np.concatenate([rng.uniform(0, 10, 120), edges.ravel(), edges.ravel()]))  # many on edges
    clusters = rng.integers(0, 5, len(times)).astype(np.int32)
    counts = bin_spikes(times, clusters, np.array(units), edges)
    assert counts.dtype == np.float32
    np.testing.assert_array_equal(counts, by_hand(times, clusters, units, edges))


@pytest.mark.parametrize("bin_s", [0.005, 0.02, 0.1])
def test_a_spike_on_an_edge_is_counted_once_in_the_bin_it_begins(bin_s):
    edges = (3.7 + bin_s * np.arange(101))[None]
    counts = bin_spikes(edges[0], np.zeros(101, np.int64), np.array([0]), edges)
    np.testing.assert_array_equal(counts[0, :, 0], np.ones(100))  # the last edge is beyond the window


def test_windows_that_adjoin_share_no_spike_and_lose_none():
    edges = (np.arange(0, 40, 10)[:, None] + np.arange(11)) * 0.005
    times = np.repeat(np.arange(41) * 0.005, 2)
    counts = bin_spikes(times, np.zeros(82, np.int32), np.array([0]), edges)
    np.testing.assert_array_equal(counts, np.full((4, 10, 1), 2))


def test_no_spikes_and_no_units_are_no_error():
    edges = np.arange(4.0)[None]
    empty = bin_spikes(np.empty(0), np.empty(0, np.int32), np.array([2]), edges)
    np.testing.assert_array_equal(empty, np.zeros((1, 3, 1)))
    assert bin_spikes(np.array([0.5]), np.array([1]), np.empty(0, np.int64), edges).shape == (1, 3, 0)


@pytest.mark.parametrize("bin_s", [0.005, 0.02])
def test_a_real_recording_gives_the_counts_of_histograms(data_file, bin_s):
    spikes = np.load(data_file("ibl_spikes_120s.npz"))
    units, n_spikes = np.unique(spikes["clusters"], return_counts=True)
    starts = np.arange(0, 120, 2.0)
    edges = starts[:, None] + bin_s * np.arange(round(2 / bin_s) + 1)
    counts = bin_spikes(spikes["times"], spikes["clusters"], units, edges)
    for column in (0, len(units) // 2, n_spikes.argmax()):
        own = spikes["times"][spikes["clusters"] == units[column]]
        expected = [np.histogram(own[own < row[-1]], row)[0] for row in edges]  # its last bin would hold the last edge
        np.testing.assert_array_equal(counts[:, :, column], expected)
    assert counts.sum() == len(spikes["times"])
