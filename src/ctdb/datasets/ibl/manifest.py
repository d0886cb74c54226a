"""The manifest of a recording: which files it is made of, with the sizes and checksums they must have."""

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from ctdb.errors import IblChecksumError, IblMissingError, IblPrepareError
from ctdb.settings import Settings


class FileRecord(Settings):
    """One file; `path` is relative to the cache folder, and `dataset` is its name without uuid."""

    dataset: str
    collection: str
    revision: str
    id: str
    path: str
    size: int
    md5: str


class Probe(Settings):
    """One insertion."""

    pid: str
    name: str


class SessionFiles(Settings):
    """One session and its files."""

    eid: str
    subject: str
    lab: str
    date: str
    number: int
    probes: list[Probe]
    files: list[FileRecord]


class Manifest(Settings):
    """The sessions of a recording."""

    format: Literal["ctdb-ibl-1"]
    tag: str
    sessions: list[SessionFiles]


def read_manifest(path: Path | str) -> Manifest:
    """Read a manifest.

    Raises
    ------
    IblPrepareError
        If the file is no manifest.
    """
    try:
        return Manifest.model_validate_json(Path(path).read_text())
    except ValidationError as error:
        raise IblPrepareError(f"{path}: not a manifest of a recording: {error}; fetch it again") from None


def verified(record: FileRecord, cache_dir: Path | str) -> Path:
    """Path of a file that is there, whole and unchanged.

    Raises
    ------
    IblMissingError
        If there is no such file.
    IblChecksumError
        If its size or md5 is another.
    """
    path = Path(cache_dir) / record.path
    if not path.is_file():
        raise IblMissingError(f"{path}: there is no such file; fetch the recording again")
    if path.stat().st_size != record.size:
        raise IblChecksumError(f"{path}: has {path.stat().st_size} bytes, expected {record.size}; fetch it again")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != record.md5:
        raise IblChecksumError(f"{path}: its md5 is {found}, expected {record.md5}; fetch it again")
    return path
