"""The cost sheet: what the benchmark files of a run hold, and what a plan comes to before it."""

import copy
from collections import Counter

import pandas as pd
import pytest

from ctdb import config, costs
from ctdb.resources import ON_GPU, Needs
from project import CONFIG, RECORDINGS, lay_out

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


def benchmark(results, name, seconds, memory, cpu):
    path = results / "benchmarks" / f"{name}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + f"{seconds}\t0:00:01\t{memory}\t1\t1\t1\t0\t0\t99\t{cpu}\n")


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG.replace("seeds: [0]}", "seeds: [0, 1]}", 1))
    made = config.load(tmp_path / "config.yaml")
    return made | {"results": str(tmp_path / "results")}


def test_the_sheet_adds_up_what_jobs_of_a_stage_and_model_took(plan, tmp_path):
    results = tmp_path / "results"
    benchmark(results, "fits/flip/sae_gru/seed0", 3600, 500, 1800)
    benchmark(results, "fits/flip/sae_gru/seed1", 1800, 700, 900)
    benchmark(results, "fits/flip/lds/seed0", 360, "NA", "NA")
    benchmark(results, "networks/gru/seed0/train", 720, 400, 700)
    benchmark(results, "fits/flip/gone/seed0", 9e9, 9e9, 9e9)  # of another plan
    log = results / "logs/fits/flip/sae_gru/seed1.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"{ON_GPU}: some\n")
    assert costs.write_sheet(plan) == results / "cost.csv"
    table = pd.read_csv(results / "cost.csv", keep_default_na=False).set_index(["stage", "task", "model"])
    assert list(table.reset_index().columns) == list(costs.COLUMNS)
    assert table.loc["fit", "flip", "sae_gru"].tolist() == [2, 1.5, 0.75, 0.5, 700]
    assert table.loc["fit", "flip", "lds"].tolist() == [1, 0.1, 0, 0, 0]
    assert table.loc["train_network", "flip", "gru"].tolist() == [1, 0.2, pytest.approx(700 / 3600, rel=1e-3), 0, 400]
    assert len(table) == 3
    for suffix, start in ((".pdf", b"%PDF"), (".png", b"\x89PNG")):
        assert (results / "cost").with_suffix(suffix).read_bytes()[:4] == start


def test_every_job_of_a_plan_is_counted_once(plan):
    jobs = [(rule, *sorted(wildcards.items())) for rule, wildcards in costs.jobs_of(plan)]
    assert len(set(jobs)) == len(jobs)
    counts = pd.Series([rule for rule, *_ in jobs]).value_counts().to_dict()
    assert counts == {
        "training_trials": 1, "simulation_trials": 1, "train_network": 1, "network_activity": 1, "dataset": 2, "fit": 5,
        "score_fit": 5, "score_anchors": 2, "true_dynamics": 1, "fit_dynamics": 4, "dsa": 1, "gather_scores": 1,
        "figure": 4,
    }  # fmt: skip


def test_jobs_of_recordings_are_counted(tmp_path):
    project = lay_out(tmp_path / "project", RECORDINGS)
    planned = project.planned()
    for done_here in ("interactive", "reproduction", "report"):
        planned.pop(done_here, None)
    counts = Counter(rule for rule, _ in costs.jobs_of(config.load(project.folder / "config.yaml")))
    assert counts == planned
    assert counts["merge"] == 1


def test_an_estimate_is_an_upper_bound_until_jobs_were_measured(plan, tmp_path):
    needs = Needs(plan)
    bounds = sum(needs.expected(*job)[1] for job in costs.jobs_of(plan))
    before = costs.estimate(plan)
    assert (before.jobs, before.done, before.training_hours, before.gpu_hours) == (29, 0, 0, 0)
    assert before.core_hours == pytest.approx(bounds / 3600)
    assert before.disk_gb > 0
    fit = {"dataset": "flip", "model": "sae_gru", "seed": "0"}
    benchmark(tmp_path / "results", "fits/flip/sae_gru/seed0", 2.0, 500, 1)
    after = costs.estimate(plan)
    assert after.done == 1
    assert after.core_hours == pytest.approx((bounds - needs.expected("fit", fit)[1] + 2) / 3600)


def test_long_trainings_are_told_apart(plan, tmp_path):
    longer = copy.deepcopy(plan)
    for fit in longer["fits"]:
        fit["spec"]["training"]["max_epochs"] = 10**7
    found, before = costs.estimate(longer), costs.estimate(plan)
    assert found.training_hours > 1
    assert found.core_hours < before.core_hours
    log = tmp_path / "results/logs/fits/flip/sae_gru/seed0.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"{ON_GPU}: some\n")
    benchmark(tmp_path / "results", "fits/flip/sae_gru/seed0", 7200, 500, 1)
    measured = costs.estimate(longer)
    assert measured.gpu_hours == 2
    assert measured.training_hours < found.training_hours


def test_the_command_tells_it_in_words(plan, tmp_path):
    text = costs.main([str(tmp_path / "config.yaml")])
    assert "29 jobs, 6 of them trainings" in text
    assert "core hours" in text
    assert "GB" in text
