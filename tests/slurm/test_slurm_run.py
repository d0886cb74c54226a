"""A small run on a real Slurm: the bytes of a run on this machine, a GPU where it is worth one, refusals before any job."""

import re
import shutil

import pandas as pd
import pytest
import yaml

TARGETS = ("results/scores/mine/lds/seed0.csv", "results/scores/mine/sae_gru/seed0.csv")


def test_a_run_on_a_cluster_gives_the_bytes_of_one_on_this_machine(on_cluster, locally):
    # One fit that diverges; one that asks for so many epochs that it is worth a GPU, and stops long before.
    on_cluster.edit(
        "config.yaml", "lds: {<<: *small, kind: lds}", "lds: {<<: *small, kind: lds, training: {learning_rate: 1e30}}"
    )
    on_cluster.edit("config.yaml", "max_epochs: 4, batch_size: 8", "max_epochs: 100000000, batch_size: 8, patience: 2")
    on_cluster.edit("config.yaml", "[mine], models: [sae_gru]", "[mine], models: [sae_gru, lds]")
    on_cluster.edit(
        "workflow/scripts/fit.py",
        "    import sys\n",
        "    import os\n    import sys\n    import torch\n\n"
        "    print('granted', torch.get_num_threads(), os.environ.get('CUDA_VISIBLE_DEVICES'))\n",
    )
    done = on_cluster.run(*TARGETS)
    assert done.returncode == 0, done.stdout + done.stderr
    there = on_cluster.digests()
    assert set(TARGETS) <= {f"results/{name}" for name in there}
    assert there == locally(*TARGETS).digests()

    scores = pd.read_csv(on_cluster.folder / TARGETS[0])
    assert set(scores["status"]) == {"diverged"}
    assert scores["reason"].str.contains("training step").all()
    assert pd.read_csv(on_cluster.folder / TARGETS[1])["value"].notna().any()

    fits = {job["Partition"]: job for job in on_cluster.jobs("fit")}
    assert set(fits) == {"cpu", "gpu"}
    assert fits["gpu"]["TresPerJob"].endswith("gpu:1")
    assert "TresPerJob" not in fits["cpu"]
    assert fits["gpu"]["TimeLimit"] == "01:00:00"  # what the site allows, not what it would take
    log = (on_cluster.folder / "results/logs/fits/mine/sae_gru/seed0.log").read_text()
    assert re.search(r"^granted 1 [01]$", log, re.MULTILINE)
    assert left_behind(on_cluster) == []
    assert not (on_cluster.folder / "results/.owner").exists()
    assert on_cluster.planned(*TARGETS) == {}


def left_behind(project) -> list[str]:
    return [str(path) for path in (project.folder / "results").rglob("*.partial")]


@pytest.mark.parametrize(
    ("change", "arguments", "expected"),
    [
        ({"cpu": {"partition": "nowhere"}}, [], ["Invalid partition name", "cpu: up to 1:00:00", "site.yaml"]),
        (
            {"gpu": {"partition": "cpu", "model": "h100"}},
            [],
            ["--gpus=h100:1", "fake:2"],
        ),
        ({}, ["fit:gpu=9", "fit:slurm_partition=gpu"], ["'fit mine sae_gru 0'", "--gpus=9"]),
        ({}, ["fit:runtime=500"], ["Requested time limit is invalid", "--time=500"]),
        ({"account": "nobody"}, [], ["site.yaml: account: this cluster keeps no accounts; set it to null"]),
        ({"acount": "nobody"}, [], ["site.yaml: acount: unknown key; did you mean 'account'?"]),
        ({"cpu": {"max_minutes": "a day"}}, [], ["site.yaml: cpu.max_minutes: ", "found 'a day'"]),
    ],
)
def test_what_the_cluster_would_refuse_is_told_before_any_job(on_cluster, change, arguments, expected):
    on_cluster.edit("config.yaml", "max_epochs: 4, batch_size: 8", "max_epochs: 100000000, batch_size: 8")
    path = on_cluster.folder / "workflow/profiles/slurm/site.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    text = refused(
        on_cluster, "results/fits/mine/sae_gru/seed0/output.h5", *(["--set-resources", *arguments] if arguments else [])
    )
    for part in expected:
        assert part in text
    assert on_cluster.jobs("dataset") == []


def test_a_run_whose_jobs_would_never_be_seen_to_end_is_refused(on_cluster):
    text = refused(on_cluster, "--slurm-status-command", "sacct")
    assert "slurm-status-command: is sacct, but this cluster keeps no accounts; set it to squeue" in text


def test_without_slurm_there_is_one_message(on_cluster, tmp_path):
    (tmp_path / "bin").mkdir()
    for program in ("which", "bash", "sh", "env"):
        (tmp_path / "bin" / program).symlink_to(shutil.which(program))
    on_cluster.environment["PATH"] = f"{tmp_path}/bin"
    assert "there is no Slurm on this machine" in refused(on_cluster)


def refused(project, *arguments: str) -> str:
    done = project.run(*arguments, timeout=120)
    text = done.stdout + done.stderr
    assert done.returncode != 0, text
    assert "Traceback" not in text
    assert text.count("error: ") == 1
    assert not (project.folder / "results/datasets").exists()
    return text
