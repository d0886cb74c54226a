"""Networks: what they compute, how noisy they are, and that a trained one is what is on disk."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from ctdb import networks
from ctdb.errors import ConfigError, TrainingDivergedError
from ctdb.files import read_hdf5, read_yaml
from ctdb.networks.base import build
from ctdb.networks.train import record_activity, train_network
from ctdb.recurrent import Noise, cpu, use_backend
from ctdb.tasks import base as tasks
from ctdb.tasks.base import simulation_trials, training_trials

pytestmark = pytest.mark.usefixtures("one_thread")

HIDDEN = 8


def make_network(kind="noisy_gru", seed=0, **settings):
    return build({"kind": kind, "hidden_size": HIDDEN, **settings}, n_inputs=3, n_outputs=2, seed=seed)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(n_trials=5, seed=0):
    return Noise(generator(seed), torch.arange(n_trials))


def draw_inputs(n_trials=5, n_bins=12, seed=3):
    return torch.randn(n_trials, n_bins, 3, generator=generator(seed))


def hold_the_state(network):
    """Close the update gate, so that a step gives back the state it was given."""
    with torch.no_grad():
        network.cell.bias_ih[HIDDEN : 2 * HIDDEN] = 100.0
    return network


# Only `eager` is stepping to the last bit; of the others that is asked to rounding.
EXACT, SINGLE, DOUBLE = {"rtol": 0, "atol": 0}, {"rtol": 1e-6, "atol": 1e-6}, {"rtol": 1e-13, "atol": 1e-14}
SAME = {
    "eager": ("eager", torch.float32, EXACT, SINGLE),
    "torch": ("torch", torch.float32, SINGLE, SINGLE),
    "torch, double": ("torch", torch.float64, DOUBLE, DOUBLE),
    "auto": ("auto", torch.float32, SINGLE, SINGLE),
    "auto, double": ("auto", torch.float64, DOUBLE, DOUBLE),
}


@pytest.mark.parametrize("how", SAME.values(), ids=SAME)
@pytest.mark.parametrize("kind", networks.NETWORKS.modules)
def test_running_without_noise_is_stepping_without_noise(kind, how):
    backend, dtype, same_state, same_output = how
    network = make_network(kind).to(dtype)
    n_states = network.cell.n_states
    with torch.no_grad(), use_backend(backend):
        network.initial_state.copy_(torch.linspace(-0.5, 0.5, n_states))
        inputs = draw_inputs().to(dtype)
        states, outputs = network.run(inputs)
        state = network.initial_state.expand(5, n_states)
        for t in range(12):
            state = network.step(state, inputs[:, t])
            torch.testing.assert_close(states[:, t], state, **same_state)
            torch.testing.assert_close(outputs[:, t], network.readout(state), **same_output)
        weight, bias = network.output.weight, network.output.bias
        torch.testing.assert_close(outputs, network.firing_rates(states) @ weight.T + bias, rtol=1e-5, atol=1e-6)
        again, _ = network.run(inputs)
    assert torch.equal(states, again)


def test_state_noise_has_the_asked_deviation_in_every_bin():
    network = hold_the_state(make_network(state_noise=0.3, initial_state_noise=0.0))
    inputs = draw_inputs(n_trials=4000, n_bins=3)
    with torch.no_grad():
        states, _ = network.run(inputs, noise(4000))
    previous = network.initial_state.detach().expand(4000, HIDDEN)
    for t in range(3):
        kick = (states[:, t] - previous).double().numpy()
        assert abs(kick.std() - 0.3) < 5 * 0.3 / math.sqrt(2 * kick.size)
        assert abs(kick.mean()) < 5 * 0.3 / math.sqrt(kick.size)
        previous = states[:, t]


def test_initial_state_noise_has_the_asked_deviation():
    network = hold_the_state(make_network(state_noise=0.0, initial_state_noise=0.2))
    with torch.no_grad():
        network.initial_state.fill_(1.5)
        states, _ = network.run(draw_inputs(n_trials=4000, n_bins=1), noise(4000))
    start = states[:, 0].double().numpy()
    assert abs(start.std() - 0.2) < 5 * 0.2 / math.sqrt(2 * start.size)
    assert abs(start.mean() - 1.5) < 5 * 0.2 / math.sqrt(start.size)


def test_noise_of_a_bin_enters_the_state_but_not_the_output_of_that_bin():
    network = make_network(state_noise=0.5, initial_state_noise=0.0)
    inputs = draw_inputs()
    with torch.no_grad():
        states, outputs = network.run(inputs, noise())
        before = network.initial_state.expand(5, HIDDEN)
        for t in range(12):
            clean = network.step(before, inputs[:, t])
            torch.testing.assert_close(outputs[:, t], network.readout(clean), rtol=1e-5, atol=1e-6)
            assert (states[:, t] - clean).abs().max() > 0.1
            before = states[:, t]


def test_noise_depends_on_the_seed_alone():
    network, inputs = make_network(state_noise=0.1), draw_inputs()
    source = generator(7)
    with torch.no_grad():
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = network.run(inputs, Noise(source, torch.arange(5)))[0]
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        torch.rand(3, generator=source)  # what was drawn from the generator does not matter
        again, other = network.run(inputs, Noise(source, torch.arange(5)))[0], network.run(inputs, noise(seed=8))[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_noise_of_a_trial_does_not_depend_on_the_others(backend):
    network, inputs = make_network(state_noise=0.1).double(), draw_inputs().double()
    part = torch.tensor([3, 0])
    with torch.no_grad(), use_backend(backend):
        whole, some = network.run(inputs, noise()), network.run(inputs[part], Noise(generator(), part))
        other = network.run(inputs[part], noise(2))
    for ours, theirs, elsewhere in zip(whole, some, other, strict=True):
        torch.testing.assert_close(theirs, ours[part], rtol=1e-13, atol=1e-14)
        assert not torch.allclose(elsewhere, theirs)


def test_building_depends_on_the_seed_alone_and_leaves_the_global_random_state_alone():
    torch.manual_seed(1)
    first = make_network(seed=4).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, other = make_network(seed=4).state_dict(), make_network(seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert name == "initial_state" or not torch.equal(value, other[name])


def test_unknown_kind_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'noisy_gru'"):
        make_network("noisy_gro")


def test_saved_network_comes_back_in_double_precision_and_eval_mode(tmp_path):
    network = make_network(seed=2, state_noise=0.02)
    network.save(tmp_path, seed=2, status="ok")
    loaded = networks.load(tmp_path)
    assert not loaded.training
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float64}
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.double())
    assert loaded.settings == network.settings
    state, u = torch.randn(4, HIDDEN, generator=generator()).double(), draw_inputs()[:4, 0]
    for given in (u, u.double()):  # inputs of a data file are single precision
        following = loaded.step(state, given)
        assert following.dtype == torch.float64
        torch.testing.assert_close(following.float(), network.step(state.float(), u), rtol=1e-5, atol=1e-6)
    assert loaded.readout(state.float()).dtype == torch.float64


def test_loading_in_single_precision_reproduces_the_run_exactly(tmp_path):
    network, inputs = make_network(), draw_inputs()
    network.save(tmp_path)
    loaded = networks.base.load(tmp_path, torch.float32)
    with torch.no_grad():
        assert torch.equal(loaded.run(inputs, noise())[0], network.run(inputs, noise())[0])


def tiny_task():
    return tasks.build(
        {
            "kind": "nbff",
            "n_bits": 2,
            "n_bins": 25,
            "switch_prob": 0.1,
            "train": {"n_trials": 30, "seed": 0},
            "simulate": {"n_trials": 12, "seed": 100},
        }
    )


def tiny_spec(**training):
    training = {"max_epochs": 8, "batch_size": 8, "learning_rate": 0.02} | training
    return {"kind": "noisy_gru", "hidden_size": HIDDEN, "training": training}


def train_tiny(out, seed=1, **training):
    task = tiny_task()
    return train_network(tiny_spec(**training), task, training_trials(task), seed, out)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("network")
    train_tiny(out)
    return out


def test_training_makes_the_loss_fall(trained):
    history = pd.read_csv(trained / "history.csv")
    assert history["epoch"].tolist() == list(range(8))
    assert history["train_loss"].iloc[-1] < 0.8 * history["train_loss"].iloc[0]
    assert read_yaml(trained / "spec.yaml")["status"] == "ok"


def valid_loss(directory):
    task = tiny_task()
    valid = training_trials(task)["valid"]
    network = networks.base.load(directory, torch.float32)
    with torch.no_grad():
        _, outputs = network.run(torch.from_numpy(valid.inputs))
    error = outputs.double().numpy() - valid.targets
    return float(np.mean(valid.loss_weight * error**2))


def test_weights_of_the_best_epoch_are_written(tmp_path):
    train_tiny(tmp_path, learning_rate=0.3, max_epochs=12)
    history = pd.read_csv(tmp_path / "history.csv")
    best = history["valid_loss"].idxmin()
    assert best != 11, "the last epoch is the best one: this would not show which of the two is written"
    spec = read_yaml(tmp_path / "spec.yaml")
    assert spec["best_epoch"] == best
    assert spec["best_valid_loss"] == pytest.approx(history["valid_loss"].min(), rel=1e-12)
    assert valid_loss(tmp_path) == pytest.approx(history["valid_loss"].min(), rel=1e-5)


def test_validation_is_free_of_noise(tmp_path):
    spec = tiny_spec(max_epochs=2) | {"state_noise": 3.0, "initial_state_noise": 3.0}
    task = tiny_task()
    train_network(spec, task, training_trials(task), 1, tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    assert valid_loss(tmp_path) == pytest.approx(history["valid_loss"].min(), rel=1e-5)
    assert (history["train_loss"] > 1.5 * history["valid_loss"]).all()


def test_training_again_gives_the_same_bytes(trained, tmp_path):
    train_tiny(tmp_path)
    names = {path.name for path in trained.iterdir()}
    assert names == {path.name for path in tmp_path.iterdir()} >= {"weights.safetensors", "spec.yaml", "history.csv"}
    for name in names:
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes(), name


def test_training_leaves_global_random_states_alone(tmp_path):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    train_tiny(tmp_path, max_epochs=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


def test_other_seed_other_network(trained, tmp_path):
    train_tiny(tmp_path, seed=2)
    assert (tmp_path / "weights.safetensors").read_bytes() != (trained / "weights.safetensors").read_bytes()


def test_a_leftover_checkpoint_is_continued_only_by_the_very_same_network(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ctdb.networks.train.discard_checkpoint", lambda _: None)
    train_tiny(tmp_path)
    train_tiny(tmp_path)
    assert "continuing from" in capsys.readouterr().out
    assert (tmp_path / "weights.safetensors").read_bytes() == (trained / "weights.safetensors").read_bytes()
    task = tiny_task()
    train_network(tiny_spec() | {"state_noise": 0.2}, task, training_trials(task), 1, tmp_path)
    assert "starting afresh" in capsys.readouterr().out
    assert (tmp_path / "weights.safetensors").read_bytes() != (trained / "weights.safetensors").read_bytes()


def test_recorded_activity_is_what_the_saved_network_does(trained, tmp_path):
    task = tiny_task()
    trials = simulation_trials(task)
    record_activity(trained, task, trials, seed=1, out=tmp_path / "activity.h5")
    arrays, facts = read_hdf5(tmp_path / "activity.h5")
    for name, value in trials.arrays().items():
        assert arrays[name].tobytes() == value.tobytes()
    network = networks.load(trained)
    states, inputs = (torch.from_numpy(arrays[name]).double() for name in ("states", "inputs"))
    with torch.no_grad():
        clean = torch.stack([network.step(states[:, t - 1], inputs[:, t]) for t in range(1, 25)], 1)
        outputs = network.readout(clean)
    np.testing.assert_allclose(arrays["outputs"][:, 1:], outputs.numpy(), rtol=1e-4, atol=1e-5)
    kicks = (states[:, 1:] - clean).numpy()
    assert abs(kicks.std() - 0.01) < 5 * 0.01 / math.sqrt(2 * kicks.size)
    error = arrays["outputs"].astype(np.float64) - arrays["targets"]
    assert facts["loss"] == pytest.approx(np.mean(arrays["loss_weight"] * error**2), rel=1e-6)
    counted = arrays["loss_weight"] > 0
    mean = [arrays["targets"][..., i][counted[..., i]].mean(dtype=np.float64) for i in range(counted.shape[2])]
    baseline = arrays["targets"] - np.array(mean)
    assert facts["baseline_loss"] == pytest.approx(np.mean(arrays["loss_weight"] * baseline**2), rel=1e-5)
    assert facts["loss"] < facts["baseline_loss"]
    assert facts["bin_s"] == task.settings.bin_s
    assert list(facts["input_names"]) == task.input_names
    assert list(facts["output_names"]) == task.output_names


def test_activity_is_recorded_with_the_backend_of_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "_reason", "no C++ compiler found")
    task = tiny_task()
    for backend in ("torch", "cpu"):
        build(tiny_spec(backend=backend), len(task.input_names), len(task.output_names), 0).save(tmp_path / backend)
    record_activity(tmp_path / "torch", task, simulation_trials(task), seed=1, out=tmp_path / "activity.h5")
    with pytest.raises(ConfigError, match="'cpu' cannot run here: no C\\+\\+ compiler found"):
        record_activity(tmp_path / "cpu", task, simulation_trials(task), seed=1, out=tmp_path / "other.h5")


def test_the_recorded_noise_does_not_depend_on_how_many_trials_run_at_once(trained, tmp_path, monkeypatch):
    task = tiny_task()
    recorded = []
    for n_trials in (250, 5):
        monkeypatch.setattr("ctdb.networks.train.TRIALS_PER_PASS", n_trials)
        record_activity(trained, task, simulation_trials(task), seed=1, out=tmp_path / "activity.h5")
        recorded.append(read_hdf5(tmp_path / "activity.h5")[0])
    for name, value in recorded[0].items():
        np.testing.assert_allclose(value, recorded[1][name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_recording_again_gives_the_same_bytes_and_another_seed_other_noise(trained, tmp_path):
    task = tiny_task()
    trials = simulation_trials(task)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        record_activity(trained, task, trials, seed, tmp_path / f"{name}.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    a, c = (read_hdf5(tmp_path / f"{name}.h5")[0] for name in "ac")
    assert not np.array_equal(a["states"], c["states"])


def test_what_a_diverged_run_kept_goes_when_a_later_run_ends_well(trained, tmp_path):
    with pytest.raises(TrainingDivergedError, match=r"They are in .*diverged"):
        train_tiny(tmp_path, learning_rate=1e30)
    assert (tmp_path / "diverged/weights.safetensors").exists()
    assert not (tmp_path / "weights.safetensors").exists()
    train_tiny(tmp_path)
    assert not (tmp_path / "diverged").exists()
    assert (tmp_path / "weights.safetensors").read_bytes() == (trained / "weights.safetensors").read_bytes()
