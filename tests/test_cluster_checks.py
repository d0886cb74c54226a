"""What is asked of a cluster before jobs are submitted, on a stand-in for its commands."""

import asyncio
import json
import logging
import os
from types import SimpleNamespace

import pytest
import snakemake_executor_plugin_slurm as plugin
import yaml

from ctdb.errors import ClusterError
from ctdb.slurm import check, queued
from project import REPOSITORY

SLURM = """#!/usr/bin/env python3
import json, os, sys
state = json.load(open(os.environ["STATE"]))
name = os.path.basename(sys.argv[0])
with open(os.environ["STATE"] + ".asked", "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
if name == "sbatch":
    refused = [option for option in sys.argv if option in state["refused"]]
    if refused:
        sys.exit("sbatch: noise\\nallocation failure: no " + refused[0])
elif name in state:
    sys.stdout.write(state[name])
else:
    sys.exit("cannot connect")
"""
JOB = {"slurm_partition": "cpu", "mem_mb": 900, "runtime": 10, "threads": 1}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A cluster that refuses what is asked with some options; gives a function that tells what sbatch was asked."""
    for name in ("sbatch", "scontrol", "sinfo", "squeue"):
        (tmp_path / name).write_text(SLURM)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("STATE", str(tmp_path / "state.json"))

    def set_up(refused=(), accounts="slurmdbd", age="300 sec", **answers):
        config = f"Configuration\nAccountingStorageType   = accounting_storage/{accounts}\nMinJobAge    = {age}\n"
        state = {
            "refused": refused,
            "scontrol": config,
            "sinfo": "cpu|1:00:00|4|8000|(null)\ngpu|2:00:00|8|9000|gpu:a:2\n",
        }
        (tmp_path / "state.json").write_text(json.dumps(state | answers))

        def asked() -> list[list[str]]:
            lines = (tmp_path / "state.json.asked").read_text().splitlines()
            return [words[1:] for words in map(json.loads, lines) if words[0] == "sbatch"]

        return asked

    return set_up


def test_what_the_cluster_takes_is_not_refused(slurm):
    asked = slurm()
    request = JOB | {"slurm_account": "lab", "qos": "long", "gpu": 1, "gpu_model": "a100", "threads": 4}
    check({"fit a": request}, "squeue", "site.yaml")
    options = {
        "--partition=cpu",
        "--account=lab",
        "--qos=long",
        "--time=10",
        "--mem=900",
        "--cpus-per-task=4",
        "--gpus=a100:1",
    }
    (words,) = asked()
    assert words[0] == "--test-only"
    assert set(words[1:-2]) == options


def test_the_largest_jobs_of_each_partition_are_asked_for(slurm):
    asked = slurm()
    sizes = {"memory": {"mem_mb": 5000}, "time": {"runtime": 99}, "threads": {"threads": 3}, "gpus": {"gpu": 2}}
    jobs = {
        f"{name} {place}": JOB | size | {"slurm_partition": place}
        for place in ("a", "b")
        for name, size in sizes.items()
    }
    check(jobs | {f"small {n}": JOB | {"slurm_partition": "a"} for n in range(50)}, "squeue", "site.yaml")
    assert len(asked()) == 8
    for option in ("--mem=5000", "--time=99", "--cpus-per-task=3", "--gpus=2"):
        assert sum(option in words for words in asked()) == 2


def test_a_refusal_says_what_why_and_where(slurm):
    slurm(refused=["--qos=long"])
    with pytest.raises(ClusterError) as caught:
        check({"fit a": JOB, "fit b": JOB | {"qos": "long", "mem_mb": 1000}}, "squeue", "my/site.yaml")
    text = str(caught.value)
    assert text.startswith(
        "Slurm would refuse the job 'fit b' (--partition=cpu --qos=long --time=10 --mem=1000 --cpus-per-task=1)"
    )
    assert ": no --qos=long. " in text
    assert "cpu: up to 1:00:00, 4 CPUs and 8000 MB a node, no GPU; gpu: up to 2:00:00" in text
    assert "gpu:a:2" in text
    assert text.endswith("Correct my/site.yaml")


@pytest.mark.parametrize(
    ("partition", "minutes", "limit"),
    [
        ("cpu", 60, None),
        ("cpu", 61, 60),
        (None, 61, 60),
        ("gpu", 1500, None),
        ("gpu", 1501, 1500),
        ("old", 10**6, None),
    ],
)
def test_a_job_that_its_partition_would_never_start_is_refused(slurm, partition, minutes, limit):
    """Slurm takes it where EnforcePartLimits is NO, as by default, and says nothing."""
    slurm(sinfo="old|infinite|4|8000|(null)\ncpu*|1:00:00|4|8000|(null)\ngpu|1-01:00:00|4|8000|gpu:a:2\n")
    jobs = {"fit a": JOB | {"slurm_partition": partition, "runtime": minutes}}
    if limit is None:
        check(jobs, "squeue", "site.yaml")
    else:
        with pytest.raises(
            ClusterError, match=rf"its partition allows {limit} minutes \(set max_minutes\).*site.yaml$"
        ):
            check(jobs, "squeue", "site.yaml")


@pytest.mark.parametrize(
    ("status_command", "cluster", "expected"),
    [
        ("sacct", {"accounts": "none"}, r"is sacct, but this cluster keeps no accounts; set it to squeue$"),
        ("squeue", {"age": "60 sec"}, "forgets finished jobs after 60 s .MinJobAge.*set it to sacct"),
        ("squeue", {"age": "60 sec", "accounts": "none"}, "its administrator must raise MinJobAge"),
        ("sacct", {"age": "2 sec"}, None),
        ("squeue", {"age": "200 sec", "accounts": "none"}, "forgets finished jobs after 200 s"),
        ("squeue", {"age": "240 sec", "accounts": "none"}, None),
    ],
)
def test_a_way_to_ask_by_which_no_job_would_end_is_refused(slurm, status_command, cluster, expected):
    slurm(**cluster)
    if expected is None:
        check({"fit a": JOB}, status_command, "site.yaml")
    else:
        with pytest.raises(ClusterError, match=expected):
            check({"fit a": JOB}, status_command, "site.yaml")


def test_an_account_is_refused_where_there_are_none(slurm):
    slurm(accounts="none")
    check({"fit a": JOB}, "squeue", "site.yaml")
    with pytest.raises(ClusterError, match=r"^site.yaml: account: this cluster keeps no accounts; set it to null$"):
        check({"fit a": JOB, "fit b": JOB | {"slurm_account": "lab"}}, "squeue", "site.yaml")


def test_jobs_of_a_run_are_those_in_the_queue(slurm):
    slurm(squeue="3\n4\n")
    assert queued("ctdb_1") == ["3", "4"]
    slurm(squeue="")
    assert queued("ctdb_1") == []
    slurm()
    with pytest.raises(ClusterError, match=r"does not answer .`squeue -h --name=ctdb_1 -o %i`.: cannot connect"):
        queued("ctdb_1")


def test_no_slurm_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=r"no Slurm on this machine .*--profile local"):
        check({"fit a": JOB}, "squeue", "site.yaml")


class Unlimited:
    """Nothing to wait for between two questions."""

    async def __aenter__(self):
        pass

    async def __aexit__(self, *_):
        pass


def test_jobs_are_not_forgotten_while_slurm_does_not_answer(monkeypatch):
    """Snakemake's executor forgets all its jobs, and waits for ever, where all questions of one look fail."""
    profile = yaml.safe_load((REPOSITORY / "workflow/profiles/slurm/config.yaml").read_text())
    attempts = profile["slurm-status-attempts"]
    silent_s, answers = 3600, []

    async def answer(*_):
        answers.append(len(answers) / profile["max-status-checks-per-second"] > silent_s)
        return ({"7": "COMPLETED"}, 0.1) if answers[-1] else (None, None)

    monkeypatch.setattr(plugin, "query_job_status", answer)
    monkeypatch.setattr(plugin, "get_min_job_age", lambda: 300)
    ended = []
    executor = object.__new__(plugin.Executor)
    settings = plugin.ExecutorSettings(status_command="squeue", status_attempts=attempts, keep_successful_logs=True)
    executor.workflow, executor.logger = SimpleNamespace(executor_settings=settings), logging.getLogger("slurm")
    executor.run_uuid, executor.status_rate_limiter, executor.report_job_success = "run", Unlimited(), ended.append
    executor._status_query_calls = executor._status_query_failures = executor._status_query_total_seconds = 0
    executor._status_query_min_seconds, executor._status_query_max_seconds = None, 0
    executor._status_query_cycle_rows = []
    job = SimpleNamespace(external_jobid="7", aux={})

    async def looked(jobs):
        return [job async for job in executor.check_active_jobs(jobs)]

    assert asyncio.run(looked([job])) == []
    assert ended == [job]
