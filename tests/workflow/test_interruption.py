"""Killed at any moment, by any process: the same command again ends in the bytes of an undisturbed run."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest


def training_jobs(folder: Path) -> list[int]:
    """Processes of rules' scripts that work in `folder`."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(folder)
        and any("/.snakemake/scripts/" in part for part in process.info["cmdline"])
    ]


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_for(condition, run: subprocess.Popen, what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert run.poll() is None, f"the run ended before {what}"
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.02)


@pytest.fixture
def long_fit(fresh):
    """A project whose fits take long enough to be killed in the middle."""
    fresh.edit("config.yaml", "max_epochs: 4, batch_size: 8", "max_epochs: 300, batch_size: 8, plateau: {patience: 2}")
    fresh.edit("config.yaml", "{max_epochs: 3, batch_size: 10}", "{max_epochs: 600, batch_size: 10}")
    fresh.edit("config.yaml", "models: [sae_gru, lds], seeds", "models: [sae_gru], seeds")
    fresh.edit("config.yaml", "models: [sae_gru, lds]}", "models: [sae_gru]}")
    fresh.edit("config.yaml", "models: [sae_gru, lds]}", "models: [sae_gru]}")
    return fresh


def test_kill_9_of_jobs_and_of_snakemake_leaves_the_same_bytes(long_fit, tmp_path):
    undisturbed = type(long_fit)(tmp_path / "undisturbed")
    shutil.copytree(long_fit.folder, undisturbed.folder, symlinks=True)
    assert undisturbed.run().returncode == 0

    results = long_fit.folder / "results"
    checkpoint = "checkpoint/last.ckpt"

    # The network's training job alone, in the middle of training.
    run = long_fit.start()
    wait_for((results / "networks/gru/seed0" / checkpoint).exists, run, "a checkpoint of the network")
    jobs = training_jobs(long_fit.folder)
    assert jobs
    for job in jobs:
        kill(job)
    assert run.wait(120) != 0
    assert not (results / "networks/gru/seed0/weights.safetensors").exists()

    # Snakemake alone: its jobs live on as orphans while the next run starts.
    run = long_fit.start()
    wait_for((results / "fits/mine/sae_gru/seed0" / checkpoint).exists, run, "a checkpoint of a fit")
    kill(run.pid)
    run.wait()

    # Snakemake and its jobs, a little later.
    run = long_fit.start()
    wait_for((results / "fits/flip/sae_gru/seed0" / checkpoint).exists, run, "a checkpoint of the other fit")
    kill(run.pid)
    run.wait()
    for job in training_jobs(long_fit.folder):
        kill(job)

    done = long_fit.run()
    assert done.returncode == 0, done.stdout + done.stderr
    log = (results / "logs/fits/flip/sae_gru/seed0.log").read_text()
    assert "continuing from" in log
    assert long_fit.digests() == undisturbed.digests()
    assert long_fit.planned() == {}


def test_a_second_run_in_the_same_folder_is_refused(long_fit):
    run = long_fit.start()
    wait_for((long_fit.folder / "results/task_data/flip/train.h5").exists, run, "the first output")
    second = long_fit.run()
    assert second.returncode != 0
    assert "another run is at work" in second.stdout + second.stderr
    assert run.wait(300) == 0


def test_two_runs_in_two_folders_give_the_same_bytes(fresh, finished):
    assert fresh.run().returncode == 0
    assert fresh.digests() == finished.digests()


def test_an_orphan_does_not_overwrite_what_a_later_run_made(fresh):
    """A job that hangs while its run is killed, and wakes when another run has made the same file otherwise."""
    hang = '    if snakemake.wildcards.dataset == "mine":\n        import os, signal\n\n        os.kill(os.getpid(), signal.SIGSTOP)\n'
    fresh.edit("workflow/scripts/dataset.py", "    settings = ", f"{hang}    settings = ")
    run = fresh.start()
    wait_for(lambda: len(stopped(fresh.folder)) == 1, run, "the job to hang")
    kill(run.pid)
    run.wait()
    (orphan,) = stopped(fresh.folder)

    fresh.edit("workflow/scripts/dataset.py", hang, "")
    fresh.edit(
        "config.yaml",
        'keys: {recon_data: "{split}_spikes"}, n_heldout: 2',
        'keys: {recon_data: "{split}_spikes"}, n_heldout: 3',
    )
    assert fresh.run("results/datasets/mine.h5").returncode == 0
    made = (fresh.folder / "results/datasets/mine.h5").read_bytes()
    os.kill(orphan, signal.SIGCONT)
    psutil.wait_procs([psutil.Process(orphan)] if psutil.pid_exists(orphan) else [], timeout=30)
    assert not psutil.pid_exists(orphan)
    assert (fresh.folder / "results/datasets/mine.h5").read_bytes() == made


def stopped(folder: Path) -> list[int]:
    return [pid for pid in training_jobs(folder) if psutil.Process(pid).status() == psutil.STATUS_STOPPED]
