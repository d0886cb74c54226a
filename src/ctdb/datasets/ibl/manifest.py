"""The manifest of a recording: which files of which sessions it is made of, down to the last byte.

It is all that others need to make the same data set: they fetch what it names, and any other bytes are refused.
"""

import functools
import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from ctdb.errors import IblChecksumError, IblMissingError, IblPrepareError
from ctdb.files import write_text
from ctdb.settings import Settings

FORMAT = "ctdb-ibl-1"


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or PurePosixPath(path).is_absolute() or ".." in parts or str(PurePosixPath(path)) != path:
        raise ValueError("expected a path inside of the cache folder")
    return path


Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
CachePath = Annotated[str, AfterValidator(_inside)]
"""Path relative to the cache folder, which it does not leave."""


class Probe(Settings):
    """An insertion: its id in Alyx ("" where only its name is known) and its name in the session."""

    pid: str
    name: str


class FileRecord(Settings):
    """One file: its place in the session, and its place, id and contents in the cache."""

    dataset: str
    collection: str
    revision: str
    id: str
    path: CachePath
    size: int = Field(ge=0)
    md5: Md5


class SessionFiles(Settings):
    """One session: probes by name, files by path."""

    eid: str
    subject: str
    lab: str
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    number: int = Field(ge=0)
    probes: list[Probe]
    files: list[FileRecord]


class Skipped(Settings):
    """A session (its eid, or the pid of a probe of it) that was left out as `continue_on_error` allows, and why."""

    session: str
    error: Literal["missing", "checksum"]
    reason: str


class Manifest(Settings):
    """All sessions of a recording, in the order of their labs, subjects, dates and numbers."""

    format: Literal["ctdb-ibl-1"] = FORMAT
    tag: str = ""
    sessions: list[SessionFiles]
    skipped: list[Skipped] = []


def read_manifest(path: Path | str) -> Manifest:
    """Read a manifest.

    Raises
    ------
    IblMissingError
        If there is no such file.
    IblPrepareError
        If it is no manifest, or was cut off or changed by hand into none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise IblMissingError(f"{path}: {error.strerror}; give the manifest of a recording") from None
    except UnicodeDecodeError:
        raise IblPrepareError(f"{path}: is not text in UTF-8; give the manifest of a recording") from None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        found = f"{where}: {first['msg']}" if where else first["msg"]
        raise IblPrepareError(
            f"{path}: is no manifest of the format {FORMAT!r} ({found}); take an unchanged copy, or fetch again"
        ) from None


def write_manifest(path: Path | str, manifest: Manifest) -> None:
    """Write a manifest atomically; equal manifests are equal bytes. Raises as :func:`ctdb.files.write_bytes`."""
    write_text(path, json.dumps(manifest.model_dump(), indent=1, ensure_ascii=False) + "\n")


def verified(record: FileRecord, cache_dir: Path | str) -> Path:
    """Path of a recorded file, once its contents are found to be those recorded.

    Parameters
    ----------
    record
        Entry of a manifest.
    cache_dir
        Folder that its path is relative to.

    Raises
    ------
    IblMissingError
        If the file is not there.
    IblChecksumError
        If its size or md5 is another.
    """
    path = Path(cache_dir) / record.path
    if not path.is_file():
        raise IblMissingError(
            f"{record.path}: is not in the cache folder {cache_dir}; fetch it again: `snakemake --forcerun ibl_fetch`"
        )
    size = path.stat().st_size
    if size != record.size:
        raise IblChecksumError(
            f"{record.path}: has {size} bytes in {cache_dir}, expected {record.size}; remove it, and fetch it again: "
            "`snakemake --forcerun ibl_fetch`"
        )
    if (found := md5_of(path)) != record.md5:
        raise IblChecksumError(
            f"{record.path}: has md5 {found} in {cache_dir}, expected {record.md5}; remove it, and fetch it again: "
            "`snakemake --forcerun ibl_fetch`"
        )
    return path


def md5_of(path: Path | str) -> str:
    """Md5 of a file, as Alyx records it: against accidents, not against attackers."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, functools.partial(hashlib.md5, usedforsecurity=False)).hexdigest()
