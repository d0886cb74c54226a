"""Spike times to counts."""

import numpy as np
from jaxtyping import Float, Integer


def bin_spikes(
    times: Float[np.ndarray, " spikes"],
    clusters: Integer[np.ndarray, " spikes"],
    units: Integer[np.ndarray, " units"],
    edges: Float[np.ndarray, "windows edges"],
) -> Float[np.ndarray, "windows bins units"]:
    """Spikes of each unit in each bin of each window.

    A bin holds its lower edge and not its upper one, so a spike on an edge that two bins share is counted once. Edges
    are compared with the times themselves: dividing by the bin width misplaces about half of the spikes on edges.

    Parameters
    ----------
    times
        Of all spikes, s, sorted.
    clusters
        Cluster of each spike, from 0.
    units
        Clusters to count, each once; the others' spikes are passed over.
    edges
        Of the bins of each window, s, increasing along a window; windows may overlap.

    Returns
    -------
    Counts.
    """
    n_windows, n_bins = edges.shape[0], edges.shape[1] - 1
    counts = np.zeros((n_windows, n_bins, len(units)), np.float32)
    column = np.full(1 + max(int(ids.max()) if len(ids) else -1 for ids in (clusters, units)), -1)
    column[units] = np.arange(len(units))
    border = np.searchsorted(times, edges)
    for window, own in enumerate(border):  # a window at a time: nothing as long as the recording is made
        unit = column[clusters[own[0] : own[-1]]]
        cell = np.repeat(np.arange(n_bins) * len(units), np.diff(own)) + unit
        counts[window] = np.bincount(cell[unit >= 0], minlength=n_bins * len(units)).reshape(n_bins, len(units))
    return counts
