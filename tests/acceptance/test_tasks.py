"""Networks learn the tasks that the demo does not hold, at a size that a minute is enough for."""

import pytest

from ctdb.files import read_hdf5
from ctdb.networks.train import record_activity, train_network
from ctdb.tasks.base import build, simulation_trials, training_trials

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("one_thread")]
MEMORY = {
    "kind": "phase_coded_memory",
    "bin_s": 0.01,
    "n_bins": 80,
    "cue_on": [12, 24],
    "cue_bins": [12, 16],
    "train": {"n_trials": 600, "seed": 0},
    "simulate": {"n_trials": 400, "seed": 100},
}
MATCHING = {
    "kind": "chaotic_delayed_matching",
    "bin_s": 0.01,
    **{"base_bins": 5, "cue1_bins": 20, "delay1_bins": 20, "cue2_bins": 20, "delay2_bins": 20, "response_bins": 20},
    "train": {"n_trials": 400, "seed": 0},
    "simulate": {"n_trials": 400, "seed": 100},
}
GRU = {"kind": "noisy_gru", "hidden_size": 64, "training": {"max_epochs": 60, "batch_size": 64, "learning_rate": 5e-3}}
RATE = {
    "kind": "chaotic_rate",
    "hidden_size": 100,
    "leak": 1 / 3,
    "training": {"max_epochs": 30, "batch_size": 32, "learning_rate": 1e-3, "weight_decay": 1e-6, "gradient_clip": 5.0},
}


@pytest.mark.parametrize(("settings", "spec"), [(MEMORY, GRU), (MATCHING, RATE)], ids=["memory", "matching"])
def test_a_network_learns_it(settings, spec, tmp_path):
    """Chance is one half."""
    task = build(settings)
    train_network(spec, task, training_trials(task), 0, tmp_path)
    record_activity(tmp_path, task, simulation_trials(task), 0, tmp_path / "activity.h5")
    arrays, facts = read_hdf5(tmp_path / "activity.h5")
    print(f"{settings['kind']}: success {facts['success']:.1%}, answering the mean {facts['baseline_success']:.1%}")
    assert facts["success"] > 0.9
    for condition in range(len(task.conditions)):
        assert arrays["success"][arrays["condition"] == condition].mean() > 0.8
