"""Time drawing 3-bit flip-flop trials against a Python loop over trials and bins, as the reference implementation has.

Run ``python benchmarks/nbff_generation.py``; with ``--write`` its section of ``benchmarks/README.md`` is replaced.

Both sides draw pulses, states, targets, loss mask and input noise of 1000 trials x 500 bins x 3 bits, on one thread.
They are timed in turn in one process, and the ratio is the median over the rounds of each round's own ratio, so that
a machine that is busy with other things slows both alike.
"""

import argparse
import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402

from common import faster_than_a_loop, in_turn, machine, write_section  # noqa: E402
from ctdb.tasks.base import TaskTrials, build  # noqa: E402

TITLE = "## Drawing flip-flop trials (`nbff_generation.py`)"
SWITCH_PROB, INPUT_NOISE, PULSE_FREE_BINS, BLIND_START, BLIND_AFTER_CHANGE = 0.01, 0.15, 3, 5, 4


def looped_states(pulses: np.ndarray) -> np.ndarray:
    """States of one trial (bins, bits), bin by bin and bit by bit: +1 sets, -1 clears, else the bit stays."""
    n_bins, n_bits = pulses.shape
    states, state = np.zeros((n_bins, n_bits)), np.zeros(n_bits)
    for t in range(n_bins):
        for bit in range(n_bits):
            if pulses[t, bit] == 1:
                state[bit] = 1
            elif pulses[t, bit] == -1:
                state[bit] = 0
        states[t] = state
    return states


def loss_mask(states: np.ndarray) -> np.ndarray:
    """0 in the first bins and, per bit, in the bins that follow a change; whole arrays, as the reference has it."""
    changed = np.diff(states, axis=1) != 0
    mask = np.ones(states.shape)
    for delay in range(1, BLIND_AFTER_CHANGE + 1):
        mask[:, 1 + delay :] *= ~changed[:, :-delay]
    mask[:, :BLIND_START] = 0
    return mask


def draw_in_a_loop(n_trials: int, n_bins: int, n_bits: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Trials drawn one by one, from the equations of the reference implementation."""
    shape = (n_trials, n_bins, n_bits)
    trials = {name: np.zeros(shape) for name in ("inputs", "inputs_true", "targets")}
    for trial in range(n_trials):
        draw = rng.random((n_bins, n_bits))
        pulses = np.zeros((n_bins, n_bits))
        pulses[draw > 1 - SWITCH_PROB] = 1
        pulses[draw < SWITCH_PROB] = -1
        pulses[:PULSE_FREE_BINS] = 0
        trials["inputs_true"][trial] = pulses
        trials["targets"][trial] = looped_states(pulses)
        trials["inputs"][trial] = pulses + rng.normal(0, INPUT_NOISE, (n_bins, n_bits))
    return {**trials, "loss_weight": loss_mask(trials["targets"])}


def check_equal(trials: TaskTrials) -> None:
    """Given the same pulses, both sides must have the same states and the same loss mask."""
    states = np.stack([looped_states(pulses) for pulses in trials.inputs_true])
    np.testing.assert_array_equal(states, trials.targets)
    np.testing.assert_array_equal(loss_mask(states), trials.loss_weight)


def measure(n_trials: int, n_bins: int, n_bits: int, n_rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round."""
    settings = {"n_bits": n_bits, "n_bins": n_bins, "switch_prob": SWITCH_PROB, "input_noise": INPUT_NOISE}
    task = build({"kind": "nbff", **settings})
    drawn = task.settings.simulate
    check_equal(task.generate(drawn.model_copy(update={"n_trials": 100}), np.random.default_rng(0)))
    sides = {
        "loop": lambda: draw_in_a_loop(n_trials, n_bins, n_bits, np.random.default_rng(1)),
        "ctdb": lambda: task.generate(drawn.model_copy(update={"n_trials": n_trials}), np.random.default_rng(1)),
    }
    return in_turn(sides, n_rounds)


def report(seconds: dict[str, list[float]], size: str) -> str:
    """Table of the measurement, as Markdown."""
    equal = "Given the same pulses, both sides have equal states and masks."
    return faster_than_a_loop(
        seconds, "trials and bins", f"{size}: pulses, states, targets, loss mask and noise", equal
    )


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--bins", type=int, default=500)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="replace this benchmark's section of README.md")
    given = parser.parse_args()
    seconds = measure(given.trials, given.bins, given.bits, given.rounds)
    body = f"{machine('numpy')}.\n\n{report(seconds, f'{given.trials} trials x {given.bins} bins x {given.bits} bits')}"
    print(body)
    if given.write:
        write_section(TITLE, body)


if __name__ == "__main__":
    main()
