"""A real Slurm on this machine: two nodes, two GPUs that are none, no accounts; needs root.

    python tests/slurm/cluster.py up FOLDER      # writes FOLDER/env.sh, to be sourced
    python tests/slurm/cluster.py down FOLDER

Everything listens on the loopback interface and keeps its state in the folder. Packages are those of Debian or Ubuntu,
and are installed where they are absent.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge")
NODES = ("cpu1", "gpu1")
DAEMONS = ("munged", "slurmctld", *(f"slurmd.{node}" for node in NODES))
"""In the order in which they start."""
CONFIGURATION = """
ClusterName=ctdb
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/pids/slurmctld
SlurmdPidFile={folder}/pids/slurmd.%n
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd.%n
AccountingStorageType=accounting_storage/none
ReturnToService=0
# Without control groups, memory is watched from outside and processes are followed by their parents.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill,UsePss
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# A test cannot wait for the rhythms of a large cluster.
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
KillWait=15
MinJobAge=600
SlurmdTimeout=60
EnforcePartLimits=ALL
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=cpu1 NodeHostname={host} NodeAddr=127.0.0.1 Port={cpu_port} CPUs=4 RealMemory=8000
NodeName=gpu1 NodeHostname={host} NodeAddr=127.0.0.1 Port={gpu_port} CPUs=4 RealMemory=8000 Gres=gpu:fake:2
PartitionName=cpu Nodes=cpu1,gpu1 Default=YES MaxTime=60 State=UP
PartitionName=gpu Nodes=gpu1 MaxTime=60 State=UP
"""
GPUS = """
AutoDetect=off
NodeName=gpu1 Name=gpu Type=fake File=/dev/null
NodeName=gpu1 Name=gpu Type=fake File=/dev/zero
"""
"""Each GPU needs a device node of its own; nothing opens these."""


class UnavailableError(Exception):
    """Why there can be no cluster here."""


class Cluster:
    """The cluster whose state is in a folder."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.environment = {
            "SLURM_CONF": str(self.folder / "etc/slurm.conf"),
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
        }

    def up(self) -> None:
        """Start the daemons and wait until all nodes take jobs; raise UnavailableError where that cannot be."""
        _install()
        for name in ("bin", "etc", "log", "munge", "pids", "state", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        host = socket.gethostname().split(".")[0]
        ports = dict(zip(("port", "cpu_port", "gpu_port"), _free_ports(3), strict=True))
        (self.folder / "etc/slurm.conf").write_text(CONFIGURATION.format(host=host, folder=self.folder, **ports))
        (self.folder / "etc/gres.conf").write_text(GPUS)
        (self.folder / "etc/cgroup.conf").write_text("CgroupMountpoint=/sys/fs/cgroup\n")
        # Snakemake hides SLURM_CONF from the srun inside a job, which elsewhere is in /etc.
        shim = self.folder / "bin/srun"
        shim.write_text(f'#!/bin/sh\nexport SLURM_CONF={self.environment["SLURM_CONF"]}\nexec {_found("srun")} "$@"\n')
        shim.chmod(0o755)
        lines = [f"export {name}='{value}'\n" for name, value in self.environment.items()]
        (self.folder / "env.sh").write_text("".join(lines))
        self._start_munge()
        self._start(_found("slurmctld"), "-c")
        for node in NODES:
            self._start(_found("slurmd"), "-N", node)
        self._wait_for_nodes()

    def down(self) -> None:
        """Cancel all jobs and stop the daemons that :meth:`up` started."""
        subprocess.run(["scancel", "--full", "--me"], env=os.environ | self.environment, capture_output=True)
        time.sleep(1)
        for name in reversed(DAEMONS):
            path = self.folder / "pids" / name
            if path.exists():
                _stop(int(path.read_text()))
                path.unlink(missing_ok=True)

    def run(self, *command: str) -> str:
        """What one of Slurm's commands says."""
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        (folder / "key").write_bytes(secrets.token_bytes(1024))
        (folder / "key").chmod(0o400)
        folder.chmod(0o755)
        files = {"key-file": "key", "socket": "socket", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder / name}" for option, name in files.items()]
        self._start(_found("munged"), "--force", f"--pid-file={self.folder}/pids/munged", *options)

    def _start(self, *command: str) -> None:
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True)
        if done.returncode:
            raise UnavailableError(f"{command[0]} does not start: {done.stderr.strip()}")

    def _wait_for_nodes(self) -> None:
        deadline = time.monotonic() + 60
        states = ""
        while time.monotonic() < deadline:
            done = subprocess.run(
                ["sinfo", "-h", "-N", "-p", "cpu", "-o", "%T"],
                env=os.environ | self.environment,
                capture_output=True,
                text=True,
            )
            states = done.stdout + done.stderr
            if done.stdout.split() == ["idle"] * len(NODES):
                return
            time.sleep(0.2)
        raise UnavailableError(f"the nodes do not get ready: {states.strip()}")


def _install() -> None:
    if os.geteuid():
        raise UnavailableError("starting Slurm needs root")
    if all(_found(program) for program in ("munged", "slurmctld", "slurmd", "sbatch")):
        return
    if shutil.which("apt-get") is None:
        raise UnavailableError("Slurm is not installed, and there is no apt-get to install it")
    options = ["-y", "-qq", "--no-install-recommends"]
    for command in (["update", "-qq"], ["install", *options, *PACKAGES]):
        try:
            done = subprocess.run(
                ["apt-get", *command],
                env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
                text=True,
                timeout=300,
            )
        except subprocess.TimeoutExpired:
            raise UnavailableError("Slurm cannot be installed: apt-get takes more than 5 minutes") from None
        if done.returncode:
            raise UnavailableError(f"Slurm cannot be installed: {done.stderr.strip()[-300:]}")


def _found(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/bin:/sbin")


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _stop(process: int) -> None:
    for number, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        try:
            os.kill(process, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                os.kill(process, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            return


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("up", "down"):
        sys.exit(__doc__)
    cluster = Cluster(Path(sys.argv[2]).resolve())
    try:
        getattr(cluster, sys.argv[1])()
    except UnavailableError as error:
        sys.exit(f"error: {error}")
