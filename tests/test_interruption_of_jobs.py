"""A job that is told to stop, one that has lost its run, and one whose successor is at work."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from ctdb.workflow import hold_results
from project import lay_out

ELSEWHERE = {"CTDB_RUN": "another-machine:1:", "SLURM_JOB_ID": "7"}


def start(folder, body: str, **environment: str) -> subprocess.Popen:
    """A script as of a rule, with its log in `folder`; it writes `ready` where it says so."""
    code = "from ctdb.jobs import job\nwith job('job.log', 1):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    clean = {key: value for key, value in os.environ.items() if key not in ("CTDB_RUN", "SLURM_JOB_ID")}
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=clean | environment, stderr=subprocess.PIPE)


def wait_for(path, process) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


TRAINING = """
    from pathlib import Path
    import torch
    from ctdb.settings import TrainingSettings
    from ctdb.training import Batches, train

    class Slow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def loss(self, batch, generator):
            if {slow}:
                import time

                Path("ready").touch()
                time.sleep(0.02)
            return ((batch["x"] - self.weight) ** 2).mean()

    def data(shuffle=None):
        return Batches({{"x": torch.arange(30.0).reshape(10, 3)}}, 5, shuffle)

    settings = TrainingSettings(max_epochs=40, batch_size=5, learning_rate=0.1)
    result = train(Slow(), data(1), data(), settings, 0, Path("out"))
    Path("history").write_text(result.history.to_csv())
"""


def test_training_told_to_stop_ends_at_a_checkpoint_and_goes_on_to_the_same_numbers(tmp_path):
    (tmp_path / "alone").mkdir()
    assert start(tmp_path / "alone", TRAINING.format(slow=False)).wait(120) == 0

    process = start(tmp_path, TRAINING.format(slow=True))
    wait_for(tmp_path / "ready", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 1
    log = (tmp_path / "job.log").read_text()
    assert "told to stop (SIGTERM" in log
    assert "Traceback" not in log
    assert (tmp_path / "out/checkpoint/last.ckpt").exists()
    assert not (tmp_path / "history").exists()

    assert start(tmp_path, TRAINING.format(slow=False)).wait(120) == 0
    assert "continuing from" in (tmp_path / "job.log").read_text()
    assert (tmp_path / "history").read_bytes() == (tmp_path / "alone/history").read_bytes()


def test_what_is_no_training_stops_at_once(tmp_path):
    process = start(tmp_path, "import time; open('ready', 'w'); time.sleep(60); open('done', 'w')")
    wait_for(tmp_path / "ready", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 1
    assert "told to stop (SIGTERM)" in (tmp_path / "job.log").read_text()
    assert not (tmp_path / "done").exists()


def test_the_snakemake_of_a_job_hands_the_signal_on(tmp_path):
    """With control groups, Slurm tells nobody else."""
    project = lay_out(tmp_path / "project")
    project.edit("config.yaml", "max_epochs: 4, batch_size: 8", "max_epochs: 100000, batch_size: 8")
    assert project.run("results/datasets/mine.h5").returncode == 0
    project.environment |= ELSEWHERE
    fit = "results/fits/mine/sae_gru/seed0"
    command = project.command(f"{fit}/output.h5", "--mode", "remote", "--force-use-threads")
    run = subprocess.Popen(command, cwd=project.folder, env=project.environment, stderr=subprocess.PIPE)
    log = project.folder / "results/logs/fits/mine/sae_gru/seed0.log"
    wait_for(project.folder / fit / "checkpoint/last.ckpt", run)
    run.send_signal(signal.SIGTERM)
    try:
        assert run.wait(60) != 0
    finally:
        run.kill()
    assert "told to stop (SIGTERM" in log.read_text()


@pytest.mark.parametrize(("state", "again"), [("PreemptTime=2026-01-01T00:00:00", True), ("PreemptTime=None", False)])
@pytest.mark.parametrize("body", ["import time; open('ready', 'w'); time.sleep(60)", TRAINING.format(slow=True)])
def test_a_preempted_job_is_queued_again(tmp_path, body, state, again):
    """Slurm counts one that ends in its grace time as failed."""
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> asked\necho "JobState=RUNNING {state}"\n')
    (tmp_path / "scontrol").chmod(0o755)
    process = start(tmp_path, body, PATH=f"{tmp_path}:{os.environ['PATH']}", **ELSEWHERE)
    wait_for(tmp_path / "ready", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 1
    assert (tmp_path / "asked").read_text().split("\n")[:-1] == ["show job 7", *(["requeue 7"] if again else [])]


@pytest.mark.parametrize(
    ("environment", "seen"),
    [
        (ELSEWHERE, ""),
        (ELSEWHERE | {"CUDA_VISIBLE_DEVICES": "1"}, "1"),
        (ELSEWHERE | {"SLURM_STEP_GPUS": "0"}, None),
        ({}, None),
    ],
)
def test_a_job_of_a_cluster_sees_no_gpu_that_it_was_not_given(tmp_path, environment, seen):
    body = "import os; open('seen', 'w').write(repr(os.environ.get('CUDA_VISIBLE_DEVICES')))"
    assert start(tmp_path, body, **environment).wait(60) == 0
    assert (tmp_path / "seen").read_text() == repr(seen)


WRITER = """
    import time
    from pathlib import Path
    from ctdb.files import write_text

    Path("ready{n}").touch()
    while not Path("go{n}").exists():
        time.sleep(0.02)
    write_text("output", "{n}")
"""


def test_an_attempt_given_up_for_lost_does_not_write_over_its_successor(tmp_path):
    first = start(tmp_path, WRITER.format(n=1), **ELSEWHERE)
    wait_for(tmp_path / "ready1", first)
    second = start(tmp_path, WRITER.format(n=2), **ELSEWHERE)
    wait_for(tmp_path / "ready2", second)
    (tmp_path / "go2").touch()
    assert second.wait(60) == 0
    (tmp_path / "go1").touch()
    assert first.wait(60) == 1
    assert (tmp_path / "output").read_text() == "2"
    assert "another attempt has taken over" in (tmp_path / "job.log").read_text()


def test_a_training_given_up_for_lost_does_not_write_over_the_checkpoint_of_its_successor(tmp_path):
    process = start(tmp_path, TRAINING.format(slow=True), CTDB_CHECKPOINT_SECONDS="0", **ELSEWHERE)
    checkpoint = tmp_path / "out/checkpoint/last.ckpt"
    wait_for(checkpoint, process)
    (tmp_path / "job.log.job").write_text("another node")
    time.sleep(0.2)
    checkpoint.write_text("of the successor")
    assert process.wait(60) == 1
    assert checkpoint.read_text() == "of the successor"
    assert "another attempt has taken over" in (tmp_path / "job.log").read_text()


def test_a_job_of_a_cluster_outlives_its_run_even_on_the_machine_of_that(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    here = os.uname().nodename
    (tmp_path / "go1").touch()
    assert start(tmp_path, WRITER.format(n=1), CTDB_RUN=f"{here}:{gone.pid}:", SLURM_JOB_ID="7").wait(60) == 0
    assert (tmp_path / "output").read_text() == "1"
    (tmp_path / "output").unlink()
    for run in ({"CTDB_RUN": f"{here}:{gone.pid}:"}, {"CTDB_RUN": f"{here}:{gone.pid}:7", "SLURM_JOB_ID": "7"}):
        assert start(tmp_path, WRITER.format(n=1), **run).wait(60) == 1
        assert not (tmp_path / "output").exists()
    for run in ({"CTDB_RUN": f"{here}:{os.getpid()}:"}, {}):
        assert start(tmp_path, WRITER.format(n=1), **run).wait(60) == 0
        (tmp_path / "output").unlink()


# Who holds the results

HOLD = """
import sys
from ctdb.workflow import hold_results
if "unlinked" in sys.argv[2]:
    import os
    def link(*_):
        raise PermissionError(1, "Operation not permitted")
    os.link = link
if "unlocked" in sys.argv[2]:
    import fcntl
    def flock(*_):
        raise OSError(37, "No locks available")
    fcntl.flock = flock
if sys.argv[3]:
    import os
    name = os.uname()
    os.uname = lambda: type("U", (), {"nodename": sys.argv[3]})()
hold_results("results", sys.argv[1] or None)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold(tmp_path):
    """Start a process that holds the results until its input ends; what it says, once it holds them or gives up."""
    processes = []

    def run(slurm_run: str = "", locks: str = "", host: str = "", **environment: str) -> tuple[subprocess.Popen, str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, slurm_run, locks, host],
            cwd=tmp_path,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        said = process.stdout.readline().strip()
        return process, said or process.stderr.read()

    yield run
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("locks", ["", "unlocked", "unlocked, unlinked"])
def test_one_run_at_a_time_holds_the_results(hold, tmp_path, locks):
    first, said = hold(locks=locks)
    assert said == "held"
    assert "is at work in results" in hold(locks=locks)[1]
    first.communicate("")
    assert first.returncode == 0
    assert not (tmp_path / "results/.owner").exists()
    assert hold(locks=locks)[1] == "held"


@pytest.mark.parametrize("locks", ["", "unlocked"])
def test_after_a_kill_the_same_machine_takes_the_results(hold, locks):
    first, _ = hold(locks=locks)
    first.kill()
    first.wait()
    assert hold(locks=locks)[1] == "held"


def test_a_run_on_another_machine_keeps_the_results_until_its_owner_file_is_removed(hold, tmp_path):
    first, said = hold(host="login1", slurm_run="ctdb_1")
    assert said == "held"
    first.kill()
    first.wait()
    _, said = hold(host="login2")
    assert f"held by a run that was started as process {first.pid} on login1" in said
    assert "squeue --name=ctdb_1" in said
    assert "remove results/.owner" in said
    (tmp_path / "results/.owner").unlink()
    assert hold(host="login2")[1] == "held"


def test_a_run_that_ends_leaves_the_owner_file_of_another_alone(hold, tmp_path):
    first, _ = hold()
    (tmp_path / "results/.owner").write_text("{}")
    first.communicate("")
    assert (tmp_path / "results/.owner").read_text() == "{}"


def test_an_owner_file_that_says_nothing_is_told(hold, tmp_path):
    (tmp_path / "results").mkdir()
    for text in ("", "{}", "[1]"):
        (tmp_path / "results/.owner").write_text(text)
        _, said = hold()
        assert "results/.owner: cannot be read" in said
        assert "remove the file" in said
        assert "Traceback" not in said


def test_jobs_that_outlive_a_run_keep_the_results(hold, tmp_path, queue):
    """Cancelled jobs take some seconds to end."""
    first, _ = hold("ctdb_1", **queue)
    (tmp_path / "queue").write_text("11\n")
    first.communicate("")
    assert first.returncode == 0
    assert "1 of its Slurm jobs are not (11)" in hold("ctdb_2", **queue)[1]
    (tmp_path / "queue").write_text("")
    second, said = hold("ctdb_1", **queue)
    assert said == "held"
    second.communicate("")
    assert not (tmp_path / "results/.owner").exists()


@pytest.fixture
def queue(tmp_path) -> dict[str, str]:
    """Environment with a stand-in for squeue, which says what is in a file."""
    fake = tmp_path / "bin/squeue"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\n[ "$2" = --name=ctdb_1 ] && cat "$QUEUE"\n')
    fake.chmod(0o755)
    (tmp_path / "queue").write_text("")
    return {"PATH": f"{fake.parent}:{os.environ['PATH']}", "QUEUE": str(tmp_path / "queue")}


def test_jobs_of_a_killed_run_keep_the_results(hold, tmp_path, queue):
    (tmp_path / "queue").write_text("11\n12\n")
    first, _ = hold("ctdb_1")
    first.kill()
    first.wait()
    for run in ("ctdb_2", ""):  # on the cluster or here
        _, said = hold(run, **queue)
        assert "2 of its Slurm jobs are not (11, 12)" in said
        assert "`scancel --name=ctdb_1`" in said
    assert "Slurm does not answer" in hold(QUEUE="", PATH=str(tmp_path / "none"))[1]
    (tmp_path / "queue").write_text("")
    assert hold("ctdb_2", **queue)[1] == "held"


def test_results_that_cannot_be_made_are_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="cannot be written"):
        hold_results(tmp_path / "file/results")
