"""The section `recordings` of the configuration."""

import pytest

from ctdb.config import data_path, load
from ctdb.errors import ConfigError

PID, EID = "f475ae14-9415-453e-b800-1480ea1c868d", "8c33abef-3d3e-4d42-9f27-445e9def08f9"
REST = """
datasets:
  flow: {kind: lorenz}
models:
  lds: {kind: lds}
fits:
  - {datasets: [flow], models: [lds]}
"""


@pytest.fixture
def recording(tmp_path):
    """Settings of one recording, as a plan has them."""

    def check(entry: str) -> dict:
        path = tmp_path / "config.yaml"
        path.write_text(f"recordings:\n  mine: {entry}\n{REST}")
        return load(path)["recordings"]["mine"]

    return check


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            f"{{kind: ibl, sessions: [{{pid: {PID}}}, {{eid: {EID}, probe: probe00}}, {{eid: {EID}}}]}}",
            {
                "sessions": [
                    {"pid": PID, "eid": None, "probe": None},
                    {"pid": None, "eid": EID, "probe": "probe00"},
                    {"pid": None, "eid": EID, "probe": None},
                ],
                "sorter": "pykilosort",
                "revision": "2024-05-06",
                "trials_revision": None,
                "base_url": "https://openalyx.internationalbrainlab.org",
                "data_url": "https://ibl.flatironinstitute.org/public",
                "cache_dir": "$CTDB_IBL_CACHE",
                "n_parallel": 4,
                "continue_on_error": [],
                "expect_md5": {},
            },
        ),
        ("{kind: ibl, query: {region: MO, tag: T}}", {"query": {"tag": "T", "region": "MO", "subject": None}}),
        (
            "{kind: ibl, query: {region: MO}, revision: 2025-03-03, trials_revision: 2025-03-04}",
            {"revision": "2025-03-03", "trials_revision": "2025-03-04"},
        ),
        (
            "{kind: ibl, manifest: m.json, base_url: 'http://a.org/'}",
            {"manifest": "m.json", "base_url": "http://a.org"},
        ),
        ("{kind: ibl_local, cache_dir: here, sorter: iblsorter, revision: ''}", {"sessions": None, "revision": ""}),
        ("{kind: ibl_synthetic, n_trials: 30}", {"n_trials": 30, "n_units": 30, "probes": 2, "seed": 0}),
    ],
)
def test_a_recording_is_read_with_its_defaults(entry, expected, recording):
    settings = recording(entry)
    assert {key: settings[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{kind: ibll}", "recordings.mine.kind: no kind is called 'ibll'; did you mean 'ibl'?"),
        ("{kind: ibl}", "recordings.mine: give one of `sessions`, `query` and `manifest`"),
        (f"{{kind: ibl, sessions: [{{pid: {PID}}}], query: {{tag: T}}}}", "give one of `sessions`, `query` and"),
        ("{kind: ibl, sessions: []}", "recordings.mine.sessions: "),
        (f"{{kind: ibl, sessions: [{{pid: {PID}, eid: {EID}}}]}}", "recordings.mine.sessions[0]: give `pid`, or `eid`"),
        (f"{{kind: ibl, sessions: [{{pid: {PID}, probe: probe00}}]}}", "recordings.mine.sessions[0]: give `pid`"),
        ("{kind: ibl, sessions: [{probe: probe00}]}", "recordings.mine.sessions[0]: give `pid`, or `eid`"),
        ("{kind: ibl, sessions: [{pid: 12}]}", "recordings.mine.sessions[0].pid: "),
        (f"{{kind: ibl, sessions: [{{pid: {PID[:-1]}}}]}}", "recordings.mine.sessions[0].pid: "),
        (f"{{kind: ibl, manifest: m.json, expect_md5: {{a: {'b' * 32}}}}}", "`expect_md5`: a manifest says itself"),
        ("{kind: ibl, query: {}}", "recordings.mine.query: give at least one of `tag`, `region` and `subject`"),
        ("{kind: ibl, query: {regoin: MO}}", "recordings.mine.query.regoin: unknown key; did you mean 'region'?"),
        ("{kind: ibl, query: {tag: T}, sorter: kilosort}", "recordings.mine.sorter: "),
        ("{kind: ibl, query: {tag: T}, n_parallel: 17}", "recordings.mine.n_parallel: "),
        ("{kind: ibl, query: {tag: T}, n_parallel: 0}", "recordings.mine.n_parallel: "),
        ("{kind: ibl, query: {tag: T}, timeout_s: 0.0}", "recordings.mine.timeout_s: "),
        ("{kind: ibl, query: {tag: T}, continue_on_error: [access]}", "recordings.mine.continue_on_error[0]: "),
        ("{kind: ibl, query: {tag: T}, expect_md5: {a.npy: 123}}", "recordings.mine.expect_md5"),
        ("{kind: ibl, query: {tag: T}, base_url: openalyx.org}", "recordings.mine.base_url: "),
        ("{kind: ibl, query: {tag: T}, base_url: 'https://me:word@a.org'}", "credentials do not belong in an address"),
        ("{kind: ibl, query: {tag: T}, password: word}", "recordings.mine.password: unknown key"),
        ("{kind: ibl_local}", "recordings.mine.cache_dir: missing"),
        ("{kind: ibl_local, cache_dir: here, query: {tag: T}}", "recordings.mine.query: unknown key"),
        ("{kind: ibl_synthetic, n_trials: 5}", "recordings.mine.n_trials: "),
    ],
)
def test_what_is_wrong_with_a_recording_is_told_by_its_path(entry, message, recording):
    with pytest.raises(ConfigError) as caught:
        recording(entry)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2
    assert "me:word" not in str(caught.value)


def test_names_of_recordings_name_files(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "recordings:\n  a b: {kind: ibl_synthetic}\n  One: {kind: ibl_synthetic}\n  one: {kind: ibl_synthetic}\n" + REST
    )
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "config.yaml")
    assert "recordings.a b: names are made of" in str(caught.value)
    assert "recordings.one: differs from 'One' in case only" in str(caught.value)


def test_the_cache_folder_has_a_default_and_follows_the_environment(monkeypatch):
    monkeypatch.delenv("CTDB_IBL_CACHE", raising=False)
    assert str(data_path("$CTDB_IBL_CACHE")) == "../ibl_cache"
    assert str(data_path("${CTDB_IBL_CACHE}/public")) == "../ibl_cache/public"
    monkeypatch.setenv("CTDB_IBL_CACHE", "/scratch/ibl")
    assert str(data_path("$CTDB_IBL_CACHE")) == "/scratch/ibl"
