"""The Slurm cluster that jobs go to: what the user says of it, what it would refuse, and what it still runs."""

import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, field_validator
from pydantic_core import PydanticCustomError

from ctdb.errors import ClusterError, nearest
from ctdb.settings import Count, Settings

NOTICE_S = 120
"""Time before its time limit at which a job is told, so that it can write a checkpoint."""
LONGEST_LOOK_S = 240
"""Snakemake's executor asks for the states of jobs at least so often: every 180 s, and an answer may take a minute."""


class Partition(Settings):
    """Where jobs go; null is the cluster's default partition, and no limit of ours.

    A job that needs more than a limit asks for the limit: a training that does not finish in `max_minutes` goes on from
    its checkpoint in the next attempt.
    """

    partition: str | None = None
    max_minutes: Count | None = None
    max_memory_mb: Count | None = None


class GpuPartition(Partition):
    """Where trainings that are worth a GPU go; `model` is the cluster's name for one kind of them."""

    model: str | None = None

    @field_validator("model")
    @classmethod
    def _is_taken_by_snakemake(cls, model: str | None) -> str | None:
        if model is not None and not re.fullmatch(r"[A-Za-z0-9_.]+", model):
            raise PydanticCustomError(
                "gpu_model",
                "Snakemake takes letters, digits, _ and . only; leave it out, and choose the GPUs by their partition",
            )
        return model


class Site(Settings):
    """What a user says of a cluster in ``workflow/profiles/slurm/site.yaml``."""

    account: str | None = None
    qos: str | None = None
    cpu: Partition = Partition()
    gpu: GpuPartition | None = None


@cache
def read_site(path: Path | str) -> Site:
    """What the user says of the cluster.

    Raises
    ------
    ClusterError
        If the file is absent or wrong; one line for each problem, with its key.
    """
    try:
        written = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        return Site.model_validate(written)
    except OSError as error:
        raise ClusterError(f"{path}: {error.strerror}; `git checkout` brings it back") from None
    except yaml.YAMLError as error:
        raise ClusterError(f"{path}: not valid YAML: {error}") from None
    except ValidationError as error:
        lines = [f"{path}: {_explain(problem)}" for problem in error.errors()]
        raise ClusterError("\n".join(lines)) from None


def _explain(problem: Mapping[str, Any]) -> str:
    *above, key = problem["loc"] or ("the file",)
    where = ".".join(map(str, (*above, key)))
    if problem["type"] == "extra_forbidden":
        kind = {"cpu": Partition, "gpu": GpuPartition}.get(above[0], Site) if above else Site
        return f"{where}: unknown key; {nearest(str(key), kind.model_fields)}"
    return f"{where}: {problem['msg']}; found {problem['input']!r}"


def check(requests: Mapping[str, Mapping[str, Any]], status_command: str, path: Path | str) -> None:
    """Ask the cluster whether it would take the jobs of a run, and tell how they end, before any is submitted.

    Parameters
    ----------
    requests
        Job, in words, to its resources, in Snakemake's names.
    status_command
        `squeue` or `sacct`, by which Snakemake is to ask for the states of jobs.
    path
        File of the site, for the message.

    Raises
    ------
    ClusterError
        If there is no Slurm here, it does not answer, it would refuse one of the jobs, or their ends would not be seen.
    """
    if shutil.which("sbatch") is None:
        raise ClusterError(
            "there is no Slurm on this machine (no `sbatch` on the PATH): start from a login node of the cluster, or "
            "run here with `--profile local`"
        )
    configured = _answer("scontrol", "show", "config")
    keeps_accounts = not _value(configured, "AccountingStorageType").endswith("/none")
    if any(request.get("slurm_account") for request in requests.values()) and not keeps_accounts:
        raise ClusterError(f"{path}: account: this cluster keeps no accounts; set it to null")
    _check_status_command(status_command, keeps_accounts, int(_value(configured, "MinJobAge").split()[0]))
    for name, request in _largest(requests).items():
        refused = _ask("sbatch", "--test-only", *_options(request), "--wrap", "true")
        if refused.returncode:
            raise ClusterError(_refusal(name, request, refused.stderr, path))
        limit = _limit_minutes(request.get("slurm_partition"))
        if (request.get("runtime") or 0) > limit:  # some clusters take such a job, and never start it
            why = f"its partition allows {limit:g} minutes (set max_minutes)"
            raise ClusterError(_refusal(name, request, why, path))


def _partitions() -> list[list[str]]:
    """Name (with a * where it is the default), time limit, CPUs, memory and GPUs of each partition and kind of node."""
    return [line.split("|") for line in _answer("sinfo", "-h", "-o", "%P|%l|%c|%m|%G").splitlines()]


def _limit_minutes(partition: str | None) -> float:
    """Time limit of a partition, None for the default one; infinite where there is none."""
    there = ((name.removesuffix("*"), name.endswith("*"), limit) for name, limit, *_ in _partitions())
    limits = (limit for name, is_default, limit in there if (name == partition if partition else is_default))
    return _minutes(next(limits, ""))


def _minutes(limit: str) -> float:
    """Minutes of a limit such as ``2-00:00:00``, ``1:00:00`` or ``30:00``; infinite for what is no time."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if found is None:
        return math.inf
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return 1440 * days + 60 * hours + minutes + seconds / 60


def _check_status_command(status_command: str, keeps_accounts: bool, remembered_s: int) -> None:
    """Refuse a way to ask for the states of jobs by which their ends would never be seen."""
    where = "workflow/profiles/slurm/config.yaml: slurm-status-command"
    if status_command == "sacct" and not keeps_accounts:
        raise ClusterError(f"{where}: is sacct, but this cluster keeps no accounts; set it to squeue")
    if status_command == "squeue" and remembered_s < LONGEST_LOOK_S:
        remedy = "set it to sacct" if keeps_accounts else "its administrator must raise MinJobAge"
        raise ClusterError(
            f"{where}: is squeue, but this cluster forgets finished jobs after {remembered_s} s (MinJobAge), and "
            f"Snakemake may look every {LONGEST_LOOK_S} s only; {remedy}"
        )


def _largest(requests: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """For each partition, the jobs that ask for most of something: what it takes of these it takes of all."""
    kept = {}
    for partition in {request.get("slurm_partition") for request in requests.values()}:
        there = {name: one for name, one in requests.items() if one.get("slurm_partition") == partition}
        for what in ("mem_mb", "runtime", "threads", "gpu"):
            name = max(there, key=lambda name: there[name].get(what) or 0)
            kept[name] = there[name]
    return kept


def _options(request: Mapping[str, Any]) -> list[str]:
    """Options of sbatch as Snakemake's executor gives them."""
    gpus = f"{request['gpu_model']}:{request['gpu']}" if request.get("gpu_model") else request.get("gpu")
    options = {
        "partition": request.get("slurm_partition"),
        "account": request.get("slurm_account"),
        "qos": request.get("qos"),
        "time": request.get("runtime"),
        "mem": request.get("mem_mb"),
        "cpus-per-task": request.get("threads"),
        "gpus": gpus,
    }
    return [f"--{name}={value}" for name, value in options.items() if value]


def _refusal(name: str, request: Mapping[str, Any], said: str, path: Path | str) -> str:
    """What Slurm would refuse and why, what there is, and where to change it."""
    why = said.strip().splitlines()[-1].removeprefix("allocation failure: ") if said.strip() else "no reason given"
    partitions = "; ".join(
        f"{partition.removesuffix('*')}: up to {time}, {cpus} CPUs and {memory} MB a node, "
        f"{'no GPU' if gres == '(null)' else gres}"
        for partition, time, cpus, memory, gres in _partitions()
    )
    return (
        f"Slurm would refuse the job {name!r} ({shlex.join(_options(request))}): {why}. "
        f"Its partitions are: {partitions}. Correct {path}"
    )


def queued(run: str) -> list[str]:
    """Numbers of the jobs of a run that wait, run or are about to end.

    Raises
    ------
    ClusterError
        If Slurm does not answer.
    """
    return _answer("squeue", "-h", f"--name={run}", "-o", "%i").split()


def _answer(*command: str) -> str:
    done = _ask(*command)
    if done.returncode:
        raise ClusterError(f"Slurm does not answer (`{shlex.join(command)}`): {done.stderr.strip()}")
    return done.stdout


def _ask(*command: str) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"Slurm does not answer (`{shlex.join(command)}`): {error}") from None


def _value(configured: str, key: str) -> str:
    """Value of a key in what ``scontrol show config`` says."""
    lines: Iterable[list[str]] = (line.split("=", 1) for line in configured.splitlines() if "=" in line)
    return next((value.strip() for name, value in lines if name.strip() == key), "")
