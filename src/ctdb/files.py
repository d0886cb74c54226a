"""Whole files or none: every output goes to a temporary name beside its own and is renamed when complete.

Nothing written here holds a clock time, a host or a path, so equal contents are equal bytes.
"""

import contextlib
import errno
import fcntl
import glob
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import yaml

from ctdb.errors import WriteError

LOOK_S = 30
"""Time between two looks of a job on a cluster whether a later attempt has taken its claim."""
_claim: Path | None = None


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write `content` to `path` atomically, making its folder where needed.

    Raises
    ------
    WriteError
        If the folder cannot be written or the disk is full. No partial file is left behind.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left_behind in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):  # by a killed process
            left_behind.unlink(missing_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        leave_if_orphaned()
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def leave_if_orphaned() -> None:
    """End this process if what it would write may no longer be wanted.

    Beside its run, that is if the run is gone. A job of a cluster outlives its run by design (the next run refuses to
    start while it is queued); it ends where a later attempt at the same outputs has taken its claim, as after its node
    was lost and found.
    """
    if beside_run():
        try:
            os.kill(int(os.environ["CTDB_RUN"].split(":")[1]), 0)
        except (ProcessLookupError, PermissionError):  # gone, or its number is somebody else's
            os._exit(1)
    elif _claim is not None:
        with contextlib.suppress(FileNotFoundError):  # who removes the logs means no harm
            if _claim.read_text() != _claimant():
                print("another attempt has taken over: this one ends", file=sys.stderr, flush=True)
                os._exit(1)


def beside_run() -> bool:
    """Whether the run that started this process is on the same machine and not behind a scheduler.

    The Snakefile puts host, process and Slurm job (if it is itself in one) of a run into the environment as
    ``CTDB_RUN``, which Slurm hands on to the jobs of the run.
    """
    host, _, allocation = (os.environ.get("CTDB_RUN", "") + "::").split(":")[:3]
    return host == os.uname().nodename and allocation == os.environ.get("SLURM_JOB_ID", "")


def claim(path: Path | str) -> None:
    """Take the outputs of a job on a cluster for this process: earlier attempts at them end before they write."""
    global _claim
    write_text(path, _claimant())
    _claim = Path(path)


def _claimant() -> str:
    return f"{os.uname().nodename} {os.getpid()} {os.environ.get('SLURM_JOB_ID', '')}"


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` atomically, in UTF-8. Raises as :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_yaml(path: Path | str, value: Mapping[str, Any]) -> None:
    """Write a plain mapping as YAML, keys in their given order. Raises as :func:`write_bytes`."""
    write_text(path, yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True))


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML mapping written by :func:`write_yaml`."""
    return yaml.safe_load(Path(path).read_text())


def write_hdf5(
    path: Path | str,
    arrays: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
    aliases: Mapping[str, str] | None = None,
) -> None:
    """Write arrays and root attributes to an HDF5 file, atomically and with reproducible bytes.

    A key ``session/name`` lies in a group; `aliases` maps second names of arrays to their keys.

    Spike counts (keys that end in ``_data``) are compressed: they are mostly zeros. The file is composed in
    memory, because HDF5 itself leaves a broken file behind when a disk fills up. Raises as :func:`write_bytes`.
    """
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for key, value in arrays.items():
            compression = {"compression": "gzip", "compression_opts": 1} if key.endswith("_data") else {}
            file.create_dataset(key, data=value, track_times=False, **compression)
        for alias, key in (aliases or {}).items():
            file[alias] = h5py.SoftLink(f"/{key}")
        for key, value in attributes.items():
            file.attrs[key] = value
    write_bytes(path, buffer.getvalue())


def read_hdf5(path: Path | str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read all arrays and root attributes of an HDF5 file; arrays in groups as ``group/name``, our aliases not."""
    with h5py.File(path, "r", locking=False) as file:  # it is whole; some network file systems have no locks
        ours = str(file.attrs.get("format", "")).startswith("ctdb-")
        return dict(_arrays(file, "", ours, ())), dict(file.attrs)


def _arrays(
    group: h5py.Group, prefix: str, skip_links: bool, above: tuple[h5py.Group, ...]
) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays of a group and of those in it; links that lead nowhere or back up are passed over."""
    for key in group:
        if skip_links and isinstance(group.get(key, getlink=True), h5py.SoftLink):
            continue
        try:
            value = group[key]
        except (KeyError, OSError):
            continue
        if isinstance(value, h5py.Dataset):
            yield prefix + key, np.asarray(value[()])
        elif isinstance(value, h5py.Group) and value not in (*above, group):
            yield from _arrays(value, f"{prefix}{key}/", skip_links, (*above, group))


@contextlib.contextmanager
def lock(folder: Path | str) -> Iterator[None]:
    """Hold `folder` for this process alone; wait where another one, such as an orphaned job, still writes to it.

    The lock ends with the process that holds it, however that ends, so a kill leaves nothing to clean up. A job of a
    cluster does not need it, for it has a claim: a file system may have no locks, or keep that of a lost node.
    Raises as :func:`write_bytes` where the folder cannot be made.
    """
    path = Path(folder) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")  # noqa: SIM115 -- closed below, whatever happens
    except OSError as error:
        raise write_error(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another process is still writing here; waiting for it to end", file=sys.stderr)
            if _claim is None:
                fcntl.flock(file, fcntl.LOCK_EX)
            else:
                _wait_for(file, 2 * LOOK_S)
        except OSError:
            print(f"{folder}: this file system has no locks; going on without", file=sys.stderr)
        yield


def _wait_for(file: IO[str], seconds: float) -> None:
    """Lock a file, or give up after a time in which whoever had it, if alive, has seen that it lost its claim."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(min(1.0, seconds / 10))
    print("it has lost its claim, and does not end: its node may be lost; going on", file=sys.stderr)


def write_error(path: Path | str, error: OSError) -> WriteError:
    """Error that says why `path` could not be written and what to do about it."""
    remedies = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again",
        errno.EDQUOT: "your disk quota is used up; free some space and run the same command again",
        errno.EFBIG: "the file would exceed the size limit of this process (ulimit -f); raise it",
        errno.EROFS: "the file system is read-only; point `results` in the configuration to a writable folder",
    }
    remedy = remedies.get(
        error.errno or 0, "make the folder writable, or point `results` in the configuration to one that is"
    )
    return WriteError(f"{path}: cannot be written ({error.strerror or error}): {remedy}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
