"""A cluster for the tests of a file, and projects whose jobs go to it."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from cluster import Cluster, UnavailableError

from project import Project, lay_out

SITE = """
cpu: {partition: cpu, max_minutes: 60, max_memory_mb: 7000}
gpu: {partition: gpu, max_minutes: 60, max_memory_mb: 7000}
"""


class ClusterProject(Project):
    """A folder in which snakemake sends its jobs to a cluster."""

    def __init__(self, folder: Path, cluster: Cluster):
        super().__init__(folder)
        self.cluster = cluster
        self.environment |= cluster.environment
        self.environment.pop("SLURM_JOB_ID", None)

    def command(self, *arguments: str) -> list[str]:
        quick = ["--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "20"]
        own = ["--profile", "slurm", "--configfile", "config.yaml", *quick]
        return [sys.executable, "-m", "snakemake", *arguments, *own]

    def start(self, *arguments: str) -> subprocess.Popen:
        log = open(self.folder / "snakemake.log", "a")  # noqa: SIM115 -- the process's own
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which tests in the background ignore
        )

    def jobs(self, rule: str) -> list[dict[str, str]]:
        """What Slurm says of each job that it was given of a rule, in their order."""
        lines = self.cluster.run("scontrol", "show", "job", "--all", "-o").splitlines()
        found = [dict(field.split("=", 1) for field in line.split() if "=" in field) for line in lines]
        here = [job for job in found if job.get("WorkDir") == str(self.folder)]
        return sorted(
            (job for job in here if job.get("Comment", "").split("_wildcards")[0] == f"rule_{rule}"),
            key=lambda job: int(job["JobId"]),
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    one = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        one.up()
        yield one
    except UnavailableError as error:
        pytest.skip(str(error))
    finally:
        one.down()


@pytest.fixture
def on_cluster(cluster, tmp_path) -> Iterator[ClusterProject]:
    """A project in which nothing has run, with the cluster as its site."""
    project = lay_out(tmp_path / "project")
    (project.folder / "workflow/profiles/slurm/site.yaml").write_text(SITE)
    yield ClusterProject(project.folder, cluster)
    # Without control groups, Slurm loses sight of some processes of a job that it ends.
    for process in psutil.process_iter(["cwd"]):
        if process.info["cwd"] == str(project.folder):
            process.kill()


@pytest.fixture
def locally(on_cluster, tmp_path) -> Callable[..., Project]:
    """Run the same project on this machine."""

    def run(*targets: str) -> Project:
        shutil.copytree(
            on_cluster.folder, tmp_path / "local", symlinks=True, ignore=shutil.ignore_patterns(".snakemake", "results")
        )
        project = Project(tmp_path / "local")
        done = project.run(*targets)
        assert done.returncode == 0, done.stdout + done.stderr
        return project

    return run


@pytest.fixture
def wait_until() -> Callable[..., None]:
    def wait(
        condition: Callable[[], object], what: str, run: subprocess.Popen | None = None, timeout: float = 240
    ) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert run is None or run.poll() is None, f"the run ended before {what}"
            assert time.monotonic() < deadline, f"waited too long for {what}"
            time.sleep(0.1)

    return wait
