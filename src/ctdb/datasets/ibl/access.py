"""What ctdb asks of ONE, the client of the International Brain Laboratory's database Alyx.

ONE keeps its parameters and tokens in the home folder, waits for answers without end, takes a file that was cut off for
whole, and words errors in twenty ways. Here it works in a private home that is removed, with time limits, and every
failure becomes one of our errors. Whether the files are whole is for :mod:`ctdb.datasets.ibl.fetch` to check.
"""

import contextlib
import functools
import http.client
import json
import os
import socket
import tempfile
import urllib.error
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import one.params
import pandas as pd
import requests
from one.alf.exceptions import ALFError
from one.api import OneAlyx
from one.converters import session_record2path
from one.webclient import AlyxClient

from ctdb.datasets.ibl.manifest import Probe
from ctdb.datasets.ibl.recording import OPEN_FILES, OPENALYX, Query
from ctdb.errors import IblAccessError, IblError, IblMissingError
from ctdb.files import write_error

SIGNING_IN = "signing in"
TABLES = ("sessions.pqt", "datasets.pqt")
MAKE_TABLES = "make them: `one.alf.cache.make_parquet_db(folder, hash_files=True)`"


@dataclass(frozen=True)
class Listed:
    """A file as the database or a table lists it; `size` and `md5` are None where they are not known."""

    dataset: str
    collection: str
    revision: str
    id: str
    path: str
    size: int | None
    md5: str | None
    default: bool

    @property
    def place(self) -> str:
        """Path within the session."""
        revision = f"#{self.revision}#" if self.revision else ""
        return "/".join(part for part in (self.collection, revision, self.dataset) if part)


@dataclass(frozen=True)
class Listing:
    """A session and all its files."""

    eid: str
    lab: str
    subject: str
    date: str
    number: int
    files: Sequence[Listed]


class Archive:
    """Sessions of an Alyx database, or of a local folder, through one instance of ONE; not for several threads."""

    def __init__(self, client: AlyxClient, remote: bool):
        self.url = client.base_url if remote else "the folder"  # no path: what is told may end in a manifest
        mode = "remote" if remote else "local"
        if not remote and not all((client.cache_dir / name).is_file() for name in TABLES):
            raise IblAccessError(f"{client.cache_dir}: has no tables of ONE ({', '.join(TABLES)}); {MAKE_TABLES}")
        try:
            self._one = OneAlyx(base_url=client.base_url, cache_dir=client.cache_dir, mode=mode, silent=True)
        except (ValueError, KeyError, OSError):
            raise IblAccessError(f"{client.cache_dir}: a table (*.pqt) cannot be read; {MAKE_TABLES}") from None
        self._one._web_client = client  # one that is signed in

    def probe(self, pid: str) -> tuple[str, str]:
        """Session and name of a probe.

        Raises
        ------
        IblMissingError
            If no such probe is known.
        IblAccessError
            If the database cannot be asked.
        """
        with self._answers(f"probe {pid}"):
            try:
                eid, name = self._one.pid2eid(pid)
            except NotImplementedError:
                raise IblMissingError(
                    f"probe {pid}: {self.url} has no table insertions.pqt to look it up in; give `eid` and `probe`"
                ) from None
        if eid is None:
            raise IblMissingError(f"probe {pid}: is not in {self.url}; correct the `pid`")
        return str(eid), name

    def probes(self, eid: str) -> list[Probe]:
        """Probes of a session by name; none where they are not known. Raises as :meth:`probe`."""
        with self._answers(f"session {eid}"):
            try:
                pids, names = self._one.eid2pid(eid)
            except NotImplementedError:
                return []
        found = zip(pids or [], names or [], strict=True)
        return sorted((Probe(pid=str(_last(pid)), name=name) for pid, name in found), key=lambda probe: probe.name)

    def search(self, query: Query) -> list[tuple[str, Probe]]:
        """Sessions and probes that a query finds, each probe once. Raises as :meth:`probe`."""
        terms = {"tag": query.tag, "atlas_acronym": query.region, "subject": query.subject}
        given = {term: value for term, value in terms.items() if value}
        with self._answers("the query"):
            records = self._one.search_insertions(details=True, query_type="remote", **given)[1]
            return [(record["session"], Probe(pid=record["id"], name=record["name"])) for record in records]

    def sessions(self) -> list[str]:
        """All sessions of a local folder."""
        with self._answers("the sessions"):
            return sorted(str(eid) for eid in self._one.search())

    def listing(self, eid: str) -> Listing:
        """A session with all files that are listed of it. Raises as :meth:`probe`."""
        with self._answers(f"session {eid}"):
            table = self._one.list_datasets(eid, details=True)
            if len(table) == 0:
                raise IblMissingError(f"session {eid}: is not in {self.url}, or has no files there; correct the `eid`")
            session = self._one.get_details(UUID(eid), query_type="local").to_dict()
        place = session_record2path(session).as_posix()
        files = [_listed(_last(index), row, place) for index, row in table.iterrows()]
        return Listing(
            eid=eid,
            lab=session["lab"] or "",
            subject=session["subject"],
            date=str(session["date"]),
            number=int(session["number"]),
            files=sorted(files, key=lambda file: file.path),
        )

    def bring(self, eid: str, file: Listed) -> Path:
        """Download a file of a session that :meth:`listing` was asked for, to the folder that ONE was opened on.

        Raises
        ------
        IblMissingError
            If the server has no such file.
        IblAccessError
            If the connection fails.
        WriteError
            If the folder cannot be written.
        """
        with self._answers(file.path):
            (path,), _ = self._one.load_datasets(
                eid, [file.place], query_type="local", download_only=True, check_hash=False
            )
        return Path(path)

    def _answers(self, what: str) -> contextlib.AbstractContextManager[None]:
        return answers(what, self.url)


@contextlib.contextmanager
def archives(
    folder: Path, remote: bool, base_url: str = OPENALYX, data_url: str = OPEN_FILES, timeout_s: float = 60.0
) -> Iterator[Callable[[], Archive]]:
    """Sign in, and give a function that opens an archive, one for each thread.

    Parameters
    ----------
    folder
        Folder that downloads go to, or the local folder of files and tables.
    remote
        Whether to ask the database, with the credentials in the environment: ``ALYX_TOKEN``, or ``ALYX_LOGIN`` and
        ``ALYX_PASSWORD``. They are not stored.
    base_url, data_url
        The database, and the server of its files.
    timeout_s
        How long to wait for an answer, and for more of it.

    Raises
    ------
    IblAccessError
        If there are no credentials, they are not accepted, or the database cannot be reached.
    """
    secrets = _credentials(base_url) if remote else {}
    with _private_home(), warnings.catch_warnings(), _default_timeout(timeout_s):
        warnings.simplefilter("ignore")
        with answers(SIGNING_IN, base_url):
            one.params.setup(client=base_url, silent=True, cache_dir=folder)
            one.params.save(one.params.get(base_url, silent=True).set("HTTP_DATA_SERVER", data_url), base_url)
            client = _Client(base_url=base_url, cache_dir=folder, silent=True, cache_rest=None)
            client.timeout_s = timeout_s
            if remote:
                client.sign_in(secrets)
        yield lambda: Archive(client, remote)


@contextlib.contextmanager
def answers(what: str, url: str) -> Iterator[None]:
    """Word whatever goes wrong between ONE and `url` as one of our errors; no message of theirs, which may name a user.

    Parameters
    ----------
    what
        What is asked for.
    url
        The database, or the folder.
    """
    try:
        yield
    except ALFError as error:
        raise IblMissingError(f"{what}: {' '.join(str(error).split())}; choose what is there") from None
    except (requests.JSONDecodeError, json.JSONDecodeError):
        raise _no_alyx(what, url) from None
    except requests.HTTPError as error:
        raise _refusal(what, url, error.response.status_code) from None
    except urllib.error.HTTPError as error:
        raise _failure(what, url, error.code) from None
    except (requests.RequestException, urllib.error.URLError, http.client.HTTPException) as error:
        slow = isinstance(error, requests.Timeout) or isinstance(getattr(error, "reason", None), TimeoutError)
        raise _no_connection(what, url, slow) from None
    except (ConnectionError, TimeoutError) as error:
        raise _no_connection(what, url, isinstance(error, TimeoutError)) from None
    except OSError as error:
        raise write_error(error.filename or what, error) from None


def _no_connection(what: str, url: str, slow: bool) -> IblAccessError:
    found = "nothing came in time" if slow else "it was refused or broke off"
    remedy = "look to the network and the address, and run again: what is whole is kept"
    return IblAccessError(f"{what}: no connection to {url}: {found}; {remedy}")


def _no_alyx(what: str, url: str) -> IblAccessError:
    return IblAccessError(f"{what}: {url} does not answer as an Alyx database does; correct `base_url`")


def _refusal(what: str, url: str, status: int) -> IblError:
    """What a status of the database means."""
    if status in (401, 403) or (what, status) == (SIGNING_IN, 400):
        return IblAccessError(
            f"{what}: {url} does not accept the credentials ({status}); set ALYX_TOKEN to the token shown at {url}/me, "
            "or ALYX_LOGIN and ALYX_PASSWORD"
        )
    if (what, status) == (SIGNING_IN, 404):
        return _no_alyx(what, url)
    if status == 400:
        return IblMissingError(f"{what}: {url} does not understand it (400); correct it")
    return _failure(what, url, status)


def _failure(what: str, url: str, status: int) -> IblError:
    """What a status of a server of files means."""
    if status == 404:
        return IblMissingError(f"{what}: is not on the server of {url} (404); correct the id, or choose what is there")
    return IblAccessError(f"{what}: the server of {url} failed ({status}); run again later: what is whole is kept")


class _Client(AlyxClient):
    """ONE's client of Alyx, with a time limit on every request; it stores no token."""

    timeout_s = 60.0

    def sign_in(self, secrets: Mapping[str, str]) -> None:
        """Take a token from the environment, or get one for a user and a password."""
        token = secrets.get("token")
        if token is None:
            form = {"username": secrets["username"], "password": secrets["password"]}
            reply = requests.post(f"{self.base_url}/auth-token", data=form, timeout=self.timeout_s)
            reply.raise_for_status()
            if not isinstance(answer := reply.json(), dict) or "token" not in answer:
                raise _no_alyx(SIGNING_IN, self.base_url)
            token = answer["token"]
        self.authenticate(secrets["username"], token=token)

    def authenticate(self, username: str | None = None, token: str | None = None, **_: Any) -> None:
        """Use a token for the time being; ONE asks for a new one, which it cannot have, where it is refused."""
        if token is None:
            raise _refusal("the token", self.base_url, 403)
        super().authenticate(username, token=token, cache_token=False)

    @functools.wraps(AlyxClient._generic_request)
    def _generic_request(self, request: Callable, *arguments: Any, **options: Any) -> Any:
        limited = functools.wraps(request)(functools.partial(request, timeout=self.timeout_s))
        return AlyxClient._generic_request(self, limited, *arguments, **options)


def _credentials(base_url: str) -> dict[str, str]:
    given = {name: os.environ.get(f"ALYX_{name}", "") for name in ("TOKEN", "LOGIN", "PASSWORD")}
    if given["TOKEN"]:
        return {"username": given["LOGIN"] or "unnamed", "token": given["TOKEN"]}
    if given["LOGIN"] and given["PASSWORD"]:
        return {"username": given["LOGIN"], "password": given["PASSWORD"]}
    raise IblAccessError(
        f"{base_url}: no credentials; set ALYX_TOKEN (shown at {base_url}/me), or ALYX_LOGIN and ALYX_PASSWORD, in the "
        f"environment. An account is free: {base_url}/signup"
    )


@contextlib.contextmanager
def _private_home() -> Iterator[None]:
    """A home folder for the time being: ONE's and boto3's parameters and those of the user do not mix."""
    before = os.environ.get("HOME")
    with tempfile.TemporaryDirectory(prefix="ctdb-") as home:
        os.environ["HOME"] = home
        try:
            yield
        finally:
            if before is None:
                del os.environ["HOME"]
            else:
                os.environ["HOME"] = before


@contextlib.contextmanager
def _default_timeout(seconds: float) -> Iterator[None]:
    """Time limit of connections whose makers set none, such as ONE's downloads."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _last(index: Any) -> UUID:
    """Id of a row, which may have that of its session before it."""
    return index[-1] if isinstance(index, tuple) else index


def _listed(identity: UUID, row: pd.Series, folder: str) -> Listed:
    *parts, dataset = row["rel_path"].split("/")
    revision = parts.pop().strip("#") if parts and parts[-1].startswith("#") else ""
    size, digest = row["file_size"], row["hash"]
    return Listed(
        dataset=dataset,
        collection="/".join(parts),
        revision=revision,
        id=str(identity),
        path=f"{folder}/{row['rel_path']}",
        size=None if pd.isna(size) or int(size) == 0 else int(size),
        md5=digest if isinstance(digest, str) and digest else None,
        default=bool(row.get("default_revision", False)),
    )
