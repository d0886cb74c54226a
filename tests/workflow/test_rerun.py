"""Only what changed reruns: each case changes one thing in a finished project and looks at what would run."""

import os
import subprocess

SCORING = {"score_fit": 3, "score_anchors": 2, "gather_scores": 1}
DYNAMICS = {"true_dynamics": 1, "fit_dynamics": 2, "dsa": 1}
REPORT = {"report": 1}


def test_a_finished_run_has_nothing_to_do(finished):
    assert finished.planned() == {}
    again = finished.run()
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr


def test_touching_every_file_runs_nothing(copy):
    for path in copy.folder.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            os.utime(path)
    assert copy.planned() == {}


def test_comments_docstrings_and_formatting_run_nothing(copy):
    for path in [*copy.folder.rglob("src/ctdb/**/*.py"), *copy.folder.rglob("workflow/scripts/*.py")]:
        path.write_text(path.read_text().replace('"""', '"""Reworded. ', 1) + "\n\n\n# a comment\n")
    copy.edit("src/ctdb/metrics/r2.py", "def rate_r2(true: np.ndarray, ", "def rate_r2(\n    true: np.ndarray,\n    ")
    assert copy.planned() == {}


def test_results_beside_a_fresh_clone_run_nothing(copy):
    for path in copy.folder.rglob("*"):
        if path.is_file() and ".snakemake" in path.parts:
            path.unlink()
        elif path.is_file() and "results" not in path.parts and "data" not in path.parts:
            os.utime(path)
    assert copy.planned() == {}


def test_a_changed_metric_rescores_and_redraws_only(copy):
    copy.edit("src/ctdb/metrics/cycle_consistency.py", "VARIANCE_KEPT = 0.99", "VARIANCE_KEPT = 0.98")
    planned = copy.planned()
    figures = planned.pop("figure")
    assert planned == SCORING | DYNAMICS | REPORT | {"interactive": 1}  # which the package of metrics is part of
    assert figures >= 1


def test_changed_dynamics_compare_again_and_redraw_only(copy):
    copy.edit("src/ctdb/dynamics/newton.py", "LAP = 15", "LAP = 16")
    planned = copy.planned()
    assert planned.pop("figure") >= 1
    assert planned == DYNAMICS | REPORT | {"gather_scores": 1}


def test_other_settings_of_dynamics_compare_again_only(copy):
    copy.edit("config.yaml", "fixed_points: {n_starts: 10}", "fixed_points: {n_starts: 11}")
    planned = copy.planned()
    assert planned.pop("figure") >= 1
    assert planned == REPORT | {"true_dynamics": 1, "fit_dynamics": 2, "gather_scores": 1}


def test_other_settings_of_dsa_compare_by_dsa_again_only(copy):
    copy.edit("config.yaml", "n_null: 3", "n_null: 4")
    planned = copy.planned()
    assert planned.pop("figure") >= 1
    assert planned == REPORT | {"dsa": 1, "gather_scores": 1}


def test_a_changed_model_refits_that_model_only(copy):
    copy.edit("src/ctdb/models/sae_gru.py", "GRUCell(self.sizes", "GRUCell(0 + self.sizes")
    planned = copy.planned()
    assert "train_network" not in planned
    assert "dataset" not in planned
    assert planned["fit"] == 2
    outputs = copy.planned_outputs("fit")
    assert "fits/flip/sae_gru" in outputs
    assert "fits/mine/sae_gru" in outputs
    assert "lds" not in outputs


def test_changed_code_that_all_models_share_refits_all(copy):
    copy.edit(
        "src/ctdb/models/autoencoder.py",
        "gru_summary(self.encoder, encod_data, n_bins)",
        "gru_summary(self.encoder, +encod_data, n_bins)",
    )
    planned = copy.planned()
    assert planned["fit"] == 3
    assert "train_network" not in planned


def test_a_changed_network_retrains_what_follows_from_it_only(copy):
    copy.edit("src/ctdb/networks/noisy_gru.py", "GRUCell(self.n_inputs", "GRUCell(0 + self.n_inputs")
    planned = copy.planned()
    assert planned["train_network"] == planned["dataset"] == 1
    assert planned["fit"] == 2
    assert "training_trials" not in planned
    for rule in ("dataset", "fit"):
        outputs = copy.planned_outputs(rule)
        assert "flip" in outputs
        assert "mine" not in outputs


def test_a_new_seed_trains_one_more_fit_per_model(copy):
    copy.edit("config.yaml", "models: [sae_gru, lds], seeds: [0]", "models: [sae_gru, lds], seeds: [0, 1]")
    planned = copy.planned()
    assert planned.pop("figure") == 1
    assert planned == REPORT | {"fit": 2, "score_fit": 2, "fit_dynamics": 2, "dsa": 1, "gather_scores": 1}
    assert copy.planned_outputs("fit").count("seed1/weights") == 2


def test_a_changed_setting_reruns_its_stage_and_what_follows(copy):
    copy.edit("config.yaml", "latent_size: 4", "latent_size: 3")
    assert copy.planned()["fit"] == 3
    assert "train_network" not in copy.planned()


def test_other_simulation_trials_do_not_retrain_the_network(copy):
    copy.edit("config.yaml", "simulate: {n_trials: 40", "simulate: {n_trials: 41")
    planned = copy.planned()
    assert planned["simulation_trials"] == planned["network_activity"] == planned["dataset"] == 1
    assert "train_network" not in planned
    assert "training_trials" not in planned


def test_another_way_to_write_a_path_runs_nothing(copy):
    copy.edit("config.yaml", "results: results", "results: ./results/")
    copy.edit("config.yaml", "path: data/mine.h5", "path: data/mine.h5, optional: true")
    assert copy.planned() == {}


def test_it_runs_from_another_folder(copy, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    snakefile = str(copy.folder / "Snakefile")
    done = copy.run("--snakefile", snakefile, "--directory", str(copy.folder), "--dry-run")
    assert "Nothing to be done" in done.stdout + done.stderr
    done = subprocess.run(
        copy.command(
            "--snakefile",
            snakefile,
            "--directory",
            str(copy.folder),
            "--dry-run",
            "--configfile",
            str(copy.folder / "config.yaml"),
        ),
        cwd=elsewhere,
        env=copy.environment,
        capture_output=True,
        text=True,
    )
    assert "Nothing to be done" in done.stdout + done.stderr


def test_a_figure_s_settings_and_the_style_redraw_only(copy):
    copy.edit(
        "config.yaml", "{kind: task_performance, network: gru}", "{kind: task_performance, network: gru, n_trials: 1}"
    )
    assert copy.planned() == REPORT | {"figure": 1}
    copy.edit("src/ctdb/figures/ctdb.mplstyle", "font.size: 7", "font.size: 8")
    assert copy.planned() == REPORT | {"figure": 4, "interactive": 1}


def test_another_look_of_the_report_writes_the_report_only(copy):
    copy.edit("src/ctdb/report/report.css", "max-width: 70ch", "max-width: 60ch")
    assert copy.planned() == REPORT
    copy.edit("src/ctdb/report/page.py", "3600 * hours", "3600.0 * hours")
    assert copy.planned() == REPORT


def test_a_removed_result_is_made_again_with_the_same_bytes(copy, finished):
    (copy.folder / "results/fits/flip/lds/seed0/output.h5").unlink()
    (copy.folder / "results/scores.parquet").unlink()
    assert copy.run().returncode == 0
    assert copy.digests() == finished.digests()


def test_every_rule_with_a_script_carries_a_fingerprint_of_its_code(finished):
    for file in sorted((finished.folder / "workflow/rules").glob("*.smk")):
        for rule in file.read_text().split("\nrule ")[1:]:
            assert "code=" in rule, f"{file.name}: rule {rule.splitlines()[0]} has no code fingerprint"


def test_fingerprints_of_scripts_cover_what_they_run(copy):
    """A change in a module deep below a script is seen, however the script imports it."""
    copy.edit("src/ctdb/training/keeper.py", "= -1, math.inf, math.nan", "= -1, +math.inf, math.nan")
    planned = copy.planned()
    assert planned["train_network"] == planned["dataset"] == 1
    assert planned["fit"] == 3
    assert "training_trials" not in planned


def test_a_changed_recurrent_loop_retrains_but_draws_no_trial_again(copy):
    copy.edit("src/ctdb/recurrent/eager.py", "states, clean = [], []", "states, clean = list(), []")
    planned = copy.planned()
    assert planned["train_network"] == 1
    assert not {"training_trials", "simulation_trials"} & planned.keys()
