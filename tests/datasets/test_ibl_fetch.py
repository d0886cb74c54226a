"""Fetching recordings with the real ONE from a server on this machine, and what is left behind when it goes wrong."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import threading
from pathlib import Path

import pytest
import requests

import alyx
from alyx import LOGIN, PASSWORD, REVISION, SECRETS, TOKEN, Session, serving, write_cache
from ctdb.datasets.ibl import fetch as fetching
from ctdb.datasets.ibl.fetch import fetch
from ctdb.datasets.ibl.manifest import Skipped, read_manifest, write_manifest
from ctdb.datasets.ibl.recording import IblLocalSettings, IblSettings
from ctdb.errors import (
    IblAccessError,
    IblChecksumError,
    IblError,
    IblMissingError,
    WriteError,
)

ADA = Session(
    "ada", probes={"probe00": {"pykilosort": ("2023-01-01", REVISION)}, "probe01": {"iblsorter": (REVISION,)}}
)
BOB = Session("bob", 2, probes={name: {"pykilosort": (REVISION,)} for name in ("probe00", "probe01")})
CAT = Session("cat", trials=("", "2025-03-03", "2026-01-01"))
CAT.default = "2025-03-03"
SPIKES = f"alf/probe00/pykilosort/#{REVISION}#/spikes.times"


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """A home of its own, credentials of the made-up user, no pauses, and no way to another machine."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("ALYX_LOGIN", "ALYX_PASSWORD", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALYX_TOKEN", TOKEN)
    monkeypatch.setattr(fetching, "WAIT_S", 0)
    connect = socket.socket.connect

    def connect_here(self, address):
        assert not isinstance(address, tuple) or address[0] in ("127.0.0.1", "localhost", "::1"), address
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    yield
    assert not any(home.iterdir()), "ONE left something in the home folder"


@pytest.fixture
def server():
    with serving([ADA, BOB, CAT]) as running:
        yield running


@pytest.fixture
def settings(server):
    """Settings of kind `ibl` that ask the server."""

    def make(*sessions, **keys):
        chosen = {"sessions": [dict(choice) for choice in sessions]} if sessions else {}
        own = {"kind": "ibl", "base_url": server.url, "data_url": f"{server.url}/public", "timeout_s": 5.0}
        return IblSettings(**(own | chosen | keys))

    return make


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def expected_files(session: Session, *probes: str, trials: str = "", sorter: str = "pykilosort") -> dict[str, bytes]:
    places = [*alyx.WHEEL, f"alf/{f'#{trials}#/' if trials else ''}_ibl_trials.table.pqt"]
    places += [f"alf/{probe}/{sorter}/#{REVISION}#/{name}" for probe in probes for name in alyx.SORTED]
    return {f"{session.folder}/{place}": session.files[place] for place in places}


def failing(kind: type[IblError], cache: Path, settings, *, leaves: int | None = None, manifest=None) -> str:
    """Message of a fetch that fails, after which nothing partial is left, and no credential is told."""
    with pytest.raises(kind) as caught:
        fetch(settings, cache, manifest)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message
    assert not any(secret in message for secret in SECRETS)
    left = files_in(cache) if cache.exists() else {}
    whole = {
        f"{session.folder}/{place}": content for session in (ADA, BOB, CAT) for place, content in session.files.items()
    }
    assert left.items() <= whole.items()
    assert not (cache / ".partial").exists()
    if leaves is not None:
        assert len(left) == leaves
    return message


def told(kind: type[IblError], settings, cache: Path) -> str:
    """Message of a fetch that fails."""
    with pytest.raises(kind) as caught:
        fetch(settings, cache)
    return str(caught.value)


def test_a_probe_is_fetched_by_its_pid_and_the_manifest_names_every_file(server, settings, tmp_path):
    manifest = fetch(settings({"pid": ADA.pid("probe00")}), tmp_path / "cache")
    expected = expected_files(ADA, "probe00")
    assert files_in(tmp_path / "cache") == expected
    (session,) = manifest.sessions
    assert session.model_dump(exclude={"files", "probes"}) == {
        "eid": ADA.eid, "subject": "ada", "lab": "lab", "date": "2020-08-13", "number": 1,
    }  # fmt: skip
    assert [probe.model_dump() for probe in session.probes] == [{"pid": ADA.pid("probe00"), "name": "probe00"}]
    assert [file.path for file in session.files] == sorted(expected)
    for file in session.files:
        content = expected[file.path]
        assert (file.size, file.md5) == (len(content), hashlib.md5(content).hexdigest())
        place = file.path.removeprefix(f"{ADA.folder}/")
        assert file.id == ADA.id(place)
        revision = f"#{file.revision}#/" if file.revision else ""
        assert place == f"{file.collection}/{revision}{file.dataset}"
    assert {file.revision for file in session.files if file.collection != "alf"} == {REVISION}


def test_a_session_is_fetched_with_all_probes_or_one(settings, tmp_path):
    both = fetch(settings({"eid": BOB.eid}), tmp_path / "both").sessions[0]
    assert [probe.model_dump() for probe in both.probes] == [
        {"pid": BOB.pid(name), "name": name} for name in ("probe00", "probe01")
    ]
    assert files_in(tmp_path / "both") == expected_files(BOB, "probe00", "probe01")
    one = fetch(settings({"eid": BOB.eid, "probe": "probe01"}), tmp_path / "one").sessions[0]
    assert [probe.model_dump() for probe in one.probes] == [{"pid": BOB.pid("probe01"), "name": "probe01"}]
    assert files_in(tmp_path / "one") == expected_files(BOB, "probe01")


def test_two_probes_of_a_session_chosen_one_by_one_are_one_session(settings, tmp_path):
    choices = [{"pid": BOB.pid("probe01")}, {"eid": BOB.eid, "probe": "probe00"}, {"pid": BOB.pid("probe01")}]
    assert fetch(settings(*choices), tmp_path / "a") == fetch(settings({"eid": BOB.eid}), tmp_path / "b")
    choices = [{"eid": BOB.eid}, {"pid": BOB.pid("probe01")}]
    assert fetch(settings(*choices), tmp_path / "c") == fetch(settings({"eid": BOB.eid}), tmp_path / "b")


def test_sessions_stand_in_the_order_of_their_names_and_two_runs_write_the_same_bytes(settings, tmp_path):
    choices = [{"eid": session.eid, "probe": "probe00"} for session in (CAT, ADA, BOB)]
    for name, order in {"a": choices, "b": choices[::-1]}.items():
        write_manifest(tmp_path / f"{name}.json", fetch(settings(*order), tmp_path / name))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert [session.subject for session in read_manifest(tmp_path / "a.json").sessions] == ["ada", "bob", "cat"]
    assert str(tmp_path) not in (tmp_path / "a.json").read_text()


def test_sessions_stand_in_the_order_of_subject_and_number_not_of_their_ids(tmp_path):
    sessions = [Session(subject, number) for subject in ("x", "y", "z") for number in (2, 9, 10)]
    assert sorted(sessions, key=lambda session: session.eid) != sessions
    write_cache(tmp_path, sessions)
    manifest = fetch(local(tmp_path), tmp_path)
    assert [session.eid for session in manifest.sessions] == [session.eid for session in sessions]


def test_a_login_with_a_password_does_as_well(server, settings, tmp_path, monkeypatch):
    monkeypatch.delenv("ALYX_TOKEN")
    monkeypatch.setenv("ALYX_LOGIN", LOGIN)
    monkeypatch.setenv("ALYX_PASSWORD", PASSWORD)
    fetch(settings({"pid": ADA.pid("probe00")}), tmp_path / "cache")
    assert files_in(tmp_path / "cache") == expected_files(ADA, "probe00")
    assert "/auth-token" in server.asked


def test_no_credential_is_told_or_stored(settings, tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("ALYX_TOKEN")
    monkeypatch.setenv("ALYX_LOGIN", LOGIN)
    monkeypatch.setenv("ALYX_PASSWORD", PASSWORD)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    kept = []
    remove = shutil.rmtree

    def look_first(folder, *args, **kwargs):
        kept.extend(path.read_bytes() for path in Path(folder).rglob("*") if path.is_file())
        return remove(folder, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", look_first)
    monkeypatch.setattr("tempfile._shutil.rmtree", look_first)
    manifest = fetch(settings({"pid": ADA.pid("probe00")}), tmp_path / "cache")
    write_manifest(tmp_path / "manifest.json", manifest)
    assert any(b"HTTP_DATA_SERVER" in content for content in kept), "the parameters of ONE were not looked at"
    kept += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    told = capfd.readouterr()
    for secret in SECRETS:
        assert not any(secret.encode() in content for content in kept)
        assert secret not in told.out + told.err
    assert not any((tmp_path / "temporary").iterdir())


def test_the_home_of_the_user_is_what_it_was(settings, tmp_path):
    before = dict(os.environ), socket.getdefaulttimeout()
    fetch(settings({"pid": ADA.pid("probe00")}), tmp_path / "cache")
    with contextlib.suppress(IblError):
        fetch(settings({"pid": ADA.eid}), tmp_path / "cache")
    assert (dict(os.environ), socket.getdefaulttimeout()) == before


def test_a_stored_token_of_the_user_is_not_used(server, settings, tmp_path, monkeypatch):
    monkeypatch.delenv("ALYX_TOKEN")
    home = Path(os.environ["HOME"])
    host = server.url.removeprefix("http://").replace(":", "_")
    (home / ".one").mkdir()
    (home / ".one/.caches").write_text(json.dumps({"CLIENT_MAP": {host: str(tmp_path)}, "DEFAULT": host}))
    stored = {
        "ALYX_URL": server.url,
        "ALYX_LOGIN": LOGIN,
        "HTTP_DATA_SERVER": server.url,
        "TOKEN": {LOGIN: {"token": TOKEN}},
    }
    (home / f".one/.{host}").write_text(json.dumps(stored))
    assert "no credentials" in failing(IblAccessError, tmp_path / "cache", settings({"eid": ADA.eid}))
    shutil.rmtree(home / ".one")


# What is chosen


def test_a_query_finds_probes_by_release_region_and_animal(server, settings, tmp_path):
    manifest = fetch(settings(query={"tag": "release", "region": "MO", "subject": "bob"}), tmp_path / "cache")
    assert manifest.tag == "release"
    assert [session.eid for session in manifest.sessions] == [BOB.eid]
    assert files_in(tmp_path / "cache") == expected_files(BOB, "probe00", "probe01")
    for other in ({"tag": "other"}, {"region": "VPL"}, {"subject": "dan"}):
        message = failing(IblMissingError, tmp_path / "none", settings(query=other), leaves=0)
        assert "finds no probe" in message
        assert str(other) in message


def test_a_query_that_alyx_answers_page_by_page_finds_all(tmp_path):
    with serving([BOB, CAT], page=2) as server:
        settings = IblSettings(
            kind="ibl", query={"tag": "release"}, base_url=server.url, data_url=f"{server.url}/public"
        )
        manifest = fetch(settings, tmp_path / "cache")
    assert [(s.subject, len(s.probes)) for s in manifest.sessions] == [("bob", 2), ("cat", 1)]


def test_trials_are_of_the_default_revision_or_of_the_one_that_is_asked_for(settings, tmp_path):
    for asked, revision in ((None, "2025-03-03"), ("2026-01-01", "2026-01-01"), ("", "")):
        cache = tmp_path / f"cache{revision}"
        manifest = fetch(settings({"eid": CAT.eid}, trials_revision=asked), cache)
        assert files_in(cache) == expected_files(CAT, "probe00", trials=revision)
        assert {f.revision for f in manifest.sessions[0].files if "trials" in f.dataset} == {revision}
    message = failing(IblMissingError, tmp_path / "none", settings({"eid": CAT.eid}, trials_revision="2024-01-01"))
    assert "['', '2025-03-03', '2026-01-01'] and not '2024-01-01'; set `trials_revision`" in message


def test_another_revision_or_sorter_is_another_file(settings, tmp_path):
    fetch(settings({"eid": ADA.eid, "probe": "probe00"}, revision="2023-01-01"), tmp_path / "old")
    assert sum("#2023-01-01#" in path for path in files_in(tmp_path / "old")) == 6
    fetch(settings({"eid": ADA.eid, "probe": "probe01"}, sorter="iblsorter"), tmp_path / "new")
    assert files_in(tmp_path / "new") == expected_files(ADA, "probe01", sorter="iblsorter")


def test_what_is_not_there_is_told_with_what_is(server, settings, tmp_path):
    nobody = ADA.id("nothing")
    for choice, keys, parts in (
        ({"pid": nobody}, {}, [f"probe {nobody}: is not in {server.url}", "correct the `pid`"]),
        ({"eid": nobody}, {}, [f"session {nobody}: is not on the server of {server.url} (404)"]),
        ({"eid": ADA.eid, "probe": "probe07"}, {}, ["'probe07'", "['probe00', 'probe01']"]),
        ({"eid": ADA.eid, "probe": "probe01"}, {}, ["not sorted by 'pykilosort', but by ['iblsorter']; set `sorter`"]),
        ({"eid": BOB.eid}, {"revision": "2026-01-01"}, [f"['{REVISION}'] and not '2026-01-01'; set `revision`"]),
        ({"eid": BOB.eid}, {"revision": ""}, [f"['{REVISION}'] and not ''; set `revision`"]),
    ):
        message = failing(IblMissingError, tmp_path / "cache", settings(choice, **keys), leaves=0)
        for part in parts:
            assert part in message


def test_mixed_revisions_of_spikes_and_clusters_are_refused_and_those_of_channels_are_not(tmp_path):
    for missing in ("spikes.times.npy", "clusters.metrics.pqt", "channels.brainLocationIds_ccf_2017.npy"):
        mixed = Session(
            "mixed", probes={"probe00": {"pykilosort": ("2022-01-01", "2023-01-01", REVISION, "2026-01-01")}}
        )
        del mixed.files[f"alf/probe00/pykilosort/#{REVISION}#/{missing}"]
        with serving([mixed]) as server:
            own = {"base_url": server.url, "data_url": f"{server.url}/public", "sessions": [{"eid": mixed.eid}]}
            settings = IblSettings(kind="ibl", **own)
            if missing.startswith("channels"):
                manifest = fetch(settings, tmp_path / "cache")
                revisions = {file.dataset: file.revision for file in manifest.sessions[0].files if file.revision}
                assert revisions.pop(missing) == "2023-01-01"
                assert set(revisions.values()) == {REVISION}
            else:
                message = failing(IblMissingError, tmp_path / "none", settings, leaves=0)
                assert (
                    f"{missing} has the revisions ['2022-01-01', '2023-01-01', '2026-01-01'] and not '{REVISION}'"
                    in message
                )
                assert "spikes and clusters have in common" in message


@pytest.mark.parametrize("missing", ["alf/_ibl_trials.table.pqt", "alf/_ibl_wheel.position.npy", SPIKES + ".npy"])
def test_a_session_without_a_file_is_refused_before_anything_is_downloaded(missing, tmp_path):
    poor = Session("poor")
    del poor.files[missing]
    with serving([BOB, poor]) as server:
        own = {"base_url": server.url, "data_url": f"{server.url}/public"}
        settings = IblSettings(kind="ibl", sessions=[{"eid": BOB.eid}, {"eid": poor.eid}], **own)
        message = failing(IblMissingError, tmp_path / "cache", settings, leaves=0)
        assert f"session {poor.eid}: has no file {missing.replace(f'#{REVISION}#/', '')}" in message
        assert server.downloads() == []


@pytest.mark.parametrize("missing", ["clusters.uuids.csv", "channels.brainLocationIds_ccf_2017.npy"])
def test_a_probe_need_not_be_traced_in_the_brain(missing, tmp_path):
    poor = Session("poor")
    del poor.files[f"alf/probe00/pykilosort/#{REVISION}#/{missing}"]
    with serving([poor]) as server:
        own = {"base_url": server.url, "data_url": f"{server.url}/public", "sessions": [{"eid": poor.eid}]}
        manifest = fetch(IblSettings(kind="ibl", **own), tmp_path / "cache")
    assert len(manifest.sessions[0].files) == 8
    assert missing not in {file.dataset for file in manifest.sessions[0].files}


# Access


def test_without_credentials_nothing_is_asked(server, settings, tmp_path, monkeypatch):
    monkeypatch.delenv("ALYX_TOKEN")
    message = failing(IblAccessError, tmp_path / "cache", settings({"eid": ADA.eid}), leaves=0)
    assert "set ALYX_TOKEN" in message
    assert "ALYX_LOGIN and ALYX_PASSWORD" in message
    assert f"{server.url}/signup" in message
    monkeypatch.setenv("ALYX_LOGIN", LOGIN)
    assert "no credentials" in failing(IblAccessError, tmp_path / "cache", settings({"eid": ADA.eid}))
    assert server.asked == []


def test_a_wrong_password_and_a_wrong_token_are_told_as_such(server, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("ALYX_TOKEN", "wrong")
    message = failing(IblAccessError, tmp_path / "cache", settings({"eid": ADA.eid}), leaves=0)
    assert "does not accept the credentials (403)" in message
    assert "wrong" not in message
    monkeypatch.delenv("ALYX_TOKEN")
    monkeypatch.setenv("ALYX_LOGIN", LOGIN)
    monkeypatch.setenv("ALYX_PASSWORD", "mistyped")
    message = failing(IblAccessError, tmp_path / "cache", settings({"eid": ADA.eid}), leaves=0)
    assert "does not accept the credentials (400)" in message
    assert "mistyped" not in message
    assert "*" not in message


def test_a_token_that_is_refused_in_between_ends_the_fetch(server, settings, tmp_path, monkeypatch):
    answer = server.rest

    def refuse_later(path, query):
        return (403, {"detail": "Invalid token."}) if path.startswith("/sessions") else answer(path, query)

    monkeypatch.setattr(server, "rest", refuse_later)
    message = failing(IblAccessError, tmp_path / "cache", settings({"eid": ADA.eid}), leaves=0)
    assert "does not accept the credentials (403)" in message


def test_a_server_that_is_not_there_fails_or_is_no_alyx_is_told(server, settings, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
    choice = {"eid": ADA.eid}
    message = failing(IblAccessError, tmp_path / "cache", settings(choice, base_url=nowhere), leaves=0)
    assert f"no connection to {nowhere}: it was refused or broke off" in message
    server.faults["/sessions"] = "500"
    assert "failed (500); run again later" in failing(IblAccessError, tmp_path / "cache", settings(choice), leaves=0)
    server.faults["/sessions"] = "html"
    message = failing(IblAccessError, tmp_path / "cache", settings(choice), leaves=0)
    assert "does not answer as an Alyx database does; correct `base_url`" in message


def test_a_query_that_alyx_does_not_understand_and_an_address_without_a_login_are_told(
    server, settings, tmp_path, monkeypatch
):
    server.faults["/insertions"] = "400"
    message = failing(IblMissingError, tmp_path / "cache", settings(query={"tag": "release"}), leaves=0)
    assert message == f"the query: {server.url} does not understand it (400); correct it"
    monkeypatch.delenv("ALYX_TOKEN")
    monkeypatch.setenv("ALYX_LOGIN", LOGIN)
    monkeypatch.setenv("ALYX_PASSWORD", PASSWORD)
    reply = requests.Response()
    reply.status_code = 404
    monkeypatch.setattr(requests, "post", lambda *_, **__: reply)
    message = failing(IblAccessError, tmp_path / "cache", settings({"eid": ADA.eid}), leaves=0)
    assert "does not answer as an Alyx database does" in message


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"{}"])
def test_an_address_that_takes_a_login_but_is_no_alyx_is_told(answer, settings, tmp_path, monkeypatch):
    monkeypatch.delenv("ALYX_TOKEN")
    monkeypatch.setenv("ALYX_LOGIN", LOGIN)
    monkeypatch.setenv("ALYX_PASSWORD", PASSWORD)
    reply = requests.Response()
    reply.status_code, reply._content = 200, answer
    monkeypatch.setattr(requests, "post", lambda *_, **__: reply)
    message = failing(IblAccessError, tmp_path / "cache", settings({"eid": ADA.eid}), leaves=0)
    assert "does not answer as an Alyx database does; correct `base_url`" in message


def test_a_data_server_that_is_not_there_is_told(settings, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}/public"
    message = failing(
        IblAccessError, tmp_path / "cache", settings({"eid": ADA.eid, "probe": "probe00"}, data_url=nowhere), leaves=0
    )
    assert "refused or broke off" in message


# Downloads


def test_a_file_that_is_not_the_one_of_the_record_is_refused(server, settings, tmp_path):
    choice = {"pid": ADA.pid("probe00")}
    server.faults[SPIKES] = "wrong"
    message = failing(IblChecksumError, tmp_path / "cache", settings(choice))
    assert message.startswith(f"{ADA.folder}/{SPIKES}.npy: has md5 ")
    assert f"expected {hashlib.md5(ADA.files[SPIKES + '.npy']).hexdigest()}" in message
    for fault, extra in (("short", -1), ("long", 1)):
        server.faults[SPIKES] = fault
        message = failing(IblChecksumError, tmp_path / "cache", settings(choice))
        size = len(ADA.files[SPIKES + ".npy"])
        assert f"has {size + extra} bytes after each of 3 downloads, expected {size}" in message
    assert f"{ADA.folder}/{SPIKES}.npy" not in files_in(tmp_path / "cache")


def test_a_file_that_the_server_has_not_is_told(server, settings, tmp_path):
    server.faults[SPIKES] = "404"
    message = failing(IblMissingError, tmp_path / "cache", settings({"pid": ADA.pid("probe00")}))
    assert message.startswith(f"{ADA.folder}/{SPIKES}.npy: is not on the server")
    server.faults[SPIKES] = "403"
    message = failing(IblAccessError, tmp_path / "cache", settings({"pid": ADA.pid("probe00")}))
    assert "failed (403)" in message
    assert "credentials" not in message
    server.faults[SPIKES] = "503"
    assert "failed (503)" in failing(IblAccessError, tmp_path / "cache", settings({"pid": ADA.pid("probe00")}))


def test_a_connection_that_is_cut_once_is_tried_again_and_one_that_always_is_fails(server, settings, tmp_path):
    choice = {"pid": ADA.pid("probe00")}
    server.faults[SPIKES] = "once cut"
    fetch(settings(choice), tmp_path / "cache")
    assert files_in(tmp_path / "cache") == expected_files(ADA, "probe00")
    assert sum("spikes.times" in path for path in server.downloads()) == 2
    server.faults[SPIKES] = "cut"
    message = failing(IblChecksumError, tmp_path / "other", settings(choice))
    assert "after each of 3 downloads" in message
    assert "cut off or changed" in message
    assert sum("spikes.times" in path for path in server.downloads()) == 5


def test_a_slow_server_is_waited_for_and_one_that_hangs_is_not(server, settings, tmp_path, monkeypatch):
    choice = {"pid": ADA.pid("probe00")}
    server.faults[SPIKES] = "slow"
    fetch(settings(choice, timeout_s=0.3), tmp_path / "cache")
    assert files_in(tmp_path / "cache") == expected_files(ADA, "probe00")
    server.faults[SPIKES] = "hang"
    message = failing(IblAccessError, tmp_path / "other", settings(choice, timeout_s=0.3))
    assert "nothing came in time" in message
    server.faults[SPIKES] = "once hang"
    monkeypatch.setattr(fetching, "N_ATTEMPTS", 2)  # the part that came is not taken for the file
    fetch(settings(choice, timeout_s=0.3), tmp_path / "other")
    assert files_in(tmp_path / "other") == expected_files(ADA, "probe00")


def test_a_database_that_hangs_is_not_waited_for(server, settings, tmp_path, monkeypatch):
    answer = server.rest
    for path in ("/sessions", "/insertions"):
        monkeypatch.setattr(
            server,
            "rest",
            lambda asked, query, path=path: (asked.startswith(path) and server.ended.wait(5)) or answer(asked, query),
        )
        message = failing(IblAccessError, tmp_path / "cache", settings({"eid": BOB.eid}, timeout_s=0.3), leaves=0)
        assert "nothing came in time" in message


def test_what_is_whole_is_kept_and_not_downloaded_again(server, settings, tmp_path):
    cache, choice = tmp_path / "cache", {"pid": ADA.pid("probe00")}
    server.faults["/channels"] = "404"
    failing(IblMissingError, cache, settings(choice), leaves=8)
    server.faults.clear()
    server.asked.clear()
    again = fetch(settings(choice), cache)
    assert len(server.downloads()) == 1
    assert "channels" in server.downloads()[0]
    assert again == fetch(settings(choice), tmp_path / "other")


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:-1] + b"?"])
def test_a_damaged_file_is_downloaded_again(damage, server, settings, tmp_path):
    cache, choice = tmp_path / "cache", {"pid": ADA.pid("probe00")}
    fetch(settings(choice), cache)
    server.asked.clear()
    path = cache / f"{ADA.folder}/{SPIKES}.npy"
    path.write_bytes(damage(path.read_bytes()))
    fetch(settings(choice), cache)
    assert files_in(cache) == expected_files(ADA, "probe00")
    assert len(server.downloads()) == 1


def test_what_a_killed_run_left_is_removed(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "N_ATTEMPTS", 1)
    cache = tmp_path / "cache"
    left = cache / ".partial" / ADA.folder / f"alf/probe00/pykilosort/#{REVISION}#"
    left.mkdir(parents=True)
    (left / f"spikes.times.{ADA.id(SPIKES + '.npy')}.npy").write_bytes(b"half of it")
    fetch(settings({"pid": ADA.pid("probe00")}), cache)
    assert files_in(cache) == expected_files(ADA, "probe00")


def test_several_sessions_are_fetched_at_once_but_not_more_than_asked_for(server, settings, tmp_path):
    choices = [{"eid": session.eid, "probe": "probe00"} for session in (ADA, BOB, CAT)]
    server.faults["spikes"] = "slow"
    for n_parallel, most in ((1, 1), (2, 2), (3, 3)):
        server.most_at_once = 0
        fetch(settings(*choices, n_parallel=n_parallel), tmp_path / f"cache{n_parallel}")
        assert server.most_at_once == most


def test_one_failure_ends_the_others_and_is_the_one_that_is_told(server, settings, tmp_path):
    server.faults[f"{CAT.folder}/alf/_ibl_wheel"] = "404"
    server.faults["ada"] = "slow"
    choices = [{"eid": session.eid, "probe": "probe00"} for session in (ADA, CAT)]
    message = failing(IblMissingError, tmp_path / "cache", settings(*choices, n_parallel=2))
    assert "cat" in message
    assert len([path for path in server.downloads() if "ada" in path]) < 9


def test_two_fetches_into_one_folder_take_turns(server, settings, tmp_path):
    server.faults["spikes"] = "slow"
    made = {}

    def work(name):
        made[name] = fetch(settings({"pid": ADA.pid("probe00")}), tmp_path / "cache")

    from ctdb.files import lock

    with lock(tmp_path / "cache"):
        waiting = threading.Thread(target=work, args=("a",))
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive()
        assert server.asked == []
    waiting.join(60)
    assert made["a"].sessions[0].eid == ADA.eid


def test_a_disk_that_is_too_small_is_told_before_anything_is_downloaded(server, settings, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(WriteError, match="are free; point `cache_dir`"):
        fetch(settings({"pid": ADA.pid("probe00")}), tmp_path / "cache")
    assert server.downloads() == []


def test_a_folder_that_cannot_be_written_is_told_with_its_key(settings, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match=r"file/cache: cannot be written \(Not a directory\); point `cache_dir`"):
        fetch(settings({"pid": ADA.pid("probe00")}), tmp_path / "file/cache")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "lab").write_text("in the way")
    with pytest.raises(WriteError, match=r"cannot be written .*; point `cache_dir`"):
        fetch(settings({"pid": ADA.pid("probe00")}), cache)
    assert not (cache / ".partial").exists()


def test_a_log_gets_a_line_for_each_file(settings, tmp_path, capsys):
    fetch(settings({"pid": ADA.pid("probe00")}), tmp_path / "cache")
    told = capsys.readouterr()
    total = sum(map(len, expected_files(ADA, "probe00").values())) / 1e6
    lines = told.out.splitlines()
    assert [line.split(" ")[0] for line in lines] == [f"{i}/9" for i in range(1, 10)]
    assert all(line.endswith(" fetched") for line in lines)
    assert f"9/9 files, {total:.1f} of {total:.1f} MB: {ADA.folder}" in lines[-1]
    assert told.err == ""
    fetch(settings({"pid": ADA.pid("probe00")}), tmp_path / "cache")
    assert all(line.endswith(" was there") for line in capsys.readouterr().out.splitlines())


def test_a_terminal_gets_a_bar(settings, tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch(settings({"pid": ADA.pid("probe00")}), tmp_path / "cache")
    told = capsys.readouterr()
    assert told.out == ""
    assert "100%" in told.err


# Pins, skips


def test_a_file_that_is_pinned_must_be_that_one(settings, tmp_path):
    path = f"{ADA.folder}/{SPIKES}.npy"
    right = hashlib.md5(ADA.files[SPIKES + ".npy"]).hexdigest()
    choice = {"pid": ADA.pid("probe00")}
    fetch(settings(choice, expect_md5={path: right}), tmp_path / "cache")
    message = failing(IblChecksumError, tmp_path / "other", settings(choice, expect_md5={path: "0" * 32}), leaves=0)
    assert f"{path}: has md5 {right} in " in message
    assert f"`expect_md5` says {'0' * 32}" in message
    unknown = path.replace("ada", "adam")
    message = failing(IblMissingError, tmp_path / "other", settings(choice, expect_md5={unknown: right}), leaves=0)
    assert f"`expect_md5` names '{unknown}'" in message


def test_a_pin_holds_where_the_database_knows_no_hash(server, settings, tmp_path):
    server.hashes = False
    choice, path = {"pid": ADA.pid("probe00")}, f"{ADA.folder}/{SPIKES}.npy"
    manifest = fetch(settings(choice), tmp_path / "cache")
    assert manifest.sessions[0].files[-1].md5 == hashlib.md5(ADA.files[SPIKES + ".npy"]).hexdigest()
    assert manifest.sessions[0].files[-1].size == len(ADA.files[SPIKES + ".npy"])
    failing(IblChecksumError, tmp_path / "other", settings(choice, expect_md5={path: "0" * 32}))


def test_what_may_be_skipped_is_and_is_recorded(server, settings, tmp_path):
    choices = [{"eid": session.eid, "probe": "probe00"} for session in (BOB, CAT)]
    choices += [{"eid": ADA.eid}, {"pid": ADA.id("nothing")}]
    failing(IblMissingError, tmp_path / "cache", settings(*choices))
    manifest = fetch(settings(*choices, continue_on_error=["missing"]), tmp_path / "cache")
    assert [session.subject for session in manifest.sessions] == ["bob", "cat"]
    assert {skipped.session: skipped.error for skipped in manifest.skipped} == {
        ADA.eid: "missing",
        ADA.id("nothing"): "missing",
    }
    assert all(str(tmp_path) not in skipped.reason for skipped in manifest.skipped)
    server.faults[f"{CAT.folder}/alf/_ibl_wheel.position"] = "wrong"
    failing(IblChecksumError, tmp_path / "other", settings(*choices, continue_on_error=["missing"]))
    manifest = fetch(settings(*choices, continue_on_error=["missing", "checksum"]), tmp_path / "other")
    assert [session.subject for session in manifest.sessions] == ["bob"]
    assert {skipped.session: skipped.error for skipped in manifest.skipped}[CAT.eid] == "checksum"
    server.faults["bob"] = "404"
    message = failing(
        IblMissingError, tmp_path / "third", settings(*choices, continue_on_error=["missing", "checksum"])
    )
    assert "no session is left" in message
    server.faults["bob"] = "503"
    failing(IblAccessError, tmp_path / "third", settings(*choices, continue_on_error=["missing", "checksum"]))


# From a manifest


@pytest.fixture
def known(settings, tmp_path):
    """A manifest that somebody else has made, of more than one session."""
    choices = [{"eid": session.eid, "probe": "probe00"} for session in (ADA, CAT)]
    write_manifest(tmp_path / "known.json", fetch(settings(*choices, trials_revision=""), tmp_path / "theirs"))
    return read_manifest(tmp_path / "known.json")


def test_a_manifest_is_all_it_takes_to_get_the_same_files(server, settings, tmp_path, known):
    known = known.model_copy(update={"skipped": [Skipped(session=BOB.eid, error="missing", reason="it was not there")]})
    CAT.default = "2026-01-01"
    try:
        again = fetch(settings(manifest="known.json"), tmp_path / "ours", known)
    finally:
        CAT.default = "2025-03-03"
    assert again == known
    assert files_in(tmp_path / "ours") == files_in(tmp_path / "theirs")


def test_a_manifest_whose_files_are_there_needs_no_database_and_no_credentials(
    server, settings, tmp_path, known, monkeypatch
):
    server.asked.clear()
    monkeypatch.delenv("ALYX_TOKEN")
    assert fetch(settings(manifest="known.json"), tmp_path / "theirs", known) == known
    assert server.asked == []
    path = tmp_path / "theirs" / f"{ADA.folder}/{SPIKES}.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(IblAccessError, match="no credentials"):
        fetch(settings(manifest="known.json"), tmp_path / "theirs", known)
    monkeypatch.setenv("ALYX_TOKEN", TOKEN)
    assert fetch(settings(manifest="known.json"), tmp_path / "theirs", known) == known
    assert len(server.downloads()) == 1


def test_a_file_that_is_no_longer_that_of_the_manifest_is_refused(server, settings, tmp_path, known, monkeypatch):
    place = SPIKES + ".npy"
    content = ADA.files[place]
    monkeypatch.setitem(ADA.files, place, content[:-1] + b"?")
    with pytest.raises(IblChecksumError, match="it was changed there") as caught:
        fetch(settings(manifest="known.json"), tmp_path / "ours", known)
    assert hashlib.md5(content).hexdigest() in str(caught.value)
    assert server.downloads() == [] or "ours" not in str(files_in(tmp_path / "ours"))
    server.hashes = False  # the database does not tell, but the bytes do
    with pytest.raises(IblChecksumError, match=f"expected {hashlib.md5(content).hexdigest()}"):
        fetch(settings(manifest="known.json"), tmp_path / "ours", known)
    assert f"{ADA.folder}/{place}" not in files_in(tmp_path / "ours")


def test_a_file_of_the_manifest_that_is_gone_is_told_by_its_id(settings, tmp_path, known, monkeypatch):
    place = SPIKES + ".npy"
    identity = ADA.id(place)
    monkeypatch.setattr(ADA, "id", lambda of: Session.id(ADA, of if of != place else "another"))
    message = failing(IblMissingError, tmp_path / "ours", settings(manifest="known.json"), manifest=known, leaves=0)
    assert f"the file {identity} of the manifest is not in" in message


def test_a_file_of_the_manifest_that_lies_elsewhere_now_is_refused(settings, tmp_path, known, monkeypatch):
    place, identity = SPIKES + ".npy", ADA.id(SPIKES + ".npy")
    moved = place.replace(REVISION, "2026-01-01")
    monkeypatch.setitem(ADA.files, moved, ADA.files[place])
    monkeypatch.delitem(ADA.files, place)
    monkeypatch.setattr(ADA, "id", lambda of: identity if of == moved else Session.id(ADA, of))
    with pytest.raises(IblMissingError, match=f"the file {identity} of the manifest is not in"):
        fetch(settings(manifest="known.json"), tmp_path / "ours", known)


# A folder of ONE


def local(folder, *sessions, **keys):
    chosen = {"sessions": [dict(choice) for choice in sessions]} if sessions else {}
    return IblLocalSettings(kind="ibl_local", cache_dir=str(folder), **chosen, **keys)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with files and tables of ONE; no credentials."""
    monkeypatch.delenv("ALYX_TOKEN")
    write_cache(tmp_path / "folder", [BOB, CAT])
    return tmp_path / "folder"


def test_a_local_folder_gives_the_manifest_that_the_database_gives(folder, settings, tmp_path, monkeypatch):
    before = files_in(folder)
    ours = fetch(local(folder), folder)
    assert files_in(folder) == before
    assert not (folder / ".lock").exists()
    monkeypatch.setenv("ALYX_TOKEN", TOKEN)
    assert ours == fetch(settings({"eid": BOB.eid}, {"eid": CAT.eid}), tmp_path / "cache")


def test_a_local_folder_is_asked_by_pid_or_by_session_and_probe(folder, tmp_path):
    by_pid = fetch(local(folder, {"pid": BOB.pid("probe01")}), folder)
    assert by_pid == fetch(local(folder, {"eid": BOB.eid, "probe": "probe01"}), folder)
    assert [file.collection for file in by_pid.sessions[0].files if "spikes" in file.dataset] == [
        "alf/probe01/pykilosort"
    ] * 2


def test_a_local_folder_without_a_table_of_probes_goes_by_their_names(tmp_path):
    write_cache(tmp_path, [BOB], insertions=False, hashes=False)
    manifest = fetch(local(tmp_path), tmp_path)
    assert [(probe.pid, probe.name) for probe in manifest.sessions[0].probes] == [("", "probe00"), ("", "probe01")]
    content = BOB.files[SPIKES + ".npy"]
    assert hashlib.md5(content).hexdigest() in {file.md5 for file in manifest.sessions[0].files}
    message = told(IblMissingError, local(tmp_path, {"pid": BOB.pid("probe00")}), tmp_path)
    assert "has no table insertions.pqt to look it up in; give `eid` and `probe`" in message


def test_a_damaged_or_absent_local_file_is_told_which_one_alone_does_not(folder):
    path = folder / f"{BOB.folder}/{SPIKES}.npy"
    content = path.read_bytes()
    for damaged, part in (
        (content[:-1] + b"?", "has md5"),
        (content[:-1], f"has {len(content) - 1} bytes, expected {len(content)}"),
    ):
        path.write_bytes(damaged)
        message = told(IblChecksumError, local(folder), folder)
        assert message.startswith(f"{BOB.folder}/{SPIKES}.npy: {part}")
    path.unlink()
    message = told(IblMissingError, local(folder), folder)
    assert message.startswith(f"{BOB.folder}/{SPIKES}.npy: is in the tables of ONE, but not in the folder")


def test_what_a_local_folder_has_not_is_told(folder, tmp_path):
    for choice in ({"pid": ADA.pid("probe00")}, {"eid": ADA.eid}, {"eid": CAT.eid, "probe": "probe01"}):
        message = told(IblMissingError, local(folder, choice), folder)
        assert re.match(r"(probe|session) [0-9a-f-]{36}: (is not in|has no files of probe)", message)
    (tmp_path / "empty").mkdir()
    assert "there is no such folder" in told(IblMissingError, local(tmp_path / "no"), tmp_path / "no")
    assert not (tmp_path / "no").exists()
    message = told(IblAccessError, local(tmp_path / "empty"), tmp_path / "empty")
    assert "has no tables of ONE (sessions.pqt, datasets.pqt); make them" in message
    for table in ("sessions", "datasets"):
        (tmp_path / f"empty/{table}.pqt").write_bytes(b"half a table")
    assert "cannot be read; make them" in told(IblAccessError, local(tmp_path / "empty"), tmp_path / "empty")


def test_what_is_skipped_of_a_local_folder_names_no_path(folder, tmp_path):
    choices = [{"pid": BOB.pid("probe00")}, {"pid": ADA.pid("probe00")}, {"eid": ADA.eid}]
    (folder / f"{CAT.folder}/{SPIKES}.npy").unlink()
    manifest = fetch(local(folder, *choices, {"eid": CAT.eid}, continue_on_error=["missing"]), folder)
    assert [session.subject for session in manifest.sessions] == ["bob"]
    assert len(manifest.skipped) == 3
    write_manifest(tmp_path / "manifest.json", manifest)
    assert str(tmp_path) not in (tmp_path / "manifest.json").read_text()
    assert read_manifest(tmp_path / "manifest.json") == manifest
