"""Phase-coded memory against a plain loop over trials and bins, and against hand-made answers."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from ctdb.tasks.base import Rollout, build, simulation_trials, training_trials

QUICK = {"bin_s": 0.01, "n_bins": 80, "cue_on": [12, 24], "cue_bins": [12, 16]}


def make_task(**settings):
    return build({"kind": "phase_coded_memory", **settings})


def draw(task, n_trials=1000, seed=0):
    return task.generate(task.settings.simulate.model_copy(update={"n_trials": n_trials}), np.random.default_rng(seed))


@pytest.fixture(scope="module", params=[{}, QUICK, {"lags": [0.5, 0.9], "cue_size": 0.7, "weight_before": 0.25}])
def drawn(request):
    task = make_task(**request.param)
    return task, draw(task)


def by_hand(settings, trials, trial):
    """Inputs, target and weight of one trial, bin by bin, from its own few numbers."""
    phase, period = float(trials.extra["phase"][trial]), float(trials.extra["period_s"][trial])
    on, off = int(trials.extra["cue_on"][trial]), int(trials.extra["cue_off"][trial])
    cue = int(trials.condition[trial])
    rows = []
    for t in range(settings.n_bins):
        angle = 2 * math.pi * (t * settings.bin_s) / period + phase
        shown = [math.sin(angle), 0.0, 0.0]
        if on <= t < off:
            shown[1 + cue] = settings.cue_size
        if t < off:
            rows.append((*shown, math.sin(angle), settings.weight_before))
        else:
            rows.append((*shown, math.sin(angle - settings.lags[cue] * math.pi), 1.0))
    return np.array(rows)


def test_trials_equal_a_plain_loop(drawn):
    task, trials = drawn
    for trial in range(1000):
        rows = by_hand(task.settings, trials, trial)
        np.testing.assert_allclose(trials.inputs_true[trial], rows[:, :3], rtol=0, atol=1e-6)
        np.testing.assert_allclose(trials.targets[trial, :, 0], rows[:, 3], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(trials.inputs_true[trial, :, 1:], rows[:, 1:3].astype(np.float32))
        np.testing.assert_array_equal(trials.loss_weight[trial, :, 0], rows[:, 4].astype(np.float32))


def assert_uniform(values, low, high):
    nearly = 0.01 * (high - low)
    assert low <= values.min() < low + nearly
    assert high - nearly < values.max() < high
    assert scipy.stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-3


def assert_all_equally_often(values, low, high):
    counts = np.bincount(values - low, minlength=high - low)
    assert len(counts) == high - low
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_numbers_of_a_trial_are_drawn_evenly_and_apart():
    trials = draw(make_task(), 1000, seed=1)
    extra = trials.extra
    length = extra["cue_off"] - extra["cue_on"]
    assert_uniform(extra["phase"], 0, 2 * np.pi)
    assert_uniform(extra["period_s"], 0.125, 0.25)
    assert_all_equally_often(extra["cue_on"], 60, 120)
    assert_all_equally_often(length, 60, 80)
    assert_all_equally_often(trials.condition, 0, 2)
    numbers = np.stack([extra["phase"], extra["period_s"], extra["cue_on"], length, trials.condition])
    apart = np.corrcoef(numbers)[np.triu_indices(5, 1)]
    assert np.abs(apart).max() < 4.5 / math.sqrt(1000)


def test_input_noise_is_normal_in_all_channels_and_bins():
    trials = draw(make_task(**QUICK), 1000, seed=2)
    noise = (trials.inputs - trials.inputs_true).astype(np.float64)
    for channel in range(3):
        assert scipy.stats.kstest(noise[:, ::4, channel].ravel(), "norm", (0, 0.2)).pvalue > 1e-3
    assert abs(noise.std() - 0.2) < 5 * 0.2 / math.sqrt(2 * noise.size)
    across = np.corrcoef(noise.reshape(-1, 3).T)[np.triu_indices(3, 1)]
    assert np.abs(across).max() < 5 / math.sqrt(noise.size / 3)
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 5 / math.sqrt(noise.size)
    quiet = draw(make_task(input_noise=0.0, **QUICK), 10)
    np.testing.assert_array_equal(quiet.inputs, quiet.inputs_true)


def test_arrays_have_the_types_that_files_and_networks_expect():
    task = make_task(**QUICK)
    trials = draw(task, 7)
    for name in ("inputs", "inputs_true", "targets", "loss_weight"):
        value = getattr(trials, name)
        assert value.dtype == np.float32
        assert value.shape == (7, 80, 3 if name.startswith("inputs") else 1)
    assert trials.condition.dtype == np.int64
    assert {name: value.shape for name, value in trials.extra.items()} == dict.fromkeys(trials.extra, (7,))
    assert task.conditions == ["A", "B"]
    assert (len(task.input_names), len(task.output_names)) == (3, 1)


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


@pytest.mark.parametrize("weight_before", [0.0, 0.3])
def test_loss_is_the_mean_over_trials_of_each_one_s_own_mean_square(weight_before):
    task = make_task(**QUICK, weight_before=weight_before)
    trials = draw(task, 12)
    outputs = np.random.default_rng(1).normal(size=trials.targets.shape)
    each = []
    for trial in range(12):
        total = weight = 0.0
        for t in range(80):
            w = 1.0 if t >= trials.extra["cue_off"][trial] else float(np.float32(weight_before))
            total += w * (outputs[trial, t, 0] - float(trials.targets[trial, t, 0])) ** 2
            weight += w
        each.append(total / weight)
    assert float(task.loss(run_of(outputs, trials), exact(trials))) == pytest.approx(np.mean(each), rel=1e-12)


def test_what_comes_before_the_end_of_the_cue_counts_for_nothing():
    task = make_task(**QUICK)
    trials = draw(task, 50)
    outputs = trials.targets.copy()
    before = np.arange(80)[None] < trials.extra["cue_off"][:, None]
    outputs[before] = 1e3
    run = run_of(outputs, trials)
    assert float(task.loss(run, trials.tensors())) == 0
    assert (task.success(run, trials.tensors()) == 1).all()


def swapped(task, trials):
    """What the other cue would have asked for."""
    angle = 2 * np.pi * task.settings.bin_s * np.arange(task.settings.n_bins) / trials.extra["period_s"][:, None]
    lag = np.pi * np.array(task.settings.lags)[1 - trials.condition]
    return np.sin(angle + trials.extra["phase"][:, None] - lag[:, None])[..., None]


def test_the_right_answer_succeeds_and_the_other_one_fails(drawn):
    task, trials = drawn
    for scale in (1.0, 0.01, 40.0):
        right, wrong = (run_of(scale * answer, trials) for answer in (trials.targets, swapped(task, trials)))
        for tensors in (trials.tensors(), exact(trials)):
            assert (task.success(right, tensors) == 1).all()
            assert (task.success(wrong, tensors) == 0).all()


def test_success_turns_half_way_between_the_two_phases():
    task = make_task(**QUICK, lags=[0.2, 0.8])
    trials = draw(task, 200)
    angle = 2 * np.pi * 0.01 * np.arange(80) / trials.extra["period_s"][:, None] + trials.extra["phase"][:, None]
    # Half way between the lags of 0.2 and 0.8 are 0.5 and, round the other side, 1.5.
    for lag, is_a in ((0.49, True), (0.51, False), (1.49, False), (1.51, True), (1.9, True), (1.1, False)):
        outputs = np.sin(angle - lag * np.pi)[..., None]
        expected = (trials.condition == 0) == is_a
        np.testing.assert_array_equal(task.success(run_of(outputs, trials), exact(trials)).numpy(), expected)


def test_success_of_noise_equals_a_fit_of_each_trial_by_itself_and_is_a_guess():
    task = make_task(**QUICK)
    trials = draw(task)
    outputs = np.random.default_rng(3).normal(size=trials.targets.shape)
    expected = []
    for trial in range(1000):
        t = np.arange(trials.extra["cue_off"][trial], 80)
        angle = 2 * np.pi * 0.01 * t / float(trials.extra["period_s"][trial]) + float(trials.extra["phase"][trial])
        sine, cosine = np.linalg.lstsq(np.stack([np.sin(angle), np.cos(angle)], 1), outputs[trial, t, 0])[0]
        lag = math.atan2(-cosine, sine) / math.pi
        away = [abs((lag - target + 1) % 2 - 1) for target in (0.2, 1.2)]
        expected.append(float(np.argmin(away) == trials.condition[trial]))
    success = task.success(run_of(outputs, trials), exact(trials)).numpy()
    np.testing.assert_array_equal(success, expected)
    assert abs(success.mean() - 0.5) < 4 * 0.5 / math.sqrt(1000)


def test_always_answering_the_mean_is_a_guess_and_an_output_without_a_phase_is_none():
    task = make_task(**QUICK)
    trials = exact(draw(task))
    chance = task.chance(trials)
    assert float(task.loss(chance, trials)) == pytest.approx(0.5, abs=0.02)
    assert abs(float(task.success(chance, trials).mean()) - 0.5) < 4 * 0.5 / math.sqrt(1000)
    silent = chance._replace(outputs=torch.zeros_like(chance.outputs))
    broken = chance._replace(outputs=torch.full_like(chance.outputs, math.nan))
    assert (task.success(silent, trials) == 0).all()
    assert (task.success(broken, trials) == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cue_on": [120, 60]}, r"cue_on \[120, 60\] is empty"),
        ({"cue_bins": [70, 70]}, r"cue_bins \[70, 70\] is empty"),
        ({"cue_bins": [0, 5]}, "a cue must last at least 1 bin"),
        ({"period_s": [0.25, 0.125]}, "the shorter first"),
        ({"period_s": [0.007, 0.25]}, "at least four bins of 0.002 s"),
        ({"lags": [0.2, 2.2]}, "are the same phase"),
        ({"n_bins": 322}, "cues may end as late as with bin 197.*take n_bins of at least 323"),
        ({"bin_s": 0.0005}, "n_bins 400 is too short"),
        ({"cue_size": 0.0}, "cue_size"),
        ({"input_noise": -0.1}, "input_noise"),
        ({"cue_off": 3}, "cue_off"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_task(**settings)


def test_the_shortest_trial_that_is_allowed_can_be_judged():
    task = make_task(n_bins=323)
    trials = draw(task, 300)
    assert (task.success(run_of(trials.targets, trials), trials.tensors()) == 1).all()
    task = make_task(bin_s=0.01, n_bins=9, cue_on=[0, 1], cue_bins=[1, 5], period_s=[0.04, 0.04])
    trials = draw(task, 300)
    assert (task.success(run_of(trials.targets, trials), trials.tensors()) == 1).all()
