"""Several sessions in one file: what is written, what is read back, and sessions that cannot share a model."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from pydantic import ValidationError

from ctdb.datasets import MultiSession, SpikeDataset, check_sessions, read, write
from ctdb.datasets.sessions import SessionsSettings
from ctdb.errors import DatasetError


@pytest.fixture
def sessions(make_dataset):
    """Three sessions that share a model and nothing else, not in the order of their names."""
    common = {"ext_input": 2, "bin_s": 0.02}
    monday = make_dataset(n_heldin=5, behavior=2, names={"behavior": ["x", "y"]}, seed=1, **common)
    friday = make_dataset(n_trials=3, n_bins=4, n_recon_bins=7, per_trial=True, provenance={"day": 5}, **common)
    tuesday = make_dataset(behavior=2, names={"behavior": ["x", "y"], "neurons": ["a"]}, seed=2, **common)
    for split in tuesday.splits.values():
        split.recon_data[0, :, 1] = split.encod_data[0, :, 1] = np.nan
    tuesday = replace(tuesday, missing_spikes=True, splits={name: tuesday[name] for name in ("train", "valid")})
    return MultiSession({"monday": monday, "friday_2": friday, "a-tuesday": tuesday})


def assert_same(first: SpikeDataset, second: SpikeDataset):
    assert list(first.splits) == list(second.splits)
    for name in first.splits:
        one, other = first[name].arrays(), second[name].arrays()
        assert list(one) == list(other)
        for key in one:
            assert one[key].dtype == other[key].dtype, key
            np.testing.assert_array_equal(one[key], other[key], err_msg=f"{name}_{key}")
    for key in ("bin_s", "names", "provenance", "missing_spikes", "signal"):
        assert getattr(first, key) == getattr(second, key), key


def refusal(dataset, where="there") -> str:
    with pytest.raises(DatasetError) as raised:
        check_sessions(dataset, where)
    return str(raised.value)


def with_session(dataset, name, **changed):
    return MultiSession({**dataset.sessions, name: replace(dataset.sessions[name], **changed)})


def test_sessions_are_read_back_exactly_in_their_order(sessions, tmp_path):
    write(tmp_path / "s.h5", sessions)
    found = read(tmp_path / "s.h5")
    assert isinstance(found, MultiSession)
    assert list(found.sessions) == ["monday", "friday_2", "a-tuesday"]
    for name, session in sessions.sessions.items():
        assert_same(found.sessions[name], session)


def test_equal_sessions_give_equal_bytes(sessions, tmp_path):
    write(tmp_path / "one.h5", sessions)
    turned = {
        name: replace(
            session, splits=dict(reversed(session.splits.items())), names=dict(reversed(session.names.items()))
        )
        for name, session in sessions.sessions.items()
    }
    write(tmp_path / "elsewhere" / "two.h5", MultiSession(turned))
    write(tmp_path / "three.h5", read(tmp_path / "one.h5"))
    one = (tmp_path / "one.h5").read_bytes()
    assert (tmp_path / "elsewhere" / "two.h5").read_bytes() == one
    assert (tmp_path / "three.h5").read_bytes() == one


def test_another_order_of_sessions_is_another_file(sessions, tmp_path):
    write(tmp_path / "one.h5", sessions)
    write(tmp_path / "two.h5", MultiSession(dict(reversed(sessions.sessions.items()))))
    assert (tmp_path / "one.h5").read_bytes() != (tmp_path / "two.h5").read_bytes()
    assert list(read(tmp_path / "two.h5").sessions) == ["a-tuesday", "friday_2", "monday"]


def test_keys_begin_with_the_session(sessions, tmp_path):
    write(tmp_path / "s.h5", sessions)
    with h5py.File(tmp_path / "s.h5") as file:
        assert set(file) == set(sessions.sessions)
        assert set(file.attrs) == {"format", "sessions"}
        assert set(file["a-tuesday"]) == {
            f"{split}_{name}"
            for split in ("train", "valid")
            for name in ("encod_data", "recon_data", "ext_input", "behavior", "truth")
        }
        np.testing.assert_array_equal(
            file["friday_2/test_recon_data"][()], sessions.sessions["friday_2"]["test"].recon_data
        )
        own = json.loads(file.attrs["sessions"])
        assert {name: one["heldin"] for name, one in own.items()} == {"monday": 5, "friday_2": 4, "a-tuesday": 4}


def test_one_session_alone_is_still_a_file_of_sessions(sessions, tmp_path):
    write(tmp_path / "s.h5", MultiSession({"monday": sessions.sessions["monday"]}))
    found = read(tmp_path / "s.h5")
    assert isinstance(found, MultiSession)
    assert_same(found.sessions["monday"], sessions.sessions["monday"])


def test_bin_width_and_report_split_are_those_of_all_sessions(sessions):
    assert sessions.bin_s == 0.02
    assert sessions.report_split == "valid"  # one session has no test trials
    assert MultiSession({name: sessions.sessions[name] for name in ("monday", "friday_2")}).report_split == "test"


def test_good_sessions_are_given_back(sessions):
    assert check_sessions(sessions, "there") is sessions


def test_sessions_of_unknown_bin_width_agree(sessions):
    check_sessions(MultiSession({name: replace(one, bin_s=None) for name, one in sessions.sessions.items()}), "there")


@pytest.mark.parametrize("bin_s", [0.01, None])
def test_another_bin_width_is_refused(sessions, bin_s):
    found = refusal(with_session(sessions, "a-tuesday", bin_s=bin_s))
    assert f"there: session 'a-tuesday' has {bin_s} as its bin width (s) but session 'monday' has 0.02" in found
    assert "must agree in `bin_s`: prepare them alike, or fit them apart" in found


@pytest.mark.parametrize("n_inputs", [1, 3, 0])
def test_other_external_inputs_are_refused(sessions, make_dataset, n_inputs):
    options = {"ext_input": n_inputs} if n_inputs else {}
    other = make_dataset(bin_s=0.02, **options)
    found = refusal(MultiSession({**sessions.sessions, "friday_2": other}))
    assert f"session 'friday_2' has {n_inputs} as its external input channels but session 'monday' has 2" in found
    assert "must agree in `ext_input`" in found


@pytest.mark.parametrize(
    ("n_channels", "names"), [(1, ["x"]), (3, ["x", "y", "z"]), (2, ["y", "x"]), (2, None)], ids=str
)
def test_other_behaviour_channels_are_refused(sessions, make_dataset, n_channels, names):
    other = make_dataset(bin_s=0.02, ext_input=2, behavior=n_channels, names={"behavior": names} if names else {})
    found = refusal(MultiSession({**sessions.sessions, "friday_2": other}))
    assert "there: sessions differ in their behaviour (number, names)" in found
    assert str((n_channels, tuple(names or ()))) in found
    assert "give all the same channels" in found


def test_a_session_without_behaviour_joins_those_with_it(sessions):
    assert [one.n_behaviors for one in check_sessions(sessions, "there").sessions.values()] == [2, 0, 2]


@pytest.mark.parametrize("name", ["", "a/b", "/a", "train", "valid", "test", "train_2", "test_day_1", "."])
def test_a_name_that_would_be_mistaken_is_refused(sessions, name, tmp_path):
    dataset = MultiSession({"monday": sessions.sessions["monday"], name: sessions.sessions["friday_2"]})
    assert f"there: {name!r} cannot name a session" in refusal(dataset)
    with pytest.raises(DatasetError, match="cannot name a session"):
        write(tmp_path / "s.h5", dataset)
    assert not (tmp_path / "s.h5").exists()


@pytest.mark.parametrize("name", ["trainer", "day_train", "2013-10-03", "Größe", "with space"])
def test_other_names_are_written_and_read_back(sessions, name, tmp_path):
    write(tmp_path / "s.h5", MultiSession({name: sessions.sessions["monday"]}))
    assert list(read(tmp_path / "s.h5").sessions) == [name]


def test_no_session_is_refused():
    assert refusal(MultiSession({})) == "there: there is no session; name at least one"


def test_a_session_that_is_not_whole_is_named(sessions):
    sessions.sessions["friday_2"]["valid"].recon_data[0, 5, 5] = -1
    assert "there: session 'friday_2': valid_recon_data holds a negative count, -1," in refusal(sessions)


def test_missing_spikes_of_one_session_are_none_of_another(sessions):
    sessions.sessions["monday"]["train"].recon_data[0, 0, 6] = np.nan
    assert "there: session 'monday': train_recon_data holds nan" in refusal(sessions)


def test_a_key_that_a_session_lacks_is_named_with_the_session(sessions, tmp_path):
    path = tmp_path / "s.h5"
    write(path, sessions)
    with h5py.File(path, "r+") as file:
        del file["friday_2/valid_recon_data"]
    with pytest.raises(DatasetError, match=r"s\.h5: friday_2: no key 'valid_recon_data'"):
        read(path)


def test_settings_name_each_session_once():
    assert SessionsSettings(kind="sessions", datasets=["a", "b"]).datasets == ["a", "b"]
    with pytest.raises(ValidationError, match="each session is listed once"):
        SessionsSettings(kind="sessions", datasets=["a", "b", "a"])
    with pytest.raises(ValidationError, match="at least 1 item"):
        SessionsSettings(kind="sessions", datasets=[])


def test_sessions_of_different_signals_are_refused(sessions):
    other = replace(sessions.sessions["monday"], signal="continuous")
    assert "must agree in `signal`" in refusal(MultiSession({**sessions.sessions, "other": other}))
