"""Time preparing trials of a recording as large as the real ones: 27.5 million spikes, 700 units, 500 trials.

Run ``python benchmarks/ibl_prepare.py``; with ``--write`` its section of ``benchmarks/README.md`` is replaced.

Spikes are drawn uniformly over 4400 s. Binning is timed against a histogram per unit and trial, as is common, on fewer
trials, where both must have equal counts. The memory is the peak of what binning allocates, its counts among it.
"""

import argparse
import os
import statistics
import time
import tracemalloc

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402

from common import in_turn, machine, write_section  # noqa: E402
from ctdb.datasets.ibl.binning import bin_spikes  # noqa: E402
from ctdb.datasets.ibl.trials import TrialFilters  # noqa: E402
from ctdb.datasets.ibl.wheel import bin_means, movement  # noqa: E402

TITLE = "## Preparing recordings (`ibl_prepare.py`)"
DURATION_S = 4400.0


def draw(n_spikes: int, n_units: int, n_trials: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spike times, clusters, and times of trials."""
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, DURATION_S, n_spikes))
    clusters = rng.integers(0, n_units, n_spikes).astype(np.int32)
    return times, clusters, np.sort(rng.uniform(1, DURATION_S - 2, n_trials))


def by_histograms(times: np.ndarray, clusters: np.ndarray, units: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Counts of each unit in each window by `numpy.histogram`, from its own spikes."""
    counts = np.zeros((len(edges), edges.shape[1] - 1, len(units)), np.float32)
    for column, unit in enumerate(units):
        own = times[clusters == unit]
        for window, row in enumerate(edges):
            counts[window, :, column] = np.histogram(own[own < row[-1]], row)[0]
    return counts


def binning(
    times: np.ndarray, clusters: np.ndarray, align: np.ndarray, bin_s: float, rounds: int
) -> tuple[float, float]:
    """Median seconds of binning all clusters, and the peak of what it allocates, in GiB."""
    edges, units = TrialFilters(bin_s=bin_s).edges(align), np.arange(clusters.max() + 1)
    counts = bin_spikes(times, clusters, units, edges)
    assert counts.sum() == np.diff(np.searchsorted(times, edges[:, [0, -1]])).sum()
    del counts
    seconds = in_turn({"ctdb": lambda: bin_spikes(times, clusters, units, edges)}, rounds)["ctdb"]
    tracemalloc.start()
    bin_spikes(times, clusters, units, edges)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return statistics.median(seconds), peak / 2**30


def wheel_seconds(n_trials: int) -> float:
    """Seconds of filtering a wheel of the whole session, and of its means over bins."""
    rng = np.random.default_rng(1)
    times = np.sort(rng.uniform(0, DURATION_S, 400_000))
    position = np.cumsum(rng.normal(0, 1e-3, len(times)))
    edges = TrialFilters().edges(np.sort(rng.uniform(1, DURATION_S - 2, n_trials)))
    start = time.perf_counter()
    wheel = movement(times, position)
    bin_means(wheel.times, wheel.velocity, edges)
    return time.perf_counter() - start


def compare(n_units: int, n_rounds: int) -> list[float]:
    """Ratios of the time of histograms to ours, in each round, on a tenth of the spikes and 20 trials."""
    times, clusters, align = draw(2_750_000, n_units, 20)
    edges, units = TrialFilters().edges(align), np.arange(n_units)
    np.testing.assert_array_equal(
        bin_spikes(times, clusters, units, edges), by_histograms(times, clusters, units, edges)
    )
    sides = {
        "histograms": lambda: by_histograms(times, clusters, units, edges),
        "ctdb": lambda: bin_spikes(times, clusters, units, edges),
    }
    seconds = in_turn(sides, n_rounds)
    return [theirs / ours for theirs, ours in zip(seconds["histograms"], seconds["ctdb"], strict=True)]


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--spikes", type=int, default=27_500_000)
    parser.add_argument("--units", type=int, default=700)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="replace this benchmark's section of README.md")
    given = parser.parse_args()
    drawn = draw(given.spikes, given.units, given.trials)
    rows = []
    for bin_s in (0.02, 0.005):
        seconds, memory = binning(*drawn, bin_s, given.rounds)
        rows.append(f"| {1000 * bin_s:g} ms, {round(2 / bin_s)} bins | {seconds:.2f} | {memory:.2f} |")
    del drawn
    ratios = compare(given.units, given.rounds)
    body = "\n".join(
        [
            f"{machine('numpy', 'scipy')}.",
            "",
            f"{given.spikes / 1e6:g} million spikes of {given.units} units, {given.trials} windows of 2 s; 1 thread, "
            f"median of {given.rounds} rounds.",
            "",
            "| bins | seconds | GiB at most, beyond the spikes |",
            "|---|---|---|",
            *rows,
            "",
            f"A histogram per unit and window takes **{statistics.median(ratios):.0f} times** as long (a tenth of the "
            f"spikes, 20 windows; lowest {min(ratios):.0f}, highest {max(ratios):.0f}), with equal counts. Filtering a "
            f"wheel of {DURATION_S:g} s and its means over bins: {wheel_seconds(given.trials):.2f} s.",
        ]
    )
    print(body)
    if given.write:
        write_section(TITLE, body)


if __name__ == "__main__":
    main()
