"""Time a gradient step of reaching (task random_target) against MotorNet's own environment stepped plainly.

Run ``python benchmarks/closed_loop.py``; with ``--write`` its section of ``benchmarks/README.md`` is replaced.

Both sides run a GRU of 64 units and the arm for 100 bins, with delays and all noise, and take the gradient of the same
loss. The plain side steps ``motornet.environment.Environment`` and a ``torch.nn.GRUCell`` in a Python loop, as CtDB
does; it draws its noise in every step with NumPy. First, with the noise off and the same weights, loss and gradients
of both must agree. They are timed in turn in one process, on one thread, and the ratio is the median over the rounds
of each round's own ratio. Compiling is not counted, but told.
"""

import argparse
import os
import statistics
import time

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import motornet  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from common import in_turn, machine, write_section  # noqa: E402
from ctdb.networks.base import Network  # noqa: E402
from ctdb.networks.base import build as build_network  # noqa: E402
from ctdb.networks.rollout import rollout  # noqa: E402
from ctdb.recurrent import Noise, use_backend  # noqa: E402
from ctdb.tasks.base import Rollout, Task, build, simulation_trials  # noqa: E402
from ctdb.tasks.random_target import activation  # noqa: E402

TITLE = "## A closed loop: gradient steps of reaching (`closed_loop.py`)"
HIDDEN, STATE_NOISE, START_NOISE = 64, 0.01, 0.05


class Plain(nn.Module):
    """MotorNet's environment and a GRU cell, one bin after the other."""

    def __init__(self, network: Network, task: Task, noisy: bool):
        super().__init__()
        self.task, self.noisy, s = task, noisy, task.settings
        arm = motornet.effector.RigidTendonArm26(muscle=motornet.muscle.MujocoHillMuscle(), timestep=s.bin_s)
        on = 1.0 if noisy else 0.0
        self.world = motornet.environment.Environment(
            arm,
            max_ep_duration=1e3,
            action_noise=on * s.action_noise,
            proprioception_noise=on * s.proprioception_noise,
            vision_noise=on * s.vision_noise,
            proprioception_delay=s.proprioception_delay * s.bin_s,
            vision_delay=s.vision_delay * s.bin_s,
        )
        self.cell, self.output = nn.GRUCell(network.n_inputs, HIDDEN), nn.Linear(HIDDEN, network.n_outputs)
        own = dict(network.cell.named_parameters())
        with torch.no_grad():
            for name, value in self.cell.named_parameters():
                value.copy_(own[name])
            self.output.load_state_dict(network.output.state_dict())
        self.start = nn.Parameter(network.initial_state.detach().clone())

    def forward(self, trials: dict[str, Tensor]) -> Tensor:
        """Loss of the trials."""
        inputs, force = trials["inputs"], trials["force"]
        seen, _ = self.world.reset(seed=0, options={"batch_size": len(inputs), "joint_state": trials["start_angles"]})
        state = self.start.expand(len(inputs), -1)
        if self.noisy:
            state = state + START_NOISE * torch.randn_like(state)
        outputs, hands = [], []
        for t in range(inputs.shape[1]):
            state = self.cell(torch.cat([seen[:, 2:], inputs[:, t]], 1), state)  # it shows a goal first
            output = self.output(state)
            if self.noisy:
                state = state + STATE_NOISE * torch.randn_like(state)
            seen, *_ = self.world.step(activation(output), deterministic=not self.noisy, endpoint_load=force[:, t])
            outputs.append(output)
            hands.append(self.world.states["fingertip"])
        return self.task.loss(Rollout(None, torch.stack(outputs, 1), inputs, torch.stack(hands, 1)), trials)


def sides(task: Task, trials: dict[str, Tensor], noisy: bool) -> dict[str, tuple[nn.Module, object]]:
    """Module of each side, and a function for its gradient step, which gives the loss."""
    settings = {"state_noise": STATE_NOISE, "initial_state_noise": START_NOISE}
    network = build_network({"kind": "noisy_gru", "hidden_size": HIDDEN, **settings}, 17, 6, seed=0)
    plain, generator, body = Plain(network, task, noisy), torch.Generator().manual_seed(0), task.body()

    def step_plain() -> Tensor:
        plain.zero_grad()
        loss = plain(trials)
        loss.backward()
        return loss.detach()

    def step_ours(backend: str) -> Tensor:
        network.zero_grad()
        noise = Noise(generator, torch.arange(len(trials["inputs"]))) if noisy else None
        with use_backend(backend):
            loss = task.loss(rollout(network, trials, body, noise, states=False), trials)
        loss.backward()
        return loss.detach()

    return {
        "plain": (plain, step_plain),
        "eager": (network, lambda: step_ours("eager")),
        "compiled": (network, lambda: step_ours("cpu")),
    }


def check_equal(task: Task, trials: dict[str, Tensor]) -> str:
    """Loss and gradients of all sides with the noise off, to a thousandth of the largest gradient of each weight."""
    found = {}
    for name, (module, step) in sides(task, trials, noisy=False).items():
        loss = step()
        start = module.start if name == "plain" else module.initial_state
        weights = [*module.cell.parameters(), *module.output.parameters(), start]
        found[name] = (loss, [weight.grad.clone() for weight in weights])
    worst = 0.0
    for name in ("eager", "compiled"):
        torch.testing.assert_close(found[name][0], found["plain"][0], rtol=1e-4, atol=0)
        for ours, theirs in zip(found[name][1], found["plain"][1], strict=True):
            worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
    if worst > 1e-3:
        raise SystemExit(f"gradients differ by {worst:.1e} of their largest value: nothing is timed")
    return f"{worst:.0e}"


def measure(batch: int, n_bins: int, rounds: int) -> tuple[dict[str, list[float]], str, float]:
    """Seconds of each side in each round, how well gradients agree, and seconds of the first compiled step."""
    drawn = {"seed": 0, "n_trials": batch, "n_bins": n_bins, "target_on": [10, 30], "go": [30, 50]}
    task = build({"kind": "random_target", "simulate": drawn | {"bump_anywhere": [0, n_bins - 30]}})
    trials = simulation_trials(task).tensors()
    agreement = check_equal(task, trials)
    steps = {name: step for name, (_, step) in sides(task, trials, noisy=True).items()}
    start = time.perf_counter()
    steps["compiled"]()
    first = time.perf_counter() - start
    return in_turn(steps, rounds), agreement, first


def report(batch: int, seconds: dict[str, list[float]], agreement: str, first: float) -> list[str]:
    """Rows of the table for one batch size."""
    labels = {"plain": "MotorNet's environment", "eager": "ctdb, plain step", "compiled": "ctdb, compiled step"}
    rows = []
    for name, label in labels.items():
        ratios = [plain / ours for plain, ours in zip(seconds["plain"], seconds[name], strict=True)]
        rows.append(
            f"| {batch} | {label} | {1000 * statistics.median(seconds[name]):.0f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {agreement if name != 'plain' else ''} | "
            f"{f'{first:.0f}' if name == 'compiled' else ''} |"
        )
    return rows


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--bins", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="replace this benchmark's section of README.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for batch in given.batches for row in report(batch, *measure(batch, given.bins, given.rounds))]
    body = "\n".join(
        [
            f"{machine('torch', 'motornet')}.",
            "",
            f"GRU of {HIDDEN} units, {given.bins} bins; 1 thread, {given.rounds} rounds in turn.",
            "",
            "| trials | side | median ms | ratio (range) | worst gradient difference | first step, s |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )
    print(body)
    if given.write:
        write_section(TITLE, body)


if __name__ == "__main__":
    main()
