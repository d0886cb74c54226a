"""Open and closed loops: what is recorded is what the network saw and did in that very bin."""

import numpy as np
import pytest
import torch

from ctdb import networks
from ctdb.errors import TaskError
from ctdb.files import read_hdf5, read_yaml
from ctdb.networks import rollout as rollouts
from ctdb.networks.base import build
from ctdb.networks.rollout import rollout
from ctdb.networks.train import record_activity, train_network
from ctdb.recurrent import Noise, cpu, use_backend
from ctdb.tasks import base as tasks
from ctdb.tasks.base import simulation_trials, training_trials

pytest.importorskip("motornet", reason="MotorNet is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = {"n_bins": 20, "target_on": [2, 4], "go": [6, 9], "bump_anywhere": [0, 10], "bump_bins": [2, 4]}


def reaching(**settings):
    train, simulate = ({"seed": seed, "n_trials": 12, **SHORT} for seed in (0, 100))
    return tasks.build({"kind": "random_target", "train": train, "simulate": simulate, **settings})


def network_for(task, **settings):
    spec = {"kind": "noisy_gru", "hidden_size": 8, **settings}
    return build(spec, len(task.input_names), len(task.output_names), seed=0)


def noise_of(trials, seed=0):
    return Noise(torch.Generator().manual_seed(seed), trials)


@pytest.fixture
def loop():
    task = reaching()
    return task, network_for(task, state_noise=0.1), simulation_trials(task).tensors()


def test_every_bin_follows_from_what_was_recorded_of_the_last(loop):
    """Step network and arm apart, from the recorded states, inputs and outputs: the same loop comes out."""
    task, network, trials = loop
    with torch.no_grad(), use_backend("eager"):
        run = rollout(network, trials, task.body(), noise_of(torch.arange(12)))
        arm = task.body()
        body, met = arm.begin(trials, noise_of(torch.arange(12)))
        kicks = []
        for t in range(20):
            torch.testing.assert_close(run.inputs[:, t], torch.cat([arm.observe(body), trials["inputs"][:, t]], 1))
            if t:
                clean = network.step(run.states[:, t - 1], run.inputs[:, t])
                torch.testing.assert_close(run.outputs[:, t], network.readout(clean), rtol=1e-5, atol=1e-6)
                kicks.append(run.states[:, t] - clean)
            body = arm.step(body, run.outputs[:, t], {name: value[:, t] for name, value in met.items()})
            torch.testing.assert_close(run.behavior[:, t], arm.behavior(body))
    kicks = torch.stack(kicks)
    assert abs(kicks.std() - 0.1) < 5 * 0.1 / np.sqrt(2 * kicks.numel())


def test_a_trial_does_not_depend_on_the_others_in_its_batch(loop):
    task, network, trials = loop
    part = torch.tensor([7, 2])
    with torch.no_grad(), use_backend("eager"):
        whole = rollout(network, trials, task.body(), noise_of(torch.arange(12)))
        some = rollout(network, {k: v[part] for k, v in trials.items()}, task.body(), noise_of(part))
    for ours, theirs in zip(whole, some, strict=True):
        torch.testing.assert_close(theirs, ours[part], rtol=1e-4, atol=1e-5)


def test_without_noise_nothing_is_random_and_a_start_can_be_given(loop):
    task, network, trials = loop
    start = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), use_backend("eager"):
        one, two = (rollout(network, trials, task.body()) for _ in range(2))
        other = rollout(network, trials, task.body(), start=start)
        states, _ = network.run(one.inputs, start=start)
        torch.testing.assert_close(states[:, 0], network.step(start, one.inputs[:, 0]))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    torch.testing.assert_close(other.states[:, 0], states[:, 0])
    assert not torch.allclose(other.states[:, 0], one.states[:, 0])


def test_gradients_through_the_loop_are_those_of_finite_differences(loop):
    task, network, trials = loop
    some = {name: value[:3] for name, value in trials.items()}

    def loss():
        with use_backend("eager"):
            return task.loss(rollout(network, some, task.body()), some)

    weight = network.output.bias
    loss().backward()
    for index in (0, 3, 5):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[index] += sign * 0.02
                values.append(loss().item())
                weight[index] -= sign * 0.02
        assert weight.grad[index].item() == pytest.approx((values[0] - values[1]) / 0.04, rel=0.02, abs=2e-6)
    assert network.cell.weight_hh.grad.abs().max() > 0


def test_open_and_closed_loop_agree_on_the_same_inputs(loop):
    task, network, trials = loop
    with torch.no_grad(), use_backend("eager"):
        closed = rollout(network, trials, task.body())
        opened = rollout(network, trials | {"inputs": closed.inputs})
    torch.testing.assert_close(opened.states, closed.states, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(opened.outputs, closed.outputs, rtol=1e-5, atol=1e-6)
    assert opened.behavior is None


def test_a_closed_loop_runs_in_double_precision():
    task = reaching()
    trials, network = simulation_trials(task).tensors(), network_for(task)
    with torch.no_grad(), use_backend("eager"):
        single = rollout(network, trials, task.body(), noise_of(torch.arange(12)))
        double = rollout(network.double(), trials, task.body(), noise_of(torch.arange(12)))
        again = rollout(network.float(), trials, task.body(), noise_of(torch.arange(12)))
    for ours, theirs, repeated in zip(double, single, again, strict=True):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours.float(), theirs, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(repeated, theirs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_closed_loop_runs_on_a_gpu():
    task = reaching()
    trials, network = simulation_trials(task).tensors(), network_for(task)
    on_gpu = {name: value.cuda() for name, value in trials.items()}
    with torch.no_grad(), use_backend("eager"):
        here = rollout(network, trials, task.body(), noise_of(torch.arange(12)))
        there = rollout(network.cuda(), on_gpu, reaching().body(), noise_of(torch.arange(12).cuda()))
    for ours, theirs in zip(there, here, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-3)


def test_where_torch_cannot_compile_the_step_it_runs_plainly_and_says_so_once(monkeypatch, capsys):
    def refuse(*_, **__):
        raise torch._dynamo.exc.InternalTorchDynamoError("no Python.h")

    monkeypatch.setattr(rollouts, "_refused", [])
    monkeypatch.setattr(rollouts, "_compiler", lambda: refuse)
    task = reaching()
    trials, network = simulation_trials(task).tensors(), network_for(task)
    plain = rollout(network, trials, task.body(), None) if cpu.why_not() else None
    for _ in range(2):
        run = rollout(network, trials, task.body(), None)
    with use_backend("eager"):
        expected = rollout(network, trials, task.body(), None)
    torch.testing.assert_close(run.behavior, expected.behavior)
    if plain is None:
        assert capsys.readouterr().out.count("run plainly, because torch cannot compile their step: no Python.h") == 1


def spec(**training):
    training = {"max_epochs": 2, "batch_size": 5, "learning_rate": 0.01, "backend": "eager"} | training
    return {"kind": "noisy_gru", "hidden_size": 8, "training": training}


def test_training_and_recording_a_reaching_network_again_gives_the_same_bytes(tmp_path):
    task = reaching()
    for name in ("a", "b"):
        train_network(spec(), task, training_trials(task), 0, tmp_path / name)
        record_activity(tmp_path / name, task, simulation_trials(task), 0, tmp_path / name / "activity.h5")
    for file in ("weights.safetensors", "history.csv", "activity.h5"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    arrays, facts = read_hdf5(tmp_path / "a/activity.h5")
    assert arrays["inputs"].shape == (12, 20, 17)
    assert arrays["inputs_true"].shape == (12, 20, 5)
    assert arrays["behavior"].shape == (12, 20, 12)
    assert len(facts["behavior_names"]) == 12
    assert list(facts["true_input_names"]) == task.true_input_names
    assert "baseline_loss" not in facts
    assert facts["success"] == arrays["success"].mean()
    np.testing.assert_array_equal(arrays["success"], _ends_near(arrays))
    assert {"valid_success", "valid_loss"} <= set((tmp_path / "a/history.csv").read_text().split("\n")[0].split(","))
    assert read_yaml(tmp_path / "a/spec.yaml")["status"] == "ok"
    assert networks.load(tmp_path / "a").step(torch.zeros(1, 8), torch.zeros(1, 17)).shape == (1, 8)


def _ends_near(arrays):
    return np.hypot(*(arrays["behavior"][:, -1, :2] - arrays["targets"][:, -1]).T) <= 0.03


def test_forces_that_tear_the_arm_are_told_before_the_training(tmp_path):
    task = reaching(train={"seed": 0, "n_trials": 12, **SHORT, "bump_fraction": 1.0, "bump_newtons": [1e38, 2e38]})
    with pytest.raises(TaskError, match=r"state became NaN or infinite in bin \d+ of train trial \d+ under a force of"):
        train_network(spec(), task, training_trials(task), 0, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_latent_penalty_is_the_mean_norm_of_the_trials_states(tmp_path):
    from ctdb.networks.train import _OnTask

    task = tasks.build({"kind": "nbff", "n_bins": 12, "n_bits": 2, "switch_prob": 0.1})
    trials = simulation_trials(task).take(np.arange(4)).tensors()
    plain = _OnTask(network_for(task), task).eval()
    penalised = _OnTask(network_for(task, latent_l2=0.5), task).eval()
    with torch.no_grad():
        states, _ = plain.network.run(trials["inputs"])
        lengths = torch.tensor([12, 5, 1, 9])
        for given, kept in ((trials, [12] * 4), (trials | {"n_bins": lengths}, lengths.tolist())):
            norms = [float((states[k, : kept[k]] ** 2).sum().sqrt()) for k in range(4)]
            gap = penalised.loss_and_terms(given, None)[0] - plain.loss_and_terms(given, None)[0]
            assert gap.item() == pytest.approx(0.5 * np.mean(norms), rel=1e-5)
