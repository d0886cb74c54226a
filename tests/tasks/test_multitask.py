"""The fifteen tasks against a plain loop over trials, written from the description of the reference.

The loop reads a trial's random draws (durations, angles, amplitudes) off the noise-free inputs, and from these alone
builds again what the inputs, targets and weights must have been.
"""

import functools
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats

from ctdb.seeds import numpy_generator
from ctdb.tasks.base import Rollout, build, simulation_trials, training_trials

NAMES = [
    "delay_pro",
    "delay_anti",
    "memory_pro",
    "memory_anti",
    "react_pro",
    "react_anti",
    "int_mod1",
    "int_mod2",
    "context_int_mod1",
    "context_int_mod2",
    "context_int_multimodal",
    "match2sample",
    "non_match2sample",
    "match_cat_pro",
    "match_cat_anti",
]
# Bins of each phase, from the first number to one below the second.
LENGTHS = {
    "delay": {"context": (15, 35), "stim1": (10, 75), "response": (15, 35)},
    "memory": {"context": (15, 35), "stim1": (10, 80), "mem1": (10, 80), "response": (15, 35)},
    "react": {"context": (25, 125), "response": (15, 85)},
    "int": {
        **{"context": (10, 30), "stim1": (10, 80), "mem1": (10, 80), "stim2": (10, 80), "mem2": (5, 15)},
        "response": (15, 35),
    },
    "match": {"context": (10, 30), "stim1": (10, 80), "mem1": (10, 80), "response": (15, 35)},
}
MAY_NOT_RESPOND = NAMES[11:]


def family(name):
    if name.startswith(("int", "context_int")):
        return "int"
    if name.startswith(("match", "non_match")):
        return "match"
    return name.split("_")[0]


def make_task(**settings):
    return build({"kind": "multitask", **settings})


def draw(task, n_trials, seed, n_angles=32):
    drawn = task.settings.simulate.model_copy(update={"n_trials": n_trials, "n_angles": n_angles})
    return task.generate(drawn, np.random.default_rng(seed))


def only(name, n_trials=1000, seed=0, n_angles=32, **settings):
    return draw(make_task(subtasks=[name], **settings), n_trials, (seed, NAMES.index(name)), n_angles)


def runs(on):
    """First bin and one above the last of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.r_[False, on, False].astype(int)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def read_off(name, shown):
    """Random draws of a trial: durations by phase, and each stimulus as {modality: (amplitude, angle)}."""
    rule = runs(shown[:, 5 + NAMES.index(name)] == 1)
    assert len(rule) == 1
    assert rule[0][0] == 0
    end = rule[0][1]
    fixation = runs(shown[:, 0] == 1)
    assert len(fixation) == 1
    assert fixation[0][0] == 0
    stimuli = runs((shown[:, 1:5] != 0).any(1))
    kind = family(name)
    if kind == "delay":
        ((on, off),) = stimuli
        assert off == end
        durations = {"context": on, "stim1": fixation[0][1] - on, "response": end - fixation[0][1]}
    elif kind == "memory":
        ((on, off),) = stimuli
        start = fixation[0][1]
        durations = {"context": on, "stim1": off - on, "mem1": start - off, "response": end - start}
    elif kind == "react":
        ((on, off),) = stimuli
        assert off == end
        durations = {"context": on, "response": end - on}
    elif kind == "int":
        (on, off), (on2, off2) = stimuli
        start = fixation[0][1]
        durations = {"context": on, "stim1": off - on, "mem1": on2 - off, "stim2": off2 - on2, "mem2": start - off2}
        durations["response"] = end - start
    else:
        (on, off), (on2, off2) = stimuli
        assert off2 == end
        durations = {"context": on, "stim1": off - on, "mem1": on2 - off, "response": end - on2}
    seen = []
    for on, _ in stimuli:
        x1, y1, x2, y2 = (float(value) for value in shown[on, 1:5])
        seen.append({})
        for modality, x, y in ((1, x1, y1), (2, x2, y2)):
            if x or y:
                seen[-1][modality] = (math.hypot(x, y), math.atan2(y, x))
    return durations, seen


def angle_between(a, b):
    return abs((a - b + math.pi) % (2 * math.pi) - math.pi)


def right_response(name, seen):
    """Angle of the right response; None if there is to be none."""
    kind = family(name)
    angles = [next(iter(stimulus.values()))[1] for stimulus in seen]
    if kind in ("delay", "memory", "react"):
        return angles[0] if name.endswith("pro") else angles[0] + math.pi
    if kind == "int":
        judged = {"int_mod1": [1], "int_mod2": [2], "context_int_mod1": [1], "context_int_mod2": [2]}.get(name, [1, 2])
        strength = [sum(stimulus[modality][0] for modality in judged) for stimulus in seen]
        assert abs(strength[0] - strength[1]) > 0.1  # no trial without an answer
        return angles[0] if strength[0] > strength[1] else angles[1]
    distance = angle_between(*angles)
    same_side = (angles[0] < 0) == (angles[1] < 0)
    responds = {
        "match2sample": distance < 1e-3,
        "non_match2sample": abs(distance - math.pi) < 1e-3,
        "match_cat_pro": same_side,
        "match_cat_anti": not same_side,
    }[name]
    return angles[1] if responds else None


def rebuild(name, durations, seen, n_bins=320):
    """Inputs without noise, targets, weights and start of the response, phase by phase."""
    inputs, targets, weight = np.zeros((n_bins, 20)), np.zeros((n_bins, 3)), np.zeros((n_bins, 3))
    kind, at, spans = family(name), 0, {}
    for phase in ("context", "stim1", "mem1", "stim2", "mem2", "response"):
        spans[phase] = (at, at + durations.get(phase, 0))
        at += durations.get(phase, 0)
    start, end = spans["response"]
    showing = {
        "delay": [("stim1", 0), ("response", 0)],
        "memory": [("stim1", 0)],
        "react": [("response", 0)],
        "int": [("stim1", 0), ("stim2", 1)],
        "match": [("stim1", 0), ("response", 1)],
    }[kind]
    modalities = [2] if name == "int_mod2" else [1, 2] if name.startswith("context") else [1]
    for stimulus in seen:
        assert sorted(stimulus) == modalities
        assert angle_between(stimulus[modalities[0]][1], stimulus[modalities[-1]][1]) < 1e-6
        if kind != "int":
            assert stimulus[1][0] == pytest.approx(1, abs=1e-6)
    for phase, which in showing:
        for t in range(*spans[phase]):
            for modality, (amplitude, angle) in seen[which].items():
                inputs[t, 2 * modality - 1] = amplitude * math.cos(angle)
                inputs[t, 2 * modality] = amplitude * math.sin(angle)
    response = right_response(name, seen)
    for t in range(end):
        inputs[t, 5 + NAMES.index(name)] = 1
        if t < start or kind in ("react", "match"):
            inputs[t, 0] = 1
        if t < start:
            targets[t, 0] = 1
            weight[t] = 0 if t < 5 else 1
        else:
            if response is not None:
                targets[t, 1:] = math.cos(response), math.sin(response)
            weight[t] = 0 if t < start + 5 else 5
    return inputs, targets, weight, start, end, response


def check_against_loop(trials):
    for i, number in enumerate(trials.condition):
        name = NAMES[number]
        durations, seen = read_off(name, trials.inputs_true[i])
        for phase, (low, high) in LENGTHS[family(name)].items():
            assert low <= durations[phase] < high
        inputs, targets, weight, start, end, response = rebuild(name, durations, seen)
        assert np.abs(trials.inputs_true[i] - inputs).max() < 1e-6
        assert np.abs(trials.targets[i] - targets).max() < 1e-6
        assert (trials.loss_weight[i] == weight).all()
        facts = {key: value[i] for key, value in trials.extra.items()}
        assert (facts["response_start"], facts["response_end"], trials.n_bins[i]) == (start, end, end)
        assert facts["responds"] == (response is not None)
        if response is None:
            assert facts["response_angle"] == 0
        else:
            assert angle_between(facts["response_angle"], response) < 1e-5
        outside = (trials.inputs_true[i], trials.inputs[i], trials.targets[i], trials.loss_weight[i])
        assert not any(array[end:].any() for array in outside)


@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_trials_of_each_sub_task_equal_a_plain_loop(name):
    trials = only(name)
    assert (trials.condition == NAMES.index(name)).all()
    check_against_loop(trials)


def test_trials_of_all_sub_tasks_together_equal_a_plain_loop():
    trials = draw(make_task(), 600, 1)
    assert len(np.unique(trials.condition)) == 15
    check_against_loop(trials)


@functools.cache
def what_was_drawn(name):
    """Draws of 1000 trials: durations by phase, angles (trials, stimuli), amplitudes by modality, and responses."""
    trials = only(name, 1000, seed=2)
    read = [read_off(name, shown) for shown in trials.inputs_true]
    durations = {phase: np.array([one[phase] for one, _ in read]) for phase in LENGTHS[family(name)]}
    angles = np.array([[next(iter(stimulus.values()))[1] for stimulus in seen] for _, seen in read])
    amplitudes = {
        modality: np.array([[stimulus[modality][0] for stimulus in seen] for _, seen in read])
        for modality in read[0][1][0]
    }
    return durations, angles, amplitudes, trials.extra["responds"]


def assert_uniform(values, possible):
    """All values are possible, and equally frequent; the seeds are fixed, so this never fails by chance."""
    assert set(values.tolist()) <= set(possible)
    counts = [np.sum(values == value) for value in possible]
    assert len(counts) == 1 or stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_durations_are_uniform_and_independent(name):
    durations, *_ = what_was_drawn(name)
    for phase, (low, high) in LENGTHS[family(name)].items():
        assert_uniform(durations[phase], range(low, high))
        assert durations[phase].min() == low
        assert durations[phase].max() == high - 1
    apart = np.corrcoef(list(durations.values())) - np.eye(len(durations))
    assert np.abs(apart).max() < 5 / math.sqrt(1000)


def grid_index(angles, n_angles=32):
    exact = (np.asarray(angles) + math.pi) / (2 * math.pi / n_angles)
    assert np.abs(exact - np.round(exact)).max() < 1e-4
    return np.round(exact).astype(int) % n_angles


@pytest.mark.parametrize("name", NAMES)
def test_first_angles_are_uniform_on_the_grid(name):
    assert_uniform(grid_index(what_was_drawn(name)[1][:, 0]), range(32))


@pytest.mark.parametrize("n_angles", [2, 7, 128])
def test_other_numbers_of_angles(n_angles):
    trials = only("delay_pro", 1500, seed=3, n_angles=n_angles)
    drawn = [read_off("delay_pro", shown)[1][0][1][1] for shown in trials.inputs_true]
    assert_uniform(grid_index(drawn, n_angles), range(n_angles))


def degrees_apart(angles):
    return np.rad2deg((angles[:, 1] - angles[:, 0]) % (2 * np.pi))


@pytest.mark.parametrize("name", [name for name in NAMES if family(name) == "int"])
def test_integration_stimuli(name):
    _, angles, amplitudes, responds = what_was_drawn(name)
    assert responds.all()
    assert stats.kstest(degrees_apart(angles), stats.uniform(90, 180).cdf).pvalue > 1e-3
    levels = {}
    for modality, sizes in amplitudes.items():
        mean, coherence = sizes.mean(1), (sizes[:, 0] - sizes[:, 1]) / 2
        assert stats.kstest(mean, stats.uniform(0.8, 0.4).cdf).pvalue > 1e-3
        rounded = np.round(coherence, 2)
        assert np.abs(coherence - rounded).max() < 1e-6
        assert_uniform(rounded, [-0.32, -0.16, -0.08, 0.08, 0.16, 0.32])
        levels[modality] = rounded, mean
    if len(levels) == 2:
        (one, mean_one), (two, mean_two) = levels.values()
        assert abs(np.corrcoef(mean_one, mean_two)[0, 1]) < 5 / math.sqrt(1000)
        pairs, counts = np.unique(np.stack([one, two], 1), axis=0, return_counts=True)
        assert len(pairs) == (30 if name == "context_int_multimodal" else 36)
        assert stats.chisquare(counts).pvalue > 1e-3
        assert (np.abs(pairs.sum(1)) > 0.01).all() == (name == "context_int_multimodal")


@pytest.mark.parametrize("name", ["match2sample", "non_match2sample"])
def test_half_of_the_samples_match_and_the_others_are_off_by_whole_degrees(name):
    _, angles, _, responds = what_was_drawn(name)
    many = only(name, 20000, seed=3, duration_scale=0.05, n_bins=20).extra["responds"]
    assert stats.binomtest(int(many.sum()), 20000, 0.5).pvalue > 1e-3
    apart = degrees_apart(angles) - (180 if name == "non_match2sample" else 0)
    off = np.round(apart[responds == 0]) % 360
    assert np.abs(apart - np.round(apart)).max() < 1e-3
    assert set(np.round(apart[responds == 1]) % 360) == {0}
    assert 10 <= off.min() < 15
    assert 345 <= off.max() <= 349
    assert stats.kstest(off, stats.randint(10, 350).cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["match_cat_pro", "match_cat_anti"])
def test_categories(name):
    _, angles, _, responds = what_was_drawn(name)
    index = grid_index(angles)
    assert_uniform(index[:, 1], range(32))
    assert abs(np.corrcoef(index.T)[0, 1]) < 5 / math.sqrt(1000)
    assert stats.binomtest(int(responds.sum()), 1000, 0.5).pvalue > 1e-3
    same = (index[:, 0] < 16) == (index[:, 1] < 16)  # the grid begins at -pi, so its first half is below 0
    np.testing.assert_array_equal(responds, same if name == "match_cat_pro" else ~same)


@pytest.mark.parametrize("name", NAMES)
def test_only_match_sub_tasks_have_trials_without_response_and_their_weight_is_as_high(name):
    trials = only(name, 300, seed=4)
    responds = trials.extra["responds"]
    assert (name in MAY_NOT_RESPOND) == (not responds.all())
    for i in np.flatnonzero(responds == 0):
        start, end = trials.extra["response_start"][i], trials.extra["response_end"][i]
        assert not trials.targets[i, start:end].any()
        assert (trials.loss_weight[i, start + 5 : end] == 5).all()


def test_noise_is_on_all_inputs_in_all_bins_of_the_trial_and_nowhere_else():
    trials = draw(make_task(), 1500, 5)
    inside = np.arange(320) < trials.n_bins[:, None]
    assert not trials.inputs[~inside].any()
    noise = (trials.inputs - trials.inputs_true)[inside].astype(np.float64)
    n = len(noise)
    assert (np.abs(noise.mean(0)) < 5 * 0.3 / math.sqrt(n)).all()
    assert (np.abs(noise.std(0) - 0.3) < 5 * 0.3 / math.sqrt(2 * n)).all()
    assert (np.abs((noise**4).mean(0) / 0.3**4 - 3) < 5 * math.sqrt(96 / n)).all()
    assert np.abs(np.corrcoef(noise.T) - np.eye(20)).max() < 5 / math.sqrt(n)
    assert abs(np.corrcoef(noise[:-1, 3], noise[1:, 3])[0, 1]) < 5 / math.sqrt(n)
    first = noise[np.r_[0, np.cumsum(trials.n_bins)[:-1]], 0]
    assert len(np.unique(first)) > 1490


def test_no_noise_and_other_noise():
    quiet = only("memory_anti", 50, input_noise=0.0)
    np.testing.assert_array_equal(quiet.inputs, quiet.inputs_true)
    loud = only("memory_anti", 50, input_noise=1.2)
    np.testing.assert_array_equal(loud.inputs_true, quiet.inputs_true)
    inside = np.arange(320) < loud.n_bins[:, None]
    assert (loud.inputs - loud.inputs_true)[inside].std() == pytest.approx(1.2, rel=0.02)


def test_types_shapes_and_names():
    task = make_task()
    trials = draw(task, 20, 6)
    shapes = {"inputs": (20, 320, 20), "inputs_true": (20, 320, 20), "targets": (20, 320, 3)}
    shapes["loss_weight"] = (20, 320, 3)
    types = {"condition": np.int64, "n_bins": np.int64, "response_start": np.int64, "response_end": np.int64}
    types |= {"response_angle": np.float32, "responds": np.uint8} | dict.fromkeys(shapes, np.float32)
    arrays = trials.arrays()
    assert set(arrays) == set(types)
    for name, array in arrays.items():
        assert array.dtype == types[name]
        assert array.shape == shapes.get(name, (20,))
        assert np.isfinite(array).all()
    assert task.conditions == NAMES
    assert task.input_names[:5] == ["fixation", "modality 1 cos", "modality 1 sin", "modality 2 cos", "modality 2 sin"]
    assert task.input_names[5:] == [f"rule {name}" for name in NAMES]
    assert task.output_names == ["fixation", "cos", "sin"]


def test_response_angles_are_below_pi_and_not_below_minus_pi():
    trials = draw(make_task(), 1500, 7)
    angle = trials.extra["response_angle"]
    assert angle.min() >= np.float32(-np.pi)
    assert angle.max() < np.float32(np.pi)
    assert angle.min() < -3
    assert angle.max() > 2.9


@pytest.mark.parametrize("n_trials", [15, 100, 1003])
def test_sub_tasks_are_drawn_equally_often_in_random_order(n_trials):
    condition = draw(make_task(), n_trials, 8).condition
    counts = np.bincount(condition, minlength=15)
    assert counts.max() - counts.min() <= 1
    assert counts.sum() == n_trials
    assert (np.diff(condition) < 0).any()
    if n_trials > 1000:
        # Shuffled: a sub-task's trials are anywhere, and the next trial's sub-task is any.
        places = [np.flatnonzero(condition == number).mean() for number in range(15)]
        assert np.abs(np.array(places) - n_trials / 2).max() < 5 * n_trials / math.sqrt(12 * 67)
        assert len(np.unique(np.diff(condition) % 15)) == 15


def test_a_choice_of_sub_tasks_keeps_rules_and_conditions():
    trials = draw(make_task(subtasks=["match_cat_anti", "int_mod2", "react_pro"]), 31, 9)
    numbers, counts = np.unique(trials.condition, return_counts=True)
    assert numbers.tolist() == [4, 7, 14]
    assert sorted(counts) == [10, 10, 11]
    assert trials.inputs_true.shape[2] == 20
    check_against_loop(trials)


def test_same_seed_same_bytes_other_seed_others():
    def drawn(seed):
        return training_trials(make_task(train={"n_trials": 60, "seed": seed}))

    first, again, other = drawn(0), drawn(0), drawn(1)
    for split in ("train", "valid"):
        for name, array in first[split].arrays().items():
            assert array.tobytes() == again[split].arrays()[name].tobytes()
        assert not np.array_equal(first[split].inputs_true, other[split].inputs_true)


def test_another_seed_has_another_noise():
    # The first bins of the first trial: later ones differ anyway, as the trials before them are of other lengths.
    noise, other = (
        (trials.inputs - trials.inputs_true)[0, :10] for trials in (draw(make_task(), 20, s) for s in (0, 1))
    )
    assert np.abs(noise - other).max() > 0.1


def test_torchs_own_random_state_plays_no_part_and_stays_as_it_was():
    torch.manual_seed(1)
    first, after = draw(make_task(), 30, 10), torch.rand(1)
    torch.manual_seed(2)
    again = draw(make_task(), 30, 10)
    assert first.inputs.tobytes() == again.inputs.tobytes()
    torch.manual_seed(1)
    assert after == torch.rand(1)


def test_splits_are_disjoint_and_simulation_is_new():
    task = make_task(train={"n_trials": 50, "seed": 3}, simulate={"n_trials": 20, "seed": 3})
    assert task.settings.simulate.n_angles == 32
    assert task.settings.train.n_angles == 128
    splits = training_trials(task)
    assert {name: len(split.inputs) for name, split in splits.items()} == {"train": 40, "valid": 10}
    everything = task.generate(task.settings.train, numpy_generator("task trials", "train", 3))
    found = {name: {trial.tobytes() for trial in split.inputs} for name, split in splits.items()}
    assert not found["train"] & found["valid"]
    assert found["train"] | found["valid"] == {trial.tobytes() for trial in everything.inputs}
    check_against_loop(splits["valid"])
    simulated = simulation_trials(task)
    assert simulated.inputs.tobytes() == simulation_trials(task).inputs.tobytes()
    assert len(simulated.inputs) == 20


@pytest.mark.parametrize(
    ("settings", "lengths", "n_blind"),
    [
        ({"duration_scale": 0.3}, {"context": (4, 10), "stim1": (3, 24), "mem1": (3, 24), "response": (4, 10)}, 2),
        ({"duration_scale": 0.01}, {"context": (1, 2), "stim1": (1, 2), "mem1": (1, 2), "response": (1, 2)}, 0),
        (
            {"duration_scale": 1.5},
            {"context": (22, 52), "stim1": (15, 120), "mem1": (15, 120), "response": (22, 52)},
            5,
        ),
        (
            {"bin_s": 0.01, "n_bins": 500},
            {"context": (30, 70), "stim1": (20, 160), "mem1": (20, 160), "response": (30, 70)},
            10,
        ),
    ],
)
def test_other_durations_and_bins(settings, lengths, n_blind):
    settings = {"n_bins": 400, **settings}
    trials = only("memory_pro", 2000, seed=11, **settings)
    read = [read_off("memory_pro", shown) for shown in trials.inputs_true]
    for phase, (low, high) in lengths.items():
        found = np.array([durations[phase] for durations, _ in read])
        assert_uniform(found, range(low, high))
        assert (found.min(), found.max()) == (low, high - 1)
    for weight, start, end in zip(
        trials.loss_weight, trials.extra["response_start"], trials.extra["response_end"], strict=True
    ):
        expected = [0] * n_blind + [1] * (start - n_blind) + [0] * n_blind + [5] * (end - start - n_blind)
        assert end - start > n_blind
        assert weight[:end].tolist() == [[value] * 3 for value in expected]
        assert not weight[end:].any()


@pytest.mark.parametrize("scale", [0.011, 0.05, 0.099, 0.1, 0.11, 0.3, 0.5, 0.7, 0.9])
def test_some_of_every_response_counts_at_every_scale(scale):
    trials = draw(make_task(duration_scale=scale), 300, 12)
    rows = np.arange(300)
    assert (trials.loss_weight[rows, trials.extra["response_end"] - 1] == 5).all()


@pytest.mark.parametrize("name", [*NAMES[11:], "memory_pro", "context_int_mod2"])
def test_ctd_compatibility_lacks_the_fixation_target_of_three_match_sub_tasks(name):
    ours, theirs = only(name, 100), only(name, 100, compatibility="ctd")
    np.testing.assert_array_equal(ours.inputs_true, theirs.inputs_true)
    np.testing.assert_array_equal(ours.targets[:, :, 1:], theirs.targets[:, :, 1:])
    if name in NAMES[12:]:
        assert not theirs.targets[:, :, 0].any()
        assert ours.targets[:, 0, 0].all()
    else:
        np.testing.assert_array_equal(ours.targets, theirs.targets)


def test_ctd_compatibility_has_sums_of_both_modalities_that_are_equal():
    trials = only("context_int_multimodal", 3000, seed=13, compatibility="ctd")
    ties = 0
    for i, shown in enumerate(trials.inputs_true):
        _, (first, second) = read_off("context_int_multimodal", shown)
        strength = [sum(size for size, _ in stimulus.values()) for stimulus in (first, second)]
        answers = [stimulus[1][1] for stimulus in (first, second)]
        distances = [angle_between(trials.extra["response_angle"][i], angle) for angle in answers]
        if abs(strength[0] - strength[1]) < 1e-4:
            ties += 1
            assert min(distances) < 1e-5
        else:
            assert distances[int(strength[1] > strength[0])] < 1e-5
    assert stats.binomtest(ties, 3000, 1 / 6).pvalue > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subtasks": ["delay_pro", "memry_pro"]}, "unknown sub-task 'memry_pro'; did you mean 'memory_pro'"),
        ({"subtasks": ["delay_pro", "react_pro", "delay_pro"]}, "sub-task 'delay_pro' is named twice"),
        ({"subtasks": []}, "at least 1 item"),
        ({"n_bins": 313}, "n_bins 313 is too short: a trial of int_mod1 can last 314 bins"),
        ({"subtasks": ["delay_pro", "react_anti"], "n_bins": 207}, "a trial of react_anti can last 208 bins"),
        ({"bin_s": 0.01}, "can last 634 bins"),
        ({"duration_scale": 2.0}, "can last 634 bins"),
        ({"duration_scale": 0.0}, "greater than 0"),
        ({"train": {"n_trials": 14, "seed": 0}}, "train.n_trials 14 is less than one trial for each of the 15"),
        ({"simulate": {"n_trials": 14, "seed": 0}}, "simulate.n_trials 14 is less than one trial for each of the 15"),
        ({"train": {"n_angles": 1, "seed": 0}}, "greater than or equal to 2"),
        ({"compatibility": "ctdb"}, "'none' or 'ctd'"),
    ],
)
def test_bad_settings_are_refused_with_the_remedy(settings, message):
    with pytest.raises(ValidationError) as refused:
        make_task(**settings)
    assert message in str(refused.value)


def test_the_longest_trial_fits_exactly():
    assert make_task(n_bins=314).settings.n_bins == 314
    trials = draw(make_task(subtasks=["delay_pro"], n_bins=142), 3000, 14)
    assert trials.n_bins.max() > 130


def test_one_trial_of_each_sub_task_is_enough():
    task = make_task(train={"n_trials": 15, "seed": 0}, simulate={"n_trials": 15, "seed": 0})
    assert sorted(simulation_trials(task).condition) == list(range(15))


def run_of(outputs, trials):
    outputs = torch.as_tensor(outputs)
    return Rollout(None, outputs, torch.from_numpy(trials.inputs).to(outputs))


def success_of(task, trials, outputs):
    return task.success(run_of(outputs, trials), trials.tensors())


@pytest.mark.parametrize(
    ("length", "degrees_off", "responded", "still"),
    [
        (1, 0, True, False),
        (1, 17.9, True, False),
        (1, -17.9, True, False),
        (1, 18.1, False, False),
        (1, -18.1, False, False),
        (1, 180, False, False),
        (0.51, 0, True, False),
        (0.49, 0, False, True),
        (0.49, 180, False, True),
        (3, 17.9, True, False),
        (3, 180, False, False),
        (0, 0, False, True),
    ],
)
def test_success_by_length_and_angle_of_the_last_answer(length, degrees_off, responded, still):
    task = make_task()
    trials = draw(task, 90, 15)
    # Everything but the last two outputs of the last bin of the response is nonsense, and must not matter.
    outputs = np.random.default_rng(16).normal(0, 9, trials.targets.shape)
    expected = []
    for i, end in enumerate(trials.extra["response_end"]):
        response = right_response(
            NAMES[trials.condition[i]], read_off(NAMES[trials.condition[i]], trials.inputs_true[i])[1]
        )
        angle = (0 if response is None else response) + math.radians(degrees_off)
        outputs[i, end - 1, 1:] = length * math.cos(angle), length * math.sin(angle)
        expected.append(still if response is None else responded)
    success = success_of(task, trials, outputs)
    assert success.dtype == torch.float64
    assert success.tolist() == expected


def test_targets_succeed_and_silence_succeeds_where_no_response_is_due():
    task = make_task()
    trials = draw(task, 150, 17)
    assert (success_of(task, trials, trials.targets) == 1).all()
    silence = success_of(task, trials, np.zeros_like(trials.targets))
    np.testing.assert_array_equal(silence, 1 - trials.extra["responds"])
    nothing = success_of(task, trials, np.full_like(trials.targets, np.nan))
    assert (nothing == 0).all()


def test_ctdb_would_have_passed_a_large_negative_answer_for_none():
    task = make_task(subtasks=["match2sample"])
    trials = draw(task, 40, 18)
    no_response = trials.extra["responds"] == 0
    assert no_response.any()
    assert (success_of(task, trials, np.full_like(trials.targets, -2.0)).numpy()[no_response] == 0).all()


def test_loss_is_summed_over_bins_and_averaged_over_trials_and_outputs():
    task = make_task()
    trials = draw(task, 15, 19)
    outputs = np.random.default_rng(20).normal(size=trials.targets.shape)
    total = 0.0
    for i in range(15):
        for t in range(320):
            for channel in range(3):
                start, end = trials.extra["response_start"][i], trials.extra["response_end"][i]
                weight = 0.0 if t < 5 or t >= end or start <= t < start + 5 else 5.0 if t >= start else 1.0
                total += weight * (outputs[i, t, channel] - trials.targets[i, t, channel]) ** 2
    loss = task.loss(run_of(outputs, trials), trials.tensors())
    assert float(loss) == pytest.approx(total / (15 * 3), rel=1e-12)
    assert float(task.loss(run_of(outputs, trials), trials.tensors(), epoch=3)) == float(loss)
    assert float(task.loss(run_of(trials.targets, trials), trials.tensors())) == 0


def test_answering_the_mean_succeeds_only_where_no_response_is_due():
    task = make_task()
    trials = draw(task, 600, 21)
    chance = task.chance(trials.tensors())
    np.testing.assert_array_equal(task.success(chance, trials.tensors()), 1 - trials.extra["responds"])
