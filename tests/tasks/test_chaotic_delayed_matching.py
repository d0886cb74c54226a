"""Delayed matching against a plain loop over trials and bins, and against hand-made answers."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from ctdb.tasks.base import Rollout, build, simulation_trials, training_trials

PARTS = ("base_bins", "cue1_bins", "delay1_bins", "cue2_bins", "delay2_bins", "response_bins")
QUICK = {"bin_s": 0.01} | dict(zip(PARTS, (5, 20, 20, 20, 20, 20), strict=True))
UNEQUAL = {"cue_size": 0.6} | dict(zip(PARTS, (0, 3, 0, 2, 4, 5), strict=True))


def make_task(**settings):
    return build({"kind": "chaotic_delayed_matching", **settings})


def draw(task, n_trials=1000, seed=0):
    return task.generate(task.settings.simulate.model_copy(update={"n_trials": n_trials}), np.random.default_rng(seed))


def by_hand(settings, pair):
    """Inputs, target and weight of a trial with a pair of cues such as "AB", part by part and bin by bin."""
    size = settings.cue_size
    show = {"A": (size, 0.0), "B": (0.0, size)}
    answer = 1.0 if pair in ("AB", "BA") else -1.0
    rows = []
    for part in PARTS:
        for _ in range(getattr(settings, part)):
            shown = show[pair[0]] if part == "cue1_bins" else show[pair[1]] if part == "cue2_bins" else (0.0, 0.0)
            rows.append((*shown, *((answer, 1.0) if part == "response_bins" else (0.0, 0.0))))
    return np.array(rows, np.float32)


@pytest.mark.parametrize(("settings", "n_bins"), [({}, 1050), (QUICK, 105), (UNEQUAL, 14)])
def test_trials_equal_a_plain_loop(settings, n_bins):
    task = make_task(**settings)
    trials = draw(task)
    assert trials.inputs.shape == (1000, n_bins, 2)
    for trial in range(1000):
        rows = by_hand(task.settings, task.conditions[trials.condition[trial]])
        np.testing.assert_array_equal(trials.inputs_true[trial], rows[:, :2])
        np.testing.assert_array_equal(trials.targets[trial], rows[:, 2:3])
        np.testing.assert_array_equal(trials.loss_weight[trial], rows[:, 3:])
    assert set(trials.condition) == {0, 1, 2, 3}


def test_the_four_pairs_are_equally_likely():
    condition = draw(make_task(**QUICK), 4000, seed=1).condition
    assert scipy.stats.chisquare(np.bincount(condition, minlength=4)).pvalue > 1e-3
    assert abs(np.corrcoef(condition[1:], condition[:-1])[0, 1]) < 4.5 / math.sqrt(4000)


def test_input_noise_is_normal_in_both_channels_and_all_bins():
    trials = draw(make_task(**QUICK), 1000, seed=2)
    noise = (trials.inputs - trials.inputs_true).astype(np.float64)
    for channel in range(2):
        assert scipy.stats.kstest(noise[:, ::4, channel].ravel(), "norm", (0, 0.1)).pvalue > 1e-3
    assert abs(noise.std() - 0.1) < 5 * 0.1 / math.sqrt(2 * noise.size)
    assert abs(np.corrcoef(noise.reshape(-1, 2).T)[0, 1]) < 5 / math.sqrt(noise.size / 2)
    quiet = draw(make_task(input_noise=0.0, **QUICK), 10)
    np.testing.assert_array_equal(quiet.inputs, quiet.inputs_true)


def test_arrays_have_the_types_that_files_and_networks_expect():
    task = make_task(**QUICK)
    trials = draw(task, 7)
    for name in ("inputs", "inputs_true", "targets", "loss_weight"):
        assert getattr(trials, name).dtype == np.float32
    assert trials.condition.dtype == np.int64
    assert (len(task.input_names), len(task.output_names), trials.targets.shape[2]) == (2, 1, 1)


def test_same_seed_same_trials_other_seed_others():
    def both(seed):
        task = make_task(**QUICK, train={"n_trials": 20, "seed": seed}, simulate={"n_trials": 9, "seed": seed + 50})
        return [*training_trials(task).values(), simulation_trials(task)]

    for first, again, other in zip(both(0), both(0), both(1), strict=True):
        for name, array in first.arrays().items():
            assert array.tobytes() == again.arrays()[name].tobytes(), name
        assert not np.array_equal(first.inputs, other.inputs)


def run_of(outputs, trials):
    outputs = torch.as_tensor(np.asarray(outputs))
    return Rollout(None, outputs, torch.from_numpy(trials.inputs).to(outputs))


def exact(trials):
    return {name: value.double() if value.is_floating_point() else value for name, value in trials.tensors().items()}


@pytest.mark.parametrize("settings", [QUICK, UNEQUAL])
def test_loss_and_success_are_of_the_mean_over_the_response(settings):
    task = make_task(**settings)
    trials = draw(task, 60)
    outputs = np.random.default_rng(1).normal(size=trials.targets.shape)
    errors, right = [], []
    for trial in range(60):
        said = [float(outputs[trial, t, 0]) for t in range(outputs.shape[1])][-task.settings.response_bins :]
        answer = sum(said) / len(said)
        wanted = {"AA": -1.0, "AB": 1.0, "BA": 1.0, "BB": -1.0}[task.conditions[trials.condition[trial]]]
        errors.append(abs(answer - wanted))
        right.append(float(answer > 0) if wanted > 0 else float(answer < 0))
    assert 0 < sum(right) < 60
    run = run_of(outputs, trials)
    assert float(task.loss(run, exact(trials))) == pytest.approx(np.mean(errors), rel=1e-12)
    np.testing.assert_array_equal(task.success(run, exact(trials)).numpy(), right)


def test_only_the_response_counts_and_only_its_mean():
    task = make_task(**QUICK)
    trials = draw(task, 50)
    outputs = np.full_like(trials.targets, 1e3)
    outputs[:, -20:] = trials.targets[:, -20:] + np.tile([30.0, -30.0], 10)[None, :, None].astype(np.float32)
    run = run_of(outputs, trials)
    assert float(task.loss(run, trials.tensors())) < 1e-5
    assert (task.success(run, trials.tensors()) == 1).all()


def test_the_right_answer_succeeds_the_opposite_fails_and_noise_is_a_guess():
    task = make_task(**QUICK)
    trials = draw(task)
    tensors = trials.tensors()
    noise = np.random.default_rng(3).normal(size=trials.targets.shape).astype(np.float32)
    assert float(task.loss(run_of(trials.targets, trials), tensors)) == 0
    for scale in (1.0, 0.01):
        assert (task.success(run_of(scale * trials.targets, trials), tensors) == 1).all()
        assert (task.success(run_of(-scale * trials.targets, trials), tensors) == 0).all()
    assert (task.success(run_of(0 * noise, trials), tensors) == 0).all()
    assert (task.success(run_of(math.nan * noise, trials), tensors) == 0).all()
    assert abs(float(task.success(run_of(noise, trials), tensors).mean()) - 0.5) < 4 * 0.5 / math.sqrt(1000)
    chance = task.chance(exact(trials))
    assert abs(float(task.success(chance, exact(trials)).mean()) - 0.5) < 4 * 0.5 / math.sqrt(1000)
    assert float(task.loss(chance, exact(trials))) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", PARTS)
def test_cues_and_response_last_at_least_a_bin_and_nothing_lasts_less_than_none(name):
    shortest = 1 if name in ("cue1_bins", "cue2_bins", "response_bins") else 0
    make_task(**QUICK | {name: shortest})
    with pytest.raises(ValueError, match=rf"{name}\n.*greater than or equal to {shortest}"):
        make_task(**QUICK | {name: shortest - 1})


@pytest.mark.parametrize("settings", [{"cue_size": 0.0}, {"input_noise": -0.1}, {"cue_bins": 20}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        make_task(**settings)
