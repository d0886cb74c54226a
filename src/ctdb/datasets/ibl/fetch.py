"""From what the configuration says of a recording to files that are whole and the manifest that names them.

Every file is checked against the size and md5 that are recorded of it, in the database and in the manifest; ONE itself
checks neither. A download goes to a folder beside the others and is renamed when it is whole, so that a run that was
killed leaves nothing that looks like a file, and the next one goes on where it ended.
"""

import contextlib
import functools
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TextIO, TypeVar

from tqdm import tqdm

from ctdb.datasets.ibl.access import Archive, Listed, Listing, archives
from ctdb.datasets.ibl.manifest import FileRecord, Manifest, Probe, SessionFiles, Skipped, md5_of
from ctdb.datasets.ibl.recording import IblSettings, RecordingSettings
from ctdb.errors import IblAccessError, IblChecksumError, IblMissingError, WriteError
from ctdb.files import lock

SORTED = ("spikes.times.npy", "spikes.clusters.npy", "clusters.channels.npy", "clusters.metrics.pqt")
"""Files of each probe, in ``alf/{probe}/{sorter}``."""
WHERE_THERE = ("clusters.uuids.csv", "channels.brainLocationIds_ccf_2017.npy")
"""Files that not every probe has: the second only where its track was traced in the brain."""
TRIALS = "_ibl_trials.table.pqt"
WHEEL = ("_ibl_wheel.position.npy", "_ibl_wheel.timestamps.npy")
"""Files of each session, in ``alf``."""
STAGING = ".partial"
N_ATTEMPTS = 3
WAIT_S = 2.0
"""First pause before a file is tried again; doubled each time."""

T, R = TypeVar("T"), TypeVar("R")


@dataclass(frozen=True)
class _Session:
    """A session, its probes, and the files wanted of it."""

    listing: Listing
    probes: Sequence[Probe]
    files: Sequence[Listed]


def fetch(settings: RecordingSettings, cache_dir: Path | str, manifest: Manifest | None = None) -> Manifest:
    """Bring all files of a recording to a local folder, and say which they are.

    Files that are there and whole are not downloaded again; a run that was killed is gone on with. Credentials come
    from the environment: ``ALYX_TOKEN``, or ``ALYX_LOGIN`` and ``ALYX_PASSWORD``.

    Parameters
    ----------
    settings
        Which sessions, in which version.
    cache_dir
        Folder that files go to; with `ibl_local` and `ibl_synthetic`, where they and the tables of ONE are.
    manifest
        Fetch what this names, and nothing else, in place of what the settings choose. Where all of it is in
        `cache_dir`, nothing is asked of the database.

    Returns
    -------
    The manifest. It depends on nothing but the settings and what the database says.

    Raises
    ------
    IblAccessError
        If there are no credentials, they are not accepted, or the connection fails.
    IblMissingError
        If a session, probe, sorter, revision or file is not there.
    IblChecksumError
        If a file is not the one that was recorded.
    WriteError
        If the disk is full or the folder cannot be written.
    """
    cache = Path(cache_dir)
    local = not isinstance(settings, IblSettings)
    if local and not cache.is_dir():
        raise IblMissingError(f"{cache}: there is no such folder; correct `cache_dir`")
    if manifest is not None and all(_is_whole(cache / file.path, file) for s in manifest.sessions for file in s.files):
        print("all files of the manifest are in the cache folder and whole")
        return manifest
    if local:
        with _silence() as streams, archives(cache, remote=False) as opened:
            return _Fetch(settings, cache, None, opened, streams).run(None)
    _make(cache)
    with lock(cache):
        staging = cache / STAGING
        try:
            server = (settings.base_url, settings.data_url, settings.timeout_s)
            with _silence() as streams, archives(staging, True, *server) as opened:
                return _Fetch(settings, cache, staging, opened, streams).run(manifest)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


class _Fetch:
    """One fetch: what to take, then the taking, several sessions at a time."""

    def __init__(
        self,
        settings: RecordingSettings,
        cache: Path,
        staging: Path | None,
        opened: Callable[[], Archive],
        streams: "_Streams",
    ):
        self.settings, self.cache, self.staging, self.opened, self.streams = settings, cache, staging, opened, streams
        self.first = opened()
        self.skipped: list[Skipped] = []
        self.stopped = threading.Event()
        self._archives: dict[str, Archive] = {}

    def run(self, known: Manifest | None) -> Manifest:
        """Fetch what the settings choose or a manifest names."""
        if known is not None:
            sessions = self._all(list(known.sessions), self._as_known, lambda session: session.eid)
        else:
            sessions = self._all(sorted(self._wanted().items()), self._chosen, lambda choice: choice[0])
            self._refuse_unknown_pins([file.path for session in sessions for file in session.files])
        self._refuse_full_disk(sessions)
        self.progress = _Progress([file for session in sessions for file in session.files], self.streams)
        try:
            whole = self._all(sessions, self._session, lambda session: session.listing.eid)
        finally:
            self.progress.close()
        if not whole:
            reasons = "; ".join(skipped.reason for skipped in self.skipped)
            raise IblMissingError(f"no session is left: {reasons or 'none is chosen'}; choose others")
        return Manifest(
            tag=known.tag if known else _tag(self.settings),
            sessions=sorted(whole, key=lambda session: (session.lab, session.subject, session.date, session.number)),
            skipped=[*(known.skipped if known else ()), *sorted(self.skipped, key=lambda skipped: skipped.session)],
        )

    def _all(self, items: Sequence[T], work: Callable[[T], R], name: Callable[[T], str]) -> list[R]:
        """Results of `work` on each, several at a time, without what may be skipped. The first failure ends all."""

        def guarded(item: T) -> R:
            if self.stopped.is_set():
                raise _StoppedError
            try:
                return work(item)
            except Exception as error:
                if self._which(error) is None:
                    self.stopped.set()
                raise

        done, failures = [], []
        with ThreadPoolExecutor(getattr(self.settings, "n_parallel", 1)) as pool:
            futures = [pool.submit(guarded, item) for item in items]
            try:
                wait(futures)
            except BaseException:
                self.stopped.set()
                raise
        for item, future in zip(items, futures, strict=True):
            try:
                with self._skipping(name(item)):
                    done.append(future.result())
            except _StoppedError:
                continue
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return done

    def _which(self, error: Exception) -> str | None:
        """Name in `continue_on_error` of an error that it lists."""
        which = {IblMissingError: "missing", IblChecksumError: "checksum"}.get(type(error))
        return which if which in self.settings.continue_on_error else None

    @contextlib.contextmanager
    def _skipping(self, name: str) -> Iterator[None]:
        """Record an error that `continue_on_error` lists, in place of failing by it."""
        try:
            yield
        except (IblMissingError, IblChecksumError) as error:
            which = self._which(error)
            if which is None:
                raise
            self.skipped.append(Skipped(session=name, error=which, reason=str(error)))
            print(f"skipped: {error}", file=self.streams.log, flush=True)

    # Which sessions and probes

    def _wanted(self) -> dict[str, dict[str, Probe] | None]:
        """Session to its probes by name; None for all of them."""
        query, choices = getattr(self.settings, "query", None), getattr(self.settings, "sessions", None)
        wanted: dict[str, dict[str, Probe] | None] = {}
        if query is not None:
            for eid, probe in self.first.search(query):
                wanted.setdefault(eid, {})[probe.name] = probe
            if not wanted:
                raise IblMissingError(
                    f"the query {query.model_dump(exclude_none=True)} finds no probe in {self.first.url}; correct it"
                )
        elif choices is None:
            wanted = dict.fromkeys(self.first.sessions())
        for choice in choices or []:
            if choice.pid is None and choice.probe is None:
                wanted[choice.eid] = None
                continue
            with self._skipping(choice.pid or choice.eid):
                eid, name = (choice.eid, choice.probe) if choice.pid is None else self.first.probe(choice.pid)
                pids = {} if choice.pid else {probe.name: probe for probe in self.first.probes(eid)}
                if wanted.setdefault(eid, {}) is not None:
                    wanted[eid][name] = pids.get(name, Probe(pid=choice.pid or "", name=name))
        return wanted

    def _chosen(self, choice: tuple[str, dict[str, Probe] | None]) -> _Session:
        """Files of a session that the settings choose."""
        eid, probes = choice
        archive = self._archive(eid)
        listing = archive.listing(eid)
        folders = (file.collection.split("/") for file in listing.files)
        there = sorted({p[1] for p in folders if p[0] == "alf" and len(p) > 2 and p[1].startswith("probe")})
        if probes is None:
            known = {probe.name: probe for probe in archive.probes(eid)}
            probes = known or {name: Probe(pid="", name=name) for name in there}
        if not probes:
            raise IblMissingError(f"session {eid}: has no probe; choose another")
        files = [self._trials(listing), *(self._of_session(listing, name) for name in WHEEL)]
        for name in sorted(probes):
            if name not in there:
                raise IblMissingError(f"session {eid}: has no files of probe {name!r}; it has {there or 'no probe'}")
            files += [file for dataset in (*SORTED, *WHERE_THERE) if (file := self._of_probe(listing, name, dataset))]
        return _Session(listing, [probes[name] for name in sorted(probes)], [self._pinned(file) for file in files])

    def _of_probe(self, listing: Listing, probe: str, dataset: str) -> Listed | None:
        sorter, revision = self.settings.sorter, self.settings.revision
        collection = f"alf/{probe}/{sorter}"
        found = _versions(listing, collection, dataset)
        if not any(file.collection == collection for file in listing.files):
            folders = (file.collection.split("/") for file in listing.files)
            sorters = sorted({p[2] for p in folders if p[:2] == ["alf", probe] and len(p) > 2})
            raise IblMissingError(
                f"session {listing.eid}: probe {probe!r} was not sorted by {sorter!r}, but by {sorters}; set `sorter`"
            )
        if revision in found:
            return found[revision]
        if not found and dataset in WHERE_THERE:
            return None
        if not found:
            raise IblMissingError(f"session {listing.eid}: has no file {collection}/{dataset}; choose another session")
        earlier = [name for name in found if name < revision]
        if dataset.startswith("channels.") and earlier:  # where channels lie does not depend on a later sorting
            return found[max(earlier)]
        raise IblMissingError(
            f"session {listing.eid}: {collection}/{dataset} has the revisions {sorted(found)} and not {revision!r}; "
            "set `revision` to one that spikes and clusters have in common"
        )

    def _trials(self, listing: Listing) -> Listed:
        revision = self.settings.trials_revision
        found = _versions(listing, "alf", TRIALS)
        if revision is None or not found:
            return self._of_session(listing, TRIALS)
        if revision not in found:
            raise IblMissingError(
                f"session {listing.eid}: alf/{TRIALS} has the revisions {sorted(found)} and not {revision!r}; set "
                "`trials_revision` to one of these, or leave it out"
            )
        return found[revision]

    def _of_session(self, listing: Listing, dataset: str) -> Listed:
        found = _versions(listing, "alf", dataset)
        if not found:
            raise IblMissingError(f"session {listing.eid}: has no file alf/{dataset}; choose another session")
        defaults = [file for file in found.values() if file.default]
        return defaults[0] if len(defaults) == 1 else found[max(found)]

    def _pinned(self, file: Listed) -> Listed:
        """The file, with the md5 that `expect_md5` says of it."""
        pin = self.settings.expect_md5.get(file.path)
        if pin is not None and file.md5 not in (pin, None):
            raise IblChecksumError(
                f"{file.path}: has md5 {file.md5} in {self.first.url}, but `expect_md5` says {pin}; it was changed "
                "there, or the pin is wrong"
            )
        return file if pin is None else replace(file, md5=pin)

    def _refuse_unknown_pins(self, paths: Sequence[str]) -> None:
        unknown = sorted(set(self.settings.expect_md5) - set(paths))
        if unknown and not self.skipped:
            raise IblMissingError(f"`expect_md5` names {unknown[0]!r}, which is none of the files; correct the path")

    def _as_known(self, session: SessionFiles) -> _Session:
        """Files of a session that a manifest names; asks the database only if one of them is not there."""
        files = [Listed(**file.model_dump(), default=False) for file in session.files]
        if not all(_is_whole(self.cache / file.path, file) for file in files):
            listed = {file.id: file for file in self._archive(session.eid).listing(session.eid).files}
            for file in files:
                found = listed.get(file.id)
                if found is None or found.path != file.path:
                    raise IblMissingError(
                        f"{file.path}: the file {file.id} of the manifest is not in {self.first.url}; it was removed "
                        "there: take out its session"
                    )
                if found.md5 not in (file.md5, None) or found.size not in (file.size, None):
                    raise IblChecksumError(
                        f"{file.path}: has md5 {found.md5} and {found.size} bytes in {self.first.url}, but {file.md5} "
                        f"and {file.size} in the manifest; it was changed there: the data cannot be made again from it"
                    )
        listing = Listing(session.eid, session.lab, session.subject, session.date, session.number, files)
        return _Session(listing, session.probes, files)

    def _archive(self, eid: str) -> Archive:
        """Archive of one session: ONE's tables are not made for several threads."""
        self._archives[eid] = self.opened() if self.staging else self.first
        return self._archives[eid]

    # The files

    def _refuse_full_disk(self, sessions: Sequence[_Session]) -> None:
        needed = sum(file.size or 0 for s in sessions for file in s.files if not (self.cache / file.path).exists())
        free = shutil.disk_usage(self.cache).free if self.staging else needed
        if needed > free:
            raise WriteError(
                f"{self.cache}: {needed / 1e9:.1f} GB are to be downloaded, but {free / 1e9:.1f} GB are free; point "
                "`cache_dir` (or CTDB_IBL_CACHE) to a larger disk"
            )

    def _session(self, session: _Session) -> SessionFiles:
        """Bring all files of a session."""
        records = []
        for file in session.files:
            if self.stopped.is_set():
                raise _StoppedError
            records.append(self._file(session.listing.eid, file))
        self._archives.pop(session.listing.eid, None)
        listing = session.listing
        return SessionFiles(
            eid=listing.eid,
            subject=listing.subject,
            lab=listing.lab,
            date=listing.date,
            number=listing.number,
            probes=list(session.probes),
            files=sorted(records, key=lambda record: record.path),
        )

    def _file(self, eid: str, file: Listed) -> FileRecord:
        """Bring one file and check it."""
        path = self.cache / file.path
        there = path.is_file() and (file.size is None or path.stat().st_size == file.size)
        md5 = _md5(path) if there else None
        fresh = self.staging is not None and (not there or file.md5 not in (md5, None))
        if fresh:
            md5 = self._download(eid, file, path)
        elif not path.is_file():
            raise IblMissingError(f"{file.path}: is in the tables of ONE, but not in the folder; fetch it with ONE")
        elif not there or file.md5 not in (md5, None):
            raise _changed(file, path, md5)
        self.progress.add(file.path, path.stat().st_size, fresh)
        return FileRecord(
            dataset=file.dataset,
            collection=file.collection,
            revision=file.revision,
            id=file.id,
            path=file.path,
            size=path.stat().st_size,
            md5=md5,
        )

    def _download(self, eid: str, file: Listed, path: Path) -> str:
        """Download a file beside its place, check it, and put it there; a connection that breaks is tried again."""
        for attempt in range(N_ATTEMPTS):
            last = attempt == N_ATTEMPTS - 1
            shutil.rmtree((self.staging / file.path).parent, ignore_errors=True)  # ONE would take a part for the file
            try:
                staged = self._archives[eid].bring(eid, file)
            except IblAccessError:
                if last or self.stopped.is_set():
                    raise
            else:
                size = staged.stat().st_size
                if size == (file.size or size):
                    break
                if last:
                    raise IblChecksumError(
                        f"{file.path}: has {size} bytes after each of {N_ATTEMPTS} downloads, expected {file.size}; it "
                        "is cut off or changed on the server: run again, or take another revision"
                    )
            time.sleep(WAIT_S * 2**attempt)
        md5 = md5_of(staged)
        if file.md5 not in (md5, None):
            raise _changed(file, staged, md5)
        _make(path.parent)
        os.replace(staged, path)
        return md5


class _StoppedError(Exception):
    """A session was given up because another one failed."""


class _Streams(NamedTuple):
    """Where a log and a progress bar go."""

    log: TextIO
    terminal: TextIO


class _Progress:
    """A bar on a terminal; elsewhere, such as in a log, a line for each file."""

    def __init__(self, files: Sequence[Listed], streams: _Streams):
        self.n_files, self.n_done, self.done = len(files), 0, 0
        self.total = sum(file.size or 0 for file in files)
        self._lock, self._log = threading.Lock(), streams.log
        shown = streams.terminal.isatty()
        self._bar = tqdm(total=self.total, unit="B", unit_scale=True, file=streams.terminal) if shown else None

    def add(self, path: str, size: int, fresh: bool) -> None:
        """A file is whole."""
        with self._lock:
            self.n_done, self.done = self.n_done + 1, self.done + size
            if self._bar is not None:
                self._bar.update(size)
                return
            counts = f"{self.n_done}/{self.n_files} files, {self.done / 1e6:.1f} of {self.total / 1e6:.1f} MB"
            print(f"{counts}: {path} {'fetched' if fresh else 'was there'}", file=self._log, flush=True)

    def close(self) -> None:
        """Leave the terminal to others."""
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def _silence() -> Iterator[_Streams]:
    """Keep what ONE prints and draws out of the log; give the streams for our own words."""
    streams = _Streams(sys.stdout, sys.stderr)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield streams


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = "" if os.access(folder, os.W_OK | os.X_OK) else "it is not writable for you"
    except OSError as error:
        found = error.strerror or str(error)
    if found:
        remedy = "point `cache_dir` (or CTDB_IBL_CACHE) to a folder that can be"
        raise WriteError(f"{folder}: cannot be written ({found}); {remedy}")


def _versions(listing: Listing, collection: str, dataset: str) -> dict[str, Listed]:
    """Revision to file, of the files of one name."""
    return {file.revision: file for file in listing.files if (file.collection, file.dataset) == (collection, dataset)}


def _is_whole(path: Path, file: FileRecord | Listed) -> bool:
    return path.is_file() and path.stat().st_size == file.size and _md5(path) == file.md5


def _md5(path: Path) -> str:
    status = path.stat()
    return _md5_at(path, status.st_mtime_ns, status.st_size)


@functools.cache
def _md5_at(path: Path, _mtime: int, _size: int) -> str:
    """Md5 of a file, worked out once for each of its states: whole files are asked for it several times."""
    return md5_of(path)


def _changed(file: Listed, path: Path, md5: str | None) -> IblChecksumError:
    size = path.stat().st_size
    found = f"has md5 {md5}, expected {file.md5}" if md5 else f"has {size} bytes, expected {file.size}"
    return IblChecksumError(f"{file.path}: {found}; it was changed or damaged: fetch another copy, or another revision")


def _tag(settings: RecordingSettings) -> str:
    query = getattr(settings, "query", None)
    return (query.tag if query else None) or ""
