"""The flip-flop against a plain triple loop, written from the equations of the reference."""

import math

import numpy as np
import pytest
import torch

from ctdb.seeds import numpy_generator
from ctdb.tasks.base import Rollout, build, simulation_trials, training_trials


def make_task(**settings):
    return build({"kind": "nbff", **settings})


def draw(task, n_trials, rng, **drawn):
    return task.generate(task.settings.simulate.model_copy(update={"n_trials": n_trials, **drawn}), rng)


def looped_states_and_mask(pulses, blind_start=5, blind_after_change=4):
    """Bit by bit, bin by bin: +1 sets, -1 clears; the loss is blind at the start and after a change of target."""
    n_trials, n_bins, n_bits = pulses.shape
    states, mask = np.zeros(pulses.shape), np.ones(pulses.shape)
    for trial in range(n_trials):
        for bit in range(n_bits):
            held = 0.0
            last_change = None
            for t in range(n_bins):
                before = held
                if pulses[trial, t, bit] == 1:
                    held = 1.0
                elif pulses[trial, t, bit] == -1:
                    held = 0.0
                states[trial, t, bit] = held
                if t < blind_start or (last_change is not None and t - last_change <= blind_after_change):
                    mask[trial, t, bit] = 0.0
                if held != before:
                    # The bin of the change is blind only because of an earlier change, never because of itself.
                    last_change = t
    return states, mask


@pytest.mark.parametrize("n_bits", [1, 2, 3, 5])
@pytest.mark.parametrize("switch_prob", [0.01, 0.2])
def test_states_targets_and_loss_mask_equal_a_plain_loop(n_bits, switch_prob):
    task = make_task(n_bits=n_bits, n_bins=200, switch_prob=switch_prob)
    trials = draw(task, 25, np.random.default_rng(n_bits))
    states, mask = looped_states_and_mask(trials.inputs_true)
    assert states.any()
    assert (mask[:, 5:] == 0).any()
    np.testing.assert_array_equal(trials.targets, states)
    np.testing.assert_array_equal(trials.loss_weight, mask)


@pytest.mark.parametrize(("blind_start", "blind_after_change"), [(0, 0), (0, 1), (8, 7), (3, 300)])
def test_other_blind_windows_equal_a_plain_loop(blind_start, blind_after_change):
    task = make_task(n_bins=60, switch_prob=0.1, blind_start=blind_start, blind_after_change=blind_after_change)
    trials = draw(task, 20, np.random.default_rng(1))
    _, mask = looped_states_and_mask(trials.inputs_true, blind_start, blind_after_change)
    np.testing.assert_array_equal(trials.loss_weight, mask)


@pytest.mark.parametrize("switch_prob", [0.01, 0.1, 0.5])
def test_pulses_of_either_sign_come_with_the_switch_probability(switch_prob):
    pulses = draw(make_task(switch_prob=switch_prob), 400, np.random.default_rng(2)).inputs_true
    assert set(np.unique(pulses)) <= {-1.0, 0.0, 1.0}
    late = pulses[:, 3:]
    for sign in (-1, 1):
        share = (late == sign).mean((0, 1))
        standard_error = math.sqrt(switch_prob * (1 - switch_prob) / late[:, :, 0].size)
        assert np.abs(share - switch_prob).max() < 5 * standard_error


def test_pulses_are_independent_across_bins_and_bits():
    pulses = draw(make_task(n_bits=2, switch_prob=0.3), 400, np.random.default_rng(3)).inputs_true[:, 3:]
    n = pulses[:, :, 0].size
    across_bits = np.corrcoef(pulses[:, :, 0].ravel(), pulses[:, :, 1].ravel())[0, 1]
    across_bins = np.corrcoef(pulses[:, 1:, 0].ravel(), pulses[:, :-1, 0].ravel())[0, 1]
    assert abs(across_bits) < 5 / math.sqrt(n)
    assert abs(across_bins) < 5 / math.sqrt(n)


def test_the_first_three_bins_have_no_pulse_and_the_fourth_can():
    pulses = draw(make_task(switch_prob=0.5), 50, np.random.default_rng(4)).inputs_true
    assert (pulses[:, :3] == 0).all()
    assert (pulses[:, 3:] != 0).all()


def test_bit_flips_in_the_very_bin_of_its_pulse():
    trials = draw(make_task(switch_prob=0.3), 50, np.random.default_rng(5))
    assert (trials.targets[trials.inputs_true == 1] == 1).all()
    assert (trials.targets[trials.inputs_true == -1] == 0).all()
    assert (trials.targets[:, :3] == 0).all()


def test_loss_mask_edges():
    task = make_task(n_bits=1, n_bins=300, switch_prob=0.01)
    trials = draw(task, 300, np.random.default_rng(6))
    state, weight, pulse = (a[:, :, 0] for a in (trials.targets, trials.loss_weight, trials.inputs_true))
    assert (weight[:, :5] == 0).all()
    lonely = redundant = 0
    for trial in range(300):
        changes = np.flatnonzero(np.diff(state[trial])) + 1
        for t in changes:
            if t >= 20 and t < 290 and np.sum(np.abs(changes - t) <= 12) == 1:
                lonely += 1
                assert weight[trial, t - 5 : t + 1].tolist() == [1] * 6  # the bin of the change counts
                assert weight[trial, t + 1 : t + 5].tolist() == [0] * 4
                assert weight[trial, t + 5] == 1
        for t in np.flatnonzero(pulse[trial]):
            if t >= 20 and t < 290 and t not in changes and np.sum(np.abs(changes - t) <= 12) == 0:
                redundant += 1
                assert (weight[trial, t : t + 6] == 1).all()  # a pulse that changes nothing hides nothing
    assert lonely > 50
    assert redundant > 50


def test_input_noise_has_the_asked_deviation_and_is_drawn_once_per_trial():
    trials = draw(make_task(input_noise=0.15), 300, np.random.default_rng(7))
    noise = (trials.inputs - trials.inputs_true).astype(np.float64)
    assert abs(noise.mean()) < 5 * 0.15 / math.sqrt(noise.size)
    assert abs(noise.std() - 0.15) < 5 * 0.15 / math.sqrt(2 * noise.size)
    fourth_moment = (noise**4).mean() / 0.15**4
    assert abs(fourth_moment - 3) < 5 * math.sqrt(96 / noise.size)
    assert len(np.unique(noise[:, 0, 0])) > 290


def test_no_noise_leaves_the_pulses():
    trials = draw(make_task(input_noise=0.0, n_bins=50), 10, np.random.default_rng(8))
    np.testing.assert_array_equal(trials.inputs, trials.inputs_true)


def test_all_arrays_are_single_precision_and_of_one_shape():
    trials = draw(make_task(n_bits=2, n_bins=40), 7, np.random.default_rng(9))
    for array in trials.arrays().values():
        assert array.shape == (7, 40, 2)
        assert array.dtype == np.float32


def test_same_seed_same_trials_other_seed_others():
    def drawn(seed):
        return training_trials(make_task(n_bins=30, train={"n_trials": 20, "seed": seed}))

    first, again, other = drawn(0), drawn(0), drawn(1)
    for split in ("train", "valid"):
        for name, array in first[split].arrays().items():
            assert array.tobytes() == again[split].arrays()[name].tobytes()
        assert not np.array_equal(first[split].inputs, other[split].inputs)


def test_train_and_valid_trials_are_disjoint_and_together_are_all():
    task = make_task(n_bins=30, train={"n_trials": 50, "seed": 3}, valid_fraction=0.2)
    splits = training_trials(task)
    everything = draw(task, 50, numpy_generator("task trials", "train", 3))
    assert {name: len(split.inputs) for name, split in splits.items()} == {"train": 40, "valid": 10}
    found = {split: {trial.tobytes() for trial in trials.inputs} for split, trials in splits.items()}
    assert not found["train"] & found["valid"]
    assert found["train"] | found["valid"] == {trial.tobytes() for trial in everything.inputs}
    for trials in splits.values():
        states, mask = looped_states_and_mask(trials.inputs_true)
        np.testing.assert_array_equal(trials.targets, states)
        np.testing.assert_array_equal(trials.loss_weight, mask)


def test_simulation_trials_are_new_and_reproducible():
    task = make_task(n_bins=30, train={"n_trials": 20, "seed": 0}, simulate={"n_trials": 15, "seed": 100})
    simulated = simulation_trials(task)
    assert simulated.inputs.shape == (15, 30, 3)
    assert simulated.inputs.tobytes() == simulation_trials(task).inputs.tobytes()
    trained = {trial.tobytes() for split in training_trials(task).values() for trial in split.inputs}
    assert not trained & {trial.tobytes() for trial in simulated.inputs}


def run_of(outputs, trials):
    outputs = torch.as_tensor(outputs)
    return Rollout(None, outputs, torch.from_numpy(trials.inputs).to(outputs))


def test_loss_is_the_mean_over_all_entries_of_the_masked_squared_error():
    task = make_task(n_bits=2, n_bins=20, switch_prob=0.2)
    trials = draw(task, 4, np.random.default_rng(10))
    outputs = np.random.default_rng(11).normal(size=trials.targets.shape)
    total = 0.0
    for index in np.ndindex(outputs.shape):
        total += trials.loss_weight[index] * (outputs[index] - trials.targets[index]) ** 2
    loss = task.loss(run_of(outputs, trials), trials.tensors())
    assert float(loss) == pytest.approx(total / outputs.size, rel=1e-12)
    assert 0 < trials.loss_weight.mean() < 1  # masked entries dilute the mean, so it matters what it is taken over


def test_success_is_the_share_of_counted_outputs_on_the_right_side():
    task = make_task(n_bits=2, n_bins=30, switch_prob=0.2)
    trials = draw(task, 5, np.random.default_rng(12))
    outputs = np.random.default_rng(13).normal(0.5, 1, trials.targets.shape)
    expected = []
    for trial in range(5):
        right = counted = 0
        for index in np.ndindex(30, 2):
            if trials.loss_weight[trial][index]:
                counted += 1
                right += (outputs[trial][index] > 0.5) == (trials.targets[trial][index] == 1)
        expected.append(right / counted)
    success = task.success(run_of(outputs, trials), trials.tensors())
    np.testing.assert_allclose(success, expected, rtol=1e-12)
    perfect = task.success(run_of(trials.targets, trials), trials.tensors())
    assert (perfect == 1).all()


def test_a_step_stimulus_is_added_to_one_input_for_half_of_the_trial_and_changes_no_target():
    task = make_task(n_bins=40, switch_prob=0.1, input_noise=0.1)
    plain = draw(task, 300, np.random.default_rng(14))
    stepped = draw(task, 300, np.random.default_rng(14), step_stimulus=True)
    for added in (stepped.inputs - plain.inputs, stepped.inputs_true - plain.inputs_true):
        assert not added[:, :10].any()
        assert not added[:, 30:].any()
        sizes = added[:, 10:30]
        np.testing.assert_allclose(sizes, np.broadcast_to(sizes[:, :1], sizes.shape), atol=1e-6)
        bits = sizes[:, 0] > 0.4
        assert (bits.sum(1) == 1).all()
        assert (np.abs(bits.mean(0) - 1 / 3) < 5 * math.sqrt(2 / 9 / 300)).all()
        size = sizes[:, 0].sum(1)
        assert 0.5 - 1e-5 <= size.min() < 0.55 < 1.45 < size.max() <= 1.5 + 1e-5
    np.testing.assert_array_equal(stepped.targets, plain.targets)
    np.testing.assert_array_equal(stepped.loss_weight, plain.loss_weight)
