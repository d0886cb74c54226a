"""The manifest: what it says is read back as it was, and a file that differs by one bit is refused."""

import hashlib
import json

import pytest

from ctdb.datasets.ibl.manifest import (
    FileRecord,
    Manifest,
    Probe,
    SessionFiles,
    read_manifest,
    verified,
    write_manifest,
)
from ctdb.errors import IblChecksumError, IblMissingError, IblPrepareError

CONTENT = b"spikes" * 1000
PATH = "lab/Subjects/mouse/2020-08-13/002/alf/probe00/pykilosort/#2024-05-06#/spikes.times.npy"
RECORD = FileRecord(
    dataset="spikes.times.npy",
    collection="alf/probe00/pykilosort",
    revision="2024-05-06",
    id="8c33abef-3d3e-4d42-9f27-445e9def08f9",
    path=PATH,
    size=len(CONTENT),
    md5=hashlib.md5(CONTENT).hexdigest(),
)
MANIFEST = Manifest(
    tag="2024_Q2",
    sessions=[
        SessionFiles(
            eid="8c33abef-3d3e-4d42-9f27-445e9def08f9",
            subject="Mäuschen",
            lab="lab",
            date="2020-08-13",
            number=2,
            probes=[Probe(pid="", name="probe00")],
            files=[RECORD],
        )
    ],
)


@pytest.fixture
def cache(tmp_path):
    path = tmp_path / "cache" / PATH
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return tmp_path / "cache"


def test_a_manifest_is_read_as_it_was_written_and_is_json_of_the_agreed_format(tmp_path):
    write_manifest(tmp_path / "a.json", MANIFEST)
    assert read_manifest(tmp_path / "a.json") == MANIFEST
    write_manifest(tmp_path / "b.json", read_manifest(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert list(content) == ["format", "tag", "sessions", "skipped"]
    assert content["format"] == "ctdb-ibl-1"
    assert list(content["sessions"][0]) == ["eid", "subject", "lab", "date", "number", "probes", "files"]
    assert content["sessions"][0]["files"][0] == {
        "dataset": "spikes.times.npy",
        "collection": "alf/probe00/pykilosort",
        "revision": "2024-05-06",
        "id": "8c33abef-3d3e-4d42-9f27-445e9def08f9",
        "path": PATH,
        "size": len(CONTENT),
        "md5": hashlib.md5(CONTENT).hexdigest(),
    }


def test_a_whole_file_is_found_and_any_other_refused(cache):
    assert verified(RECORD, cache) == cache / PATH
    for damaged, part in (
        (CONTENT[:-1], f"has {len(CONTENT) - 1} bytes in {cache}, expected {len(CONTENT)}"),
        (CONTENT[:-1] + b"S", f"expected {RECORD.md5}"),
    ):
        (cache / PATH).write_bytes(damaged)
        with pytest.raises(IblChecksumError) as caught:
            verified(RECORD, cache)
        assert str(caught.value).startswith(PATH)
        assert part in str(caught.value)
        assert "--forcerun ibl_fetch" in str(caught.value)
    (cache / PATH).unlink()
    with pytest.raises(IblMissingError, match="is not in the cache folder"):
        verified(RECORD, cache)
    (cache / PATH).mkdir()
    with pytest.raises(IblMissingError, match="is not in the cache folder"):
        verified(RECORD, cache)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda text: text[:-20], "Invalid JSON"),
        (lambda text: text.replace("ctdb-ibl-1", "ctdb-ibl-2"), "format"),
        (lambda text: text.replace(RECORD.md5, RECORD.md5[:-1]), "md5"),
        (lambda text: text.replace('"size": 6000', '"size": -1'), "size"),
        (lambda text: text.replace("2020-08-13", "13.8.2020", 1), "date"),
        (
            lambda text: text.replace(f'"{PATH}"', '"/etc/passwd"'),
            "path: Value error, expected a path inside of the cache",
        ),
        (lambda text: text.replace(f'"{PATH}"', '"lab/../../secret"'), "inside of the cache folder"),
        (lambda text: text.replace('"tag"', '"tags"'), "tags"),
    ],
)
def test_what_is_no_manifest_is_refused_by_its_place(change, part, tmp_path):
    path = tmp_path / "manifest.json"
    write_manifest(path, MANIFEST)
    text = path.read_text(encoding="utf-8")
    assert change(text) != text
    path.write_text(change(text), encoding="utf-8")
    with pytest.raises(IblPrepareError) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_not_there_or_not_text_is_told(tmp_path):
    with pytest.raises(IblMissingError, match=r"nowhere\.json: No such file"):
        read_manifest(tmp_path / "nowhere.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(IblPrepareError, match="UTF-8"):
        read_manifest(tmp_path / "bytes.json")
