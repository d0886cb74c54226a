"""Whatever interrupts a run on a real Slurm: it ends, by itself or by the command it names, in the undisturbed bytes."""

import contextlib
import os
import re
import signal

import pytest

from project import lay_out

pytestmark = pytest.mark.slurm
FIT = "results/fits/mine/sae_gru/seed0"
TARGET = f"{FIT}/output.h5"


LONGER = ("config.yaml", "max_epochs: 4, batch_size: 8", "max_epochs: 150, batch_size: 8, plateau: {patience: 2}")


@pytest.fixture
def slow(on_cluster):
    """A project whose fit takes half a minute and more, most of it asleep, which changes no result."""
    on_cluster.edit(*LONGER)
    on_cluster.edit(
        "workflow/scripts/fit.py",
        "    dataset, spec =",
        "    import time\n    from ctdb.training.keeper import Keeper\n\n"
        "    epoch_end = Keeper.on_train_epoch_end\n"
        "    Keeper.on_train_epoch_end = lambda *a: (time.sleep(0.2), epoch_end(*a))[1]\n"
        "    dataset, spec =",
    )
    on_cluster.environment["CTDB_CHECKPOINT_SECONDS"] = "100000"  # none but those that an interruption writes
    return on_cluster


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Bytes of the same fit made on this machine without any interruption."""
    project = lay_out(tmp_path_factory.mktemp("undisturbed") / "project")
    project.edit(*LONGER)
    assert project.run(TARGET).returncode == 0
    return project.digests()


def log_of(project) -> str:
    path = project.folder / "results/logs/fits/mine/sae_gru/seed0.log"
    return path.read_text() if path.exists() else ""


def trains(project) -> bool:
    return "epoch 1/150" in log_of(project)


def runs_again_at_once(project, job) -> None:
    """Slurm leaves a requeued job alone for two minutes."""
    project.cluster.run("scontrol", "update", f"jobid={job['JobId']}", "starttime=now")


def has_ended_well(project, run, expected) -> None:
    assert run.wait(590) == 0, (project.folder / "snakemake.log").read_text()
    assert project.digests() == expected
    assert [str(path) for path in (project.folder / "results").rglob("*.partial")] == []
    assert project.planned(TARGET) == {}


def test_a_training_out_of_time_goes_on_from_its_checkpoint(slow, undisturbed):
    slow.edit("workflow/scripts/fit.py", "time.sleep(0.2)", "time.sleep(0.6)")  # more than the minute that it is given
    slow.edit("src/ctdb/resources.py", "LEAST_MINUTES = 10", "LEAST_MINUTES = 1")
    slow.edit("src/ctdb/resources.py", "TIME_MARGIN = 1.4, 3.0", "TIME_MARGIN = 1.4, 0.01")
    slow.edit("src/ctdb/slurm.py", "NOTICE_S = 120", "NOTICE_S = 5")
    has_ended_well(slow, slow.start(TARGET), undisturbed)
    first, second, *_ = slow.jobs("fit")
    assert first["JobState"] in ("FAILED", "TIMEOUT")
    assert (first["TimeLimit"], second["TimeLimit"]) == ("00:01:00", "00:02:00")
    assert "continuing from" in log_of(slow)


def test_a_job_out_of_memory_is_given_more(slow, undisturbed):
    slow.edit("src/ctdb/resources.py", "SNAKEMAKE_MB = 400", "SNAKEMAKE_MB = 0")
    slow.edit("src/ctdb/resources.py", '"fit": Cost(670, 7', '"fit": Cost(200, 7')
    has_ended_well(slow, slow.start(TARGET), undisturbed)
    *failed, last = slow.jobs("fit")
    assert failed
    assert {job["JobState"] for job in failed} <= {"FAILED", "OUT_OF_MEMORY"}
    assert last["JobState"] == "COMPLETED"
    assert last["MinMemoryNode"] != failed[0]["MinMemoryNode"] == "300M"


def test_a_requeued_training_goes_on_from_its_checkpoint(slow, undisturbed, wait_until):
    """As when another job preempts it."""
    run = slow.start(TARGET)
    wait_until(lambda: trains(slow), "the fit to train", run)
    (job,) = slow.jobs("fit")
    slow.cluster.run("scontrol", "requeue", job["JobId"])
    runs_again_at_once(slow, job)
    has_ended_well(slow, run, undisturbed)
    (job,) = slow.jobs("fit")
    assert job["Restarts"] == "1"
    assert "continuing from" in log_of(slow)


def test_a_job_whose_node_is_lost_runs_again_elsewhere(slow, undisturbed, wait_until):
    run = slow.start(TARGET)
    wait_until(lambda: trains(slow), "the fit to train", run)
    (job,) = slow.jobs("fit")
    try:
        slow.cluster.run("scontrol", "update", f"nodename={job['NodeList']}", "state=down", "reason=test")
        runs_again_at_once(slow, job)
        has_ended_well(slow, run, undisturbed)
        assert slow.jobs("fit")[-1]["NodeList"] != job["NodeList"]
    finally:
        slow.cluster.run("scontrol", "update", f"nodename={job['NodeList']}", "state=resume")


def test_after_a_kill_of_snakemake_its_jobs_are_waited_for_or_cancelled(slow, undisturbed, wait_until):
    run = slow.start(TARGET)
    wait_until(lambda: trains(slow), "the fit to train", run)
    run.kill()
    run.wait()
    second = slow.run(TARGET)
    assert second.returncode != 0
    said = second.stdout + second.stderr
    assert "1 of its Slurm jobs are not" in said
    assert len(slow.jobs("fit")) == 1
    cure = re.search(r"`(scancel --name=ctdb_\S+)`", said)[1]
    slow.cluster.run(*cure.split())
    wait_until(lambda: not running(slow), "the jobs to end")
    assert (slow.folder / FIT / "checkpoint/last.ckpt").exists()  # which the notice of the cancellation has left
    has_ended_well(slow, slow.start(TARGET), undisturbed)
    assert "continuing from" in log_of(slow)


def test_what_jobs_finish_after_a_kill_of_snakemake_is_not_made_again(slow, undisturbed, wait_until):
    run = slow.start(TARGET)
    wait_until(lambda: trains(slow), "the fit to train", run)
    run.kill()
    run.wait()
    wait_until(lambda: not running(slow), "the fit to end")
    assert slow.start(TARGET).wait(590) == 0
    (slow.folder / "results/.owner").unlink()  # the killed run's: with nothing to do, no other run has taken its place
    assert slow.digests() == undisturbed
    assert slow.planned(TARGET) == {}
    assert len(slow.jobs("fit")) == 1


def running(project) -> list[str]:
    return [job["JobId"] for job in project.jobs("fit") if job["JobState"] in ("PENDING", "RUNNING", "COMPLETING")]


def test_ctrl_c_cancels_the_jobs_and_leaves_checkpoints(slow, undisturbed, wait_until):
    run = slow.start(TARGET)
    wait_until(lambda: trains(slow), "the fit to train", run)
    with contextlib.suppress(ProcessLookupError):
        os.kill(run.pid, signal.SIGINT)
    assert run.wait(120) != 0
    wait_until(lambda: not running(slow), "the jobs to end")
    has_ended_well(slow, slow.start(TARGET), undisturbed)
    assert "continuing from" in log_of(slow)


def test_the_whole_pipeline_gives_the_bytes_of_one_on_this_machine(on_cluster, locally):
    done = on_cluster.run(timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 fits went well." in done.stderr
    assert on_cluster.digests() == locally().digests()
    assert on_cluster.jobs("figure") == on_cluster.jobs("gather_scores") == []  # done where Snakemake runs
