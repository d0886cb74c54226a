"""Time our fixed-point search against CtDB's: Adam on the speed from many starts, on trained flip-flop networks.

Run ``python benchmarks/fixed_points.py``; with ``--write`` its section of ``benchmarks/README.md`` is replaced.

CtDB's algorithm is written anew from its description: 1024 visited states, moved by Adam (rate 1e-2, single precision)
for 10,000 iterations to lower q = |F(x) - x|^2 / 2, without an end criterion. What it does after that (Jacobians of all
1024 end points, one by one) is not counted; in ours Jacobians and eigenvalues are. Both run on one thread under no
input, in CPU seconds, because a search of minutes meets whatever else the machine does. The points that are counted for
Adam are those to which our Newton's method leads from its end points, which by themselves are none.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from common import machine, write_section  # noqa: E402
from ctdb.dynamics import FixedPoints, find_fixed_points  # noqa: E402
from ctdb.networks.base import Network, load  # noqa: E402
from ctdb.networks.train import train_network  # noqa: E402
from ctdb.tasks.base import Task, build, simulation_trials, training_trials  # noqa: E402

TITLE = "## Fixed points against CtDB's search (`fixed_points.py`)"
N_STARTS, ITERATIONS, RATE = 1024, 10_000, 1e-2
TRAINING = {
    64: {"max_epochs": 60, "batch_size": 50, "learning_rate": 1e-2, "plateau": {"patience": 6}},
    256: {"max_epochs": 40, "batch_size": 50, "learning_rate": 3e-3, "plateau": {"patience": 6}},
}


def trained(size: int, seed: int, folder: Path) -> Path:
    """Folder of a network that remembers three bits; trained now where it is not there yet."""
    out = folder / f"{size}_{seed}"
    if not (out / "spec.yaml").exists():
        task = flip_flop(seed)
        spec = {"kind": "noisy_gru", "hidden_size": size, "training": TRAINING[64 if size < 128 else 256]}
        train_network(spec, task, training_trials(task), seed, out)
    return out


def flip_flop(seed: int) -> Task:
    """The task: three bits, 100 bins."""
    drawn = {"train": {"n_trials": 1000, "seed": seed}, "simulate": {"n_trials": 100, "seed": 100}}
    return build({"kind": "nbff", "n_bits": 3, "n_bins": 100, "switch_prob": 0.02, **drawn})


def adam(network: Network, starts: Tensor, iterations: int) -> Tensor:
    """End points of CtDB's search, in single precision."""
    x, input = starts.float().requires_grad_(), torch.zeros(len(starts), network.n_inputs)
    optimiser = torch.optim.Adam([x], lr=RATE)
    for _ in range(iterations):
        optimiser.zero_grad()
        (0.5 * ((network.step(x, input) - x) ** 2).sum(1)).mean().backward()
        optimiser.step()
    return x.detach().double()


def polished(network: Network, ends: Tensor) -> Tensor:
    """Distinct fixed points to which our method leads from end points of the search."""
    points = find_fixed_points(network.step, ends, starts="given")
    reached = points.start_point[: len(ends)]
    return points.x[reached[reached >= 0].unique()]


def measure(size: int, seed: int, folder: Path, iterations: int, rounds: int) -> str:
    """Row of the table for one network."""
    directory = trained(size, seed, folder)
    network, single = load(directory), load(directory, torch.float32).requires_grad_(False)
    with torch.no_grad():
        states, _ = network.run(torch.from_numpy(simulation_trials(flip_flop(seed)).inputs))
    states = states.flatten(0, 1)
    chosen = torch.randint(len(states), (N_STARTS,), generator=torch.Generator().manual_seed(seed))
    start = time.process_time()
    ends = adam(single, states[chosen], iterations)
    theirs = (time.process_time() - start) * ITERATIONS / iterations
    seconds, ours = [], None
    for _ in range(rounds):
        start = time.process_time()
        ours = find_fixed_points(network.step, states)
        seconds.append(time.process_time() - start)
    return row(size, seed, theirs, statistics.median(seconds), ours, ends, polished(network, ends), network)


def row(
    size: int, seed: int, theirs: float, own: float, ours: FixedPoints, ends: Tensor, points: Tensor, network: Network
) -> str:
    """One line: who found what in which time."""
    speed = (network.step(ends, torch.zeros(len(ends), network.n_inputs).double()) - ends).norm(dim=1).median()
    lacking = int((torch.cdist(points, ours.x).amin(1) > 1e-3 * ours.radius).sum())
    index = "/".join(str(n) for n in ours.index.bincount(minlength=4).tolist())
    return (
        f"| {size} | {seed} | {theirs:.1f} | {own:.2f} | **{theirs / own:.0f}** | {len(points)} | "
        f"{len(ours)} ({index}) | {lacking} | {speed:.0e} | {ours.residual.max():.0e} |"
    )


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--seeds", type=int, default=3, help="networks of 64 units; one of each other size")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="of Adam; its time is scaled up to 10,000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", type=Path, help="where trained networks are, or will be, kept")
    parser.add_argument("--write", action="store_true", help="replace this benchmark's section of README.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder, rows = given.networks or Path(scratch), []
        for size in given.sizes:
            for seed in range(given.seeds if size == 64 else 1):
                rows.append(measure(size, seed, folder, given.iterations, given.rounds))
                print(rows[-1], flush=True)
    told = "" if given.iterations == ITERATIONS else f" (timed over {given.iterations}, scaled up)"
    body = "\n".join(
        [
            f"{machine('torch')}.",
            "",
            f"Trained NoisyGRUs, 3 bits. CtDB's search: {N_STARTS} starts, {ITERATIONS} iterations{told}. CPU seconds, "
            "one thread.",
            "",
            "| units | seed | CtDB's s | ours s | **ratio** | CtDB's points of 27 | ours (by unstable directions) | "
            "theirs that ours lacks | CtDB's median speed | our largest |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
        ]
    )
    print(body)
    if given.write:
        write_section(TITLE, body)


if __name__ == "__main__":
    main()
