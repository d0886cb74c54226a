"""The synthetic session: what the ONE API makes of it, that it is reproducible, and that its tuning is in its spikes."""

import logging
import warnings

import numpy as np
import pandas as pd
import pytest

from ctdb.datasets.ibl.synthetic import SyntheticSettings, true_tuning, write_session
from ibl_recording import manifest_of, md5

SMALL = SyntheticSettings(n_trials=40, n_units=8)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    write_session(folder, SMALL)
    return folder


@pytest.fixture
def one(cache, caplog):
    """The ONE API on the cache; whatever it warns of or logs is an error, but pandas' news about its own code."""
    from one.api import One

    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="The (copy|inplace) keyword")
        yield One(cache_dir=cache, mode="local")
    assert not caplog.records


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_finds_the_session_by_what_it_is_searched_for(one):
    (eid,) = one.search(subject="SYN_001", datasets=["spikes.times.npy"])
    assert str(eid) == SMALL.eid
    assert str(one.to_eid("2024-01-15_1_SYN_001")) == SMALL.eid
    assert sorted(one.list_collections(SMALL.eid)) == ["alf", "alf/probe00/pykilosort", "alf/probe01/pykilosort"]
    assert one.list_revisions(SMALL.eid, collection="alf/probe00/pykilosort") == ["2024-05-06"]


def test_one_loads_the_objects_with_the_types_of_real_files(one):
    spikes = one.load_object(SMALL.eid, "spikes", collection="alf/probe01/pykilosort", revision="2024-05-06")
    assert (spikes.times.dtype, spikes.clusters.dtype) == (np.float64, np.int32)
    assert len(spikes.times) == len(spikes.clusters) > 1000
    clusters = one.load_object(SMALL.eid, "clusters", collection="alf/probe01/pykilosort")
    assert (clusters.channels.dtype, clusters.depths.dtype) == (np.int64, np.float32)
    assert len(clusters.metrics) == SMALL.n_units - 1 < len(clusters.channels) == len(clusters.uuids)
    channels = one.load_object(SMALL.eid, "channels", collection="alf/probe01/pykilosort")
    assert channels["brainLocationIds_ccf_2017"].dtype == np.int64
    trials = one.load_object(SMALL.eid, "trials", collection="alf")
    assert trials.intervals.shape == (40, 2)
    assert {value.dtype for value in trials.values()} == {np.dtype(np.float64)}
    wheel = one.load_object(SMALL.eid, "wheel", collection="alf")
    assert (np.diff(wheel.timestamps) > 0).all()
    assert len(np.unique(np.round(np.diff(wheel.timestamps), 6))) > 100  # irregular


def test_one_checks_the_hashes_in_the_tables(one):
    files, records = one.load_datasets(
        SMALL.eid,
        ["spikes.times.npy", "clusters.metrics.pqt"],
        collections="alf/probe00/pykilosort",
        download_only=True,
    )
    for path, record in zip(files, records, strict=True):
        assert (path.stat().st_size, md5(path)) == (record["file_size"], record["hash"])


def test_equal_settings_write_equal_bytes_and_another_seed_does_not(cache, tmp_path):
    for name, settings in (("again", SMALL), ("other", SMALL.model_copy(update={"seed": 1}))):
        write_session(tmp_path / name, settings)
    first, again, other = contents(cache), contents(tmp_path / "again"), contents(tmp_path / "other")
    assert first == again
    assert first.keys() == other.keys()
    same = {path.rpartition("/")[2] for path in first if first[path] == other[path]}
    assert same == {"clusters.channels.npy", "clusters.depths.npy", "channels.brainLocationIds_ccf_2017.npy"}


def test_sessions_come_beside_each_other_and_are_replaced_by_themselves(tmp_path):
    second = SMALL.model_copy(update={"number": 2, "seed": 3})
    for settings in (SMALL, second, SMALL):
        write_session(tmp_path, settings)
    sessions = {one["eid"]: one for one in manifest_of(tmp_path)["sessions"]}
    assert sessions.keys() == {SMALL.eid, second.eid}
    for settings in (SMALL, second):
        assert [probe["pid"] for probe in sessions[settings.eid]["probes"]] == sorted(
            settings.pid(name) for name in ("probe00", "probe01")
        )
        for file in sessions[settings.eid]["files"]:
            assert md5(tmp_path / file["path"]) == file["md5"]
    ids = [file["id"] for one in sessions.values() for file in one["files"]]
    assert len(ids) == len(set(ids))


def test_trials_are_like_real_ones(tmp_path):
    settings = SyntheticSettings(n_trials=2000, n_units=4, probes=1)
    write_session(tmp_path, settings)
    trials = pd.read_parquet(tmp_path / settings.path / "alf/_ibl_trials.table.pqt")
    assert list(trials.columns)[:2] == ["intervals_0", "intervals_1"]
    assert (trials.intervals_0[1:].to_numpy() >= trials.intervals_1[:-1].to_numpy()).all()
    assert set(trials.probabilityLeft) == {0.2, 0.5, 0.8}
    assert (trials.contrastLeft.isna() ^ trials.contrastRight.isna()).all()
    no_go = trials.choice == 0
    assert trials.firstMovement_times.isna().equals(no_go)
    assert no_go.mean() == pytest.approx(0.02, abs=0.01)
    assert trials.stimOn_times.isna().mean() == pytest.approx(0.02, abs=0.01)
    reaction = trials.firstMovement_times - trials.goCue_times
    assert (reaction < 0.07).mean() == pytest.approx(0.03, abs=0.015)
    left = trials.contrastLeft.notna()
    assert left[trials.probabilityLeft == 0.8].mean() == pytest.approx(0.8, abs=0.05)
    easy = trials[[*["contrastLeft", "contrastRight"]]].max(axis=1) == 1
    assert (trials.feedbackType == 1)[easy].mean() > 0.9 > 0.8 > (trials.feedbackType == 1)[~easy].mean()
    right_choice = trials.choice == -1
    assert ((right_choice == ~left) == (trials.feedbackType == 1))[~no_go].all()


def test_rates_follow_the_true_tuning(tmp_path):
    """Mean counts while choice, stimulus and wheel are all at rest, and the change when the wheel turns."""
    settings = SyntheticSettings(n_trials=400, n_units=12, probes=1, seed=2)
    write_session(tmp_path, settings)
    folder = tmp_path / settings.path / "alf"
    trials = pd.read_parquet(folder / "_ibl_trials.table.pqt")
    sorting = folder / "probe00/pykilosort/#2024-05-06#"
    times, clusters = np.load(sorting / "spikes.times.npy"), np.load(sorting / "spikes.clusters.npy")
    assert (np.diff(times) >= 0).all()
    tuning = true_tuning(settings)["probe00"]
    trials = trials[(trials.choice != 0) & trials.stimOn_times.notna()]

    def rates(begin, end):
        n = np.array([np.bincount(clusters[slice(*np.searchsorted(times, (a, b)))], minlength=12) for a, b in zip(begin, end, strict=True)])  # fmt: skip
        return n.sum(0) / (end - begin).sum()

    rest = rates(trials.intervals_0, trials.stimOn_times - 0.01)
    good = tuning.base_rate_hz > 3
    np.testing.assert_allclose(rest[good], tuning.base_rate_hz[good], rtol=0.2)
    assert rest[-1] == 0 == tuning.base_rate_hz[-1]
    begin, end = trials.stimOn_times + 0.01, trials.firstMovement_times - 0.11  # only the stimulus drives
    long = end - begin > 0.02
    right = trials.contrastRight.notna()
    strong = np.flatnonzero(tuning.base_rate_hz > 5)
    gain = [np.log(rates(begin[long & side], end[long & side])[strong]) for side in (right, ~right)]
    np.testing.assert_allclose((gain[0] - gain[1]) / 2, tuning.stimulus[strong], atol=0.25)
    moving = [rates(trials.firstMovement_times[side], trials.response_times[side]) for side in (trials.choice == -1, trials.choice == 1)]  # fmt: skip
    sign = np.log(moving[0][strong] / moving[1][strong]) / 2
    together = tuning.choice + tuning.stimulus + 0.8 * tuning.wheel
    assert np.corrcoef(sign, together[strong])[0, 1] > 0.9
