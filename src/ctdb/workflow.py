"""What the Snakefile asks of ctdb: the plan, the code fingerprints of its rules, and one run at a time."""

import fcntl
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctdb import config
from ctdb.errors import ConfigError
from ctdb.files import write_text
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
        If the file is wrong, several are given, a dataset's file is absent, or the results cannot be written.
    """
    if len(chosen) > 1 or overrides:
        raise ConfigError(
            "a run is described by one complete configuration file: give one --configfile and no --config. "
            "To change something, copy config/quick.yaml and edit the copy"
        )
    path = chosen[0] if chosen else default
    checked = config.load(path, cache=STATE)
    try:
        write_text(Path(checked["results"]) / ".writable", "")
        (Path(checked["results"]) / ".writable").unlink()
    except Exception as error:
        raise ConfigError(f"{path}: results: {error}") from None
    absent = _absent_files(checked, path)
    return _without(checked, absent) if absent else checked


def code(repository: Path | str, script: str, *modules: str) -> str:
    """Fingerprint of a rule's script, and of modules that it loads by name."""
    return fingerprint(Path(repository) / "workflow/scripts" / script, *modules)


def hold_folder() -> None:
    """Refuse to run where another ctdb run works in the same folder.

    The lock ends with this process, however it ends: after a kill, the same command simply runs again. (Snakemake's
    own lock, which the profiles switch off, outlives a killed run and must be removed by hand.)
    """
    STATE.mkdir(parents=True, exist_ok=True)
    file = open(STATE / "lock", "w")  # noqa: SIM115 -- held until the process ends
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise SystemExit(f"error: another run is at work in {Path.cwd()}; wait for it to end, or stop it") from None
    _held.append(file)


def _absent_files(checked: Mapping[str, Any], path: Path | str) -> list[str]:
    """Optional datasets whose file is not there; raises ConfigError if one is needed."""
    absent = []
    for name, settings in checked["datasets"].items():
        if settings["kind"] != "file" or (file := config.data_path(settings["path"])).is_file():
            continue
        if not settings["optional"]:
            raise ConfigError(
                f"{path}: datasets.{name}.path: there is no file {file}; correct the path, or set `optional: true` "
                "to go on without it"
            )
        print(f"dataset {name!r} is left out: there is no file {file} (set CTDB_DATA to its folder)", file=sys.stderr)
        absent.append(name)
    return absent


def _without(checked: dict[str, Any], absent: Sequence[str]) -> dict[str, Any]:
    def is_drawn(figure: Mapping[str, Any]) -> bool:
        named = {figure["settings"].get("dataset")} | {
            need[1] for need in figure["needs"] if need[0] in {"dataset", "fit"}
        }
        return named.isdisjoint(absent)

    return checked | {
        "datasets": {name: value for name, value in checked["datasets"].items() if name not in absent},
        "fits": [fit for fit in checked["fits"] if fit["dataset"] not in absent],
        "figures": {name: value for name, value in checked["figures"].items() if is_drawn(value)},
    }
