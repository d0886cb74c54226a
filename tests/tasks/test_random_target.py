"""Reaching: trials against a plain loop, the arm against MotorNet's own environment, and what is refused."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ctdb.errors import ConfigError, TaskError
from ctdb.recurrent import Noise
from ctdb.tasks.base import Rollout, TaskTrials, build, simulation_trials, training_trials

pytest.importorskip("motornet", reason="MotorNet is not installed")
LINKS = (0.309, 0.333)
N = 1000


def make_task(**settings):
    return build({"kind": "random_target", **settings})


def draw(task, phase="train", n_trials=N, rng=0, **drawn):
    return task.generate(
        getattr(task.settings, phase).model_copy(update={"n_trials": n_trials, **drawn}), np.random.default_rng(rng)
    )


def hand(angles):
    """Two links in the plane, written out."""
    shoulder, elbow = angles
    x = LINKS[0] * math.cos(shoulder) + LINKS[1] * math.cos(shoulder + elbow)
    return x, LINKS[0] * math.sin(shoulder) + LINKS[1] * math.sin(shoulder + elbow)


@pytest.fixture(scope="module", params=["train", "simulate"])
def drawn(request):
    task = make_task()
    return task, request.param, draw(task, request.param)


def test_every_bin_of_every_trial_follows_from_its_times(drawn):
    """Inputs and targets of 1,000 trials, bin by bin, from what each trial's own arrays tell of its times."""
    _, _, trials = drawn
    for k in range(N):
        go, force = int(trials.extra["go_bin"][k]), trials.extra["force"][k]
        true, target = trials.inputs_true[k], trials.targets[k]
        n_bins = len(true)
        start = hand(trials.extra["start_angles"][k])
        shown = np.flatnonzero((true[:, :2] != 0).any(1))
        target_on, goal = shown[0], true[shown[0], :2]
        is_catch = go == -1
        for t in range(n_bins):
            cued = not is_catch and t >= go
            visible = t >= target_on and not cued
            assert tuple(true[t, :2]) == (tuple(goal) if visible else (0, 0))
            assert true[t, 2] == pytest.approx(0.15 if cued else 0)
            assert tuple(true[t, 3:]) == tuple(force[t])
            assert target[t] == pytest.approx(goal if cued else start, abs=1e-6)
        assert trials.condition[k] == 2 * is_catch + bool(force.any())
    assert (trials.loss_weight == 1).all()
    assert trials.n_bins is None


def test_times_are_uniform_in_their_ranges(drawn):
    _, phase, trials = drawn
    go = trials.extra["go_bin"]
    shown = (trials.inputs_true[:, :, :2] != 0).any(2)
    target_on = shown.argmax(1)
    if phase == "simulate":
        assert set(target_on) == {30}
        assert set(go) == {70}
        assert trials.inputs.shape[1] == 155
        return
    assert_uniform(target_on, 10, 30)
    reaches = go >= 0
    assert abs((~reaches).mean() - 0.2) < 5 * math.sqrt(0.2 * 0.8 / N)
    assert (go[reaches] >= target_on[reaches] + 5).all()
    assert go.max() < 300
    # Given its earliest bin, a cue is uniform until the end, so its relative place is uniform between 0 and 1.
    earliest = target_on[reaches] + 5
    place = (go[reaches] - earliest + 0.5) / (300 - earliest)
    assert_uniform(np.floor(place * 10), 0, 10)


def assert_uniform(values, low, high):
    """Whole numbers in [low, high), by a chi-square far in the tail."""
    assert low <= values.min()
    assert values.max() < high
    counts = np.bincount(np.asarray(values, int) - low, minlength=high - low)
    expected = len(values) / (high - low)
    chi2 = ((counts - expected) ** 2 / expected).sum()
    k = high - low - 1
    assert chi2 < k + 5 * math.sqrt(2 * k)


def test_starts_and_goals_are_uniform_in_joint_angles(drawn):
    _, _, trials = drawn
    degrees = np.rad2deg(trials.extra["start_angles"].astype(float))
    for joint, (low, high) in enumerate([(30, 105), (30, 125)]):
        assert low - 1e-4 <= degrees[:, joint].min() < low + 2
        assert high - 2 < degrees[:, joint].max() <= high + 1e-4
        assert_uniform(np.clip(np.floor((degrees[:, joint] - low) / (high - low) * 10), 0, 9), 0, 10)
    shown = (trials.inputs_true[:, :, :2] != 0).any(2)
    goals = trials.inputs_true[np.arange(N), shown.argmax(1), :2]
    reach = np.hypot(*goals.T)
    nearest, farthest = (np.hypot(*hand(np.deg2rad([60, elbow]))) for elbow in (125, 30))
    assert nearest - 1e-5 < reach.min()
    assert reach.max() < farthest + 1e-5
    elbow = np.arccos(np.clip((reach**2 - LINKS[0] ** 2 - LINKS[1] ** 2) / (2 * LINKS[0] * LINKS[1]), -1, 1))
    assert_uniform(np.clip(np.floor((np.rad2deg(elbow) - 30) / 95 * 10), 0, 9), 0, 10)
    behind = np.arctan2(LINKS[1] * np.sin(elbow), LINKS[0] + LINKS[1] * np.cos(elbow))
    shoulder = np.rad2deg(np.arctan2(*goals.T[::-1]) - behind)
    assert_uniform(np.clip(np.floor((shoulder - 30) / 75 * 10), 0, 9), 0, 10)
    for start in degrees.T:
        for angle in (shoulder, np.rad2deg(elbow)):
            assert abs(np.corrcoef(start, angle)[0, 1]) < 5 / math.sqrt(N)


def test_bumps_have_the_asked_size_direction_duration_and_time(drawn):
    _, phase, trials = drawn
    force, go = trials.extra["force"], trials.extra["go_bin"]
    bumped = force.any((1, 2))
    n_bins = force.shape[1]
    sizes, directions, onsets, lengths = [], [], [], []
    for k in np.flatnonzero(bumped):
        at = np.flatnonzero(force[k].any(1))
        assert (np.diff(at) == 1).all()
        assert (force[k, at] == force[k, at[0]]).all()
        sizes.append(np.hypot(*force[k, at[0]]))
        directions.append(math.atan2(force[k, at[0], 1], force[k, at[0], 0]))
        onsets.append(at[0])
        if at[-1] < n_bins - 1:
            lengths.append(len(at))
    assert 5 - 1e-5 <= min(sizes) < 5.1
    assert 9.9 < max(sizes) <= 10 + 1e-5
    assert_uniform(np.clip(np.floor((np.array(sizes) - 5) / 5 * 10), 0, 9), 0, 10)
    assert_uniform(np.clip(np.floor((np.array(directions) + math.pi) / (2 * math.pi) * 8), 0, 7), 0, 8)
    assert_uniform(np.array(lengths), 15, 30)
    assert 0.4 < bumped.mean() < 0.6
    onsets = np.array(onsets)
    if phase == "train":
        since_go = onsets - go[bumped]
        cued = go[bumped] >= 0
        soon = (since_go >= 0) & (since_go < 40)
        # Half begin within 40 bins of the cue; of the others, which begin anywhere in 270 bins, about 15 % do so too.
        assert abs(soon[cued].mean() - 0.5 - 0.5 * 40 / 270) < 0.08
    if phase == "simulate":
        late = onsets >= 70
        assert abs(late.mean() - 0.5) < 5 * 0.5 / math.sqrt(len(onsets))
        assert_uniform(onsets[late], 70, 110)
        assert_uniform(onsets[~late], 0, 67)


def test_inputs_are_the_true_ones_plus_noise(drawn):
    task, _, trials = drawn
    kicks = (trials.inputs - trials.inputs_true[:, :, :3]).astype(np.float64)
    assert abs(kicks.std() - 0.04) < 5 * 0.04 / math.sqrt(2 * kicks.size)
    assert abs(kicks.mean()) < 5 * 0.04 / math.sqrt(kicks.size)
    assert task.input_names[-3:] == ["target x", "target y", "go"]


def test_the_bump_variant_pushes_sideways_at_one_time_on_a_reach_ahead():
    task = make_task()
    trials = draw(
        task,
        "simulate",
        n_trials=200,
        target_on=[10, 11],
        go=[50, 51],
        bump_fraction=1.0,
        bump_at=[60, 61],
        bump_bins=[10, 11],
        bump_newtons=[15.0, 40.0],
        bump_sideways=True,
        start_degrees=[100.0, 120.0],
        goal_offset_m=[0.0, 0.4],
    )
    force = trials.extra["force"]
    assert not force[:, :60].any()
    assert not force[:, 70:].any()
    np.testing.assert_allclose(force[..., 1], 0, atol=1e-5)
    assert set(np.sign(force[:, 65, 0])) == {-1, 1}
    assert 15 <= np.abs(force[:, 65, 0]).min() < np.abs(force[:, 65, 0]).max() <= 40
    start = hand(np.deg2rad([100, 120]))
    np.testing.assert_allclose(trials.targets[:, 0], np.broadcast_to(start, (200, 2)), atol=1e-5)
    np.testing.assert_allclose(trials.targets[:, -1] - trials.targets[:, 0], [[0, 0.4]] * 200, atol=1e-5)


def test_same_seed_same_bytes_and_the_phases_differ():
    task = make_task(train={"seed": 0, "n_trials": 20}, simulate={"seed": 100, "n_trials": 20, "n_bins": 300})
    for name, value in simulation_trials(task).arrays().items():
        assert value.tobytes() == simulation_trials(task).arrays()[name].tobytes()
    split = training_trials(task)
    assert len(split["train"].inputs) == 16
    assert split["train"].inputs.tobytes() == training_trials(task)["train"].inputs.tobytes()
    other = make_task(train={"seed": 1, "n_trials": 20})
    assert split["train"].inputs.tobytes() != training_trials(other)["train"].inputs.tobytes()


def test_trials_come_back_from_their_arrays():
    trials = draw(make_task(), n_trials=5)
    again = TaskTrials.of(trials.arrays())
    assert set(again.extra) == {"force", "start_angles", "go_bin"}
    for name, value in trials.take(np.array([3, 1])).arrays().items():
        np.testing.assert_array_equal(value, again.arrays()[name][[3, 1]])


def noise_of(n_trials, seed=0):
    return Noise(torch.Generator().manual_seed(seed), torch.arange(n_trials))


def test_the_arm_moves_and_senses_as_motornet_s_own_environment():
    """300 steps of random drives and forces, into the joint limits: states and delayed observations, noise off."""
    import motornet

    task = make_task()
    arm, trials = task.body(), draw(task, n_trials=16)
    generator = torch.Generator().manual_seed(3)
    # Drives that last a while, so that the arm gets far, and into its limits.
    drives = torch.rand(16, 10, 6, generator=generator).repeat_interleave(30, 1) ** 2
    force = 20 * torch.randn(16, 300, 2, generator=generator)
    effector = motornet.effector.RigidTendonArm26(muscle=motornet.muscle.MujocoHillMuscle(), timestep=0.01)
    world = motornet.environment.Environment(
        effector, max_ep_duration=4.0, vision_delay=0.05, proprioception_delay=0.02
    )
    tensors = trials.tensors() | {"force": force}
    seen, _ = world.reset(seed=0, options={"batch_size": 16, "joint_state": tensors["start_angles"]})
    state, met = arm.begin(tensors, None)
    limits = 0
    for t in range(300):
        torch.testing.assert_close(arm.observe(state), seen[:, 2:], rtol=1e-4, atol=1e-4)  # theirs shows a goal first
        state = arm.step(
            state, 5 + torch.logit(drives[:, t], eps=1e-7), {name: value[:, t] for name, value in met.items()}
        )
        seen, *_ = world.step(drives[:, t], deterministic=True, endpoint_load=force[:, t])
        for name in ("joint", "muscle", "geometry"):
            torch.testing.assert_close(state[name], world.states[name], rtol=1e-3, atol=1e-3)
        recorded = arm.behavior(state)
        torch.testing.assert_close(recorded[:, :4], world.states["cartesian"], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(recorded[:, 6:], world.states["muscle"][:, 0], rtol=1e-3, atol=1e-3)
        limits += int((state["joint"][:, 1] <= 1e-6).sum() + (state["joint"][:, 1] >= math.radians(155) - 1e-6).sum())
    assert limits > 0


def test_senses_are_late_and_noisy_as_asked():
    task = make_task(vision_delay=4, proprioception_delay=3, vision_noise=0.02, proprioception_noise=0.3)
    arm, trials = task.body(), draw(task, n_trials=300, bump_fraction=1.0)
    tensors = trials.tensors()
    state, met = arm.begin(tensors, noise_of(300))
    hands, looks = [arm.behavior(state)[:, :2]], [arm.observe(state)]
    for t in range(40):
        drive = torch.full((300, 6), 4.0 + 0.05 * t)
        state = arm.step(state, drive, {name: value[:, t] for name, value in met.items()})
        hands.append(arm.behavior(state)[:, :2])
        looks.append(arm.observe(state))
    assert (hands[-1] - hands[20]).abs().max() > 0.02
    # What is looked at before bin t is the hand after bin t - 4, or the start.
    errors = torch.stack([looks[t][:, :2] - hands[max(t - 3, 0)] for t in range(41)])
    late = errors[5:].double().numpy()
    assert abs(late.std() - 0.02) < 5 * 0.02 / math.sqrt(2 * late.size)
    assert abs(late.mean()) < 5 * 0.02 / math.sqrt(late.size)
    quiet, silent = make_task().body(), arm.begin(tensors, None)[1]
    assert not any(silent[name].any() for name in ("vision", "proprioception", "action"))
    assert quiet.begin(tensors, noise_of(300))[1]["action"].std() == pytest.approx(0.005, rel=0.05)
    muscle = torch.stack([look[:, 2:8] for look in looks[4:]])
    clean_arm = make_task(vision_delay=4, proprioception_delay=3, vision_noise=0, proprioception_noise=0).body()
    state, clean = clean_arm.begin(tensors, None)
    clean["action"] = met["action"]
    expected = [clean_arm.observe(state)]
    for t in range(40):
        drive = torch.full((300, 6), 4.0 + 0.05 * t)
        state = clean_arm.step(state, drive, {name: value[:, t] for name, value in clean.items()})
        expected.append(clean_arm.observe(state))
    scatter = (muscle - torch.stack([look[:, 2:8] for look in expected[4:]])).double().numpy()
    assert abs(scatter.std() - 0.3) < 5 * 0.3 / math.sqrt(2 * scatter.size)


def run_of(trials, positions, outputs=None):
    n_trials, n_bins, _ = trials.targets.shape
    behavior = torch.zeros(n_trials, n_bins, 12, dtype=torch.float64)
    behavior[:, :, :2] = torch.as_tensor(positions)
    outputs = torch.full((n_trials, n_bins, 6), -math.inf) if outputs is None else outputs
    return Rollout(None, outputs.double(), torch.zeros(n_trials, n_bins, 17), behavior)


def test_loss_weighs_distance_and_drive_and_looks_ahead_over_the_epochs():
    task = make_task(position_weight=2.0, action_weight=3.0, horizon_epochs=10)
    trials = draw(task, n_trials=4)
    rng = np.random.default_rng(5)
    positions, outputs = rng.normal(size=(4, 300, 2)), torch.from_numpy(rng.normal(size=(4, 300, 6)))
    run = run_of(trials, positions, outputs)
    drive = np.mean((1 / (1 + np.exp(5 - outputs.numpy()))) ** 2)
    for epoch, horizon in ((None, 300), (0, 30), (4, 150), (9, 300), (50, 300)):
        distance = 0.0
        for k in range(4):
            for t in range(horizon):
                distance += ((positions[k, t] - trials.targets[k, t].astype(float)) ** 2).sum()
        expected = 2 * distance / (4 * horizon * 2) + 3 * drive
        assert float(task.loss(run, trials.tensors(), epoch)) == pytest.approx(expected, rel=1e-6)


def test_success_is_ending_within_three_centimetres():
    task = make_task()
    trials = draw(task, n_trials=4)
    positions = trials.targets.astype(float).copy()
    positions[:, :-1] += 1  # only the end counts
    positions[:, -1] += np.array([[0, 0], [0.029, 0], [0.0215, 0.0215], [0, -0.2]])
    assert task.success(run_of(trials, positions), trials.tensors()).tolist() == [1, 1, 0, 0]
    assert task.chance(trials.tensors()) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vision_delay": 0}, "greater than or equal to 1"),
        ({"proprioception_delay": 0}, "greater than or equal to 1"),
        ({"train": {"seed": 0, "n_bins": 20}}, "n_bins 20 leaves no bin for a go cue; it needs at least 35"),
        ({"simulate": {"seed": 0, "n_bins": 60, "go": [70, 71]}}, "it needs at least 71"),
        ({"train": {"seed": 0, "target_on": [30, 31], "go": [20, 40]}}, "may come before the target is on"),
        ({"train": {"seed": 0, "go": [40, 40]}}, "go \\[40, 40\\] is empty"),
        ({"train": {"seed": 0, "bump_newtons": [10.0, 5.0]}}, "the smaller first"),
        ({"train": {"seed": 0, "bump_anywhere": [0, 400]}}, "too short for bumps"),
        ({"train": {"seed": 0, "bump_force": 3.0}}, "Extra inputs"),
        ({"simulate": {"seed": 0, "bump_at": [500, 501]}}, "lies beyond the 155 bins"),
        ({"simulate": {"seed": 0, "start_degrees": [200.0, 60.0]}}, "the shoulder cannot be at 200.0"),
    ],
)
def test_settings_that_cannot_be_drawn_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        make_task(**settings)


def test_goals_out_of_reach_are_refused():
    with pytest.raises(TaskError, match=r"the hand reaches 0.141 to 0.642 m"):
        draw(make_task(), goal_offset_m=[5.0, 0.0])


def test_without_motornet_the_task_names_the_install_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(ConfigError, match=r"pip install 'ctdb\[motor\]'"):
        make_task()
