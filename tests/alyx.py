"""Sessions of made-up bytes: in a folder with the tables of ONE, and behind a server that speaks enough of Alyx for it."""

import contextlib
import datetime
import hashlib
import json
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import one

TOKEN, LOGIN, PASSWORD = "t0ken-that-nobody-may-see", "user-that-nobody-may-see", "passw0rd-that-nobody-may-see"
SECRETS = (TOKEN, LOGIN, PASSWORD)
REVISION = "2024-05-06"
SORTED = (
    "spikes.times.npy",
    "spikes.clusters.npy",
    "clusters.channels.npy",
    "clusters.metrics.pqt",
    "clusters.uuids.csv",
    "channels.brainLocationIds_ccf_2017.npy",
)
WHEEL = ("alf/_ibl_wheel.position.npy", "alf/_ibl_wheel.timestamps.npy")

OTHERS = (
    "alf/probes.description.json",
    "alf/licks.times.npy",
    "alf/probe00/electrodeSites.mlapdv.npy",
    "raw/probe.txt",
)
"""Files that real sessions have and that nobody asks for."""


def name_id(name: str) -> str:
    return str(uuid.UUID(bytes=hashlib.sha256(name.encode()).digest()[:16], version=4))


class Session:
    """A session: `probes` maps a probe to its sorters and revisions; `trials` lists the revisions of the trials."""

    def __init__(self, subject: str, number: int = 1, probes: dict | None = None, trials: tuple[str, ...] = ("",)):
        self.lab, self.subject, self.date, self.number = "lab", subject, "2020-08-13", number
        self.probes = probes or {"probe00": {"pykilosort": (REVISION,)}}
        self.eid = name_id(self.folder)
        self.default = max(trials)
        places = [*WHEEL, *OTHERS]
        places += [f"alf/{f'#{revision}#/' if revision else ''}_ibl_trials.table.pqt" for revision in trials]
        for probe, sorters in self.probes.items():
            for sorter, revisions in sorters.items():
                for revision in revisions:
                    folder = f"alf/{probe}/{sorter}" + (f"/#{revision}#" if revision else "")
                    places += [f"{folder}/{name}" for name in SORTED]
        self.files = {place: self._bytes(place) for place in places}

    @property
    def folder(self) -> str:
        return f"{self.lab}/Subjects/{self.subject}/{self.date}/{self.number:03d}"

    def _bytes(self, place: str) -> bytes:
        seed = hashlib.sha256(f"{self.folder}/{place}".encode()).digest()
        return seed * (40 + seed[0])

    def pid(self, probe: str) -> str:
        return name_id(f"{self.folder}:{probe}")

    def id(self, place: str) -> str:
        return name_id(f"{self.folder}/{place}")

    def insertion(self, probe: str) -> dict:
        info = {key: self.record()[key] for key in ("subject", "start_time", "lab", "number", "projects", "id")}
        info["task_protocol"] = "task"
        return {"id": self.pid(probe), "session": self.eid, "name": probe, "json": {}, "session_info": info}

    def record(self, hashes: bool = True) -> dict:
        datasets = [
            {
                "id": self.id(place),
                "name": place.split("/")[-1],
                "file_size": len(content) if hashes else None,
                "hash": hashlib.md5(content).hexdigest() if hashes else None,
                "data_url": f"https://elsewhere.org/{self.folder}/{with_id(place, self.id(place))}",
                "default_revision": str("trials" not in place or (f"#{self.default}#" in place) == bool(self.default)),
                "qc": "NOT_SET",
            }
            for place, content in self.files.items()
        ]
        return {
            "id": self.eid,
            "url": f"https://elsewhere.org/sessions/{self.eid}",
            "subject": self.subject,
            "lab": self.lab,
            "number": self.number,
            "start_time": f"{self.date}T12:00:00",
            "task_protocol": "task",
            "projects": ["ibl"],
            "data_dataset_session_related": datasets,
        }


def with_id(place: str, identity: str) -> str:
    stem, _, suffix = place.rpartition(".")
    return f"{stem}.{identity}.{suffix}"


def write_cache(folder: Path, sessions: list[Session], insertions: bool = True, hashes: bool = True) -> None:
    """Write files and tables of sessions as a folder of ONE."""
    import pandas as pd
    from iblutil.io import parquet
    from one.alf.cache import QC_TYPE

    for session in sessions:
        for place, content in session.files.items():
            path = folder / session.folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    meta = {"date_created": "2026-01-01 00:00:00.000000", "origin": "made-up"}
    table = [
        {
            "id": session.eid,
            "lab": session.lab,
            "subject": session.subject,
            "date": datetime.date.fromisoformat(session.date),
            "number": session.number,
            "task_protocol": "task",
            "projects": "ibl",
        }
        for session in sessions
    ]
    parquet.save(folder / "sessions.pqt", pd.DataFrame(table).set_index("id").sort_index(), meta)
    datasets = [
        {
            "eid": session.eid,
            "id": session.id(place),
            "rel_path": place,
            "file_size": len(content),
            "hash": hashlib.md5(content).hexdigest() if hashes else "",
            "exists": True,
            "qc": "NOT_SET",
            "default_revision": "trials" not in place or (f"#{session.default}#" in place) == bool(session.default),
        }
        for session in sessions
        for place, content in session.files.items()
    ]
    frame = pd.DataFrame(datasets).astype({"qc": QC_TYPE, "file_size": "UInt64"})
    parquet.save(folder / "datasets.pqt", frame.set_index(["eid", "id"]).sort_index(), meta)
    if insertions:
        probes = [
            {"eid": session.eid, "id": session.pid(probe), "name": probe}
            for session in sessions
            for probe in session.probes
        ]
        parquet.save(folder / "insertions.pqt", pd.DataFrame(probes).set_index(["eid", "id"]).sort_index(), meta)


class Alyx:
    """A running server. `faults` maps the end of a file's place to what goes wrong with it; `asked` lists requests."""

    def __init__(self, sessions: list[Session], page: int = 0):
        self.sessions, self.page = sessions, page
        self.faults: dict[str, str] = {}
        self.asked: list[str] = []
        self.hashes = True
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()
        schema = Path(one.__file__).parent / "tests/fixtures/rest_responses/openapiv3.json"
        self.schema = json.loads(schema.read_text())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def downloads(self) -> list[str]:
        return [path.removeprefix("/public/") for path in self.asked if path.startswith("/public/")]

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Note how many slow downloads there are at once."""
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield
        finally:
            with self.lock:
                self.at_once -= 1

    def rest(self, path: str, query: dict[str, str]) -> tuple[int, object]:
        kind, _, key = path.strip("/").partition("/")
        if path == "/api/schema":
            return 200, self.schema
        if kind == "sessions" and key:
            found = [session.record(self.hashes) for session in self.sessions if session.eid == key]
            return (200, found[0]) if found else (404, {"detail": "No Session matches the given query."})
        probes = [(session, probe) for session in self.sessions for probe in session.probes]
        if kind == "insertions" and key:
            found = [session.insertion(probe) for session, probe in probes if session.pid(probe) == key]
            return (200, found[0]) if found else (404, {"detail": "Not found."})
        if kind == "insertions":
            if "session" in query:
                probes = [(session, probe) for session, probe in probes if session.eid == query["session"]]
            if "subject" in query:
                probes = [(session, probe) for session, probe in probes if session.subject == query["subject"]]
            if query.get("atlas_acronym", "MO") != "MO" or query.get("tag", "release") != "release":
                probes = []
            records = [session.insertion(probe) for session, probe in probes]
            if not self.page:
                return 200, records
            start = int(query.get("offset", 0))
            following = f"{self.url}/insertions?{'&'.join(f'{k}={v}' for k, v in query.items())}"
            return 200, {
                "count": len(records),
                "next": following,
                "previous": None,
                "results": records[start : start + self.page],
            }
        return 404, {"detail": "Not found."}

    def file(self, place: str) -> bytes | None:
        for session in self.sessions:
            for inner, content in session.files.items():
                if place == f"{session.folder}/{with_id(inner, session.id(inner))}":
                    return content
        return None

    def fault(self, place: str) -> str:
        return next((fault for end, fault in self.faults.items() if end in place), "")


@contextlib.contextmanager
def serving(sessions: list[Session], page: int = 0) -> Iterator[Alyx]:
    """Serve sessions on the loopback interface."""
    alyx = Alyx(sessions, page)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def reply(self, status: int, body: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            alyx.asked.append(self.path)
            good = form == {"username": [LOGIN], "password": [PASSWORD]}
            answer = {"token": TOKEN} if good else {"non_field_errors": ["Unable to log in."]}
            self.reply(200 if good else 400, json.dumps(answer).encode())

        def do_GET(self) -> None:
            parts = urlsplit(self.path, allow_fragments=False)
            path = unquote(parts.path)
            alyx.asked.append(path)
            if path.startswith("/public/"):
                self.serve_file(path.removeprefix("/public/"))
                return
            if (fault := alyx.fault(path)).isdigit():
                self.reply(int(fault), b"{}")
                return
            if fault == "html":
                self.reply(200, b"<html>", "text/html")
                return
            if self.headers.get("Authorization") != f"Token {TOKEN}":
                self.reply(403, b'{"detail": "Invalid token."}')
                return
            if path == "/me":
                self.reply(200, json.dumps({"username": LOGIN}).encode())
                return
            status, answer = alyx.rest(path, {key: value[0] for key, value in parse_qs(parts.query).items()})
            self.reply(status, json.dumps(answer).encode())

        def serve_file(self, place: str) -> None:
            content, fault = alyx.file(place), alyx.fault(place)
            if fault.startswith("once "):
                del alyx.faults[next(end for end in alyx.faults if end in place)]
                fault = fault.removeprefix("once ")
            if content is None or fault.isdigit():
                self.reply(int(fault or 404), b"no")
                return
            if fault == "wrong":
                content = content[:-1] + bytes([content[-1] ^ 1])
            if fault == "short":
                content = content[:-1]
            if fault == "long":
                content += b"!"
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if fault == "hang":
                self.wfile.write(content[:10])
                self.wfile.flush()
                alyx.ended.wait(30)
                self.close_connection = True
            elif fault == "cut":
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            elif fault == "slow":
                *most, last = [content[start : start + 400] for start in range(0, len(content), 400)]
                with alyx.counting():
                    for part in most:
                        self.wfile.write(part)
                        self.wfile.flush()
                        time.sleep(0.05)
                self.wfile.write(last)
            else:
                self.wfile.write(content)

    alyx.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    alyx.server.daemon_threads = True
    thread = threading.Thread(target=alyx.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield alyx
    finally:
        alyx.ended.set()
        alyx.server.shutdown()
        alyx.server.server_close()
