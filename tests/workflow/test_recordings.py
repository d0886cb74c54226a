"""LFADS, BAND and recordings without a network: what a run makes, and what a change of one file makes again."""

import shutil

import h5py
import numpy as np
import pytest

from ctdb.datasets import SPLITS, read
from project import RECORDINGS, Project, lay_out

LFADS = ("flow/lfads", "flow/first", "flow/tuned", "calcium/gamma", "wave/band")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Project:
    """A project whose fits are made; not to be changed."""
    project = lay_out(tmp_path_factory.mktemp("recordings") / "project", RECORDINGS)
    run = project.run("fits")
    assert run.returncode == 0, run.stdout + run.stderr
    return project


@pytest.fixture
def changed(done, tmp_path) -> Project:
    """A copy, to be changed."""
    shutil.copytree(done.folder, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")


def rerun(project) -> dict[str, set[str]]:
    """Datasets, fits and merged fits that a run would make."""
    outputs = project.outputs_by_rule("fits")
    assert set(outputs) <= {"dataset", "fit", "merge", "fits"}
    return {
        "dataset": {made.split("/")[-1].removesuffix(".h5") for made in outputs.get("dataset", [])},
        "fit": {"/".join(made.split(",")[0].split("/")[2:4]) for made in outputs.get("fit", [])},
        "merge": {"/".join(made.split("/")[2:4]) for made in outputs.get("merge", [])},
    }


def test_a_recording_without_trials_is_fitted_in_windows_and_merged_again(done):
    folder = done.folder / "results/fits/wave/band/seed0"
    dataset = read(done.folder / "results/datasets/wave.h5")
    with h5py.File(folder / "output.h5") as output, h5py.File(folder / "continuous.h5") as merged:
        assert merged.attrs["status"] == "ok"
        assert {"rates", "factors", "behavior", "co_means", "split"} <= set(merged)
        assert not {"ic_mean", "ic_std"} & set(merged)
        holding = {t: [] for t in range(212)}
        for index, split in enumerate(SPLITS):
            for window, start in zip(output[f"{split}_rates"][()], dataset[split].start, strict=True):
                for k, rates in enumerate(window):
                    holding[start + k].append((np.sin(np.pi * (k + 0.5) / 8), rates))
                assert (merged["split"][start : start + 8] == index).all()
        for t, parts in holding.items():
            expected = sum(weight * rates for weight, rates in parts) / sum(weight for weight, _ in parts)
            np.testing.assert_allclose(merged["rates"][t], expected, rtol=1e-5)
    assert not (done.folder / "results/fits/flow/lfads/seed0/continuous.h5").exists()


def test_a_tuned_fit_says_what_it_began_with(done):
    log = (done.folder / "results/logs/fits/flow/tuned/seed0.log").read_text()
    assert "arrays are taken over from results/fits/flow/first/seed0; 0 start afresh" in log
    assert "taken over" not in (done.folder / "results/logs/fits/flow/lfads/seed0.log").read_text()


def test_another_initial_fit_makes_the_tuned_fit_again(changed):
    changed.edit("config.yaml", "kl_ic_scale: 0.5", "kl_ic_scale: 0.4")
    assert rerun(changed) == {"dataset": set(), "fit": {"flow/first", "flow/tuned"}, "merge": set()}


def test_a_changed_observation_model_refits_what_uses_it_only(changed):
    changed.edit("src/ctdb/models/observations/gamma.py", "(log_shape - log_rate)", "(-log_rate + log_shape)")
    assert rerun(changed) == {"dataset": set(), "fit": {"calcium/gamma"}, "merge": set()}


def test_changed_lfads_refits_lfads_and_band_only(changed):
    changed.edit("src/ctdb/models/lfads.py", "DEAD_KL = 1e-3", "DEAD_KL = 2e-3")
    assert rerun(changed) == {"dataset": set(), "fit": set(LFADS), "merge": {"wave/band"}}
    changed.edit("src/ctdb/models/lfads.py", "DEAD_KL = 2e-3", "DEAD_KL = 1e-3")
    changed.edit(
        "src/ctdb/models/band.py", "behavior_weight: NonNegative = 0.1", "behavior_weight: NonNegative = 0.10 + 0"
    )
    assert rerun(changed) == {"dataset": set(), "fit": {"wave/band"}, "merge": {"wave/band"}}


def test_a_changed_kind_of_dataset_makes_its_datasets_again_only(changed):
    changed.edit("src/ctdb/datasets/lorenz.py", "SUBSTEPS = 4", "SUBSTEPS = 5")
    fits = {"flow/lfads", "flow/first", "flow/tuned", "flow/sae"}
    assert rerun(changed) == {"dataset": {"flow"}, "fit": fits, "merge": set()}


def test_a_changed_way_to_read_files_makes_datasets_of_files_again_only(changed):
    changed.edit("src/ctdb/datasets/user_file.py", "n_test = round(", "n_test = 0 + round(")
    assert rerun(changed) == {"dataset": {"calcium"}, "fit": {"calcium/gamma"}, "merge": set()}
