"""What the Snakefile asks of ctdb: the plan, the code fingerprints of its rules, and one run at a time."""

import ast
import atexit
import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctdb import config, slurm
from ctdb.errors import ConfigError, CtdbError
from ctdb.files import read_yaml, write_error
from ctdb.provenance import fingerprint

STATE = Path(".snakemake/ctdb")
_held: list[Any] = []


def plan(chosen: Sequence[Path | str], overrides: Mapping[str, Any], default: Path | str) -> dict[str, Any]:
    """Plan of the chosen configuration file, without the optional datasets whose file is not there.

    Parameters
    ----------
    chosen
        What the user gave by ``--configfile``; `default` if nothing.
    overrides
        What the user gave by ``--config``: refused.
    default
        The configuration of the paper.

    Raises
    ------
    ConfigError
        If the file is wrong, several are given, a dataset's file or a task's package is absent, or the results cannot
        be written.
    """
    if len(chosen) > 1 or overrides:
        raise ConfigError(
            "a run is described by one complete configuration file: give one --configfile and no --config. "
            "To change something, copy config/quick.yaml and edit the copy"
        )
    path = chosen[0] if chosen else default
    checked = config.load(path, cache=STATE)
    _refuse_unwritable(Path(checked["results"]), path)
    absent = _absent_files(checked, path)
    _refuse_missing_packages(checked, path)
    left = _without(checked, absent) if absent else checked
    if not left["fits"]:
        raise ConfigError(f"{path}: nothing is left to fit: the file of every dataset of `fits` is absent")
    _refuse_absent_recordings(left, path)
    return left


def recordings_in_use(checked: Mapping[str, Any]) -> list[str]:
    """Recordings that a dataset is made from; the others are not fetched."""
    sources = (source for dataset in checked["datasets"].values() for source in dataset["sources"])
    return sorted({name for what, name, *_ in sources if what == "recording"})


def _refuse_absent_recordings(checked: Mapping[str, Any], path: Path | str) -> None:
    """Told before any job starts: what a recording in use is fetched from, where that is on this machine."""
    for name in recordings_in_use(checked):
        settings = checked["recordings"][name]
        if settings["kind"] == "ibl_local" and not (folder := config.data_path(settings["cache_dir"])).is_dir():
            raise ConfigError(f"{path}: recordings.{name}.cache_dir: there is no folder {folder}; correct the path")
        if settings.get("manifest") and not (file := config.data_path(settings["manifest"])).is_file():
            raise ConfigError(f"{path}: recordings.{name}.manifest: there is no file {file}; correct the path")


def _refuse_missing_packages(plan: Mapping[str, Any], path: Path | str) -> None:
    """Told before any job starts; not part of the plan, which is remembered while packages come and go."""
    for task, required in plan["requires"].items():
        for package in required["packages"]:
            if importlib.util.find_spec(package) is None:
                raise ConfigError(f"{path}: tasks.{task}: needs {package}; {required['install']}")


def versions(plan: Mapping[str, Any], task: str) -> str:
    """Versions of the packages that a task needs beyond ctdb's own, which are part of what it does; "" for most."""
    packages = plan["requires"][task]["packages"]
    return " ".join(f"{name}=={importlib.metadata.version(name)}" for name in packages)


@functools.cache  # thousands of jobs share it
def code(repository: Path | str, script: str, *modules: str) -> str:
    """Fingerprint of a rule's script, and of modules that it loads by name, as they are when it is first asked for."""
    return fingerprint(Path(repository) / "workflow/scripts" / script, *modules)


def content_hash(path: Path | str) -> str:
    """Hash of a file that is not code, such as a figure style, for the params of the rules that read it."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


@functools.cache
def figure_words(kind: str, module: str) -> str:
    """Hash of words that become part of a figure and are not code: its docstring, and published numbers of its kind."""
    source = Path(importlib.util.find_spec(module).origin)
    classes = (node for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef))
    words = [ast.get_docstring(node) or "" for node in classes]
    words += [path.read_text() for path in sorted((source.parent / "published").glob(f"{kind}.*"))]
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]


def hold_results(results: Path | str, slurm_run: str | None = None) -> None:
    """Take the results folder for this run alone; end with an error where another run has it or it cannot be written.

    A lock that ends with this process, however it ends, keeps out other runs on this machine: after a kill, the same
    command simply runs again. (Snakemake's own lock, which the profiles switch off, outlives a killed run and must be
    removed by hand.) Locks need not reach other machines on a shared file system (on NFS they may not, and fail
    silently), but a name is given once: an owner file keeps out runs on other machines, and tells which jobs of a
    killed run a cluster may still hold. It is removed when this process ends, unless it is killed or jobs of a cluster
    are still at work.

    Jobs learn which process they belong to. Those on this machine end themselves when it is gone; those of a cluster
    go on.

    Parameters
    ----------
    results
        The folder.
    slurm_run
        Name of the run's Slurm jobs, where it has any.
    """
    lock, owner = Path(results) / ".lock", Path(results) / ".owner"
    mine = {"host": os.uname().nodename, "process": os.getpid(), "slurm": slurm_run}
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock, "w")  # noqa: SIM115 -- held until the process ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            file.close()
            raise SystemExit(f"error: another run is at work in {results}; wait for it to end, or stop it") from None
        except OSError:  # a file system without locks has the owner file
            locked = False
        _held.append(file)
        _own(owner, mine, locked)
    except OSError as error:
        raise SystemExit(f"error: results: {write_error(lock, error)}") from None
    except CtdbError as error:
        raise SystemExit(f"error: {error}") from None
    atexit.register(_disown, owner, mine)
    os.environ["CTDB_RUN"] = f"{mine['host']}:{mine['process']}:{os.environ.get('SLURM_JOB_ID', '')}"


def _own(owner: Path, mine: Mapping[str, Any], locked: bool) -> None:
    """Write the owner file, or raise ConfigError where a run elsewhere or jobs of a killed run may still be at work."""
    fresh = owner.with_name(f".owner.{mine['host']}.{mine['process']}")
    fresh.write_text(json.dumps(mine))
    try:
        with contextlib.suppress(FileExistsError):
            _give_name(fresh, owner, json.dumps(mine))
            return
        _refuse_living(owner, locked)
        os.replace(fresh, owner)
    finally:
        fresh.unlink(missing_ok=True)


def _give_name(fresh: Path, owner: Path, text: str) -> None:
    """Make the owner file, which only one of several runs can; raise FileExistsError if there is one."""
    try:
        os.link(fresh, owner)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with open(owner, "x") as file:
            file.write(text)


def _refuse_living(owner: Path, locked: bool) -> None:
    try:
        last = json.loads(owner.read_text())
        run, place = last["slurm"], f"process {last['process']} on {last['host']}"
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{owner}: cannot be read, so whether another run is at work in {owner.parent} is not known; make sure "
            "that none is, remove the file and run again"
        ) from None
    if not locked and last["host"] == os.uname().nodename and _is_alive(last["process"]):
        raise ConfigError(
            f"another run (process {last['process']}) is at work in {owner.parent}; wait for it, or stop it"
        )
    if last["host"] != os.uname().nodename:
        jobs = f" and its jobs are too (`squeue --name={run}`)" if run else ""
        raise ConfigError(
            f"{owner.parent} is held by a run that was started as {place}, of which nothing is known here: wait for it "
            f"to end, or stop it. If it is gone{jobs}, remove {owner} and run again"
        )
    if run and (jobs := slurm.queued(run)):
        raise ConfigError(
            f"{owner.parent}: the run before this one ({place}) is gone, but {len(jobs)} of its Slurm jobs are not "
            f"({', '.join(jobs[:5])}{', ...' if len(jobs) > 5 else ''}), and would write the same files. Wait for them "
            f"(`squeue --name={run}`; what they finish is not made again), or stop them: `scancel --name={run}`"
        )


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, PermissionError):  # gone, or its number is somebody else's
        return False
    return True


def _disown(owner: Path, mine: Mapping[str, Any]) -> None:
    """Remove the owner file, unless jobs of the run are still at work, as some seconds after they were cancelled."""
    with contextlib.suppress(OSError, ValueError, CtdbError):
        if json.loads(owner.read_text()) == mine and not (mine["slurm"] and slurm.queued(mine["slurm"])):
            owner.unlink()


def summary(checked: Mapping[str, Any]) -> str:
    """What a finished run says: how many fits went well, which did not and why, and where to look."""
    results = Path(checked["results"])
    failed, warned = [], []
    for fit in checked["fits"]:
        spec = results / "fits" / fit["dataset"] / fit["model"] / f"seed{fit['seed']}" / "spec.yaml"
        facts = read_yaml(spec) if spec.exists() else {"status": "ok"}
        if facts["status"] != "ok":
            failed.append(f"  {facts['status']}: {spec.parent}: {facts['reason']}")
        warned += [f"  warning: {spec.parent}: {text}" for text in facts.get("warnings", [])]
    n_fits = len(checked["fits"])
    lines = [f"{n_fits - len(failed)} of {n_fits} fits went well.", *failed, *warned]
    lines.append(f"Scores: {results / 'scores.parquet'}   figures: {results / 'figures'}   logs: {results / 'logs'}")
    return "\n".join(lines)


def _refuse_unwritable(results: Path, path: Path | str) -> None:
    """Look, without making anything, whether the results folder can be made or written."""
    ancestor = next(folder for folder in (results, *results.absolute().parents) if folder.exists())
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
        found = "is not a folder" if not ancestor.is_dir() else "is not writable for you"
        raise ConfigError(
            f"{path}: results: {results} cannot be written, because {ancestor} {found}; make it a writable folder, or "
            "point `results` to one"
        )


def _absent_files(checked: Mapping[str, Any], path: Path | str) -> dict[str, str]:
    """Optional datasets whose file is not there, and why they are left out; raises ConfigError if one is needed."""
    absent: dict[str, str] = {}
    for name, settings in checked["datasets"].items():
        files = [(one, config.data_path(one)) for what, one, *_ in settings["sources"] if what == "file"]
        written, file = next(((one, file) for one, file in files if not file.exists()), (None, None))
        if file is None:
            continue
        if not settings["settings"].get("optional"):
            raise ConfigError(
                f"{path}: datasets.{name}.path: there is no file {file}; correct the path, or set `optional: true` "
                "to go on without it"
            )
        print(f"dataset {name!r} is left out: there is no file {file} (set CTDB_DATA to its folder)", file=sys.stderr)
        absent[name] = f"dataset {name!r}, whose file {written} is not there"
    while more := [
        name for name, value in checked["datasets"].items() if name not in absent and _made_from(value, absent)
    ]:
        absent |= {name: f"dataset {name!r}, which is made from one whose file is not there" for name in more}
    return absent


def _made_from(dataset: Mapping[str, Any], names: Container[str]) -> bool:
    return any(what == "dataset" and source in names for what, source, *_ in dataset["sources"])


def _without(checked: dict[str, Any], absent: Mapping[str, str]) -> dict[str, Any]:
    """Plan without some datasets and the fits to them or that begin with such a fit; its figures say what they lack.

    `absent` maps these datasets to the reason.
    """
    fits = {(fit["dataset"], fit["model"], fit["seed"]): fit for fit in checked["fits"] if fit["dataset"] not in absent}
    while lost := [key for key, fit in fits.items() if (first := _initial_key(fit)) and first not in fits]:
        for key in lost:
            del fits[key]
    left = {name for name, *_ in fits}

    def lacks(what: str, name: str, *fit: Any) -> str | None:
        if what in ("activity", "network_history"):
            return None
        if name in absent:
            return absent[name]
        if fit and (name, *fit) not in fits:
            return f"the fit of {fit[0]!r} to {name!r} with seed {fit[1]}, which begins with one that is left out"
        return None if what == "dataset" or name in left else f"all fits to {name!r}, which are left out"

    def without(figure: Mapping[str, Any]) -> dict[str, Any]:
        missing = [(need, reason) for need in figure["needs"] if (reason := lacks(*need))]
        kept = [need for need in figure["needs"] if not lacks(*need)]
        return {**figure, "needs": kept, "missing": [*figure["missing"], *missing]}

    return checked | {
        "datasets": {name: value for name, value in checked["datasets"].items() if name not in absent},
        "fits": list(fits.values()),
        "dynamics": {name: value for name, value in checked["dynamics"].items() if name in left},
        "figures": {name: without(value) for name, value in checked["figures"].items()},
    }


def _initial_key(fit: Mapping[str, Any]) -> tuple[str, str, int] | None:
    initial = fit["spec"].get("initial_fit")
    return (initial["dataset"], initial["model"], initial["seed"]) if initial else None
