"""Bad input: one clear error, no job that need not start, nothing half-written."""

import h5py
import numpy as np
import pytest
import yaml


def outcome(project, *arguments) -> str:
    done = project.run(*arguments)
    assert done.returncode != 0
    text = done.stdout + done.stderr
    assert "Traceback" not in text
    return text


def test_a_wrong_configuration_stops_before_any_job(fresh):
    fresh.edit("config.yaml", "hidden_size: 5", "hiden_size: 5")
    text = outcome(fresh)
    assert "networks.gru.hiden_size: unknown key; did you mean 'hidden_size'?" in text
    assert not (fresh.folder / "results").exists()


def test_several_configuration_files_are_refused(fresh):
    assert "one complete configuration file" in outcome(fresh, "--configfile", "config.yaml", "config.yaml")
    assert "one complete configuration file" in outcome(fresh, "--config", "results=elsewhere")


def test_an_absent_file_is_refused_and_an_optional_one_left_out(fresh):
    (fresh.folder / "data/mine.h5").unlink()
    text = outcome(fresh)
    assert "datasets.mine.path" in text
    assert "data/mine.h5" in text
    fresh.edit("config.yaml", "path: data/mine.h5", "path: data/mine.h5, optional: true")
    done = fresh.run("--dry-run")
    assert done.returncode == 0
    assert "dataset 'mine' is left out" in done.stderr
    assert fresh.planned()["fit"] == 2


def test_unwritable_results_are_refused_before_any_job(fresh):
    (fresh.folder / "occupied").write_text("a file where a folder should be")
    fresh.edit("config.yaml", "results: results", "results: occupied/results")
    text = outcome(fresh)
    assert "results: occupied/results cannot be written" in text
    assert "occupied is not a folder; make it a writable folder, or point `results` to one" in text
    assert not (fresh.folder / ".snakemake/log").exists() or "rule" not in text.split("error:")[1]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"train_spikes": None, "train_spike": np.ones((4, 3, 6))}, ["no key 'train_spikes'", "'train_spike'"]),
        ({"train_spikes": np.full((4, 3, 6), -1.0)}, ["a negative count"]),
    ],
)
def test_a_bad_file_fails_its_job_with_one_error_and_the_rest_goes_on(fresh, change, expected):
    with h5py.File(fresh.folder / "data/mine.h5", "a") as file:
        for key, value in change.items():
            if key in file:
                del file[key]
            if value is not None:
                file[key] = value
    text = outcome(fresh, "--show-failed-logs", "results/datasets/mine.h5", "results/task_data/flip/train.h5")
    for part in ["data/mine.h5", *expected]:
        assert part in text
    assert not (fresh.folder / "results/datasets/mine.h5").exists()
    assert (fresh.folder / "results/task_data/flip/train.h5").exists()
    assert "training_trials" in (fresh.folder / "results/cost.csv").read_text()  # though the run has failed


def test_a_diverged_fit_is_a_row_with_its_reason_and_the_dag_goes_on(fresh):
    import pandas as pd

    fresh.edit(
        "config.yaml", "lds: {<<: *small, kind: lds}", "lds: {<<: *small, kind: lds, training: {learning_rate: 1e30}}"
    )
    done = fresh.run()
    assert done.returncode == 0, done.stdout + done.stderr
    scores = pd.read_parquet(fresh.folder / "results/scores.parquet")
    rows = scores[scores["model"] == "lds"]
    assert set(rows["status"]) == {"diverged"}
    assert rows["reason"].str.contains("training step").all()
    assert "2 of 3 fits went well" in done.stderr
    assert "diverged: results/fits/flip/lds/seed0: the loss became NaN" in done.stderr
    assert rows["value"].isna().all()
    assert scores[scores["model"] == "sae_gru"]["value"].notna().any()
    spec = yaml.safe_load((fresh.folder / "results/fits/flip/lds/seed0/spec.yaml").read_text())
    assert spec["status"] == "diverged"


def test_a_score_of_held_out_neurons_without_any_is_refused(fresh):
    fresh.edit(
        "config.yaml", 'keys: {recon_data: "{split}_spikes"}, n_heldout: 2', 'keys: {recon_data: "{split}_spikes"}'
    )
    fresh.edit("config.yaml", "figures:", "scores: {metrics: [bits_per_spike_heldout]}\nfigures:")
    assert "datasets.mine.n_heldout: is 0" in outcome(fresh)


def test_a_network_that_diverges_fails_and_keeps_its_last_good_weights(fresh):
    fresh.edit("config.yaml", "{max_epochs: 3, batch_size: 10}", "{max_epochs: 3, batch_size: 10, learning_rate: 1e30}")
    text = outcome(fresh, "--show-failed-logs", "networks")
    assert "the loss became NaN in" in text
    assert "networks/gru/seed0/diverged" in text
    assert (fresh.folder / "results/networks/gru/seed0/diverged/weights.safetensors").exists()
    assert not (fresh.folder / "results/networks/gru/seed0/weights.safetensors").exists()


def test_two_folders_with_the_same_results_do_not_run_at_once(fresh, tmp_path):
    import shutil

    fresh.edit("config.yaml", "results: results", f"results: {tmp_path}/shared")
    other = type(fresh)(tmp_path / "other")
    shutil.copytree(fresh.folder, other.folder, symlinks=True)
    run = fresh.start()
    while not (tmp_path / "shared/task_data/flip/train.h5").exists():
        assert run.poll() is None
    assert "another run is at work" in outcome(other)
    assert run.wait(300) == 0


def test_nothing_left_to_fit_is_refused(fresh):
    fresh.edit("config.yaml", "  - {datasets: [flip], models: [sae_gru, lds], seeds: [0]}\n", "")
    fresh.edit("config.yaml", "path: data/mine.h5", "path: data/nowhere.h5, optional: true")
    start = (fresh.folder / "config.yaml").read_text()
    (fresh.folder / "config.yaml").write_text(start[: start.index("dynamics:")])
    assert "nothing is left to fit" in outcome(fresh)
