"""Other trials of a task: files of their own from the same trained network, and no more reruns than theirs."""

import shutil

import pytest

from ctdb.files import read_hdf5
from project import Project, lay_out

CONFIG = """
results: results
tasks:
  flip:
    kind: nbff
    n_bits: 2
    n_bins: 16
    train: {n_trials: 30, seed: 0}
    simulate: {n_trials: 20, seed: 1}
    variants:
      step: {n_trials: 12, seed: 2}
      idle: {n_trials: 5, seed: 3}
networks:
  gru: {kind: noisy_gru, task: flip, hidden_size: 5, training: {max_epochs: 1, batch_size: 10}}
datasets:
  plain: &spikes {kind: simulated, network: gru, n_heldin: 5, n_heldout: 2, valid_fraction: 0.2, test_fraction: 0.2}
  stepped: {<<: *spikes, variant: step}
models:
  lds: {kind: lds, latent_size: 3, encoder_size: 3, training: {max_epochs: 1, batch_size: 8}}
fits:
  - {datasets: [plain, stepped], models: [lds]}
figures:
  task: {kind: task_performance, network: gru, variant: step}
  learned: {kind: ctd_fig4, nbff: {dataset: plain, network: gru, models: {lds: lds}}}
  analytic: {kind: ctd_fig1}
"""
NETWORK, DATA = "results/networks/gru/seed0", "results/task_data/flip"
TARGETS = (f"{NETWORK}/activity.h5", "results/datasets/stepped.h5")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Project:
    """Activity on the plain simulation, and a dataset of one variant; not to be changed."""
    project = lay_out(tmp_path_factory.mktemp("variants") / "project", CONFIG)
    done = project.run(*TARGETS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("rule train_network:") == 1
    return project


@pytest.fixture
def changed(made, tmp_path) -> Project:
    """A copy, to be changed."""
    shutil.copytree(made.folder, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")


def test_a_variant_has_trials_activity_and_datasets_of_its_own(made):
    found = {}
    for name, n_trials in (("", 20), ("@step", 12)):
        trials, _ = read_hdf5(made.folder / f"{DATA}/simulate{name}.h5")
        activity, _ = read_hdf5(made.folder / f"{NETWORK}/activity{name}.h5")
        assert len(trials["inputs"]) == len(activity["states"]) == n_trials
        assert (activity["targets"] == trials["targets"]).all()
        found[name] = activity
    assert (found[""]["inputs"][:12] != found["@step"]["inputs"]).any()
    dataset, _ = read_hdf5(made.folder / "results/datasets/stepped.h5")
    assert (dataset["test_latents"] == found["@step"]["states"][dataset["test_trial"]]).all()
    assert not list(made.folder.rglob("*@idle*"))  # nothing names it


def test_other_settings_of_a_variant_rerun_what_is_made_from_it(changed):
    changed.edit("config.yaml", "step: {n_trials: 12", "step: {n_trials: 13")
    assert changed.outputs_by_rule(*TARGETS, "results/figures/task.png") == {
        "simulation_trials": [f"{DATA}/simulate@step.h5"],
        "network_activity": [f"{NETWORK}/activity@step.h5"],
        "dataset": ["results/datasets/stepped.h5"],
        "figure": [", ".join(f"results/figures/task.{suffix}" for suffix in ("pdf", "png", "csv", "txt"))],
    }


def test_other_variants_and_other_simulation_trials_leave_a_variant_alone(changed):
    changed.edit("config.yaml", "idle: {n_trials: 5", "jump: {n_trials: 6")
    changed.edit("config.yaml", "simulate: {n_trials: 20", "simulate: {n_trials: 21")
    assert changed.outputs_by_rule(*TARGETS) == {
        "simulation_trials": [f"{DATA}/simulate.h5"],
        "network_activity": [f"{NETWORK}/activity.h5"],
    }


def test_a_figure_of_how_a_network_learned_is_made_from_its_history(changed):
    (changed.folder / f"{NETWORK}/history.csv").unlink()
    assert "train_network" in changed.outputs_by_rule("results/figures/learned.png")
    assert set(changed.outputs_by_rule("results/figures/task.png")) == {"figure"}


def test_a_figure_that_needs_nothing_is_made_from_nothing(changed):
    assert set(changed.outputs_by_rule("results/figures/analytic.png")) == {"figure"}
