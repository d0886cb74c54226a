"""Trials that end early: what stands beyond their end trains no network, and is in no loss, success or activity.

Not to the last bit, unless the backend is `torch`: the kernels add in another order where inputs are mostly zeros.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from ctdb import datasets
from ctdb.files import read_hdf5
from ctdb.networks import NETWORKS
from ctdb.networks.base import build
from ctdb.networks.rollout import rollout
from ctdb.networks.train import record_activity, train_network
from ctdb.recurrent import use_backend
from ctdb.simulation import SimulationSettings, simulate
from ctdb.tasks import base as tasks
from ctdb.tasks.base import Rollout, simulation_trials, training_trials

pytestmark = pytest.mark.usefixtures("one_thread")

BINS = 45
PER_BIN = ("states", "outputs", "inputs", "inputs_true", "targets", "loss_weight")


def make_task():
    return tasks.build(
        {
            "kind": "multitask",
            "subtasks": ["delay_pro", "react_anti", "match2sample"],
            "duration_scale": 0.2,
            "n_bins": BINS,
            "train": {"n_trials": 40, "seed": 0},
            "simulate": {"n_trials": 30, "seed": 1},
        }
    )


def poisoned(trials, fill):
    """The same trials with `fill` beyond each one's end; the loss weighs 0 there."""
    padding = (np.arange(BINS) >= trials.n_bins[:, None])[..., None]
    assert padding.mean() > 0.2
    changed = {name: getattr(trials, name).copy() for name in ("inputs", "inputs_true", "targets")}
    for value in changed.values():
        np.copyto(value, np.float32(fill), where=padding)
    return replace(trials, **changed)


def spec(kind, backend="torch", **settings):
    training = {"max_epochs": 2, "batch_size": 8, "learning_rate": 0.02, "backend": backend}
    return {"kind": kind, "hidden_size": 10, "training": training, **settings}


@pytest.mark.parametrize(("backend", "tolerance"), [("torch", 0), ("auto", 1e-5)])
@pytest.mark.parametrize("kind", NETWORKS.modules)
def test_states_of_a_trial_do_not_depend_on_what_follows_its_end(kind, backend, tolerance):
    task = make_task()
    trials = simulation_trials(task)
    network = build(spec(kind), len(task.input_names), len(task.output_names), seed=0)
    inside = np.arange(BINS) < trials.n_bins[:, None]
    runs = []
    for fill in (0.0, 1e6, np.nan):
        with torch.no_grad(), use_backend(backend):
            run = rollout(network, poisoned(trials, fill).tensors())
        runs.append([value.numpy()[inside] for value in run[:3]])
    assert np.isfinite(runs[0][0]).all()
    for other in runs[1:]:
        for ours, theirs in zip(runs[0], other, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_loss_and_success_do_not_depend_on_the_answers_in_padding():
    task = make_task()
    trials = simulation_trials(task)
    outputs = torch.randn(trials.targets.shape, generator=torch.Generator().manual_seed(0))
    outputs += torch.from_numpy(trials.targets)
    inside = torch.arange(BINS) < torch.from_numpy(trials.n_bins)[:, None]
    for fill in (1e6, -1e6):
        other = torch.where(inside[..., None], outputs, fill)
        runs = [(one, poisoned(trials, at).tensors()) for one, at in ((outputs, 0.0), (other, fill))]
        found = [(Rollout(None, one, tensors["inputs"]), tensors) for one, tensors in runs]
        for judge in (task.loss, task.success):
            assert torch.equal(*(judge(*one) for one in found))
        chances = [task.chance(tensors).outputs[0, 0] for _, tensors in found]
        torch.testing.assert_close(*chances, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings"), [("noisy_gru", {}), ("vanilla", {"latent_l2": 1e-3, "state_noise": 0.1})]
)
def test_training_does_not_depend_on_padding(kind, settings, tmp_path):
    task = make_task()
    trials = training_trials(task)
    for name, fill in (("clean", 0.0), ("poisoned", 1e6)):
        own = {split: poisoned(part, fill) for split, part in trials.items()}
        train_network(spec(kind, **settings), task, own, 1, tmp_path / name)
    for file in ("weights.safetensors", "history.csv", "spec.yaml"):
        assert (tmp_path / "clean" / file).read_bytes() == (tmp_path / "poisoned" / file).read_bytes(), file
    assert pd.read_csv(tmp_path / "clean/history.csv")["train_loss"].is_monotonic_decreasing


def test_training_on_kernels_does_not_depend_on_padding_but_for_rounding(tmp_path):
    task, losses = make_task(), []
    for name, fill in (("clean", 0.0), ("poisoned", 1e6)):
        own = {split: poisoned(part, fill) for split, part in training_trials(task).items()}
        train_network(spec("noisy_gru", backend="auto"), task, own, 1, tmp_path / name)
        losses.append(pd.read_csv(tmp_path / name / "history.csv")[["train_loss", "valid_loss"]])
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    task = make_task()
    folder = tmp_path_factory.mktemp("network")
    build(spec("noisy_gru"), len(task.input_names), len(task.output_names), 0).save(folder)
    return task, folder


def test_an_activity_has_the_same_bytes_whatever_the_padding_of_its_trials_and_holds_0_there(untrained, tmp_path):
    task, folder = untrained
    trials = simulation_trials(task)
    for name, fill in (("clean", 0.0), ("large", 1e6), ("nan", np.nan), ("infinite", np.inf)):
        record_activity(folder, task, poisoned(trials, fill), 1, tmp_path / f"{name}.h5")
    files = {path.stem: path.read_bytes() for path in tmp_path.glob("*.h5")}
    assert len(files) == 4
    assert len(set(files.values())) == 1
    arrays, facts = read_hdf5(tmp_path / "nan.h5")
    padding = np.arange(BINS) >= arrays["n_bins"][:, None]
    np.testing.assert_array_equal(arrays["n_bins"], trials.n_bins)
    for name in PER_BIN:
        assert not arrays[name][padding].any(), name
        assert arrays[name][~padding].any(), name
    error = arrays["loss_weight"] * (arrays["outputs"].astype(float) - arrays["targets"]) ** 2
    assert facts["loss"] == pytest.approx(error[~padding].sum() / (len(padding) * 3), rel=1e-6)
    assert 0 < facts["baseline_loss"] < np.inf


def test_from_trials_to_a_dataset_on_disk_lengths_stay_with_their_trials(untrained, tmp_path):
    task, folder = untrained
    trials = simulation_trials(task)
    record_activity(folder, task, poisoned(trials, np.nan), 1, tmp_path / "activity.h5")
    settings = SimulationSettings(kind="simulated", network="some", n_heldin=5, n_heldout=2, mean_rate_hz=20.0)
    datasets.write(tmp_path / "some.h5", simulate(tmp_path / "activity.h5", settings))
    for split in datasets.read(tmp_path / "some.h5").splits.values():
        np.testing.assert_array_equal(split.n_bins, trials.n_bins[split.trial])
        np.testing.assert_array_equal(split.condition, trials.condition[split.trial])
        padding = np.arange(BINS) >= split.n_bins[:, None]
        assert (split.truth[~padding] > 0).all()
        for name in ("recon_data", "truth", "latents", "ext_input", "inputs_true"):
            assert not getattr(split, name)[padding].any(), name
