"""The demo's promises: the whole DAG at quick size, against the numbers that a plain trial or a publication reached."""

import json
import os
import shutil
from pathlib import Path

import h5py
import pandas as pd
import pytest

from ctdb.dynamics import FixedPoints
from project import REPOSITORY, lay_out

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A finished run of config/quick.yaml in a folder of its own."""
    project = lay_out(tmp_path_factory.mktemp("demo") / "project")
    shutil.copytree(REPOSITORY / "config", project.folder / "config")
    data = os.environ.get("CTDB_DATA", REPOSITORY.parent / "shared/data")
    project.environment |= {"CTDB_DATA": str(Path(data).resolve()), "CTDB_CHECKPOINT_SECONDS": "60"}
    done = project.run("--configfile", "config/quick.yaml", timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    return project.folder / "results/quick"


def score(demo, dataset: str, model: str, metric: str, split: str) -> float:
    table = pd.read_parquet(demo / "scores.parquet").set_index(["dataset", "model", "metric", "split"])
    return float(table.at[(dataset, model, metric, split), "value"])


def test_the_network_solves_the_flip_flop(demo):
    with h5py.File(demo / "networks/nbff_gru/seed0/activity.h5") as activity:
        assert activity.attrs["loss"] < 0.05 * activity.attrs["baseline_loss"]


def test_a_network_does_most_sub_tasks_and_another_one_reaches(demo):
    with h5py.File(demo / "networks/multitask_gru/seed0/activity.h5") as activity:
        names, condition = activity.attrs["condition_names"], activity["condition"][:]
        success = {names[one]: activity["success"][:][condition == one].mean() for one in set(condition.tolist())}
    print(success)
    assert sum(value >= 0.8 for value in success.values()) >= 5
    with h5py.File(demo / "networks/random_target_gru/seed0/activity.h5") as activity:
        print(activity.attrs["success"])
        assert activity.attrs["success"] >= 0.8


def test_a_gru_autoencoder_recovers_the_rates_and_states_and_a_linear_one_does_not(demo):
    assert score(demo, "nbff", "sae_gru", "rate_r2", "test") >= 0.9
    assert score(demo, "nbff", "sae_gru", "state_r2_inferred_to_true", "test") >= 0.9
    assert score(demo, "nbff", "lds", "rate_r2", "test") < 0.7


def test_held_out_neurons_are_predicted_most_of_the_way_to_the_ceiling(demo):
    reached = score(demo, "nbff", "sae_gru", "bits_per_spike_heldout", "test")
    ceiling = score(demo, "nbff", "ceiling_true_rates", "bits_per_spike_heldout", "test")
    assert 0.85 * ceiling < reached < ceiling


def test_lorenz_is_fitted_well_below_the_null(demo):
    if not (demo / "datasets/lorenz.h5").exists():
        pytest.skip("lorenz.h5 is not in $CTDB_DATA (default ../shared/data)")
    assert score(demo, "lorenz", "sae_gru", "poisson_nll", "valid") < 0.083
    assert score(demo, "lorenz", "floor_mean_rate", "poisson_nll", "valid") == pytest.approx(0.0897, abs=2e-4)
    assert score(demo, "lorenz", "ceiling_true_rates", "poisson_nll", "valid") == pytest.approx(0.07755, abs=1e-4)


def test_lfads_recovers_the_dynamics_with_the_inputs_and_infers_them_without(demo):
    assert score(demo, "nbff", "lfads", "rate_r2", "test") > 0.8
    assert score(demo, "nbff", "lfads_infer", "input_r2_inferred_to_true", "test") > 0.2
    assert score(demo, "nbff", "lfads_infer", "control_bits_per_spike", "test") > 0.1
    assert score(demo, "lorenz_generated", "lorenz_lfads", "rate_r2", "test") > 0.75


def test_band_decodes_reaches_better_than_a_ridge_on_spikes_and_nothing_from_shuffled_ones(demo):
    if not (demo / "datasets/chewie.h5").exists():
        pytest.skip("chewie_2013-10-03.h5 is not in $CTDB_DATA (default ../shared/data)")
    reached = score(demo, "chewie", "band", "behavior_r2", "test")
    assert reached > score(demo, "chewie", "baseline_ridge_on_spikes", "behavior_r2", "test") > 0.8
    assert reached > score(demo, "chewie", "chewie_lfads", "behavior_r2", "test") + 0.03
    assert score(demo, "chewie_shuffled", "band", "behavior_r2", "test") <= 0.05


def test_dynamics_tell_fits_apart_that_follow_the_same_trajectories(demo):
    points = FixedPoints.load(demo / "dynamics/nbff/fixed_points.h5")
    assert points.index.bincount().tolist() == [8, 12, 6, 1]
    assert points.residual.max() < 1e-11
    for metric in ("fixed_point_recall", "fixed_point_index", "fixed_point_edges", "flow_field_r2"):
        assert score(demo, "nbff", "ceiling_true_rates", metric, "test") == pytest.approx(1, abs=1e-6)
        assert score(demo, "nbff", "floor_mean_rate", metric, "test") == pytest.approx(0, abs=0.01)
    for fit in ("sae_gru", "lfads"):
        assert score(demo, "nbff", fit, "fixed_point_recall", "test") >= 0.9
        assert score(demo, "nbff", fit, "fixed_point_index", "test") >= 0.9
        assert score(demo, "nbff", fit, "flow_field_r2", "test") > 0.8
        assert score(demo, "nbff", fit, "dsa_similarity", "test") > 0.5
    assert score(demo, "nbff", "lds", "fixed_point_recall", "test") < 0.1
    assert score(demo, "nbff", "lds", "flow_field_r2", "test") < 0.7
    scores = pd.read_parquet(demo / "scores.parquet")
    swept = scores[(scores["dataset"] == "nbff") & (scores["metric"] == "state_r2_inferred_to_true")]
    swept = swept[swept["model"].str.startswith("gru@") & (swept["split"] == "test")].sort_values("value")
    assert [json.loads(one)["latent_size"] for one in swept["sweep"]] == [3, 8, 32]  # a larger state holds more of it


def test_ibl_sessions_are_fitted_above_the_floor_and_band_decodes_the_wheel_best(demo):
    for fit in ("ibl_lfads", "ibl_band"):
        assert score(demo, "ibl", fit, "bits_per_spike_heldout", "test") > 0.03
    wheel = score(demo, "ibl", "ibl_band", "behavior_r2", "test")
    assert wheel > score(demo, "ibl", "baseline_ridge_on_spikes", "behavior_r2", "test") + 0.05
    assert score(demo, "ibl", "ibl_lfads", "condition_accuracy", "test") > 0.9
    if (demo / "datasets/ibl_mo.h5").exists():
        low = pd.read_parquet(demo / "scores.parquet").set_index(["dataset", "model", "metric", "split"])["low"]
        assert low["ibl_mo", "ibl_mo_lfads", "bits_per_spike_heldin", "test"] > 0


def test_every_figure_has_its_pdf_png_and_csv(demo):
    figures = {path.stem for path in (demo / "figures").iterdir() if path.suffix != ".json"}
    assert {"task_performance", "nbff_rates", "nbff_latents", "nbff_scores"} <= figures
    for figure in figures:
        assert (demo / f"figures/{figure}.pdf").read_bytes()[:5] == b"%PDF-"
        assert len(pd.read_csv(demo / f"figures/{figure}.csv")) > 0


def test_the_report_tells_of_all_of_it(demo):
    text = (demo / "report.html").read_text()
    n_fits = len(list((demo / "fits").glob("*/*/seed*")))
    assert f"{n_fits} of {n_fits} fits went well" in text
    for figure in (demo / "figures").glob("*.pdf"):
        assert f'id="figure-{figure.stem}"' in text
    assert len(text) < 15e6


def test_no_output_holds_a_path_of_this_machine(demo):
    marks = [str(REPOSITORY).encode(), str(demo).encode()]
    for path in demo.rglob("*"):
        if path.is_file() and not {"logs", "benchmarks"} & set(path.relative_to(demo).parts):
            content = path.read_bytes()
            assert not any(mark in content for mark in marks), path
    with h5py.File(demo / "datasets/nbff.h5") as dataset:
        assert json.loads(dataset.attrs["provenance"])["kind"] == "simulated"
