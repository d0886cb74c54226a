"""Time drawing trials of the 15 cognitive tasks against a Python loop over trials, as the reference implementation has.

Run ``python benchmarks/multitask_generation.py``; with ``--write`` its section of ``benchmarks/README.md`` is replaced.

Both sides draw stimuli, inputs with and without noise, targets and loss weights of all 15 sub-tasks in a window of 320
bins, on one thread. They are timed in turn in one process, and the ratio is the median over the rounds of each round's
own ratio, so that a machine that is busy with other things slows both alike. The loop draws as the reference
implementation does, with ``np.random``'s functions, in double precision, one sub-task after the other; with ``--lean``
its noise comes from numpy's newer, faster generator and all of it is in single precision.
"""

import argparse
import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402

from common import faster_than_a_loop, in_turn, machine, write_section  # noqa: E402
from ctdb.tasks.base import TaskTrials, build  # noqa: E402
from ctdb.tasks.multitask import SUBTASKS  # noqa: E402

TITLE = "## Drawing trials of the 15 cognitive tasks (`multitask_generation.py`)"
N_BINS, N_ANGLES, INPUT_NOISE = 320, 32, 0.3
DURATIONS = {
    "delay": [(15, 35), (10, 75), None, None, None, (15, 35)],
    "memory": [(15, 35), (10, 80), (10, 80), None, None, (15, 35)],
    "react": [(25, 125), None, None, None, None, (15, 85)],
    "int": [(10, 30), (10, 80), (10, 80), (10, 80), (5, 15), (15, 35)],
    "match": [(10, 30), (10, 80), (10, 80), None, None, (15, 35)],
}
"""Bins of context, first stimulus, memory, second stimulus, memory and response, the last not reached."""


def family(name: str) -> str:
    """Which durations a sub-task has."""
    return next((kind for kind in ("delay", "memory", "react", "match") if kind in name), "int")


def draw_trial(name: str, rng: np.random.RandomState) -> dict:
    """What is random in a trial: its durations, the angles and amplitudes of its stimuli."""
    durations = [0 if span is None else rng.randint(*span) for span in DURATIONS[family(name)]]
    grid = np.linspace(-np.pi, np.pi, N_ANGLES, endpoint=False)
    angle_1 = angle_2 = grid[rng.randint(N_ANGLES)]
    amplitudes = [[1.0, 1.0], [0.0, 0.0]]
    if family(name) == "int":
        angle_2 = angle_1 + np.deg2rad(rng.uniform(90, 270))
        changes = [0.0, 0.0]
        for modality in range(2):
            changes[modality] = rng.choice([0.08, 0.16, 0.32]) * rng.choice([-1, 1])
        while name == "context_int_multimodal" and changes[0] == -changes[1]:
            changes[1] = rng.choice([0.08, 0.16, 0.32]) * rng.choice([-1, 1])
        for modality in range(2):
            mean = rng.uniform(0.8, 1.2)
            amplitudes[modality] = [mean + changes[modality], mean - changes[modality]]
        if name == "int_mod1":
            amplitudes[1] = [0.0, 0.0]
        elif name == "int_mod2":
            amplitudes[0] = [0.0, 0.0]
    elif name.startswith("match_cat"):
        angle_2 = grid[rng.randint(N_ANGLES)]
    elif family(name) == "match":
        if name == "non_match2sample":
            angle_2 = angle_1 + np.pi
        if rng.choice([True, False]):
            angle_2 = angle_2 + np.deg2rad(rng.randint(10, 350))
            return {"durations": durations, "angles": (angle_1, angle_2), "amplitudes": amplitudes, "match": False}
    return {"durations": durations, "angles": (angle_1, angle_2), "amplitudes": amplitudes, "match": True}


def build_trial(name: str, drawn: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs without noise, targets and loss weights of one trial, phase by phase."""
    context, stim1, mem1, stim2, mem2, response = drawn["durations"]
    kind, (angle_1, angle_2), amplitudes = family(name), drawn["angles"], drawn["amplitudes"]
    stim1_end = context + stim1
    stim2_start = stim1_end + mem1
    stim2_end = stim2_start + stim2
    start = stim2_end + mem2
    end = start + response
    inputs, targets, weight = np.zeros((end, 20)), np.zeros((end, 3)), np.ones((end, 3))
    inputs[: end if kind in ("react", "match") else start, 0] = 1
    inputs[:, 5 + SUBTASKS.index(name)] = 1
    shown_1 = {"delay": slice(context, end), "react": slice(start, end)}.get(kind, slice(context, stim1_end))
    for modality in range(2):
        inputs[shown_1, 1 + 2 * modality] = amplitudes[modality][0] * np.cos(angle_1)
        inputs[shown_1, 2 + 2 * modality] = amplitudes[modality][0] * np.sin(angle_1)
        if kind in ("int", "match"):
            shown_2 = slice(stim2_start, stim2_end) if kind == "int" else slice(start, end)
            inputs[shown_2, 1 + 2 * modality] = amplitudes[modality][1] * np.cos(angle_2)
            inputs[shown_2, 2 + 2 * modality] = amplitudes[modality][1] * np.sin(angle_2)

    answer = angle_1
    if kind == "int":
        judged = [1] if name.endswith("int_mod2") else [0, 1] if name.endswith("multimodal") else [0]
        strengths = [sum(amplitudes[modality][stimulus] for modality in judged) for stimulus in range(2)]
        answer = angle_1 if strengths[0] >= strengths[1] else angle_2
    elif kind == "match":
        same_side = (angle_1 < 0) == (angle_2 < 0)
        responds = {"match_cat_pro": same_side, "match_cat_anti": not same_side}.get(name, drawn["match"])
        answer = angle_2 if responds else None
    elif name.endswith("anti"):
        answer = angle_1 + np.pi
    targets[:start, 0] = 1
    if answer is not None:
        targets[start:, 1], targets[start:, 2] = np.cos(answer), np.sin(answer)
    weight[start:] = 5
    weight[:5] = 0
    weight[start : start + 5] = 0
    return inputs, targets, weight


def draw_in_a_loop(n_trials: int, seed: int, lean: bool) -> dict[str, np.ndarray]:
    """Trials drawn one by one, one sub-task after the other, from the description of the reference implementation."""
    rng, fast, dtype = np.random.RandomState(seed), np.random.default_rng(seed), np.float32 if lean else np.float64
    widths = {"inputs": 20, "inputs_true": 20, "targets": 3, "loss_weight": 3}
    parts = {key: [] for key in widths}
    for name in SUBTASKS:
        n_of_subtask = n_trials // len(SUBTASKS)
        drawn = {key: np.zeros((n_of_subtask, N_BINS, width), dtype) for key, width in widths.items()}
        for trial in range(n_of_subtask):
            inputs, targets, weight = build_trial(name, draw_trial(name, rng))
            end = len(inputs)
            noise = fast.standard_normal(inputs.shape, dtype=dtype) if lean else rng.randn(*inputs.shape)
            drawn["inputs"][trial, :end] = inputs + INPUT_NOISE * noise
            drawn["inputs_true"][trial, :end] = inputs
            drawn["targets"][trial, :end] = targets
            drawn["loss_weight"][trial, :end] = weight
        for key, array in drawn.items():
            parts[key].append(array)
    return {key: np.concatenate(arrays) for key, arrays in parts.items()}


def check_equal(trials: TaskTrials) -> None:
    """Given the same durations, angles and amplitudes, both sides must have the same inputs, targets and weights."""
    for trial, condition in enumerate(trials.condition):
        name, shown = SUBTASKS[condition], trials.inputs_true[trial].astype(np.float64)
        start, end = trials.extra["response_start"][trial], trials.extra["response_end"][trial]
        # Phases meet where the stimuli change, or at the start of the response; phases that do not occur last 0 bins.
        changes = np.flatnonzero(np.abs(np.diff(shown[:end, 1:5], axis=0)).sum(1)) + 1
        kind, met = family(name), [int(change) for change in changes if change < start]
        edges = met + [int(start)] * (5 - len(met))
        seen = [shown[edges[0], 1:5], shown[edges[2] if kind == "int" else start, 1:5]]
        vectors = [[stimulus[:2], stimulus[2:]] for stimulus in seen]
        amplitudes = [[float(np.hypot(*vectors[stimulus][modality])) for stimulus in range(2)] for modality in range(2)]
        strongest = [int(np.hypot(*both[1]) > np.hypot(*both[0])) for both in vectors]
        angles = [float(np.arctan2(*both[m][::-1])) for both, m in zip(vectors, strongest, strict=True)]
        # pi is the grid's -pi, which single precision cannot tell from it.
        angles = [
            angle - 2 * np.pi if angle > np.pi - 1e-6 else 0.0 if abs(angle) < 1e-6 else angle for angle in angles
        ]
        drawn = {
            "durations": np.diff([0, *edges, end]).tolist(),
            "angles": angles,
            "amplitudes": amplitudes,
            "match": bool(trials.extra["responds"][trial]),
        }
        for ours, theirs in zip(
            (trials.inputs_true, trials.targets, trials.loss_weight), build_trial(name, drawn), strict=True
        ):
            np.testing.assert_allclose(ours[trial, :end], theirs, atol=2e-6)
            assert not ours[trial, end:].any()


def measure(n_trials: int, n_rounds: int, lean: bool) -> dict[str, list[float]]:
    """Seconds of each side in each round."""
    task = build({"kind": "multitask", "n_bins": N_BINS, "input_noise": INPUT_NOISE})
    drawn = task.settings.simulate.model_copy(update={"n_trials": n_trials, "n_angles": N_ANGLES})
    check_equal(task.generate(drawn.model_copy(update={"n_trials": 1500}), np.random.default_rng(0)))
    sides = {
        "loop": lambda: draw_in_a_loop(n_trials, 1, lean),
        "ctdb": lambda: task.generate(drawn, np.random.default_rng(1)),
    }
    return in_turn(sides, n_rounds)


def report(seconds: dict[str, list[float]], size: str) -> str:
    """Table of the measurement, as Markdown."""
    equal = "Given the same durations, angles and amplitudes, both sides have equal inputs, targets and weights."
    return faster_than_a_loop(seconds, "trials", f"{size}: inputs, targets, loss weights and noise", equal)


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=15000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lean", action="store_true", help="let the loop have the faster generator")
    parser.add_argument("--write", action="store_true", help="replace this benchmark's section of README.md")
    given = parser.parse_args()
    seconds = measure(given.trials, given.rounds, given.lean)
    loop = "lean" if given.lean else "as the reference has it"
    size = f"{given.trials} trials x {N_BINS} bins x 20 inputs, the loop {loop}"
    body = f"{machine('numpy')}.\n\n{report(seconds, size)}"
    print(body)
    if given.write:
        write_section(TITLE, body)


if __name__ == "__main__":
    main()
